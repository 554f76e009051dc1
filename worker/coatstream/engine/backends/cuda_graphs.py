"""CUDA graphs: a network's kernels for one batch size, launched at once instead of one by one."""

import structlog
import torch
from torch import Tensor, nn

from coatstream.errors import first_line

Outputs = tuple[Tensor, ...]


class GraphedNetwork(nn.Module):
    """A network with a CUDA graph for each size that it was called with. Called by one thread at a time, on one stream.

    Not torch.compile's own graphs (mode="reduce-overhead"): those belong to the thread that made them, and fail in
    others (pytorch issue 123177), while here warm-up and serving are on different ones.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._graphs: dict[int, _Graph | None] = {}  # None: this size cannot be captured

    def forward(self, pixels: Tensor) -> Outputs:
        """uint8 [size, height, width, 3] on a CUDA device -> the network's outputs, in memory of their own."""
        size = len(pixels)
        if size not in self._graphs:
            outputs: Outputs = self.network(pixels)  # compiles, and sets up libraries: a capture must not
            self._graphs[size] = _captured(self.network, pixels)
            return outputs
        graph = self._graphs[size]
        return self.network(pixels) if graph is None else graph.run(pixels)


class _Graph:
    """Kernels between two fixed places in memory."""

    def __init__(self, network: nn.Module, pixels: Tensor) -> None:
        self._pixels = pixels.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # other threads may copy meanwhile
            self._outputs: Outputs = network(self._pixels)

    def run(self, pixels: Tensor) -> Outputs:
        """The outputs are copied: the next run overwrites them, and results travel home while it computes."""
        self._pixels.copy_(pixels)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)


def _captured(network: nn.Module, pixels: Tensor) -> _Graph | None:
    try:
        return _Graph(network, pixels)
    except RuntimeError as error:
        structlog.get_logger("engine").warning("runs without a CUDA graph", batch=len(pixels), why=first_line(error))
        return None
