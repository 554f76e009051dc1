"""Staging: how a batch of pictures reaches the device, and its results come back. Knows nothing of what is computed."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from coatstream.engine.protocol import padded
from coatstream.frames.frame import Pixels

# uint8 [size, height, width, 3] on the device -> tensors [size, ...] there
Compute = Callable[[Tensor], Sequence[Tensor]]

_CUDA_STREAMS: Final = 2


class Staging(Protocol):
    """Called from several threads at once."""

    def run(self, compute: Compute, pixels: Pixels, size: int) -> list[NDArray[Any]]:
        """The rows of `compute`'s results that belong to `pixels`, which are padded to `size`; bytes travel."""


def staging(device: torch.device, largest: tuple[int, int, int, int]) -> Staging:
    """The way to this device and back. `largest`: the largest batch's shape."""
    return CudaStaging(device, largest) if device.type == "cuda" else PlainStaging(device)


def callers(device: torch.device) -> int:
    """Batches that a GPU should have at once. On CUDA two: while one computes, the next is copied there, and they
    compute in turn; more only wait. Apple's has no pinned memory, nothing to overlap.
    """
    return _CUDA_STREAMS if device.type == "cuda" else 1


class PlainStaging:
    """To a CPU, where nothing travels, and to an Apple GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def run(self, compute: Compute, pixels: Pixels, size: int) -> list[NDArray[Any]]:
        batch = torch.from_numpy(padded(pixels, size)).to(self._device)
        return [result[: len(pixels)].cpu().numpy() for result in compute(batch)]


class CudaStaging:
    """To a CUDA device through pinned memory, each calling thread on a copy stream of its own.

    All compute in turn on one stream: two batches at once would only slow each other down, and twice the memory. The
    turn is over when all kernels of a batch are queued, not when they have run, so the device does not wait for Python.
    """

    def __init__(self, device: torch.device, largest: tuple[int, int, int, int]) -> None:
        self._device = device
        self._largest = largest
        self._computing = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._turn = threading.Lock()
        self._thread = threading.local()  # .slot
        torch.cuda.synchronize(device)  # the weights went there on another stream

    def run(self, compute: Compute, pixels: Pixels, size: int) -> list[NDArray[Any]]:
        slot = self._slot()
        batch = slot.upload(pixels, size)
        with self._turn, torch.cuda.stream(self._computing):
            self._computing.wait_event(slot.uploaded)
            results = compute(batch)
            slot.computed.record(self._computing)
        return slot.download(results, len(pixels))

    def _slot(self) -> "_Slot":
        if not hasattr(self._thread, "slot"):
            self._thread.slot = _Slot(self._device, self._largest)
        slot: _Slot = self._thread.slot
        return slot


class _Slot:
    """One thread's copies. Its buffers are used anew with each batch: `download` returns when nothing reads them."""

    def __init__(self, device: torch.device, largest: tuple[int, int, int, int]) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._here = torch.empty(largest, dtype=torch.uint8, pin_memory=True)
        self._there = torch.empty(largest, dtype=torch.uint8, device=device)
        self._results: dict[tuple[int, torch.Size], Tensor] = {}  # (which one, its shape) -> pinned memory for it
        self.uploaded = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # Blocking: the thread sleeps. Spinning would take a decoder's core.
        self._downloaded = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def upload(self, pixels: Pixels, size: int) -> Tensor:
        here, there = self._here[:size], self._there[:size]
        here.numpy()[: len(pixels)] = pixels
        here[len(pixels) :] = 0
        with torch.cuda.stream(self._stream):
            there.copy_(here, non_blocking=True)
            self.uploaded.record(self._stream)
        return there

    def download(self, results: Sequence[Tensor], count: int) -> list[NDArray[Any]]:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self.computed)
            copies = [self._pinned(which, result) for which, result in enumerate(results)]
            for copy, result in zip(copies, results, strict=True):
                copy.copy_(result, non_blocking=True)
            self._downloaded.record(self._stream)
        self._downloaded.synchronize()
        return [copy[:count].numpy().copy() for copy in copies]

    def _pinned(self, which: int, result: Tensor) -> Tensor:
        key = which, result.shape
        if key not in self._results:
            self._results[key] = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        return self._results[key]
