"""How soon a lost source is opened again."""

import random

import pytest
from coatstream.errors import DownReason, SourceLost
from coatstream.pipeline.reopening import Reopening

from tests.support.doubles import SettableClock


class Widest(random.Random):
    """Draws the longest pause each time."""

    def uniform(self, a: float, b: float) -> float:
        return b


def pauses(*losses: tuple[DownReason, float], read: int = 1) -> list[float]:
    """The waits after these losses: each why, and after how many seconds of reading."""
    clock = SettableClock()
    reopening = Reopening(monotonic=clock, rng=Widest())
    waits = []
    for reason, lasted in losses:
        reopening.opens()
        reopening.shows()
        clock.now += lasted
        waits.append(reopening.after(SourceLost("", reason=reason), read=read))
    return waits


@pytest.mark.parametrize(
    ("reason", "longest"),
    [
        (DownReason.CHANGED, 0.0),
        (DownReason.UNREACHABLE, 0.5),
        (DownReason.TIMEOUT, 0.5),
        (DownReason.AUTH, 5.0),
        (DownReason.REDIS, 0.05),
    ],
)
def test_how_soon_a_camera_is_tried_again_depends_on_why_it_was_lost(reason: DownReason, longest: float) -> None:
    lost = SourceLost("", reason=reason)
    drawn = [Reopening(rng=random.Random(seed)).after(lost, read=0) for seed in range(200)]

    assert pauses((reason, 0.0)) == [longest]
    assert max(drawn) <= longest


@pytest.mark.parametrize(
    ("reason", "lasts", "waits"),
    [
        (DownReason.CRASHED, 1.0, [0.5, 1.0, 2.0, 4.0]),  # a file that kills its decoder, each time anew
        (DownReason.TIMEOUT, 61.0, [0.5, 0.5, 0.5, 0.5]),
        (DownReason.REDIS, 1.0, [0.05, 0.05, 0.05, 0.05]),
        (DownReason.CHANGED, 20.0, [0.0, 0.0, 0.0, 0.0]),  # day, night, day: nothing is wrong with it
        (DownReason.CHANGED, 0.1, [0.0, 1.0, 2.0, 4.0]),  # but it must show something in between
    ],
)
def test_a_loss_counts_as_the_first_one_only_where_the_source_was_well_before(
    reason: DownReason, lasts: float, waits: list[float]
) -> None:
    assert pauses(*[(reason, lasts)] * 4) == waits


def test_a_camera_that_works_three_quarters_of_the_time_is_up_at_least_seventy_percent() -> None:
    """As the soak had it: pieces of 35 to 60 s, each followed by a third of that without a camera."""
    clock, rng = SettableClock(0.0), random.Random(3)
    reopening = Reopening(monotonic=clock, rng=random.Random(4))
    up, began = 0.0, 0.0
    for _ in range(200):
        ends = began + rng.uniform(35, 60)
        reopening.opens()
        reopening.shows()
        up += max(0.0, ends - clock.now)
        clock.now, began = max(clock.now, ends), ends + (ends - began) / 3
        read = 100
        while clock.now < began:
            clock.now += reopening.after(SourceLost("", reason=DownReason.ENDED), read=read)
            read = 0
            reopening.opens()

    assert up / clock.now >= 0.70


def test_waits_after_a_wrong_password_grow_with_wrong_passwords_only() -> None:
    reasons = [DownReason.TIMEOUT] * 5 + [DownReason.AUTH] * 3 + [DownReason.TIMEOUT, DownReason.AUTH]

    waits = pauses(*((reason, 0.0) for reason in reasons))

    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 5.0, 10.0, 20.0, 30.0, 5.0]


def test_a_source_for_which_a_quick_try_is_no_use_is_given_a_second() -> None:
    reopening = Reopening(rng=random.Random(1))

    assert reopening.after(SourceLost("", slow=True, reason=DownReason.REDIS), read=0) == 1.0
