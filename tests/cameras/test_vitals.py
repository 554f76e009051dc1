"""What is measured on a picture: any size, the same for the same pixels, and another fingerprint for any other."""

import numpy as np
import pytest
from coatstream.cameras.capture.vitals import measure
from coatstream.frames.frame import Pixels, Vitals
from coatstream.frames.opencv import cv2

from tests.support.pictures import clip_frames


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return clip_frames(1)[0]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plain(vitals: Vitals) -> tuple[float, float, float, int, bytes]:
    numbers = vitals.brightness, vitals.contrast, vitals.sharpness, vitals.fingerprint
    return (*numbers, vitals.thumbnail.tobytes())


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 3000), (3000, 2), (1, 641), (7, 5), (481, 641), (36, 64), (1080, 1920)]
)
def test_pictures_of_any_size_are_measured(height: int, width: int) -> None:
    vitals = measure(noise(height, width), damage=3)

    assert vitals.thumbnail.shape == (36, 64)
    assert vitals.thumbnail.dtype == np.uint8
    assert 0 <= vitals.brightness <= 255
    assert vitals.contrast >= 0
    assert vitals.sharpness >= 0
    assert vitals.damage == 3


def test_the_same_pixels_give_the_same_vitals(photo: Pixels) -> None:
    assert plain(measure(photo, damage=0)) == plain(measure(photo.copy(), damage=0))


def test_the_picture_is_left_as_it_was(photo: Pixels) -> None:
    before = photo.copy()

    measure(photo, damage=0)

    assert np.array_equal(photo, before)


def test_a_view_into_a_larger_picture_is_measured_like_a_copy(photo: Pixels) -> None:
    part = photo[10:350, 20:600]

    assert plain(measure(part, damage=0)) == plain(measure(np.ascontiguousarray(part), damage=0))


def test_a_grey_picture_is_measured_like_one_of_three_equal_channels(photo: Pixels) -> None:
    grey = np.asarray(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), np.uint8)

    flat, deep, coloured = (
        measure(each, damage=0) for each in (grey, grey[:, :, None], np.repeat(grey[..., None], 3, 2))
    )

    assert plain(flat)[:3] == plain(deep)[:3] == plain(coloured)[:3]
    assert np.array_equal(flat.thumbnail, coloured.thumbnail)


def test_brightness_and_contrast_are_mean_and_deviation_of_the_grey_levels() -> None:
    halves = np.full((360, 640, 3), 40, np.uint8)
    halves[:, 320:] = 200

    vitals = measure(halves, damage=0)

    assert vitals.brightness == pytest.approx(120, abs=1)
    assert vitals.contrast == pytest.approx(80, abs=1)
    assert vitals.thumbnail[:, :32].tolist() == [[40] * 32] * 36
    assert vitals.thumbnail[:, 32:].tolist() == [[200] * 32] * 36


def test_sharpness_falls_as_a_picture_is_blurred(photo: Pixels) -> None:
    blurred = [photo] + [np.asarray(cv2.GaussianBlur(photo, (0, 0), sigma), np.uint8) for sigma in (1.5, 3, 6)]

    sharpness = [measure(each, damage=0).sharpness for each in blurred]

    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[-1] < sharpness[0] / 20


def test_sharpness_hardly_depends_on_the_size_of_the_picture(photo: Pixels) -> None:
    large = np.asarray(cv2.resize(photo, (1920, 1080), interpolation=cv2.INTER_CUBIC), np.uint8)

    assert measure(large, damage=0).sharpness == pytest.approx(measure(photo, damage=0).sharpness, rel=0.3)


def test_no_picture_of_a_live_camera_repeats_a_fingerprint() -> None:
    fingerprints = [measure(frame, damage=0).fingerprint for frame in clip_frames(60)]

    assert len(set(fingerprints)) == 60


def test_noise_of_one_grey_level_changes_the_fingerprint(photo: Pixels) -> None:
    noisy = photo.copy()
    noisy ^= np.random.default_rng(0).integers(0, 2, photo.shape, np.uint8)

    assert measure(noisy, damage=0).fingerprint != measure(photo, damage=0).fingerprint


@pytest.mark.parametrize("row", [61, 62, 63, 180, 299])
def test_a_change_between_the_sampled_rows_changes_the_fingerprint(photo: Pixels, row: int) -> None:
    changed = photo.copy()
    changed[row, 100:108] ^= 64

    assert measure(changed, damage=0).fingerprint != measure(photo, damage=0).fingerprint


@pytest.mark.parametrize("row", [10, 350])
def test_a_clock_in_the_margin_does_not_change_the_fingerprint(photo: Pixels, row: int) -> None:
    changed = photo.copy()
    changed[row, 100:108] ^= 64

    assert measure(changed, damage=0).fingerprint == measure(photo, damage=0).fingerprint


def test_colours_of_equal_brightness_differ() -> None:
    red, blue = np.zeros((90, 160, 3), np.uint8), np.zeros((90, 160, 3), np.uint8)
    red[..., 2], blue[..., 0] = 77, 201  # BGR; 23 grey levels both

    one, other = measure(red, damage=0), measure(blue, damage=0)

    assert np.abs(one.thumbnail.astype(int) - other.thumbnail).max() <= 1
    assert np.abs(one.colours.astype(int) - other.colours).min() > 20


def test_pictures_of_other_shapes_do_not_share_a_fingerprint() -> None:
    lying, standing = np.zeros((36, 64, 3), np.uint8), np.zeros((64, 36, 3), np.uint8)

    assert measure(lying, damage=0).fingerprint != measure(standing, damage=0).fingerprint
