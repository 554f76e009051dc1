"""How long a batch waits and how large it is; and what comes of it, simulated under loads of all kinds."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from statistics import fmean, quantiles

import pytest
from coatstream.pipeline.cost import BatchCost
from coatstream.pipeline.policy import BatchPolicy, LeftBecause
from coatstream.settings.model import BatchSettings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

FIXED, PER_FRAME = 0.010, 0.002


def linear(
    fixed: float = FIXED,
    per_frame: float = PER_FRAME,
    *,
    most: int = 16,
    streams: int = 1,
    prepared: tuple[int, ...] = (),
) -> BatchCost:
    sizes = prepared or range(1, most + 1)
    return BatchCost.of({size: fixed + per_frame * size for size in sizes}, streams=streams)


def with_gap(gap: float, *, target: float | None = 0.1, cap: int = 16, cost: BatchCost | None = None) -> BatchPolicy:
    """That has seen frames come at this distance for a second, the last of them at 100 s."""
    policy = BatchPolicy(cost or linear(), cap, target=target)
    policy.took(100.0 - gap * number for number in range(max(2, round(1 / gap))))
    return policy


# ---- how long it waits


def test_a_frame_alone_waits_for_one_that_comes_before_it_has_cost_what_it_saves() -> None:
    patience = with_gap(0.003).patience(1, oldest=100.0, now=100.0, crowded=True)

    assert patience.then is LeftBecause.PAYS_NO_MORE
    assert patience.seconds == pytest.approx((FIXED - PER_FRAME) / 2)  # both of them wait, the first one for more too


def test_it_does_not_wait_for_a_frame_that_is_expected_too_late() -> None:
    assert with_gap(0.005).patience(1, oldest=100.0, now=100.0, crowded=True).seconds == 0
    assert BatchPolicy(linear(), 16, target=1.0).patience(1, oldest=0.0, now=0.0, crowded=True).seconds == 0


def test_the_more_frames_wait_the_less_it_pays() -> None:
    policy = with_gap(0.0005)

    seconds = [policy.patience(count, oldest=100.0, now=100.0, crowded=True).seconds for count in range(1, 8)]

    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > 0
    assert seconds[-1] == 0


def test_where_another_stream_is_free_it_never_waits() -> None:
    assert with_gap(0.001).patience(1, oldest=100.0, now=100.0, crowded=False).seconds == 0


def test_a_full_batch_leaves() -> None:
    assert with_gap(0.001).patience(16, oldest=100.0, now=100.0, crowded=True).then is LeftBecause.FULL


def test_it_waits_no_longer_than_the_oldest_frame_can_and_publishing_counts() -> None:
    policy = with_gap(0.001, target=0.020)
    free = policy.patience(1, oldest=100.0, now=100.003, crowded=True)
    policy.published(0.001)
    held = policy.patience(1, oldest=100.0, now=100.002, crowded=True)
    late = policy.patience(1, oldest=100.0, now=101.0, crowded=True)

    assert free.then is held.then is LeftBecause.TARGET
    assert free.seconds == pytest.approx(0.020 - 0.003 - 0.014)
    assert held.seconds == pytest.approx(0.020 - 0.003 - 0.002 - 0.014)
    assert late.seconds == 0


def test_max_wait_is_another_bound_beside_a_target() -> None:
    policy = BatchPolicy(linear(), 16, target=0.1, max_wait=0.001)
    policy.took(100.0 - number / 1000 for number in range(1000))

    patience = policy.patience(1, oldest=100.0, now=100.0, crowded=True)

    assert patience.then is LeftBecause.DEADLINE
    assert patience.seconds == pytest.approx(0.001)


def test_a_frame_that_takes_the_place_of_padding_is_worth_more_waiting() -> None:
    padded = with_gap(0.001, cost=linear(prepared=(1, 2, 4, 8, 16)))

    instead_of_padding = padded.patience(3, oldest=100.0, now=100.0, crowded=True).seconds
    in_a_larger_batch = padded.patience(4, oldest=100.0, now=100.0, crowded=True).seconds

    assert instead_of_padding == pytest.approx((FIXED + PER_FRAME) / 4)
    assert in_a_larger_batch == 0


# ---- what it learns


def test_the_gap_is_counted_over_the_time_in_which_frames_came() -> None:
    policy = BatchPolicy(linear(), 16)
    assert policy.stats().expected_gap == inf

    for burst in range(20):  # four at once, five times a second
        policy.took([burst / 5] * 4)

    assert policy.stats().expected_gap == pytest.approx(1 / 20, rel=0.05)


def test_after_silence_the_gap_is_large_at_once() -> None:
    policy = with_gap(0.01)

    policy.took([160.0])

    assert policy.stats().expected_gap > 10


def test_after_a_night_of_silence_the_gap_is_right_within_seconds() -> None:
    policy = with_gap(0.01)

    for number in range(500):
        policy.took([36_000 + number / 100])

    assert policy.stats().expected_gap < 0.02


def test_a_loaded_machine_makes_batches_slower_than_measured_and_an_idle_one_no_faster() -> None:
    policy = BatchPolicy(linear(), 16, target=0.1)
    for _ in range(100):
        policy.classified(4, 1.5 * linear().seconds(4))
    slowed = policy.stats().slowdown
    for _ in range(100):
        policy.classified(4, 0.0)

    assert slowed == pytest.approx(1.5, rel=0.01)
    assert policy.stats().slowdown == pytest.approx(1.0, rel=0.01)


def test_frames_of_two_inputs_make_full_batches_half_as_large_and_are_no_slowdown() -> None:
    policy = BatchPolicy(linear(), 16, target=0.1)
    for number in range(100):
        policy.took([number / 10] * 4, inputs=8)
        policy.classified(8, linear().seconds(8))

    stats = policy.stats()
    assert stats.views == pytest.approx(2.0, rel=0.01)
    assert stats.slowdown == pytest.approx(1.0, rel=0.01)
    assert (stats.cap, stats.full) == (8, 16)

    for number in range(100, 200):
        policy.took([number / 10] * 4, inputs=4)

    assert policy.stats().cap == 16


def test_a_batch_of_frames_of_two_inputs_is_half_as_large_to_be_in_time() -> None:
    cost = linear(0.0, 0.01)
    one, two = BatchPolicy(cost, 16, target=0.1), BatchPolicy(cost, 16, target=0.1)
    for number in range(100):
        one.took([float(number)])
        two.took([float(number)], inputs=2)

    sizes = [policy.size(8, oldest=1000.0, now=1000.02) for policy in (one, two)]

    assert sizes == [8, 4]


def test_one_batch_that_hung_does_not_stop_all_waiting() -> None:
    policy = BatchPolicy(linear(), 16, target=0.1)

    policy.classified(4, 3600.0)

    assert policy.stats().slowdown < 1.5


# ---- how large


def test_without_a_target_it_takes_what_is_there_up_to_a_full_batch() -> None:
    policy = BatchPolicy(linear(), 8)

    assert [policy.size(count, oldest=0.0, now=1e6) for count in (1, 5, 8, 40)] == [1, 5, 8, 8]


def test_a_batch_is_only_so_large_that_its_oldest_frame_is_in_time() -> None:
    policy = with_gap(0.020, target=0.050)

    assert policy.size(12, oldest=100.0, now=100.020) == 10  # 10 + 2 x 10 ms are left


def test_but_where_such_batches_do_not_keep_up_it_takes_all() -> None:
    assert with_gap(0.0025, target=0.050).size(12, oldest=100.0, now=100.020) == 12  # 10 in 30 ms, and 12 come in them


def test_who_is_late_already_goes_with_all_others() -> None:
    assert with_gap(0.020, target=0.050).size(12, oldest=100.0, now=101.0) == 12


def test_the_cap_follows_from_the_costs_and_sizes_that_the_user_prepared_are_kept() -> None:
    on_cpu = linear(0.001, 0.0125, most=8)

    assert BatchPolicy.from_settings(BatchSettings(max_size=8), on_cpu).cap < 8
    assert BatchPolicy.from_settings(BatchSettings(max_size=8, prepared=(4, 8)), on_cpu).cap == 8
    assert BatchPolicy.from_settings(BatchSettings(max_size=8), linear(0.02, 0.0, most=8)).cap == 8


@given(
    fixed=st.floats(0, 1),
    per_frame=st.floats(1e-6, 1),
    streams=st.integers(1, 4),
    cap=st.integers(1, 64),
    waiting=st.integers(1, 200),
    gap=st.floats(1e-5, 10),
    target=st.floats(1e-3, 10),
    age=st.floats(0, 20),
)
def test_bounds_hold_whatever_the_figures(
    fixed: float, per_frame: float, streams: int, cap: int, waiting: int, gap: float, target: float, age: float
) -> None:
    cost = BatchCost.of({1: fixed + per_frame, 2: fixed + 2 * per_frame}, prepared=range(1, 65), streams=streams)
    policy = BatchPolicy(cost, cap, target=target)
    policy.took([0.0, gap])

    size = policy.size(waiting, oldest=0.0, now=age)
    patience = policy.patience(waiting, oldest=0.0, now=age, crowded=True)

    assert 1 <= size <= min(cap, waiting)
    assert 0 <= patience.seconds <= fixed + 1e-9
    assert not patience.seconds or age + patience.seconds + cost.seconds(waiting + 1) <= target + 1e-9
    if size < min(cap, waiting):  # for a reason: the oldest is in time, one more and it is not, and that keeps up
        assert age + cost.seconds(size) <= target + 1e-9
        assert age + cost.seconds(size + 1) > target - 1e-9
        assert streams * size / cost.seconds(size) >= 1.05 / gap * (1 - 1e-9)


# ---- simulated


@dataclass
class Run:
    """What came of a load. Seconds."""

    ages: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    ended: float = 0.0

    @property
    def mean(self) -> float:
        return fmean(self.ages)

    @property
    def p99(self) -> float:
        return quantiles(self.ages, n=100)[-1]

    @property
    def rate(self) -> float:
        return len(self.ages) / self.ended


class Simulation:
    """Streams that take batches from a queue as `coatstream.pipeline.batching.gather` does, by a clock of its own."""

    def __init__(self, policy: BatchPolicy, cost: BatchCost) -> None:
        self._policy = policy
        self._cost = cost
        self._free = cost.streams
        self._queue: list[float] = []
        self._running: list[tuple[float, int, float, list[float]]] = []  # (end, number, begin, arrivals)
        self._run = Run()

    def run(self, arrivals: list[float]) -> Run:
        coming = list(reversed(arrivals))
        leaves_at = inf
        while coming or self._queue or self._running:
            now = min(leaves_at, coming[-1] if coming else inf, self._running[0][0] if self._running else inf)
            if self._running and self._running[0][0] <= now:
                self._finish(now)
                leaves_at = min(leaves_at, now + self._patience(now))
            elif coming and coming[-1] <= now:
                self._queue.append(coming.pop())
                leaves_at = now + self._patience(now)
            else:
                self._leave(now)
                leaves_at = now + self._patience(now)
        return self._run

    def _patience(self, now: float) -> float:
        if not self._free or not self._queue:
            return inf
        if self._policy.target is None:
            return 0.0
        crowded = self._free == 1
        return self._policy.patience(len(self._queue), oldest=self._queue[0], now=now, crowded=crowded).seconds

    def _leave(self, now: float) -> None:
        size = self._policy.size(len(self._queue), oldest=self._queue[0], now=now)
        batch, self._queue = self._queue[:size], self._queue[size:]
        self._policy.took(batch)
        self._free -= 1
        heapq.heappush(self._running, (now + self._cost.seconds(size), len(self._run.sizes), now, batch))
        self._run.sizes.append(size)

    def _finish(self, now: float) -> None:
        _, _, began, batch = heapq.heappop(self._running)
        self._free += 1
        self._policy.classified(len(batch), now - began)
        self._policy.published(0.0)
        self._run.ages += [now - arrival for arrival in batch]
        self._run.ended = now


Load = Callable[[float, int], list[float]]


def even(rate: float, count: int) -> list[float]:
    return [number / rate for number in range(count)]


def poisson(rate: float, count: int) -> list[float]:
    rng = random.Random(5)
    return list(accumulate(rng.expovariate(rate) for _ in range(count)))


def bursts(rate: float, count: int) -> list[float]:
    """Four within half a millisecond."""
    return [number // 4 * 4 / rate + number % 4 * 1.5e-4 for number in range(count)]


# What runs: a GPU; OpenVINO on two cores; something that batches well, once and twice at a time. And what is asked.
GPU = (linear(0.002, 0.0001, most=32), 0.020)
CPU = (linear(0.001, 0.0125, most=8, streams=2), 0.150)
ONE = (linear(), 0.080)
TWO = (linear(streams=2), 0.080)
ALL = [GPU, CPU, ONE, TWO]
NAMES = ["gpu", "cpu", "one", "two"]


def simulated(cost: BatchCost, target: float | None, load: Load, share: float, *, count: int = 4000) -> Run:
    """`share` of the rate of full batches."""
    most = cost.prepared[-1]
    policy = BatchPolicy.from_settings(BatchSettings(max_size=most, target_latency=target), cost)
    return Simulation(policy, cost).run(load(share * full_rate(cost), count))


def full_rate(cost: BatchCost) -> float:
    cap = cost.best_size(cost.prepared[-1])
    return cost.streams * cap / cost.seconds(cap)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.8, 0.95])
@pytest.mark.parametrize("load", [even, bursts])
@pytest.mark.parametrize(("cost", "target"), ALL, ids=NAMES)
def test_paced_loads_are_in_time_up_to_full_load(cost: BatchCost, target: float, load: Load, share: float) -> None:
    assert simulated(cost, target, load, share).p99 <= target


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.8])
@pytest.mark.parametrize(("cost", "target"), ALL, ids=NAMES)
def test_random_loads_are_in_time_up_to_four_fifths(cost: BatchCost, target: float, share: float) -> None:
    assert simulated(cost, target, poisson, share).p99 <= target


@pytest.mark.parametrize("load", [even, poisson, bursts])
@pytest.mark.parametrize(("cost", "target"), ALL, ids=NAMES)
def test_beyond_its_rate_a_worker_does_full_batches(cost: BatchCost, target: float, load: Load) -> None:
    overloaded = simulated(cost, target, load, 1.5)

    assert overloaded.rate > 0.98 * full_rate(cost)
    assert overloaded.p99 > 2 * target  # else it was none


@pytest.mark.parametrize("load", [even, poisson])
@pytest.mark.parametrize(("cost", "target"), ALL, ids=NAMES)
def test_at_low_load_a_frame_takes_what_it_takes_alone(cost: BatchCost, target: float, load: Load) -> None:
    alone = cost.seconds(1)

    run = simulated(cost, target, load, 0.1 / alone / full_rate(cost))

    assert run.mean < 1.1 * alone


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("load", [even, poisson, bursts])
@pytest.mark.parametrize(("cost", "target"), ALL, ids=NAMES)
def test_waiting_never_costs_much(cost: BatchCost, target: float, load: Load, share: float) -> None:
    waiting, not_waiting = (simulated(cost, wanted, load, share) for wanted in (target, None))

    assert waiting.mean < 1.05 * not_waiting.mean
    assert waiting.p99 < 1.05 * not_waiting.p99


@pytest.mark.parametrize("load", [even, bursts])
def test_waiting_pays_where_batches_share_a_large_cost(load: Load) -> None:
    waiting, not_waiting = (simulated(linear(streams=2), wanted, load, 0.8) for wanted in (0.080, None))

    assert waiting.mean < 0.95 * not_waiting.mean
    assert fmean(waiting.sizes) > fmean(not_waiting.sizes)


def test_large_batches_that_the_user_wants_are_cut_where_frames_would_be_late() -> None:
    cost = linear(0.001, 0.0125, most=32, streams=2)
    loaded = poisson(0.8 * 2 * 32 / cost.seconds(32), 5000)

    with_target, without = (
        Simulation(BatchPolicy(cost, 32, target=wanted), cost).run(loaded) for wanted in (0.12, None)
    )

    late, natural = (sum(age > 0.12 for age in run.ages) for run in (with_target, without))
    assert natural > 0
    assert late < natural / 2


@hypothesis_settings(max_examples=30)
@given(
    fixed=st.floats(0, 0.02),
    per_frame=st.floats(1e-4, 0.02),
    streams=st.integers(1, 3),
    most=st.integers(1, 32),
    target=st.floats(0.01, 1),
    share=st.floats(0.05, 2),
)
def test_whatever_the_figures_every_frame_goes_once(
    fixed: float, per_frame: float, streams: int, most: int, target: float, share: float
) -> None:
    cost = linear(fixed, per_frame, most=most, streams=streams)

    run = simulated(cost, target, poisson, share, count=300)

    assert len(run.ages) == sum(run.sizes) == 300
    assert max(run.sizes) <= most
