"""The bars of picture health: what is measured is what a camera says."""

import numpy as np
import pytest
from coatstream.frames.opencv import cv2

from bench import health_bars as bars
from tests.support.paths import ASSETS

SCENE = np.asarray(cv2.imread(str(ASSETS / "coffee.png")), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(bars.cases(SCENE)), ids=lambda case: case.name)
def test_a_case_is_told_as_what_it_is_or_is_a_documented_limit(case: bars.Case) -> None:
    said = bars.told(case.looks())

    assert case.holds(said) or (case.limit and not said)


def test_a_case_is_held_by_a_fault_that_is_right_and_by_no_other() -> None:
    hand = bars.Case("hand", list, frozenset({"black", "covered"}))
    fog = bars.Case("fog", list)

    assert hand.holds({"black": 5.0})
    assert not hand.holds({})
    assert not hand.holds({"black": 5.0, "frozen": 15.0})
    assert fog.holds({})
    assert not fog.holds({"covered": 5.0})


def test_an_encoded_clip_is_read_with_its_own_keyframes_at_its_own_times() -> None:
    looks = bars.coded(bars.still(SCENE, 4.0), crf=34, gop=2)

    times = [at for at, _ in looks]
    assert times == pytest.approx(np.arange(len(times)) / bars.FPS, abs=0.11)
    assert len(times) == 20
    assert sum(vitals.keyframes for _, vitals in looks) == 2


def test_at_night_the_photos_that_are_taken_for_something_else_are_named() -> None:
    wall = np.full((360, 640, 3), 200, np.uint8)

    assert bars.nights([("wall", wall), ("coffee", SCENE)], 0.05) == {"black": ["wall"]}
