"""How fast an engine is, all its streams busy. Knows nothing of batches that wait, and chooses nothing."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np

from worker.engine import Engine
from worker.frames import Pixels

ROUNDS: Final = 6


def compare(
    engines: Sequence[Engine],
    *,
    largest: int = 4,
    seconds: float = 0.6,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Frames/s of each of these warm engines with batches of up to `largest`, in about `seconds` each.

    They take turns, and each one's best turn counts: a neighbour that takes the processor away only ever makes slower.
    """
    best = [0.0] * len(engines)
    for _ in range(ROUNDS):
        for number, engine in enumerate(engines):
            best[number] = max(best[number], rate(engine, _size(engine, largest), seconds / ROUNDS, clock=clock))
    return best


def rate(engine: Engine, size: int, seconds: float, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Frames/s of batches of `size` over `seconds`, at least one batch in each stream."""
    with ThreadPoolExecutor(engine.streams, "timing") as pool:
        stream = partial(_stream, engine, noise(engine, size), seconds, clock)
        return sum(turn.result() for turn in [pool.submit(stream) for _ in range(engine.streams)])


def _stream(engine: Engine, pixels: Pixels, seconds: float, clock: Callable[[], float]) -> float:
    began, batches, elapsed = clock(), 0, 0.0
    while not batches or elapsed < seconds:
        engine.classify(pixels)
        batches += 1
        elapsed = clock() - began
    return batches * len(pixels) / max(elapsed, 1e-9)


def _size(engine: Engine, largest: int) -> int:
    return max((size for size in engine.prepared if size <= largest), default=engine.prepared[0])


def noise(engine: Engine, size: int) -> Pixels:
    """uint8 [size, height, width, 3], the same each time: what a picture shows does not change what it costs."""
    return np.random.default_rng(0).integers(0, 256, (size, engine.spec.height, engine.spec.width, 3), np.uint8)
