"""How fast an engine is, all its streams busy. Knows nothing of batches that wait, and chooses nothing."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Barrier
from typing import Final

import numpy as np

from coatstream.engine.protocol import Engine
from coatstream.frames.frame import Pixels

Clock = Callable[[], float]

ROUNDS: Final = 6
_FEW: Final = 8  # pictures of noise; over and over they are made the sooner


def compare(
    engines: Sequence[Engine], *, largest: int = 4, seconds: float = 0.6, clock: Clock = time.perf_counter
) -> list[list[float]]:
    """Frames/s of each of these warm engines in about `seconds` each, one a turn; batches are of up to `largest`.

    They take turns, so that what stands side by side was measured side by side.
    """
    turns: list[list[float]] = [[] for _ in engines]
    for _ in range(ROUNDS):
        for engine, found in zip(engines, turns, strict=True):
            found.append(rate(engine, _size(engine, largest), seconds / ROUNDS, clock=clock))
    return turns


def _size(engine: Engine, largest: int) -> int:
    return max((size for size in engine.prepared if size <= largest), default=engine.prepared[0])


def rate(
    engine: Engine, size: int, seconds: float, *, pool: Executor | None = None, clock: Clock = time.perf_counter
) -> float:
    """Frames/s of all streams together, measured by `batch_seconds`."""
    return sum(size / max(each, 1e-9) for each in batch_seconds(engine, size, seconds, pool=pool, clock=clock))


def batch_seconds(
    engine: Engine, size: int, seconds: float, *, pool: Executor | None = None, clock: Clock = time.perf_counter
) -> list[float]:
    """Seconds that a batch of `size` takes in each stream, all at it for `seconds`, from one moment on.

    `pool`: the threads that will run the engine, one for each stream. Raises what the engine raises.
    """
    pixels, together = noise(engine, size), Barrier(engine.streams)

    def stream() -> float:
        together.wait(timeout=30)
        return call_seconds(partial(engine.classify, pixels), seconds, clock=clock)

    with nullcontext(pool) if pool is not None else ThreadPoolExecutor(engine.streams, "timing") as threads:
        return [turn.result() for turn in [threads.submit(stream) for _ in range(engine.streams)]]


def call_seconds(call: Callable[[], object], seconds: float, *, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, of as many as fit into `seconds`, and at least one."""
    began, calls, elapsed = clock(), 0, 0.0
    while not calls or elapsed < seconds:
        call()
        calls += 1
        elapsed = clock() - began
    return elapsed / calls


def noise(engine: Engine, size: int) -> Pixels:
    """uint8 [size, height, width, 3], the same each time: what a picture shows does not change what it costs."""
    shape = engine.spec.height, engine.spec.width, 3
    return np.resize(np.random.default_rng(0).integers(0, 256, (min(size, _FEW), *shape), np.uint8), (size, *shape))
