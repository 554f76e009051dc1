"""Rates by a clock that is set: nothing here depends on how fast the machine is."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from coatstream.engine.selection.candidates import clearly_faster
from coatstream.engine.timing import batch_seconds, call_seconds, compare, noise, rate
from coatstream.frames.frame import Pixels, Scores

from tests.support.doubles import FixedEngine, SettableClock


class Timed(FixedEngine):
    """Takes `per_frame` seconds for each frame by a clock that is set; a neighbour makes the first batches slower."""

    def __init__(self, clock: SettableClock, per_frame: float, *, disturbed: int = 0) -> None:
        super().__init__(prepared=(1, 2, 8))
        self._settable = clock
        self._per_frame = per_frame
        self._disturbed = disturbed

    def classify(self, pixels: Pixels) -> Scores:
        slower = 10 if len(self.batches) < self._disturbed else 1
        self._settable.now += slower * self._per_frame * len(pixels)
        return super().classify(pixels)


def test_a_call_is_made_for_the_seconds_that_it_gets_and_once_at_least() -> None:
    clock, calls = SettableClock(), 0

    def call() -> None:
        nonlocal calls
        calls += 1
        clock.now += 0.25

    assert call_seconds(call, 1.0, clock=clock) == pytest.approx(0.25)
    assert calls == 4
    assert call_seconds(call, 0.0, clock=clock) == pytest.approx(0.25)
    assert calls == 5


def test_a_rate_counts_the_frames_of_all_streams() -> None:
    with ThreadPoolExecutor(3, "serving") as pool:
        engine = FixedEngine(streams=3)
        seconds = batch_seconds(engine, 4, 0.0, pool=pool)

    assert len(seconds) == len(engine.batches) == 3
    clock = SettableClock()
    assert rate(Timed(clock, 0.01), 2, 1.0, clock=clock) == pytest.approx(100)


def test_what_the_engine_raises_is_raised() -> None:
    engine = FixedEngine()
    engine.broken = True

    with pytest.raises(RuntimeError, match="no device"):
        rate(engine, 1, 0.0)


def test_engines_take_turns_and_each_turn_is_told() -> None:
    clock = SettableClock()

    one, other = compare([Timed(clock, 0.01, disturbed=1), Timed(clock, 0.02)], seconds=6.0, clock=clock)

    assert one[0] < 90
    assert one[1:] == pytest.approx([100] * 5)
    assert other == pytest.approx([50] * 6)


def test_engines_are_compared_at_the_largest_size_that_is_not_too_large() -> None:
    clock = SettableClock()
    engine = Timed(clock, 0.01)

    compare([engine], largest=4, seconds=0.0, clock=clock)
    compare([engine], largest=0, seconds=0.0, clock=clock)

    assert set(engine.batches[:6]) == {2}
    assert set(engine.batches[6:]) == {1}


def test_noise_is_the_same_each_time_and_of_few_different_pictures() -> None:
    engine = FixedEngine()

    pictures = noise(engine, 20)

    assert pictures.shape == (20, engine.spec.height, engine.spec.width, 3)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, noise(engine, 20))
    assert len({picture.tobytes() for picture in pictures}) == 8


@pytest.mark.parametrize(
    ("one", "clearly"),
    [
        ([60] * 6, True),
        ([60] * 5 + [1], True),
        ([54] * 6, False),
        ([49] * 5 + [500], False),
        ([70] * 4 + [40] * 2, False),
    ],
)
def test_one_engine_is_clearly_faster_in_all_turns_but_one_or_not(one: list[float], clearly: bool) -> None:
    assert clearly_faster(one, [50] * 6) is clearly
