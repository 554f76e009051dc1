"""What `coatstream bench engine` runs in processes of their own: an engine in one precision, the machine's limits."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from coatstream.engine.capabilities import precisions
from coatstream.engine.cores import usable_cores, use_cores
from coatstream.engine.loading import load_engine
from coatstream.engine.memory import tune_allocator
from coatstream.engine.protocol import Engine
from coatstream.engine.timing import call_seconds, rate
from coatstream.errors import EngineError
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.model import ModelInfo
from coatstream.settings.model import BatchSettings, ModelSettings

ALL_CLASSES: Final = 1_000_000  # more than any model has
PARITY_BATCH: Final = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model uses the cores: `streams` batches at once, each on `threads` cores."""

    streams: int
    threads: int

    def __str__(self) -> str:
        return f"{self.streams}x{self.threads}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One slice of measuring: frames a second, and how many cores the process had in that time."""

    rate: float
    cores: float


class Contender:
    """One engine. Called in its own process; `load` comes before `rate`."""

    def __init__(self, model: ModelSettings, sizes: tuple[int, ...], *, tuned: bool) -> None:
        """`tuned`: with the allocator set as a worker sets it."""
        if tuned:
            tune_allocator()
        self._model = model
        self._sizes = sizes
        self._loaded: dict[Layout, tuple[Engine, ThreadPoolExecutor]] = {}

    def load(self, layout: Layout) -> ModelInfo:
        """Make ready for every size. Raises EngineError, also where another engine than the one asked for would run."""
        if layout in self._loaded:
            return self._loaded[layout][0].info
        engine = self._engine(layout, self._sizes, top_k=self._model.top_k)
        engine.warm_up()
        if (engine.info.engine, engine.info.precision) != (self._model.engine, self._model.precision):
            raise EngineError(f"it does not run this model here, {engine.info.engine} {engine.info.precision} would")
        self._loaded[layout] = engine, ThreadPoolExecutor(layout.streams, "bench")
        return engine.info

    def _engine(self, layout: Layout, sizes: tuple[int, ...], *, top_k: int) -> Engine:
        model = self._model.model_copy(update={"streams": layout.streams, "threads": layout.threads, "top_k": top_k})
        return load_engine(model, BatchSettings(max_size=sizes[-1], prepared=sizes))

    def spec(self, layout: Layout) -> InputSpec:
        return self._loaded[layout][0].spec

    def gflop(self, layout: Layout) -> float:
        """Floating-point operations of one picture, in 1e9; of the eager engine, whose operations torch sees."""
        return gflop_per_frame(self._loaded[layout][0])

    def rate(self, layout: Layout, size: int, seconds: float) -> Sample:
        """Frames a second of all streams together over `seconds`, and at least one batch each.

        `classify` gives its scores as arrays on the host, so that a GPU has finished when it returns.
        """
        engine, pool = self._loaded[layout]
        return _sample(lambda: rate(engine, size, seconds, pool=pool))

    def probabilities(self, pictures: Pixels) -> NDArray[np.float32]:
        """float32 [n, classes]: of uint8 [n, height, width, 3] pictures at the model's size."""
        engine = self._engine(Layout(1, usable_cores()), (PARITY_BATCH,), top_k=ALL_CLASSES)
        engine.warm_up()
        rows = []
        for first in range(0, len(pictures), PARITY_BATCH):
            scores = engine.classify(pictures[first : first + PARITY_BATCH])
            row = np.zeros((len(scores.indices), len(engine.labels)), np.float32)
            np.put_along_axis(row, np.asarray(scores.indices, np.int64), np.asarray(scores.values, np.float32), axis=1)
            rows.append(row)
        return np.concatenate(rows)


def _sample(measure: Callable[[], float]) -> Sample:
    began, spent = time.perf_counter(), time.process_time()
    reached = measure()
    return Sample(reached, (time.process_time() - spent) / (time.perf_counter() - began))


def gflop_per_frame(engine: Engine) -> float:
    """Floating-point operations of one picture, in 1e9, as torch counts them: products of matrices, convolutions and
    attention; a multiplication with its addition is two.
    """
    with FlopCounterMode(display=False) as counter:
        engine.classify(np.zeros((1, engine.spec.height, engine.spec.width, 3), np.uint8))
    return float(counter.get_total_flops()) / 1e9  # its sum has no type


# ---- limits

FP32: Final = {"": torch.float32}
BOTH: Final = {**FP32, "_bf16": torch.bfloat16}


def _dtypes(device: str) -> dict[str, torch.dtype]:
    """In float32 alone where bfloat16 is emulated: one product took over a minute on an EPYC without AVX512-BF16."""
    return BOTH if "bf16" in precisions(device) else FP32


def side(device: str) -> int:
    """Of the matrices: 17.2 GFLOP a product on a CPU; 1.1 TFLOP on a GPU, which a smaller one would not fill."""
    return 2048 if device == "cpu" else 8192


def limits(device: str) -> tuple[str, ...]:
    """Names of the products; the first two are in float32, the others, if any, in bfloat16."""
    return tuple(f"limit_{way}{kind}_{side(device)}" for kind in _dtypes(device) for way in ("mm", "conv1x1"))


class Limits:
    """GFLOP/s of two ways to the same product of matrices, in float32 and, where the device has it, in bfloat16, on all
    cores.

    Two ways, because on a CPU they go to two libraries (MKL and oneDNN), of which now one, now the other is far ahead.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._products: dict[str, Callable[[], object]] = {}
        products = [product for dtype in _dtypes(device).values() for product in self._pair(dtype)]
        self._products = dict(zip(limits(device), products, strict=True))

    def _pair(self, dtype: torch.dtype) -> tuple[Callable[[], object], Callable[[], object]]:
        length = side(self._device)
        left, right = (torch.rand(length, length, device=self._device).to(dtype) for _ in range(2))
        picture, kernel = left.view(1, length, length // 32, 32), right.view(length, length, 1, 1)
        picture = picture.contiguous(memory_format=torch.channels_last)  # else oneDNN reorders it each time
        return lambda: torch.mm(left, right), lambda: torch.nn.functional.conv2d(picture, kernel)

    @torch.inference_mode()
    def rate(self, name: str, seconds: float) -> Sample:
        use_cores(usable_cores())
        multiply = partial(self._multiply, name)
        multiply()  # not timed: the first one chooses its kernel
        return _sample(lambda: 2 * side(self._device) ** 3 / 1e9 / call_seconds(multiply, seconds))

    def _multiply(self, name: str) -> None:
        self._products[name]()
        if self._device != "cpu":
            torch.accelerator.synchronize(self._device)


def gpu_words(device: str) -> dict[str, Any]:
    """What a report says of a GPU; nothing of a CPU."""
    return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda} if device.startswith("cuda") else {}
