"""Shares by weight when the engine cannot keep up; everything for everybody when it can."""

from itertools import pairwise

import pytest
from coatstream.pipeline.fairness import Turns, water_fill
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from tests.support.overloaded import Cam, Engine, Seen, Simulation, linear

# Each example is some 10,000 frames: no time to look for a smaller one where it fails.
FEW = settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.generate))
rates = st.sampled_from([0.2, 1.0, 5.0, 12.5, 25.0])
weights = st.sampled_from([0.5, 1.0, 2.0, 3.0, 10.0, 100.0])
fleets = st.lists(st.builds(Cam, rates, weights), min_size=1, max_size=24)
large_fleets = st.lists(st.builds(Cam, rates, weights), min_size=16, max_size=32)
jitters = st.sampled_from([0.0, 0.1, 0.3])


def simulate(cams: list[Cam], engine: Engine, *, frames: int, rate: float, jitter: float = 0.0, flood: int = 0) -> Seen:
    """For as long as the engine needs for `frames`, and a minute; the first fifth does not count."""
    seconds = max(frames / rate, 60.0)
    return Simulation(cams, engine, jitter=jitter, flood=flood).run(seconds, warm_up=seconds / 5)


def asked(cams: list[Cam]) -> float:
    return sum(cam.fps for cam in cams)


# ---- water


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0.01, 1000)), min_size=1), st.floats(0.1, 10_000))
def test_water_fills_all_there_is_and_nobody_gets_more_than_it_asks_for(
    demands: list[tuple[float, float]], capacity: float
) -> None:
    shares = water_fill(dict(enumerate(demands)), capacity)

    assert sum(shares.values()) == pytest.approx(min(capacity, sum(demand for demand, _ in demands)), rel=1e-6)
    assert all(shares[number] <= demand + 1e-6 for number, (demand, _) in enumerate(demands))


@given(st.lists(st.tuples(st.floats(1, 1000), st.floats(0.01, 1000)), min_size=2), st.floats(0.1, 1000))
def test_whoever_gets_less_than_it_asks_for_has_the_same_level_as_the_others_and_the_highest(
    demands: list[tuple[float, float]], capacity: float
) -> None:
    shares = water_fill(dict(enumerate(demands)), capacity)

    levels = [shares[number] / weight for number, (_, weight) in enumerate(demands)]
    short = [levels[number] for number, (demand, _) in enumerate(demands) if shares[number] < demand * (1 - 1e-9)]
    assert all(one == pytest.approx(other, rel=1e-6) for one, other in pairwise(short))
    assert not short or max(levels) <= max(short) * (1 + 1e-6)


def test_water_is_dealt_out_by_weight_up_to_what_is_asked_for() -> None:
    shares = water_fill({"small": (2.0, 5.0), "light": (25.0, 1.0), "heavy": (25.0, 3.0)}, 22.0)

    assert shares == pytest.approx({"small": 2.0, "light": 5.0, "heavy": 15.0})


# ---- shares, simulated


@pytest.mark.slow
@FEW
@given(
    large_fleets, jitters, st.sampled_from([1.5, 2.0, 3.0, 5.0]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2])
)
async def test_overloaded_every_camera_gets_its_share_by_weight(
    cams: list[Cam], jitter: float, over: float, max_size: int, streams: int
) -> None:
    rate = asked(cams) / over
    seen = simulate(cams, Engine(linear(rate, streams), max_size, streams), frames=3000, rate=rate, jitter=jitter)

    fair = seen.fair(cams)
    # One slot a camera: who deserves a frame of nearly every batch is limited by how often batches leave.
    assume(max(fair.values()) <= len(seen.batches) / 3)
    for number in range(len(cams)):
        least = 0.9 * fair[number] - 3
        most = 1.1 * fair[number] + 3 + 0.02 * seen.taken.total()  # what others' uneven pictures left
        assert least <= seen.taken[number] <= most, (cams[number], seen.taken[number], fair[number])


@FEW
@given(fleets, jitters, st.sampled_from([1.5, 3.0, 10.0]), st.sampled_from([1, 2]))
async def test_overloaded_the_engine_is_never_idle_and_what_it_gets_is_fresh(
    cams: list[Cam], jitter: float, over: float, streams: int
) -> None:
    rate = asked(cams) / over
    seen = simulate(cams, Engine(linear(rate, streams), 8, streams), frames=1000, rate=rate, jitter=jitter)

    # one camera alone cannot be in two batches at a time, and may be away for a moment
    assert sum(seen.batches) >= 0.95 * min(rate, rate * len(cams) / streams) * seen.seconds - 8 * streams
    assert all(age <= 1 + 2 * jitter + 1e-6 for age in seen.age.values())


@FEW
@given(fleets, jitters, st.sampled_from([1, 2, 8]), st.sampled_from([1, 2]))
async def test_underloaded_nobody_is_held_back_whatever_the_weights(
    cams: list[Cam], jitter: float, max_size: int, streams: int
) -> None:
    fastest = max(cam.fps for cam in cams)
    rate = 3 * max(asked(cams), fastest * max_size * streams)  # even a full batch is over before the next picture
    seen = simulate(cams, Engine(linear(rate, streams), max_size, streams), frames=500, rate=rate, jitter=jitter)

    for number, cam in enumerate(cams):
        assert abs(seen.taken[number] - seen.offered[number]) <= 1
        assert seen.age[number] <= cam.fps * (len(cams) + max_size) * streams / rate + 1e-6  # no longer than a round


@pytest.mark.slow
@FEW
@given(fleets, st.sampled_from([2.0, 5.0]))
async def test_none_starves_each_gets_a_frame_within_a_bounded_time(cams: list[Cam], over: float) -> None:
    rate = asked(cams) / over
    seen = simulate(cams, Engine(linear(rate), 8), frames=3000, rate=rate)

    fair = seen.fair(cams)
    for number in range(len(cams)):
        if fair[number] >= 5:
            assert seen.gap[number] <= 6 * seen.seconds / fair[number] + 1 / cams[number].fps


@pytest.mark.slow
async def test_two_hundred_cameras_from_1_to_100_get_their_shares() -> None:
    cams = [Cam(5.0, (1, 3, 10, 100)[number % 4]) for number in range(200)]

    seen = simulate(cams, Engine(linear(300), 32), frames=30_000, rate=300)

    fair = seen.fair(cams)
    assert all(abs(seen.taken[number] - fair[number]) <= 0.1 * fair[number] + 2 for number in range(200))


async def test_a_batch_leaves_out_frames_of_sources_that_have_had_their_share() -> None:
    cams = [Cam(30.0), Cam(30.0), Cam(30.0), Cam(30.0, 3.0)]

    seen = simulate(cams, Engine(lambda size: 0.05, 8), frames=2000, rate=40)  # any batch takes as long: room for all

    light, heavy = seen.taken[0] / seen.seconds, seen.taken[3] / seen.seconds
    assert heavy == pytest.approx(20, rel=0.05)  # one of each batch
    assert heavy / light == pytest.approx(3, rel=0.05)


async def test_equal_weights_take_all_that_waits_up_to_a_full_batch() -> None:
    cams = [Cam(25.0)] * 12

    seen = simulate(cams, Engine(linear(100), 8), frames=3000, rate=100)

    assert set(seen.batches) == {8}
    assert max(seen.taken.values()) - min(seen.taken.values()) <= 3


async def test_a_camera_that_joins_late_gets_its_share_and_no_more_for_having_been_away() -> None:
    cams = [Cam(10.0), Cam(10.0, 2.0), Cam(10.0, 2.0, begins=100.0)]

    seen = Simulation(cams, Engine(linear(6), 4)).run(130.0, warm_up=100.0)

    assert seen.taken[2] == pytest.approx(2 / 5 * 6 * 30, rel=0.1)
    assert seen.taken[0] == pytest.approx(1 / 5 * 6 * 30, rel=0.15)


async def test_what_a_camera_that_died_had_is_shared_out_among_the_others() -> None:
    cams = [Cam(10.0), Cam(10.0, 3.0), Cam(10.0, 100.0, ends=50.0)]

    seen = Simulation(cams, Engine(linear(6), 4)).run(100.0, warm_up=55.0)

    assert seen.taken[2] == 0
    assert seen.taken[0] / seen.seconds == pytest.approx(1.5, rel=0.1)
    assert seen.taken[1] / seen.seconds == pytest.approx(4.5, rel=0.1)


async def test_the_last_frame_of_a_camera_that_died_does_not_wait_for_its_share_to_come_up() -> None:
    cams = [Cam(10.0, 0.01, ends=50.0), *[Cam(10.0, 100.0)] * 4]

    seen = Simulation(cams, Engine(linear(20), 4)).run(60.0, warm_up=49.0)

    assert seen.age[0] <= 2 + 5 / 20 * 10  # two periods and a batch or so, where its share is one in 200 s


async def test_a_camera_that_sends_pictures_in_pairs_does_not_count_as_short_and_holds_nobody_back() -> None:
    turns: Turns[str] = Turns()
    for number in range(200):
        for offset in (0.0, 0.001):
            turns.arrived("pairs", weight=100, live=True, now=number / 5 + offset, replaced=offset > 0)
        turns.arrived("light", weight=1, live=True, now=number / 5 + 0.1, replaced=False)
        assert set(turns.choose({"light": 1}, 8, now=number / 5 + 0.1)) == {"light"}

    assert not turns.short


# ---- the queue beside cameras


async def test_a_flood_from_one_source_of_a_queue_gets_one_share_and_makes_no_camera_stale() -> None:
    cams = [Cam(25.0, 5.0)] * 4

    seen = simulate(cams, Engine(linear(60), 8), frames=3000, rate=60, flood=1)

    rate = seen.taken[0] / seen.seconds
    assert rate == pytest.approx(60 * 5 / 21, rel=0.1)
    assert seen.flood / seen.seconds == pytest.approx(60 * 1 / 21, rel=0.15)
    assert max(seen.age.values()) <= 1 + 1e-6


async def test_a_flood_of_many_sources_leaves_equal_cameras_one_turn_in_a_round() -> None:
    cams = [Cam(5.0)] * 4

    seen = simulate(cams, Engine(linear(40), 8), frames=3000, rate=40, flood=16)

    assert seen.taken[0] / seen.seconds == pytest.approx(40 / 20, rel=0.1)
    assert max(seen.age.values()) <= 1 + 1e-6


def test_names_of_strangers_do_not_pile_up() -> None:
    turns: Turns[str] = Turns()

    for number in range(10_000):
        turns.arrived(f"stranger {number}", weight=1, live=False, now=number / 1000, replaced=False)
        turns.choose({f"stranger {number}": 1}, 8, now=number / 1000)
        turns.forget((), number / 1000)

    assert len(turns) < 2_100


def test_a_camera_that_is_gone_is_forgotten_and_the_rest_are_alike_again() -> None:
    turns: Turns[str] = Turns()
    turns.arrived("heavy", weight=3, live=True, now=0.0, replaced=False)
    turns.arrived("light", weight=1, live=True, now=0.0, replaced=False)
    assert not turns.alike

    turns.arrived("light", weight=1, live=True, now=20.0, replaced=False)
    turns.forget({"light": 1}, 20.0)

    assert turns.alike


def test_a_changed_weight_counts_from_then_on() -> None:
    turns: Turns[str] = Turns()
    for weight in (1, 7):
        turns.arrived("cam", weight=weight, live=True, now=0.0, replaced=False)
        turns.arrived("other", weight=7, live=True, now=0.0, replaced=False)

    assert turns.alike


def test_a_source_is_short_until_its_frames_go_through_and_no_longer_than_it_is_known() -> None:
    turns: Turns[str] = Turns()
    now = 0.0

    def send(name: str, *, weight: float = 1.0, replaced: bool) -> None:
        turns.arrived(name, weight=weight, live=True, now=now, replaced=replaced)

    def one_after_the_other(*names: str, replaced: bool) -> None:
        nonlocal now
        for _ in range(200):
            now += 0.1
            for name in names:
                send(name, replaced=replaced)

    one_after_the_other("a", "b", replaced=True)
    assert turns.short
    one_after_the_other("a", replaced=False)
    assert turns.short  # b still is
    send("b", weight=2.0, replaced=True)  # and begins anew with another weight
    assert not turns.short
    one_after_the_other("a", replaced=True)
    assert turns.short
    turns.forget((), now + 3600.0)
    assert not turns.short
