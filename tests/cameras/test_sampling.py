"""Which pictures are taken, by their timestamps alone."""

import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
from coatstream.cameras.capture.sampling import BurstPacer, Pacer, Sampler
from hypothesis import given
from hypothesis import strategies as st


def taken(fps: float, times: Iterable[float]) -> list[float]:
    sampler = Sampler(fps)
    return [at for at in times if sampler.is_due(at)]


def test_a_rate_that_divides_the_cameras_takes_every_nth_picture() -> None:
    times = [n * 50.0 / 1000 for n in range(280)]

    assert taken(5, times) == times[::4]


def test_no_rate_takes_every_picture() -> None:
    assert taken(0, [0.0, 0.0, 0.1, 5.0, 4.0]) == [0.0, 0.0, 0.1, 5.0, 4.0]


def test_a_camera_slower_than_the_rate_asked_gives_all_it_has() -> None:
    times = [n / 4 for n in range(50)]

    assert taken(10, times) == times


@given(camera=st.floats(1, 120), share=st.floats(0.02, 1), start=st.floats(0, 1e6))
def test_any_rate_is_kept_on_average(camera: float, share: float, start: float) -> None:
    fps = camera * share
    seconds = 200 / fps

    count = len(taken(fps, (start + n / camera for n in range(int(seconds * camera)))))

    assert count / seconds == pytest.approx(fps, rel=0.05)


@given(seed=st.integers(0, 1000), fps=st.sampled_from([3.0, 10.0, 12.5, 24.0, 25.0]))
def test_a_rate_is_kept_on_average_when_pictures_arrive_unevenly(seed: int, fps: float) -> None:
    chance = random.Random(seed)
    arrivals = [n / 25 + chance.uniform(0, 0.03) for n in range(1000)]

    assert len(taken(fps, arrivals)) / 40 == pytest.approx(fps, rel=0.05)


def test_a_variable_frame_rate_is_sampled_by_time() -> None:
    slow_then_fast = [n / 2 for n in range(20)] + [10 + n / 50 for n in range(500)]

    chosen = taken(5, slow_then_fast)

    assert chosen[:20] == slow_then_fast[:20]
    assert len(chosen[20:]) == pytest.approx(50, abs=2)


def test_a_silence_is_made_up_for_by_one_picture_at_most() -> None:
    before, after = [n / 25 for n in range(50)], [60 + n / 25 for n in range(50)]

    chosen = taken(5, before + after)

    assert len([at for at in chosen if 60 <= at < 61]) <= 5 + 2


def test_timestamps_that_begin_anew_are_followed() -> None:
    once = [n / 25 for n in range(250)]

    assert len(taken(5, once + once)) == 100


def test_the_first_picture_is_shown_at_once_and_the_others_at_their_time() -> None:
    pacer = Pacer()

    assert pacer.delay(7.0, now=100.0) == 0.0
    assert pacer.delay(7.5, now=100.1) == pytest.approx(0.4)
    assert pacer.delay(7.5, now=100.6) == 0.0


def test_a_file_is_not_raced_through_after_its_reader_was_held_up() -> None:
    pacer = Pacer(behind=1.0)
    pacer.delay(0.0, now=0.0)

    assert pacer.delay(1.0, now=30.0) == 0.0
    assert pacer.delay(2.0, now=30.0) == pytest.approx(1.0)


@pytest.mark.parametrize("jump", [-50.0, 3600.0])
def test_a_jump_in_a_files_timestamps_is_not_waited_for(jump: float) -> None:
    pacer = Pacer()
    pacer.delay(100.0, now=0.0)

    assert pacer.delay(100.0 + jump, now=0.0) == 0.0
    assert pacer.delay(100.5 + jump, now=0.0) == pytest.approx(0.5)


def shown_at(arrivals: list[tuple[float, float]], pacer: BurstPacer | None = None) -> list[float]:
    """When pictures of (media time, time of arrival) are shown by a reader that takes one after the other."""
    pacer = pacer or BurstPacer()
    now, shown = 0.0, []
    for media, arrived in arrivals:
        now = max(now, arrived)
        now += pacer.delay(media, now)
        shown.append(now)
    return shown


def segments(count: int, *, length: float = 2.0, outage: tuple[int, float] = (0, 0.0)) -> list[tuple[float, float]]:
    """25 pictures a second that arrive with the end of their segment; from one segment on, the outage later."""
    pictures = []
    for number in range(count):
        late = outage[1] if number == outage[0] and outage[1] else 0.0
        arrived = (number + 1) * length + late + 0.4 * (number % 3 == 1)
        pictures += [(number * length + n / 25, arrived) for n in range(int(25 * length))]
    return pictures


def test_bursts_are_spread_evenly_and_none_is_skipped() -> None:
    shown = shown_at(segments(60))
    steps = [b - a for a, b in pairwise(shown)]

    assert sum(0.038 < step < 0.042 for step in steps) / len(steps) > 0.99
    assert max(steps) < 0.5
    assert shown[-1] < segments(60)[-1][1] + 2.5


def test_who_was_held_up_for_long_races_until_it_is_in_time_again() -> None:
    arrivals = segments(60, outage=(20, 30.0))
    shown = shown_at(arrivals)

    assert max(b - a for a, b in pairwise(shown)) > 25
    assert shown[-1] - arrivals[-1][1] < 3.0


@pytest.mark.parametrize("jump", [-1000.0, 50_000.0, float("1e12")])
def test_a_jump_of_the_streams_clock_neither_stops_nor_races_the_show(jump: float) -> None:
    arrivals = [(n / 25 + (jump if n >= 100 else 0.0), n / 25) for n in range(250)]
    shown = shown_at(arrivals)

    assert max(b - a for a, b in pairwise(shown)) == pytest.approx(0.04, abs=0.005)
    assert shown[-1] == pytest.approx(249 / 25, abs=0.3)


def test_a_stream_whose_clock_stands_still_goes_on() -> None:
    pacer = BurstPacer()
    shown = shown_at([(7.0, 0.0)] * 100, pacer)

    assert shown[-1] == pytest.approx(99 * 0.04, rel=0.03)
    assert pacer.media == pytest.approx(99 * 0.04)
