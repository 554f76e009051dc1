import base64
import io
import resource
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from coatstream.errors import BadFrame, DeadReason
from coatstream.frames.decoding import decode, decode_for, raw
from coatstream.frames.geometry import axes_of, survives_halving
from coatstream.frames.jpeg import jpeg_header
from coatstream.frames.opencv import cv2
from coatstream.frames.resizing import prepare
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from tests.support.paths import ASSETS
from tests.support.photos import photo_files
from tests.support.transforms import LIMITS, SPECS, difference, encoded, noise, spec, timm_prepare


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


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ("GIF", "it is GIF"),
        ("AVIF", "it is AVIF"),
        ("JPEG2000", "it is JPEG 2000"),
        ("ICO", "it is ICO"),
        ("PPM", "it is a picture of the PNM family"),
        ("QOI", "it is QOI"),
        ("TGA", "nor TIFF$"),
    ],
)
def test_a_picture_of_another_kind_is_refused_by_its_name(form: str, named: str) -> None:
    with pytest.raises(BadFrame, match=named) as caught:
        decode(encoded(Image.fromarray(noise(64, 64)), form), **LIMITS)

    assert caught.value.reason is DeadReason.UNDECODABLE


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("mangle", "named"),
    [
        (base64.b64encode, "base64 text"),
        (base64.encodebytes, "base64 text"),
        (lambda data: base64.urlsafe_b64encode(data).rstrip(b"="), "base64 text"),
        (lambda data: b"0x" + data.hex().upper().encode(), "hexadecimal text"),
        (lambda data: b"\\x" + data.hex().encode(), "hexadecimal text"),
        (lambda data: b'"' + base64.b64encode(data) + b'"', "base64 text"),
        (lambda data: b"data:image/jpeg;base64," + base64.b64encode(data), "a data URL"),
        (lambda data: data.decode("utf-8", "replace").encode(), "taken for UTF-8 text"),
        (lambda data: data.decode("latin-1").encode(), "Latin-1 text that was encoded as UTF-8"),
        (lambda data: data.hex().encode(), "hexadecimal text"),
        (lambda data: repr(data).encode(), "Python's notation of bytes"),
    ],
)
def test_a_picture_that_was_made_text_of_is_named_as_that(
    file_format: str, mangle: Callable[[bytes], bytes], named: str
) -> None:
    with pytest.raises(BadFrame, match=named) as caught:
        decode(mangle(encoded(Image.fromarray(noise(64, 64)), file_format)), **LIMITS)

    assert caught.value.reason is DeadReason.UNDECODABLE
    assert "\n" not in str(caught.value)


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


# ---- half size


def photo_at(width: int, height: int) -> Image.Image:
    return Image.open(ASSETS / "coffee.png").convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


WIDE = {"max_bytes": 10**7, "max_pixels": 4 * 10**6}


@pytest.mark.parametrize(("size", "halved"), [((1920, 1080), True), ((1080, 1920), True), ((1280, 720), False)])
def test_a_jpeg_is_halved_where_twice_the_models_size_is_left_and_tells_its_whole_size(
    size: tuple[int, int], halved: bool
) -> None:
    picture = decode_for(SPECS["coat"], encoded(photo_at(*size), "JPEG"), **WIDE)

    assert (picture.width, picture.height) == size
    assert picture.pixels.shape[:2] == tuple(side // (1 + halved) for side in reversed(size))


def test_only_jpegs_are_halved_and_only_for_a_model() -> None:
    photo = photo_at(1920, 1080)

    assert decode_for(SPECS["coat"], encoded(photo, "BMP"), **WIDE | {"max_bytes": 10**8}).pixels.shape[0] == 1080
    assert decode_for(None, encoded(photo, "JPEG"), **WIDE).pixels.shape[0] == 1080


def test_a_turned_jpeg_of_half_size_is_upright_in_the_right_colours() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo_at(1920, 1080), "JPEG", exif=exif)

    picture = decode_for(SPECS["coat"], data, **WIDE)

    assert (picture.width, picture.height) == (1080, 1920)
    assert picture.pixels.shape == (960, 540, 3)
    smaller = np.asarray(cv2.resize(decode(data, **WIDE), (540, 960)), np.uint8)
    assert difference(picture.pixels, smaller).mean() < 2


def test_a_halved_photo_is_prepared_within_a_mean_of_one_level_of_timm() -> None:
    for file in photo_files():
        photo = Image.open(file).convert("RGB").resize((1920, 1080), Image.Resampling.LANCZOS)
        data = encoded(photo, "JPEG", quality=85)

        picture = decode_for(SPECS["coat"], data, **WIDE)
        whole = timm_prepare(Image.open(io.BytesIO(data)), SPECS["coat"])

        assert picture.pixels.shape == (540, 960, 3)
        assert difference(prepare(picture.pixels, SPECS["coat"]), whole).mean() <= 1
        # Full decoding is PIL's to the bit; torch's kernel is two levels off in 3 values of all these photos together.
        off = difference(prepare(decode(data, **WIDE), SPECS["coat"]), whole)
        assert off.max() <= 2
        assert (off > 1).sum() <= 2


def test_bounds_hold_for_the_whole_picture_when_it_is_halved() -> None:
    data = encoded(photo_at(1920, 1080), "JPEG")

    with pytest.raises(BadFrame, match="1920 x 1080 = 2073600 pixels") as caught:
        decode_for(SPECS["coat"], data, max_bytes=10**7, max_pixels=10**6)

    assert caught.value.reason is DeadReason.TOO_LARGE


def test_a_jpeg_that_is_cut_off_is_undecodable_at_half_size_too() -> None:
    data = encoded(photo_at(1920, 1080), "JPEG")

    with pytest.raises(BadFrame) as caught:
        decode_for(SPECS["coat"], data[: len(data) // 2], **WIDE)

    assert caught.value.reason is DeadReason.UNDECODABLE


def test_a_jpeg_of_thousands_of_scans_is_refused_at_half_size_too() -> None:
    good = encoded(photo_at(1920, 1080), "JPEG", progressive=True)
    bomb = good[:-2] + 200 * good[good.rindex(b"\xff\xda") : -2] + good[-2:]

    with pytest.raises(BadFrame, match="scans"):
        decode_for(SPECS["coat"], bomb, **WIDE | {"max_bytes": 10**8})


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(sorted(SPECS)))
def test_half_a_picture_has_the_same_crop_and_twice_what_resizing_leaves(height: int, width: int, name: str) -> None:
    if not survives_halving(height, width, SPECS[name]):
        return

    for whole, half in zip(
        axes_of(height, width, SPECS[name]), axes_of(height // 2, width // 2, SPECS[name]), strict=True
    ):
        assert (half.resized, half.offset, half.kept) == (whole.resized, whole.offset, whole.kept)
        assert half.source >= 2 * half.resized


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4))
def test_a_damaged_jpeg_is_never_larger_than_allowed(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(FILES[0])
    for place, value in changes:
        damaged[place % len(damaged)] = value

    with suppress(BadFrame):
        picture = decode_for(spec((2, 2)), bytes(damaged), max_bytes=10_000, max_pixels=10_000)
        assert 0 < picture.width * picture.height <= 10_000
        assert picture.pixels.size <= 3 * 10_000


HEADERS = [
    encoded(Image.fromarray(noise(24, 40)).convert(mode), "JPEG", progressive=progressive, comment=b"hello")
    for mode in ("RGB", "L", "CMYK")
    for progressive in (False, True)
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(HEADERS),
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from((0, 1, 2)), st.binary(max_size=4)), min_size=1, max_size=3),
)
def test_the_walk_over_a_jpegs_header_says_what_pil_and_the_decoder_say_or_nothing(
    good: bytes, changes: list[tuple[float, int, bytes]]
) -> None:
    data = good
    for place, removed, added in changes:  # behind the magic, and no further than the first scan's own header
        at = 2 + round(place * (good.index(b"\xff\xda") + 12))
        data = data[:at] + added + data[at + removed :]
    header = jpeg_header(data)
    if header is None:
        return

    size = header.width, header.height
    try:
        by_pillow = JpegImagePlugin.JpegImageFile(io.BytesIO(data)).size
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError):  # it may know less
        by_pillow = size
    assert by_pillow == size
    with suppress(BadFrame):
        pixels = decode(data, max_bytes=10**6, max_pixels=10**6)
        assert pixels.shape[:2] in (size[::-1], size)  # turned, where the changes make an EXIF of it
