"""The compile engine: a network through torch.compile, one graph per prepared batch size, none made while it serves.

Which network that is, and what the graphs compute, is not its business.
"""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend
from torch.fx import GraphModule

from coatstream.engine.backends.cuda_graphs import GraphedNetwork
from coatstream.engine.backends.pytorch import DTYPES, TorchEngine, device_of, eager_network
from coatstream.engine.cache import expanded
from coatstream.engine.model import coat
from coatstream.engine.model.classifier import TimmClassifier
from coatstream.engine.protocol import NotHere, power_sizes
from coatstream.errors import EngineError, first_line
from coatstream.settings.model import BatchSettings, ModelSettings

Outputs = tuple[Tensor, ...]
Compiler = Callable[[GraphModule, list[Tensor]], Callable[..., Any]]

_FOLDER: Final = "compiled"
_NO_COMPILER: Final = ("InvalidCxxCompiler", "Failed to find C compiler")  # of inductor on a CPU, of Triton on a GPU

_log = structlog.get_logger("engine")


def inductor(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """torch's own compiler, as it is. Its `freezing` (weights become constants, packed for oneDNN) makes nothing faster
    here, and each size would hold weights of its own.
    """
    compiler: Any = lookup_backend("inductor")
    run: Callable[..., Any] = compiler(graph, inputs)
    return run


class CompiledNetwork(nn.Module):
    """A network, compiled at the first call of each size, until it is sealed.

    From then on a call that fits none of the graphs is a recompilation: counted, logged, and run without the compiler,
    since half a minute of compiling would hold up every frame. Dynamo asks for a graph whenever one of its guards
    fails: a batch of another size or layout, but also another number of threads, or gradients switched on.
    """

    def __init__(self, network: nn.Module, sizes: tuple[int, ...], *, compiler: Compiler = inductor) -> None:
        super().__init__()
        self.network = network
        self.recompilations = 0
        self._compiler = compiler
        self._sealed = False
        self._lock = threading.RLock()  # for what follows, and only one thread compiles
        self._compiled: set[int] = set()
        self._runs = {size: self._run(size) for size in sizes}

    def _run(self, size: int) -> Callable[[Tensor], Outputs]:
        """The network for batches of this size, in a function with code of its own: Dynamo keeps graphs by code, looks
        through all of one code's, and gives up after eight.
        """

        network = self.network

        def forward(pixels: Tensor) -> Outputs:
            outputs: Outputs = network(pixels)
            return outputs

        forward.__code__ = forward.__code__.replace(co_name=f"batch_of_{size}")
        return torch.compile(forward, backend=self._backend, dynamic=False)

    def forward(self, pixels: Tensor) -> Outputs:
        """uint8 [size, height, width, 3] -> the network's outputs. Raises EngineError where it cannot be compiled."""
        size = len(pixels)
        pixels = pixels.flatten().view(pixels.shape)  # one picture may have any stride between pictures; guards look
        return self._runs[size](pixels) if size in self._compiled else self._first_run(size, pixels)

    def seal(self) -> None:
        """Serving begins: all sizes have been run."""
        self._sealed = True

    def _first_run(self, size: int, pixels: Tensor) -> Outputs:
        with self._lock:
            if size in self._compiled:  # by another thread, in the meantime
                return self._runs[size](pixels)
            started = time.monotonic()
            _log.info("compiling", batch=size, number=len(self._compiled) + 1, of=len(self._runs))
            try:
                outputs = self._runs[size](pixels)
            except Exception as error:  # of Dynamo, of inductor, of a compiler: they have no common base
                raise _trouble(size, error) from None
            self._compiled.add(size)
            _log.info("compiled", batch=size, seconds=round(time.monotonic() - started, 1))
            return outputs

    def _backend(self, graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        """Dynamo has traced a graph that it did not have."""
        if not self._sealed:
            return self._compiler(graph, inputs)
        with self._lock:
            self.recompilations += 1
        _log.warning("a batch did not fit its compiled graph and runs uncompiled", recompilations=self.recompilations)
        return graph.forward


def _trouble(size: int, error: Exception) -> EngineError:
    cause: Exception = getattr(error, "inner_exception", error)  # Dynamo's wrapper names the backend first
    if any(words in f"{type(cause).__name__} {cause}" for words in _NO_COMPILER):
        return NotHere(
            "model.engine = compile needs a C++ compiler, and there is none: install g++, or name yours in CXX"
        )
    return EngineError(f"torch.compile fails for a batch of {size}: {first_line(cause)}")


class CompiledEngine(TorchEngine):
    """A TorchEngine whose network is compiled in warm_up, for powers of two unless `batch.prepared` lists others."""

    def __init__(
        self,
        classifier: TimmClassifier,
        network: nn.Module,
        *,
        precision: str,
        model: ModelSettings,
        batch: BatchSettings,
        compiler: Compiler = inductor,
    ) -> None:
        """Raises EngineError."""
        sizes = batch.prepared or power_sizes(batch.max_size)
        self._compiled = CompiledNetwork(network, sizes, compiler=compiler)
        graphed = device_of(model.device).type == "cuda"
        super().__init__(
            classifier,
            GraphedNetwork(self._compiled) if graphed else self._compiled,
            engine="compile",
            precision=precision,
            model=model,
            batch=batch.model_copy(update={"prepared": sizes}),
        )

    def warm_up(self) -> None:
        """Compile what is not compiled yet, minutes for a large model. Raises EngineError."""
        for size in self.prepared:
            self.try_out(size)
        self._compiled.seal()

    @property
    def recompilations(self) -> int:
        return self._compiled.recompilations


def load_compiled_engine(
    classifier: TimmClassifier, model: ModelSettings, batch: BatchSettings, *, precision: str
) -> CompiledEngine:
    """The fused network where the model is a CoaT, else timm's own. Raises EngineError."""
    _prepare_compiler(model)
    network: nn.Module
    if coat.is_coat(classifier.module):
        network = coat.fused_network(classifier, dtype=DTYPES[precision], packed=False, embeddings=model.embeddings)
    else:
        network = eager_network(classifier, model, precision, device_of(model.device))
    return CompiledEngine(classifier, network, precision=precision, model=model, batch=batch)


def _prepare_compiler(model: ModelSettings) -> None:
    """Inductor's settings for this process. What it compiled it keeps in a folder, safe against two processes at once,
    and the next start is quicker. The user's own choices come first; without a cache of ours torch has one in /tmp.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no CUDA
    if device_of(model.device).type == "cpu":
        os.environ.setdefault("TORCH_WARM_POOL", "0")  # a process with torch in it that only Triton has a use for
    if model.cache is None or not _is_torchs_own(os.environ.get("TORCHINDUCTOR_CACHE_DIR")):
        return
    try:
        folder = expanded(model.cache) / _FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("compiled graphs are not kept", folder=str(model.cache), why=error.strerror)
    else:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _is_torchs_own(folder: str | None) -> bool:
    """Whether it is torch's default, which torch writes into the variable when timm is imported at the latest."""
    return folder is None or folder.startswith(f"{tempfile.gettempdir()}/torchinductor_")
