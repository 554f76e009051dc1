"""What a batch costs by its size, measured on the warm engine, and the size that follows from it.

Arithmetic and one measurement; when a batch leaves is `coatstream.pipeline.policy`'s business.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median_low
from typing import Final

import numpy as np

from coatstream.engine.protocol import Engine, prepared_size
from coatstream.engine.timing import batch_seconds
from coatstream.errors import EngineError, first_line

# Seconds of a core that a batch costs outside of the engine: turns, threads, one write to Redis. From `bench pipeline`
# when batches were of two, 1.9 ms a frame more than the bare work, of which `bench host` found some 0.5 in what each
# frame costs. At batches of three it is 0.5 ms in all by now, so this is rather too much, and batches rather too large.
OVERHEAD: Final = 0.0025
ROUNDS: Final = 5  # in which each size is measured at most
_TOLERANCE: Final = 0.03  # share of the best frames/s that a smaller batch may cost
_NOISE: Final = 0.1  # share by which a measurement may be off a line that is the truth
_WORTH: Final = 10  # of what a frame waits, in percent, for one percent of frames/s
_ALIKE: Final = 50e-6  # seconds a frame: a difference below is noise
_BRIEF: Final = 0.010  # seconds: a batch that takes less does not make frames old
_ENOUGH: Final = 0.005  # seconds of one measurement of an engine that is fast
_MOST: Final = 3.0  # times the budget that two sizes may take: with one there is no telling what a larger batch saves
_TINY: Final = 1e-9  # seconds: a clock may not have moved


# ---- the model


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Seconds that one batch takes while all streams are busy.

    measured   (size, seconds), by size; never empty
    prepared   sizes that batches are padded to
    streams    batches at once
    fixed      seconds that a batch costs before its first frame: the fit fixed + per_frame x size
    per_frame  seconds that each frame adds
    """

    measured: tuple[tuple[int, float], ...]
    prepared: tuple[int, ...]
    streams: int
    fixed: float
    per_frame: float

    @classmethod
    def of(cls, measured: Mapping[int, float], *, prepared: Sequence[int] = (), streams: int = 1) -> "BatchCost":
        """From seconds by size; `prepared`: by default the measured sizes."""
        points = tuple(sorted(measured.items()))
        fixed, per_frame = _line(points)
        return cls(points, tuple(prepared or (size for size, _ in points)), streams, fixed, per_frame)

    def seconds(self, count: int) -> float:
        """What a batch of `count` takes: as measured, between two sizes in proportion, beyond them by the fit."""
        size = prepared_size(count, self.prepared)
        largest, longest = self.measured[-1]
        if size > largest:
            return longest + self.per_frame * (size - largest)
        return float(np.interp(size, [size for size, _ in self.measured], [seconds for _, seconds in self.measured]))

    def adds(self, count: int) -> float:
        """What one frame more adds to a batch of `count`, by the fit: nothing where it takes the place of padding."""
        before, after = (prepared_size(size, self.prepared) for size in (count, count + 1))
        return self.per_frame * (after - before)

    def saves(self, count: int) -> float:
        """What one frame more saves by going with a batch of `count` instead of alone, by the fit."""
        alone = self.fixed + self.per_frame * prepared_size(1, self.prepared)
        return alone - self.adds(count)

    @property
    def rates(self) -> dict[int, float]:
        """Frames/s of all streams together, by measured size."""
        return {size: self.streams * size / max(seconds, _TINY) for size, seconds in self.measured}

    @property
    def rate(self) -> float:
        """Frames/s at the best measured size."""
        return max(self.rates.values())

    def best_size(self, most: int, *, overhead: float = OVERHEAD) -> int:
        """The size of a full batch, `most` or less: larger ones would only make frames older.

        Of the sizes that reach 97 % of the best rate the one with the shortest batch, where a percent of rate is worth
        ten percent of time: so 31 is no choice where 32 take as long. Where each frame adds what it costs alone (a
        CPU) that ends at small batches, and where a batch of any size takes the same at full ones. An engine so fast
        that no frame grows old in it gets full ones, too: its times differ by noise. `overhead` counts, since what is
        done once a batch takes its part of the cores.
        """
        sizes = self._sizes(most)
        seconds = {size: self._likely(size) for size in sizes}
        shares = {size: (seconds[size] + overhead) / size for size in sizes}
        least = min(shares.values())
        good = [size for size in sizes if shares[size] <= least / (1 - _TOLERANCE)]
        chosen = min(good, key=lambda size: (shares[size] / least) ** _WORTH * (seconds[size] + overhead))
        brief = (size for size in sizes if shares[size] <= least + _ALIKE and seconds[size] <= _BRIEF)
        return max([chosen, *brief])

    def _likely(self, count: int) -> float:
        """As `seconds`, but by the fit where that explains all that was measured: a size was looked at once or twice,
        beside neighbours, and one that a burst has hit must not make batches four times as long.
        """
        if any(abs(self._fit(size) - seconds) > _NOISE * seconds for size, seconds in self.measured):
            return self.seconds(count)
        return self._fit(prepared_size(count, self.prepared))

    def _fit(self, size: int) -> float:
        return self.fixed + self.per_frame * size

    def _sizes(self, most: int) -> Sequence[int]:
        """Sizes worth a thought: padding is no use, so the prepared ones, and `most` itself."""
        return sorted({*(size for size in self.prepared if size < most), most})


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(fixed, per frame), neither negative: least squares of relative errors, since noise is a share of the time, and
    the smallest batches show the fixed cost.
    """
    if len(points) == 1:
        return 0.0, points[0][1] / points[0][0]
    sizes, seconds = (np.array(column, np.float64) for column in zip(*points, strict=True))
    weights = 1 / np.maximum(seconds, _TINY)
    columns = np.stack([np.ones_like(sizes), sizes], axis=1) * weights[:, None]
    wanted = seconds * weights
    both = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    if both.min() >= 0:
        return float(both[0]), float(both[1])
    alone = [max(0.0, float(column @ wanted / (column @ column))) for column in columns.T]
    errors = [float(np.square(column * value - wanted).sum()) for column, value in zip(columns.T, alone, strict=True)]
    return (alone[0], 0.0) if errors[0] < errors[1] else (0.0, alone[1])


# ---- the measurement


def measure_costs(
    engine: Engine,
    sizes: Sequence[int] = (),
    *,
    pool: Executor | None = None,
    budget: float = 0.6,
    most: float | None = None,
    enough: float = _ENOUGH,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchCost:
    """The costs of a warm engine with all its streams busy, as it will run, in about `budget` seconds.

    Of `sizes` (by default the prepared ones) those are measured of which each is twice the one before: between them
    the curve is smooth. In rounds over all of them, so that a neighbour's burst spoils one look at each and not all
    looks at one; the median counts, of two the better. What would go beyond the budget is left out, but for the two
    smallest sizes, which may take `most` seconds (three budgets). The smallest is always measured. The first look at
    each size does not count.

    `pool`: the threads that will run the engine, one for each stream; they are warm afterwards, each of them. Raises
    EngineError.
    """
    wanted = _telling(sizes or engine.prepared)
    most = _MOST * budget if most is None else most
    with nullcontext(pool) if pool is not None else ThreadPoolExecutor(engine.streams, "measure") as streams:
        look = partial(_look, engine, streams, enough=enough, clock=clock)
        firsts = _first_looks(look, wanted, most=most, clock=clock)
        first, began = firsts[wanted[0]], clock()
        seen = {wanted[0]: [first]} if first > most else {}  # there is no time to look again
        for _ in range(ROUNDS):
            for size in firsts:
                spent = clock() - began
                limit = budget if len(seen) > 1 or size in seen else most
                if not seen or spent + _expected(seen, size, enough) <= limit:
                    seen.setdefault(size, []).append(look(size))
    costs = {size: median_low(times) for size, times in seen.items()}
    return BatchCost.of(costs, prepared=engine.prepared, streams=engine.streams)


def _first_looks(
    look: Callable[..., float], sizes: Sequence[int], *, most: float, clock: Callable[[], float]
) -> dict[int, float]:
    """Seconds of the first batch of each size in all threads, in `most` seconds or so. What happens once for each
    thread and size (kernel caches, handles, pinned memory) happens now: 4,485 frames/s were measured as 24 with it.
    """
    began = clock()
    firsts: dict[int, float] = {}
    for size in sizes:
        if firsts and clock() - began + _expected({other: [time] for other, time in firsts.items()}, size, 0.0) > most:
            break
        firsts[size] = look(size, enough=0.0)
    return firsts


def _telling(sizes: Sequence[int]) -> list[int]:
    """The smallest, each that is at least twice the one before, and the largest; ascending."""
    telling: list[int] = []
    for size in sorted(sizes):
        if not telling or size >= 2 * telling[-1]:
            telling.append(size)
    return telling if telling[-1] == max(sizes) else [*telling, max(sizes)]


def _expected(seen: Mapping[int, Sequence[float]], size: int, enough: float) -> float:
    """Seconds that a look at `size` will take; of an unknown size no less than of the next smaller one."""
    known = max((other for other in seen if other <= size), default=min(seen))
    return max(enough, min(seen[known]) * max(1.0, size / known))


def _look(engine: Engine, streams: Executor, size: int, *, enough: float, clock: Callable[[], float]) -> float:
    """Seconds of one batch of `size`, all streams at it for `enough` seconds and one batch at least."""
    try:
        return fmean(batch_seconds(engine, size, enough, pool=streams, clock=clock))
    except Exception as error:  # whatever the model raises
        advice = "choose a smaller batch.max_size or fewer model.streams"
        raise EngineError(
            f"{engine.info.name} cannot run {engine.streams} batches of {size} at once: {first_line(error)}; {advice}"
        ) from None
