"""What a batch costs by its size, how that is measured, and which size follows."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import numpy as np
import pytest
from coatstream.engine.backends.noop import NoopEngine
from coatstream.engine.protocol import power_sizes, prepared_size
from coatstream.errors import EngineError
from coatstream.frames.frame import Pixels, Scores
from coatstream.pipeline.cost import BatchCost, measure_costs
from hypothesis import given
from hypothesis import strategies as st

from tests.support.doubles import FixedEngine, SettableClock
from tests.support.load import slack

P = ParamSpec("P")
T = TypeVar("T")

EVERY_SIZE = tuple(range(1, 9))


class TimedEngine(FixedEngine):
    """Takes `fixed` seconds and `per_frame` more for each one that it pads to, by a clock that is set."""

    def __init__(
        self, clock: SettableClock, fixed: float, per_frame: float, *, prepared: tuple[int, ...] = EVERY_SIZE
    ) -> None:
        super().__init__(prepared=prepared)
        self.fixed = fixed
        self.per_frame = per_frame
        self.settable = clock

    def classify(self, pixels: Pixels) -> Scores:
        self.settable.now += self.fixed + self.per_frame * prepared_size(len(pixels), self.prepared)
        return super().classify(pixels)


def costs(milliseconds: dict[int, float], **others: object) -> BatchCost:
    return BatchCost.of({size: value / 1000 for size, value in milliseconds.items()}, **others)  # type: ignore[arg-type]


# ---- the model


@given(st.floats(0, 1), st.floats(1e-6, 1), st.integers(2, 10))
def test_a_line_is_found(fixed: float, per_frame: float, count: int) -> None:
    cost = BatchCost.of({size: fixed + per_frame * size for size in range(1, count + 1)})

    assert cost.fixed == pytest.approx(fixed, abs=1e-6)
    assert cost.per_frame == pytest.approx(per_frame, rel=1e-3, abs=1e-9)


@given(st.dictionaries(st.integers(1, 1024), st.floats(1e-6, 10), min_size=1))
def test_no_figure_is_negative_whatever_was_measured(measured: dict[int, float]) -> None:
    cost = BatchCost.of(measured)

    assert cost.fixed >= 0
    assert cost.per_frame >= 0
    assert cost.fixed + cost.per_frame > 0
    assert all(cost.seconds(size) > 0 for size in (1, 7, 1024, 4096))
    assert 1 <= cost.best_size(1024) <= 1024


def test_times_that_fall_with_size_are_all_fixed_and_those_that_grow_faster_are_all_per_frame() -> None:
    falling, convex = costs({1: 3, 2: 2, 4: 2}), costs({1: 1, 2: 3, 4: 10})

    assert falling.per_frame == convex.fixed == 0
    assert falling.fixed == pytest.approx(0.00218, rel=0.01)  # (1/3 + 1/2 + 1/2) / (1/9 + 1/4 + 1/4)
    assert convex.per_frame == pytest.approx(0.00129, rel=0.01)  # (1 + 2/3 + 4/10) / (1 + 4/9 + 16/100)


def test_seconds_are_those_measured_and_in_proportion_between_and_by_the_fit_beyond() -> None:
    cost = costs({1: 12, 2: 14, 4: 18}, prepared=EVERY_SIZE)

    assert [cost.seconds(size) for size in (1, 2, 3, 4)] == pytest.approx([0.012, 0.014, 0.016, 0.018])
    assert cost.seconds(8) == pytest.approx(0.026)


def test_a_batch_costs_what_the_size_costs_that_it_is_padded_to() -> None:
    cost = costs({4: 18, 8: 26})

    assert cost.seconds(1) == cost.seconds(4)
    assert cost.seconds(5) == cost.seconds(8)
    assert [cost.adds(count) for count in (1, 3, 4, 5)] == pytest.approx([0, 0, 0.008, 0])
    assert cost.saves(3) == pytest.approx(0.018)
    assert cost.saves(4) == pytest.approx(0.010)


def test_the_rate_is_that_of_all_streams_at_the_best_size() -> None:
    cost = costs({1: 10, 4: 20, 8: 80}, streams=2)

    assert cost.rates == pytest.approx({1: 200, 4: 400, 8: 200})
    assert cost.rate == pytest.approx(400)


# ---- the best size


def test_where_larger_batches_buy_nothing_a_full_batch_is_small() -> None:
    openvino_on_two_cores = costs({1: 13.6, 2: 26, 4: 51, 8: 107}, prepared=EVERY_SIZE, streams=2)

    assert openvino_on_two_cores.best_size(8) in (3, 4)


@pytest.mark.parametrize("hit", [(), (1,), (2,), (4,), (8,), (1, 2), (2, 4), (1, 2, 4)])
def test_a_neighbours_burst_at_some_sizes_does_not_make_batches_long(hit: tuple[int, ...]) -> None:
    measured = {1: 25.1, 2: 49.6, 4: 99.3, 8: 202}
    disturbed = costs({size: ms * (1.06 if size in hit else 1) for size, ms in measured.items()}, streams=2)

    assert disturbed.best_size(8) in (2, 4)


def test_where_larger_batches_are_slower_a_full_batch_is_the_fastest() -> None:
    assert costs({1: 20, 2: 30, 4: 50, 8: 120, 16: 300}).best_size(16) == 4


@pytest.mark.parametrize("delay", [0.0, 0.5, 2, 20, 400])
@pytest.mark.parametrize("most", [1, 2, 8, 32, 100, 1024])
def test_where_a_batch_of_any_size_takes_the_same_a_full_batch_is_the_largest(delay: float, most: int) -> None:
    as_measured = costs(dict.fromkeys((1, 2), delay), prepared=power_sizes(most))
    with_a_little_for_each = costs({1: delay + 0.1, 8: delay + 0.8}, prepared=range(1, most + 1))

    assert as_measured.best_size(most) == most
    assert most > 32 or with_a_little_for_each.best_size(most) == most


def test_noise_in_an_engine_that_takes_no_time_makes_no_batch_smaller() -> None:
    rng = np.random.default_rng(3)

    for _ in range(100):
        noisy = {size: (0.02 + 0.06 * size) * rng.uniform(0.7, 1.5) for size in power_sizes(32)}
        assert costs(noisy).best_size(32) == 32


def test_on_a_gpu_batches_grow_while_they_share_the_fixed_cost() -> None:
    gpu = costs({size: 2 + 0.1 * size for size in power_sizes(256)})

    assert gpu.best_size(64) == 64
    assert gpu.best_size(256) == 256


@given(st.floats(1e-4, 1), st.floats(1e-4, 1), st.integers(1, 64))
def test_a_full_batch_reaches_the_best_rate_but_for_three_percent(fixed: float, per_frame: float, most: int) -> None:
    cost = BatchCost.of({1: fixed + per_frame, 2: fixed + 2 * per_frame}, prepared=range(1, 65))

    size = cost.best_size(most, overhead=0.0)

    best = max(count / cost.seconds(count) for count in range(1, most + 1))
    assert size / cost.seconds(size) >= 0.969 * best or cost.seconds(size) <= 0.010


# ---- the measurement


def test_costs_are_measured_as_they_are() -> None:
    clock = SettableClock()

    cost = measure_costs(TimedEngine(clock, 0.002, 0.001), clock=clock)

    assert dict(cost.measured) == pytest.approx({1: 0.003, 2: 0.004, 4: 0.006, 8: 0.010})
    assert cost.prepared == EVERY_SIZE
    assert cost.fixed == pytest.approx(0.002)
    assert cost.per_frame == pytest.approx(0.001)


def test_a_slow_engine_is_measured_at_sizes_that_fit_in_the_budget() -> None:
    clock = SettableClock()
    began = clock.now

    cost = measure_costs(TimedEngine(clock, 0.002, 0.045), clock=clock, budget=0.6)

    assert [size for size, _ in cost.measured] == [1, 2, 4]
    assert cost.seconds(8) == pytest.approx(0.002 + 8 * 0.045, rel=0.01)
    assert clock.now - began < 0.7 + (4 * 0.002 + 15 * 0.045)  # and the first looks


def test_a_very_slow_engine_is_measured_at_two_sizes_and_a_hopeless_one_at_one() -> None:
    clock = SettableClock()

    slow = measure_costs(TimedEngine(clock, 0.0, 0.5), clock=clock, budget=0.6)
    began = clock.now
    hopeless = measure_costs(TimedEngine(clock, 0.0, 30.0), clock=clock, budget=0.6)

    assert [size for size, _ in slow.measured] == [1, 2]
    assert [size for size, _ in hopeless.measured] == [1]
    assert clock.now - began == pytest.approx(30)


def test_a_size_that_was_not_asked_for_is_not_measured() -> None:
    clock = SettableClock()
    engine = TimedEngine(clock, 0.002, 0.001, prepared=(3, 5, 6))

    cost = measure_costs(engine, clock=clock)

    assert [size for size, _ in cost.measured] == [3, 6]
    assert cost.seconds(5) == pytest.approx(0.007)


def test_one_burst_of_a_neighbour_does_not_count() -> None:
    clock = SettableClock()
    engine = TimedEngine(clock, 0.010, 0.001)
    classify, calls = engine.classify, 0

    def disturbed(pixels: Pixels) -> Scores:
        nonlocal calls
        calls += 1
        clock.now += 0.5 if calls == 3 else 0.0
        return classify(pixels)

    engine.classify = disturbed  # type: ignore[method-assign]
    cost = measure_costs(engine, clock=clock, budget=2.0)

    assert dict(cost.measured) == pytest.approx({1: 0.011, 2: 0.012, 4: 0.014, 8: 0.018})


class TunedEngine(TimedEngine):
    """Each thread has something to prepare for each size, once."""

    def __init__(self, clock: SettableClock, once: float) -> None:
        super().__init__(clock, 0.003, 0.00004)
        self.once = once
        self.tuned = threading.local()

    def classify(self, pixels: Pixels) -> Scores:
        known = self.tuned.__dict__.setdefault("sizes", set())
        if len(pixels) not in known:
            known.add(len(pixels))
            self.settable.now += self.once
        return super().classify(pixels)


@pytest.mark.parametrize("once", [0.1, 0.3, 1.0])
def test_what_happens_once_for_each_thread_and_size_is_not_measured(once: float) -> None:
    clock = SettableClock()

    cost = measure_costs(TunedEngine(clock, once), clock=clock)

    assert [seconds for _, seconds in cost.measured] == pytest.approx([0.003 + 0.00004 * n for n, _ in cost.measured])


class SlowToStart(ThreadPoolExecutor):
    """Its tasks come in so far apart that one is through before the next begins, unless they wait for each other."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        time.sleep(0.02)
        return super().submit(fn, *args, **kwargs)


def test_all_streams_are_busy_at_once_and_run_in_the_threads_of_the_pool() -> None:
    engine = FixedEngine(streams=3)
    inside, alone, seen = 0, 0, set()
    lock = threading.Lock()
    classify = engine.classify

    def noting(pixels: Pixels) -> Scores:
        nonlocal inside, alone
        with lock:
            inside += 1
            seen.add(threading.current_thread().name)
        time.sleep(0.006)
        with lock:
            alone += inside == 1
            inside -= 1
        return classify(pixels)

    engine.classify = noting  # type: ignore[method-assign]
    with SlowToStart(3, "serving") as pool:
        cost = measure_costs(engine, pool=pool)

    assert alone <= len(engine.batches) / 2  # the last one to finish is
    assert seen == {"serving_0", "serving_1", "serving_2"}
    assert cost.seconds(1) >= 0.006
    assert cost.rate == pytest.approx(3 * 8 / cost.seconds(8))


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_a_noop_engine_is_measured_soon_and_takes_full_batches(delay: float) -> None:
    began = time.monotonic()

    cost = measure_costs(NoopEngine("noop", power_sizes(8), delay=delay))

    assert time.monotonic() - began < 3 + slack()
    assert cost.best_size(8) == 8
    assert cost.seconds(1) >= delay


def test_an_engine_that_fails_at_work_is_said_in_one_line() -> None:
    engine = FixedEngine(streams=2)
    engine.broken = True

    with pytest.raises(
        EngineError, match=r"fixed cannot run 2 batches of 1 at once: no device; choose a smaller"
    ) as caught:
        measure_costs(engine)

    assert "\n" not in str(caught.value)
