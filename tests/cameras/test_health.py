"""Sick pictures are found after their time, well ones never: real pictures, darkened, fogged, blurred, covered."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from coatstream.cameras.capture.vitals import measure
from coatstream.cameras.health import PictureHealth
from coatstream.frames.frame import PictureFault, Pixels, Vitals
from coatstream.frames.opencv import cv2
from coatstream.results.events.event import Event, EventKind
from coatstream.settings.model import HealthSettings
from numpy.typing import NDArray

from tests.support.paths import ASSETS
from tests.support.pictures import clip_frames

PHOTOS = tuple(sorted(path.name for path in ASSETS.glob("*.png")))
RNG = np.random.default_rng(0)
FROZEN, BLACK, COVERED = PictureFault.FROZEN, PictureFault.BLACK, PictureFault.COVERED
BLURRED, CORRUPT = PictureFault.BLURRED, PictureFault.CORRUPT

Spoil = Callable[[Pixels], Pixels]


def photo(name: str) -> Pixels:
    return np.asarray(cv2.resize(np.asarray(cv2.imread(str(ASSETS / name)), np.uint8), (640, 360)), np.uint8)


def pixels(levels: NDArray[np.floating[Any]], noise: float = 2.0) -> Pixels:
    """What a sensor with noise makes of grey levels."""
    return np.clip(levels + RNG.normal(0, noise, levels.shape), 0, 255).astype(np.uint8)


def dated(picture: Pixels) -> Pixels:
    cv2.putText(picture, "2026-11-23 13:29:09", (12, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.64, (255, 255, 255), 1)
    return picture


def plain(level: float, slope: float, noise: float = 2.0) -> Pixels:
    ramp = np.broadcast_to(level + np.linspace(-slope, slope, 640)[None, :, None], (360, 640, 3))
    return pixels(ramp, noise)


def night(share: float) -> Spoil:
    return lambda picture: pixels(picture * share, 3)


def fog(contrast: float) -> Spoil:
    return lambda picture: pixels(190 + (picture - picture.mean()) * contrast, 1.5)


def blurred(picture: Pixels, share: float = 0.01) -> Pixels:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), share * 640), np.uint8)


def snow(picture: Pixels) -> Pixels:
    flakes = picture.copy()
    flakes[RNG.integers(0, 360, 2304), RNG.integers(0, 640, 2304)] = 255
    return np.asarray(cv2.GaussianBlur(flakes, (0, 0), 1), np.uint8)


def wall_with_a_clock() -> Pixels:
    wall = plain(205, 8)
    cv2.circle(wall, (320, 180), 45, (40, 40, 40), 3)
    cv2.line(wall, (320, 180), (320, 144), (30, 30, 30), 3)
    return dated(wall)


class Seen:
    """One camera's health, its pictures `every` seconds, and all that was published."""

    def __init__(self, settings: HealthSettings | None = None, *, every: float = 0.2, at: float = 1000.0) -> None:
        self.events: list[Event] = []
        self.health = PictureHealth(settings or HealthSettings(), "door", publish=self.events.append)
        self.every = every
        self.at = at
        self.fingerprint = 0

    def look(self, vitals: Vitals, *, still: bool = False) -> tuple[PictureFault, ...]:
        """The next picture; like any live one it has a fingerprint of its own unless it stands `still`."""
        self.at += self.every
        self.fingerprint += not still
        return self.health.look(replace(vitals, fingerprint=self.fingerprint), self.at)

    def watch(self, vitals: Vitals, seconds: float, *, still: bool = False) -> tuple[PictureFault, ...]:
        faults: tuple[PictureFault, ...] = ()
        for _ in range(round(seconds / self.every)):
            faults = self.look(vitals, still=still)
        return faults

    def said(self) -> list[tuple[EventKind, str]]:
        return [(event.kind, event.detail["fault"]) for event in self.events]


@pytest.fixture(scope="module")
def good() -> Vitals:
    return measure(photo("coffee.png"), damage=0)


@pytest.fixture(scope="module")
def cap() -> Vitals:
    return measure(plain(2, 0, 1.5), damage=0)


@pytest.fixture(scope="module")
def hand() -> Vitals:
    return measure(plain(60, 20), damage=0)


# ---- what is well


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
    "spoil",
    [lambda picture: picture, night(0.15), night(0.08), fog(0.4), fog(0.2), snow],
    ids=["clear", "night at 15 %", "night at 8 %", "fog to 40 %", "fog to 20 %", "snow"],
)
def test_night_fog_and_snow_after_a_clear_day_are_no_fault(name: str, spoil: Spoil) -> None:
    seen = Seen()
    seen.watch(measure(photo(name), damage=0), 120)

    faults = seen.watch(measure(spoil(photo(name)), damage=0), 60)

    assert faults == ()
    assert seen.events == []


def test_a_white_wall_with_a_clock_is_no_covered_lens() -> None:
    assert Seen().watch(measure(wall_with_a_clock(), damage=0), 60) == ()


def test_a_real_clip_with_a_soft_close_up_is_well() -> None:
    seen = Seen(every=0.2)
    pictures = [measure(frame, damage=0) for frame in clip_frames(280)[::4]]

    faults = {fault for _ in range(6) for vitals in pictures for fault in seen.look(vitals)}

    assert faults == set()
    assert seen.health.stats().usual is not None


@pytest.mark.parametrize("light", [0.04, 0.05, 0.06, 0.08])
def test_a_dark_scene_of_hardly_any_contrast_is_neither_black_nor_covered(light: float) -> None:
    ground = np.full((360, 640, 3), 112.0)
    for left, top in np.random.default_rng(3).integers(70, 290, (16, 2)):
        ground[top : top + 30, 2 * left : 2 * left + 30] = 62  # craters
    scene = measure(pixels(ground * light, 3), damage=0)

    assert Seen().watch(scene, 20) == ()


def test_a_dark_scene_of_several_colours_is_no_surface_that_is_lit_from_one_side() -> None:
    ramp = 12 + 5 * np.sin(np.arange(640) / 640 * 6 * np.pi)[None, :, None] * np.ones((360, 1, 1))
    one, many = ramp * np.array([0.9, 1.0, 1.1]), ramp * np.array([0.0, 1.19, 1.0])
    many[:, 320:] = ramp[:, 320:] * np.array([2.6, 1.0, 0.4])  # as bright, and blue

    assert Seen().watch(measure(pixels(one, 2), damage=0), 20) == (COVERED,)
    assert Seen().watch(measure(pixels(many, 2), damage=0), 20) == ()


# ---- what is sick


@pytest.mark.parametrize("level", [2, 16])
def test_a_capped_lens_is_black_even_with_the_date_in_the_picture(level: int) -> None:
    assert Seen().watch(measure(dated(plain(level, 0, 1.5)), damage=0), 6) == (BLACK,)


@pytest.mark.parametrize("level", [60, 120, 205])
def test_a_hand_a_cloth_or_paint_covers_the_lens_even_with_the_date_in_the_picture(level: int) -> None:
    assert Seen().watch(measure(dated(plain(level, 20)), damage=0), 6) == (COVERED,)


@pytest.mark.parametrize("name", PHOTOS)
def test_a_picture_out_of_focus_is_blurred_where_it_used_to_be_sharp(name: str) -> None:
    seen = Seen()
    seen.watch(measure(photo(name), damage=0), 120)

    faults = seen.watch(measure(blurred(photo(name)), damage=0), 16)

    assert faults == (BLURRED,)


def test_a_blur_does_not_become_the_usual(good: Vitals) -> None:
    seen = Seen(every=1)
    seen.watch(good, 300)

    faults = seen.watch(measure(blurred(photo("coffee.png")), damage=0), 6 * 3600)

    assert faults == (BLURRED,)
    assert seen.watch(good, 5) == ()


def test_a_camera_that_was_never_sharp_is_not_called_blurred() -> None:
    assert Seen().watch(measure(blurred(photo("coffee.png")), damage=0), 600) == ()


def test_a_picture_that_stands_still_is_frozen(good: Vitals) -> None:
    seen = Seen()
    seen.watch(good, 20)

    faults = seen.watch(good, 16, still=True)

    assert faults == (FROZEN,)


@pytest.mark.parametrize("every", [0.04, 1.0, 4.0, 20.0])
def test_durations_are_time_and_not_pictures(good: Vitals, every: float) -> None:
    seen = Seen(HealthSettings(frozen_after=40), every=every)
    seen.look(good)
    since = seen.at

    while not seen.look(good, still=True):
        assert seen.at - since < 40

    assert 40 - 1e-6 < seen.at - since < 40 + every + 1e-6
    assert seen.events[0].detail["since"] == since


def test_a_black_picture_that_repeats_is_black_and_not_frozen(cap: Vitals) -> None:
    seen = Seen()
    seen.look(cap)

    assert seen.watch(cap, 60, still=True) == (BLACK,)


def test_damaged_pictures_are_corrupt_and_one_now_and_then_is_not(good: Vitals) -> None:
    rare, often = Seen(), Seen()
    damaged = replace(good, damage=4)

    for number in range(300):
        assert rare.look(damaged if number % 25 == 0 else good) == ()
        faults = often.look(damaged if number % 3 == 0 else good)

    assert faults == (CORRUPT,)
    assert often.said() == [(EventKind.PICTURE_SICK, "corrupt")]


def test_a_single_damaged_picture_of_a_slow_camera_is_not_corrupt(good: Vitals) -> None:
    seen = Seen(every=10)
    seen.look(replace(good, damage=9))

    assert seen.watch(good, 300) == ()


# ---- durations, events and clocks


def test_each_change_is_published_once_with_its_times(good: Vitals, hand: Vitals) -> None:
    seen = Seen(every=0.5)
    seen.watch(good, 5)
    seen.watch(hand, 10)

    seen.watch(good, 10)

    sick, well = seen.events
    assert (sick.kind, sick.camera, sick.at) == (EventKind.PICTURE_SICK, "door", 1010.5)
    assert sick.detail == {"fault": "covered", "since": 1005.5}
    assert (well.kind, well.at) == (EventKind.PICTURE_WELL, 1017.5)
    assert well.detail == {"fault": "covered", "since": 1005.5, "duration": 12.0}


def test_a_fault_that_is_too_short_is_never_said(good: Vitals, hand: Vitals) -> None:
    seen = Seen()

    for _ in range(20):
        seen.watch(hand, 4)
        seen.watch(good, 1)

    assert seen.events == []


def test_a_glimpse_of_a_good_picture_does_not_end_a_fault(good: Vitals, hand: Vitals) -> None:
    seen = Seen()
    seen.watch(hand, 10)

    for _ in range(10):
        assert seen.watch(good, 1) == (COVERED,)
        assert seen.watch(hand, 1) == (COVERED,)

    assert seen.said() == [(EventKind.PICTURE_SICK, "covered")]


def test_an_event_carries_the_number_of_the_lease(hand: Vitals) -> None:
    seen = Seen()

    for number in range(40):
        seen.health.look(replace(hand, fingerprint=number), 1000 + number * 0.2, fence=12)

    assert [event.fence for event in seen.events] == [12]


@pytest.mark.parametrize("fault", ["frozen", "black", "covered", "corrupt"])
def test_a_fault_with_no_duration_is_never_looked_for(fault: str, good: Vitals, cap: Vitals, hand: Vitals) -> None:
    seen = Seen(HealthSettings.model_validate({f"{fault}_after": 0}))
    sick = {"black": cap, "covered": hand, "corrupt": replace(good, damage=1), "frozen": good}[fault]

    assert seen.watch(sick, 120, still=fault == "frozen") == ()
    assert fault not in seen.health.stats().sick


def test_a_silence_does_not_count_as_a_frozen_picture(good: Vitals) -> None:
    seen = Seen()
    seen.watch(good, 5)
    seen.watch(good, 10, still=True)

    seen.at += 3600

    assert seen.watch(good, 14, still=True) == ()
    assert seen.watch(good, 2, still=True) == (FROZEN,)


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_jump_of_the_clock_neither_raises_nor_ends_an_alarm(good: Vitals, hand: Vitals, jump: float) -> None:
    seen = Seen()
    seen.watch(good, 10)
    seen.at += jump
    assert seen.watch(good, 4) == ()
    seen.watch(hand, 10)

    seen.at += jump

    assert seen.watch(hand, 1) == (COVERED,)
    assert seen.watch(good, 4) == ()
    assert seen.said() == [(EventKind.PICTURE_SICK, "covered"), (EventKind.PICTURE_WELL, "covered")]
    assert seen.events[1].detail["duration"] >= 0


def test_figures_say_what_is_sick_since_when_and_how_often(good: Vitals, hand: Vitals) -> None:
    seen = Seen()
    for _ in range(3):
        seen.watch(good, 5)
        since = seen.at + seen.every
        seen.watch(hand, 6)

    stats = seen.health.stats()

    assert stats.sick == {COVERED: pytest.approx(since)}
    assert stats.alarms[COVERED] == 3
    assert stats.alarms[BLACK] == 0


def test_sensor_noise_of_half_a_grey_level_keeps_a_still_scene_from_being_frozen() -> None:
    scene = photo("coffee.png").astype(np.float64)
    pictures = [measure(pixels(scene, 0.5), damage=0) for _ in range(20)]
    health = PictureHealth(HealthSettings(), "door", publish=lambda event: None)

    faults = [health.look(vitals, 1000.0 + number) for number, vitals in enumerate(pictures)]

    assert set(faults) == {()}


# ---- what is kept from the tags, and what repeats


def test_what_looks_sick_is_suspect_at_once_and_told_later(good: Vitals, cap: Vitals, hand: Vitals) -> None:
    seen = Seen()
    suspects = []
    for vitals, still in ((good, False), (cap, False), (hand, False), (good, False), (good, True)):
        seen.look(vitals, still=still)
        suspects.append(seen.health.suspect)

    assert suspects == [False, True, True, False, True]
    assert seen.events == []


def test_a_fault_that_is_switched_off_is_not_suspect(cap: Vitals) -> None:
    seen = Seen(HealthSettings(black_after=0))
    seen.look(cap)

    assert not seen.health.suspect


def test_a_picture_that_repeats_until_the_next_keyframe_is_not_frozen(good: Vitals) -> None:
    seen = Seen()
    for _ in range(4):  # keyframes that are 25 s apart, each another picture
        seen.look(replace(good, keyframes=1))
        assert seen.watch(replace(good, keyframes=0), 25, still=True) == ()

    assert seen.watch(replace(good, keyframes=0), 20, still=True) == (FROZEN,)  # 45 s without a keyframe
    assert seen.events[0].detail["since"] == pytest.approx(seen.at - 45, abs=0.5)


def test_a_loop_of_a_few_pictures_is_frozen(good: Vitals) -> None:
    seen = Seen()
    faults: tuple[PictureFault, ...] = ()
    for number in range(100):
        seen.at += 0.2
        faults = seen.health.look(replace(good, fingerprint=number % 4), seen.at)

    assert faults == (FROZEN,)


@pytest.mark.parametrize(("level", "slope"), [(14, 8), (20, 15), (10, 5), (28, 12)])
def test_a_hand_in_dim_light_is_covered(level: float, slope: float) -> None:
    assert Seen().watch(measure(dated(plain(level, slope)), damage=0), 6) == (COVERED,)


def test_a_large_date_does_not_make_black_a_scene() -> None:
    picture = plain(2, 0, 1.5)
    cv2.putText(picture, "2026-11-23 13:29:09", (8, 46), cv2.FONT_HERSHEY_SIMPLEX, 1.6, (255, 255, 255), 3)

    assert Seen().watch(measure(picture, damage=0), 6) == (BLACK,)
