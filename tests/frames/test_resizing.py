import threading
from itertools import product

import numpy as np
import pytest
import torch
from coatstream.engine.cores import single_threaded, use_cores
from coatstream.frames.decoding import decode, raw
from coatstream.frames.frame import CropMode, Pixels
from coatstream.frames.opencv import cv2
from coatstream.frames.resizing import prepare
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.absence import missing
from tests.support.paths import ASSETS
from tests.support.photos import clip_frames, photo_files
from tests.support.transforms import SPECS, difference, noise, spec, timm_prepare

# ---- prepare: equal to timm


@pytest.mark.parametrize("name", SPECS)
def test_real_photos_are_prepared_as_timm_prepares_them(name: str) -> None:
    photos = [decode(file.read_bytes(), max_bytes=10**6, max_pixels=2 * 10**6) for file in photo_files()] + list(
        clip_frames(3)
    )
    if len(photos) < 30:
        missing(f"only {len(photos)} photos here")

    for photo in photos:
        off = difference(prepare(photo, SPECS[name]), timm_prepare(Image.fromarray(photo), SPECS[name]))
        assert off.max() <= (1 if name in ("coat", "lite0", "squash", "bilinear") else 2)
        assert (off > 1).sum() <= 1


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (1, 1),
        (3, 2),
        (224, 224),
        (248, 248),
        (1920, 1080),
        (37, 1200),
        (1200, 41),
        (1080, 1920),
        (721, 1283),
        (262, 252),
    ],
)
def test_odd_sizes_are_prepared_as_timm_prepares_them(name: str, height: int, width: int) -> None:
    photo = Image.open(ASSETS / "coffee.png").resize((width, height))

    for pixels in (np.array(photo), noise(height, width)):
        off = difference(prepare(pixels, SPECS[name]), timm_prepare(Image.fromarray(pixels), SPECS[name]))
        assert off.max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from(sorted(SPECS)), st.integers(0, 9))
def test_any_size_is_prepared_as_timm_prepares_it(height: int, width: int, name: str, seed: int) -> None:
    pixels = noise(height, width, seed)

    try:
        reference = timm_prepare(Image.fromarray(pixels), SPECS[name])
    except ValueError:  # border mode would shrink a thin picture to nothing
        reject()

    off = difference(prepare(pixels, SPECS[name]), reference)
    assert off.max() <= 2
    assert (off > 1).sum() <= 2


@pytest.mark.parametrize("name", ["coat", "lite0", "bilinear"])
def test_a_camera_picture_that_shrinks_is_within_one_level(name: str) -> None:
    for height, width in ((1080, 1920), (720, 1280), (719, 1277), (576, 768)):
        pixels = noise(height, width)

        assert difference(prepare(pixels, SPECS[name]), timm_prepare(Image.fromarray(pixels), SPECS[name])).max() <= 1


def test_an_endless_panorama_takes_no_endless_memory() -> None:
    # Resized as a whole it would be 248 x 496,000,000 pixels. Colours that change along it show where the crop lies.
    pixels = np.zeros((1, 2_000_000, 3), np.uint8)
    pixels[:, 1_000_000:] = 200

    prepared = prepare(pixels, SPECS["coat"])

    assert prepared.shape == (224, 224, 3)
    assert prepared[:, 0].max() < 100 < prepared[:, -1].min()


def test_a_panorama_without_a_whole_pixel_to_begin_at_still_equals_timm() -> None:
    pixels = noise(
        120, 9973
    )  # a prime: the crop's left edge lies between two pixels, thousands from the next whole one

    for name in ("coat", "bilinear"):
        assert difference(prepare(pixels, SPECS[name]), timm_prepare(Image.fromarray(pixels), SPECS[name])).max() <= 1


def test_a_picture_of_the_models_size_is_enlarged_and_cropped_all_the_same() -> None:
    pixels = np.array(Image.open(ASSETS / "chelsea.png").resize((224, 224)))

    prepared = prepare(pixels, SPECS["coat"])

    assert difference(prepared, pixels).mean() > 1
    assert difference(prepared, timm_prepare(Image.fromarray(pixels), SPECS["coat"])).max() <= 1


def test_the_padding_of_border_mode_is_the_mean_colour() -> None:
    prepared = prepare(np.zeros((100, 400, 3), np.uint8), SPECS["border"])

    assert prepared[0, 0].tolist() == [124, 116, 104]
    assert prepared[112, 112].tolist() == [0, 0, 0]


def test_a_read_only_picture_is_prepared_and_the_result_is_its_own() -> None:
    pixels = raw(noise(300, 400).tobytes(), width=400, height=300, pixel_format="rgb24")

    prepared = prepare(pixels, SPECS["coat"])

    assert not pixels.flags.writeable
    assert prepared.flags.writeable
    assert prepared.flags.c_contiguous
    assert not np.shares_memory(pixels, prepared)


# ---- area: OpenCV's, for the noop engine


@pytest.mark.parametrize(
    ("height", "width", "mode"), [*product((1, 50, 360), (1, 640), ("center", "squash", "border"))]
)
def test_area_has_the_models_size_for_every_picture(height: int, width: int, mode: CropMode) -> None:
    prepared = prepare(noise(height, width), spec(mode=mode, filtering="area"))

    assert prepared.shape == (224, 224, 3)
    assert prepared.dtype == np.uint8


def test_area_shows_the_same_part_of_a_photo_as_timm() -> None:
    photo = Image.open(ASSETS / "coffee.png").convert("RGB")

    prepared = prepare(np.array(photo), spec(filtering="area"))

    def blurred(pixels: Pixels) -> np.ndarray:
        return cv2.resize(pixels, (28, 28), interpolation=cv2.INTER_AREA)

    assert difference(blurred(prepared), blurred(timm_prepare(photo, SPECS["coat"]))).mean() < 2


def test_a_view_of_bgr_is_prepared_as_the_rgb_it_shows() -> None:
    pixels = noise(720, 1280)
    view = raw(np.ascontiguousarray(pixels[:, :, ::-1]).tobytes(), width=1280, height=720, pixel_format="bgr24")

    for name in ("coat", "border", "bilinear"):
        prepared = prepare(view, SPECS[name])

        assert np.array_equal(prepared, prepare(pixels, SPECS[name]))
        assert prepared.flags.c_contiguous
        assert not np.shares_memory(prepared, view)


# ---- threads


def test_a_decoding_thread_is_limited_to_one_core_and_others_are_not() -> None:
    # Both threads set their count before either has run anything: the order in which torch mixes them up.
    first_is_set, second_is_set = threading.Event(), threading.Event()
    counts: dict[str, int] = {}

    def decoder() -> None:
        single_threaded()
        first_is_set.set()
        second_is_set.wait(10)
        counts["decoder"] = torch.get_num_threads()

    def engine() -> None:
        first_is_set.wait(10)
        use_cores(2)
        second_is_set.set()
        counts["engine"] = torch.get_num_threads()

    threads = [threading.Thread(target=decoder), threading.Thread(target=engine)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert counts == {"decoder": 1, "engine": 2}
