import io
import resource
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval

from tests.absence import missing
from tests.photos import ASSETS, clip_frames, photo_files
from worker.cores import single_threaded, use_cores
from worker.decoding import decode, raw
from worker.errors import BadFrame, DeadReason
from worker.frames import CropMode, InputSpec, Pixels
from worker.opencv import cv2
from worker.resizing import prepare

LIMITS = {"max_bytes": 1_000_000, "max_pixels": 1_000_000}


def spec(
    size: tuple[int, int] = (224, 224), crop_pct: float = 0.9, mode: CropMode = "center", filtering: str = "bicubic"
) -> InputSpec:
    return InputSpec(*size, crop_pct, mode, filtering, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


SPECS = {
    "coat": spec(),
    "lite0": spec(crop_pct=0.875),
    "squash": spec((384, 384), 1.0, "squash"),
    "border": spec(mode="border"),
    "bilinear": spec(crop_pct=0.875, filtering="bilinear"),
    "not square": spec((160, 256)),
    "padded": spec(crop_pct=1.1),
}


def timm_prepare(picture: Image.Image, wanted: InputSpec) -> Pixels:
    transform = transforms_imagenet_eval(
        (wanted.height, wanted.width),
        crop_pct=wanted.crop_pct,
        crop_mode=wanted.crop_mode,
        interpolation=wanted.interpolation,
        mean=wanted.mean,
        std=wanted.std,
        normalize=False,
    )
    return np.asarray(transform(picture).permute(1, 2, 0))


def difference(one: Pixels, other: Pixels) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(np.int16) - other.astype(np.int16))


def encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ---- decode


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_every_promised_format_becomes_rgb_pixels(file_format: str) -> None:
    picture = Image.new("RGB", (40, 30), (200, 100, 50))

    pixels = decode(encoded(picture, file_format), **LIMITS)

    assert pixels.shape == (30, 40, 3)
    assert pixels.dtype == np.uint8
    assert difference(pixels, np.asarray(picture)).max() <= 3


def test_a_photo_decodes_to_what_pil_decodes() -> None:
    file = ASSETS / "chelsea.png"

    pixels = decode(file.read_bytes(), **LIMITS)

    assert np.array_equal(pixels, np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P", "1", "LA"])
def test_other_kinds_of_png_become_8_bit_rgb(mode: str) -> None:
    picture = Image.new(mode, (8, 6), 1 if mode in ("1", "P") else (9000 if mode == "I;16" else None))

    pixels = decode(encoded(picture), **LIMITS)

    assert pixels.shape == (6, 8, 3)
    assert pixels.dtype == np.uint8


def test_a_turned_jpeg_is_set_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    data = encoded(Image.new("RGB", (40, 30)), "JPEG", exif=exif)

    assert decode(data, **LIMITS).shape == (40, 30, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_picture_that_is_cut_off_is_undecodable(file_format: str) -> None:
    data = encoded(Image.fromarray(noise(64, 64)), file_format)

    with pytest.raises(BadFrame) as caught:
        decode(data[: len(data) // 2], **LIMITS)

    assert caught.value.reason is DeadReason.UNDECODABLE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a" + bytes(50), b"\xff\xd8\xff", b"RIFF", b"II", b"BM"])
def test_bytes_that_are_no_picture_are_undecodable(data: bytes) -> None:
    with pytest.raises(BadFrame) as caught:
        decode(data, **LIMITS)

    assert caught.value.reason is DeadReason.UNDECODABLE


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(BadFrame, match="101 bytes, more than the 100 allowed") as caught:
        decode(bytes(101), max_bytes=100, max_pixels=100)

    assert caught.value.reason is DeadReason.TOO_LARGE


@pytest.mark.parametrize("side", [1_001, 12_000, 60_000])
def test_a_picture_bomb_is_refused_by_its_header(side: int) -> None:
    # 12,000 is where PIL warns of a bomb and 60,000 where it raises: both must end as the same BadFrame.
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data += struct.pack(">I", 4) + b"IDAT" + bytes(8)

    with pytest.raises(BadFrame, match=f"{side} x {side} = {side * side} pixels") as caught:
        decode(data, **LIMITS)

    assert caught.value.reason is DeadReason.TOO_LARGE


def test_a_webp_bomb_beyond_pils_own_bound_is_too_large() -> None:
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)  # width - 1 and height - 1 of a lossless picture

    with pytest.raises(BadFrame) as caught:
        decode(bytes(data), **LIMITS)

    assert caught.value.reason is DeadReason.TOO_LARGE


def test_a_tiff_that_pil_warns_about_is_a_bad_frame_and_no_warning() -> None:
    # Two values for a tag that takes one: PIL warns, with its own filter or with the user's "always".
    tags = [
        (256, 4, 2, 4),
        (257, 4, 1, 4),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (279, 4, 1, 16),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    data = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(64)

    with warnings.catch_warnings(record=True) as seen, pytest.raises(BadFrame):
        decode(data, **LIMITS)

    assert not seen


def test_many_threads_decode_at_once() -> None:
    picture = encoded(Image.fromarray(noise(120, 160)))
    jobs = [picture, picture[:500], b"", encoded(Image.fromarray(noise(50, 50)), "TIFF")] * 20

    def outcome(data: bytes) -> object:
        try:
            return decode(data, **LIMITS).shape
        except BadFrame as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, jobs))

    assert outcomes == [(120, 160, 3), DeadReason.UNDECODABLE, DeadReason.UNDECODABLE, (50, 50, 3)] * 20


FILES = [encoded(Image.fromarray(noise(9, 7)), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.binary(max_size=9),
)
def test_whatever_the_bytes_decode_gives_pixels_or_a_bad_frame(
    data: bytes, changes: list[tuple[int, int]], tail: bytes
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value

    try:
        pixels = decode(bytes(damaged) + tail, max_bytes=10_000, max_pixels=10_000)
    except BadFrame:
        pass
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert 0 < pixels.shape[0] * pixels.shape[1] <= 10_000


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"II*\0", b"MM\0*", b""]),
    st.binary(max_size=300),
)
def test_whatever_follows_a_magic_number_decode_raises_nothing_else(magic: bytes, rest: bytes) -> None:
    with suppress(BadFrame):
        decode(magic + rest, max_bytes=1000, max_pixels=10_000)


# ---- raw


def test_raw_pixels_of_each_format_become_the_same_rgb() -> None:
    rgb = np.repeat(noise(3, 5)[:, :, :1], 3, axis=2)
    colours = noise(3, 5)

    from_grey = raw(rgb[:, :, 0].tobytes(), width=5, height=3, pixel_format="gray8")
    from_rgb = raw(colours.tobytes(), width=5, height=3, pixel_format="rgb24")
    from_bgr = raw(colours[:, :, ::-1].tobytes(), width=5, height=3, pixel_format="bgr24")

    assert np.array_equal(from_grey, rgb)
    assert np.array_equal(from_rgb, colours)
    assert np.array_equal(from_bgr, colours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_format": "yuyv"}, "format is 'yuyv', not one of bgr24, rgb24, gray8"),
        ({"width": 0}, "a size of 0 x 3 holds no pixels"),
        ({"height": -3}, "a size of 5 x -3 holds no pixels"),
        ({"width": 6}, "6 x 3 rgb24 is 54 bytes, and pixels has 45"),
    ],
)
def test_raw_pixels_that_contradict_their_fields_are_invalid(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"width": 5, "height": 3, "pixel_format": "rgb24", **changes}

    with pytest.raises(BadFrame) as caught:
        raw(bytes(45), **fields)  # type: ignore[arg-type]

    assert caught.value.reason is DeadReason.INVALID
    assert str(caught.value) == message


@given(
    st.binary(max_size=60),
    st.integers(-2, 9),
    st.integers(-2, 9),
    st.sampled_from(["bgr24", "rgb24", "gray8", "", "x" * 99]),
)
def test_whatever_its_fields_raw_gives_pixels_or_a_bad_frame(data: bytes, width: int, height: int, kind: str) -> None:
    try:
        pixels = raw(data, width=width, height=height, pixel_format=kind)
    except BadFrame:
        pass
    else:
        assert pixels.shape == (height, width, 3)


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


# ---- structure: pictures that cost more than their size says


def test_a_png_chunk_that_is_longer_than_the_file_is_refused_before_it_is_allocated() -> None:
    good = encoded(Image.new("RGB", (8, 8)))
    at = good.index(b"IDAT") - 4
    bomb = good[:at] + b"\xff\xff\xff\xff" + good[at + 4 :]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadFrame, match="longer than the file") as caught:
        decode(bomb, **LIMITS)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert caught.value.reason is DeadReason.UNDECODABLE
    assert grown < 500_000  # KiB; the decoder would have taken 4 GB


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    good = encoded(Image.fromarray(noise(64, 64)), "JPEG", progressive=True)
    scans = good[good.rindex(b"\xff\xda") : -2]
    bomb = good[:-2] + 200 * scans + good[-2:]

    assert decode(good, **LIMITS).shape == (64, 64, 3)
    with pytest.raises(BadFrame, match="scans") as caught:
        decode(bomb, **LIMITS)

    assert caught.value.reason is DeadReason.UNDECODABLE


@given(st.binary(max_size=200))
def test_a_png_of_any_chunks_is_decoded_or_refused(chunks: bytes) -> None:
    good = encoded(Image.new("RGB", (8, 8)))

    try:
        pixels = decode(good[:33] + chunks + good[33:], **LIMITS)
    except BadFrame as bad:
        assert bad.reason in (DeadReason.UNDECODABLE, DeadReason.TOO_LARGE)  # noqa: PT017
    else:
        assert pixels.shape == (8, 8, 3)
