"""Decoding: encoded or raw bytes to RGB pixels, within bounds. Nothing here knows where a picture comes from.

What each way costs at 1080p, and how far half size is from the whole, bench/preparation.py says. A walk of our own over
a JPEG's header is there because PIL's parser and a search for scans would add a tenth to that.
"""

import io
import warnings
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.Image import DecompressionBombError

from coatstream.errors import BadFrame, DeadReason
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.geometry import survives_halving
from coatstream.frames.opencv import cv2

PixelFormat = Literal["bgr24", "rgb24", "gray8"]

_CHANNELS: Final = {"bgr24": 3, "rgb24": 3, "gray8": 1}

# The plugins themselves rather than PIL.Image.open: they are five, they answer to `max_pixels` alone and not to PIL's
# process-wide limit, which warns first and raises at twice its value.
_READERS: Final = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II", TiffImagePlugin.TiffImageFile),
    (b"MM", TiffImagePlugin.TiffImageFile),
)

# PIL warns about headers that contradict themselves (mostly TIFF tags). Here that is a reason to refuse the frame, so
# the warning has to arrive as an exception. catch_warnings would swap the process's list of filters under other
# decoding threads; one filter added at import, for these plugins only, is safe.
warnings.filterwarnings("error", category=UserWarning, module=r"PIL\.(Jpeg|Png|WebP|Bmp|Tiff)ImagePlugin")

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_JPEG_SCAN: Final = b"\xff\xda"
_MAX_SCANS: Final = 100
_HALF: Final = cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB  # REDUCED_COLOR_2 would be BGR


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture as it was decoded.

    pixels         uint8 RGB, upright; all of it, or half as high and half as wide
    width, height  of the whole picture
    """

    pixels: Pixels = field(repr=False)
    width: int
    height: int


def decode(data: bytes, *, max_bytes: int, max_pixels: int) -> Pixels:
    """A JPEG, PNG, WebP, BMP or TIFF picture -> uint8 [height, width, 3] RGB, upright (EXIF), alpha dropped.

    Both bounds are checked before anything is decoded. Raises BadFrame: `too_large` or `undecodable`.
    """
    return decode_for(None, data, max_bytes=max_bytes, max_pixels=max_pixels).pixels


def decode_for(spec: InputSpec | None, data: bytes, *, max_bytes: int, max_pixels: int) -> Picture:
    """As `decode`, but a JPEG at half its size where that leaves twice of what `spec` asks for; None: never.

    libjpeg then transforms 4 x 4 coefficients instead of 8 x 8. Once both are resized, they are a fraction of a grey
    level apart. Bounds and refusals are those of the whole picture.
    """
    if len(data) > max_bytes:
        raise BadFrame(DeadReason.TOO_LARGE, f"the picture has {len(data)} bytes, more than the {max_bytes} allowed")
    jpeg = _jpeg_header(data)
    width, height = (jpeg.width, jpeg.height) if jpeg else _announced_size(data)
    _check_area(width, height, max_pixels)
    if jpeg is None or jpeg.many_scans:
        _check_structure(data)
    # Which way up it is, cv2 finds out: so half of it has to do either way.
    halved = jpeg is not None and spec is not None and survives_halving(height, width, spec)
    pixels = _pixels(data, _HALF if halved else cv2.IMREAD_COLOR_RGB, f"{width} x {height}")
    factor = 2 if halved else 1
    decoded_height, decoded_width = factor * pixels.shape[0], factor * pixels.shape[1]
    _check_area(decoded_width, decoded_height, max_pixels)  # a header can lie
    return Picture(pixels, decoded_width, decoded_height)


def _pixels(data: bytes, flags: int, announced: str) -> Pixels:
    """What OpenCV reads. Raises BadFrame `undecodable`."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _undecodable(data, f"OpenCV error {error.code}") from None
    if pixels is None:
        raise _undecodable(data, f"damaged or cut off; its header says {announced}")
    return pixels  # type: ignore[return-value]  # IMREAD_COLOR_RGB is 8 bit


def raw(data: bytes, *, width: int, height: int, pixel_format: str) -> Pixels:
    """Raw pixels, row-major and without padding, `bgr24`, `rgb24` or `gray8` -> uint8 [height, width, 3] RGB.

    The result of `rgb24` and `bgr24` is a read-only view of `data`; of the latter with its channels backwards, so that
    `prepare` can turn them round in the small picture that it makes. Raises BadFrame `invalid`.
    """
    if pixel_format not in _CHANNELS:
        raise _invalid(f"format is {pixel_format[:32]!r}, not one of {', '.join(_CHANNELS)}")
    if width < 1 or height < 1:
        raise _invalid(f"a size of {width} x {height} holds no pixels")
    channels = _CHANNELS[pixel_format]
    if len(data) != width * height * channels:
        wanted = f"{width} x {height} {pixel_format} is {width * height * channels} bytes"
        raise _invalid(f"{wanted}, and pixels has {len(data)}")
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, channels)
    match pixel_format:
        case "bgr24":
            return pixels[:, :, ::-1]
        case "gray8":
            return np.repeat(pixels, 3, axis=2)
    return pixels


@dataclass(frozen=True, slots=True)
class _JpegHeader:
    """Size, and whether the decoder may go over the picture's pixels more than once."""

    width: int
    height: int
    many_scans: bool


_SEQUENTIAL: Final = (0xC0, 0xC1)
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES: Final = frozenset((0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """Of a JPEG whose header is as it should be up to its first scan; None: PIL has to judge.

    libjpeg reads a second scan only of a progressive picture, or where the first one has not all the components.
    """
    if not data.startswith(_JPEG):
        return None
    at, frame = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 10]
        if length < 2 or at + 2 + length > len(data):
            return None
        if marker == 0xDA and frame is not None and body:
            height, width, components, sequential = frame
            many_scans = not sequential or body[0] != components
            return _JpegHeader(width, height, many_scans) if width and height else None
        if marker in _FRAMES and frame is None and length >= 8:
            sides = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            frame = *sides, body[5], marker in _SEQUENTIAL
        elif marker not in _TABLES:
            return None
        at += 2 + length
    return None


def _announced_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the header. Raises BadFrame."""
    reader = next((reader for magic, reader in _READERS if data.startswith(magic)), None)
    if reader is None:
        raise _undecodable(data, "neither JPEG, PNG, WebP, BMP nor TIFF")
    try:
        with reader(io.BytesIO(data)) as picture:
            return picture.size
    except DecompressionBombError:  # PIL's own bound, which WebP's reader checks whatever we ask
        raise BadFrame(DeadReason.TOO_LARGE, "the picture has more pixels than PIL reads") from None
    except Exception as error:  # a parser at work on a stranger's bytes: whatever it raises means the same
        raise _undecodable(data, f"its header does not parse ({type(error).__name__})") from None


def _check_area(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width} x {height} = {width * height} pixels"
        raise BadFrame(DeadReason.TOO_LARGE, f"the picture has {size}, more than the {max_pixels} allowed")


def _check_structure(data: bytes) -> None:
    """Refuses what would cost the decoder far more than the picture's size says. Raises BadFrame `undecodable`.

    OpenCV's PNG reader allocates whatever length a chunk claims (84 bytes took 4 GB). A progressive JPEG goes over all
    its pixels once a scan, and a scan takes 75 bytes (2 MB of them took a quarter of an hour); photos have about ten.
    """
    if data.startswith(_PNG):
        at = len(_PNG)
        while at + 12 <= len(data) and data[at + 4 : at + 8] != b"IEND":
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at + 12 > len(data):
            raise _undecodable(data, "damaged or cut off; a chunk is longer than the file")
    elif data.startswith(_JPEG[:2]) and (scans := data.count(_JPEG_SCAN)) > _MAX_SCANS:
        raise _undecodable(data, f"{scans} scans, more than the {_MAX_SCANS} allowed")


def _undecodable(data: bytes, why: str) -> BadFrame:
    return BadFrame(DeadReason.UNDECODABLE, f"{len(data)} bytes are no picture that can be read: {why}")


def _invalid(message: str) -> BadFrame:
    return BadFrame(DeadReason.INVALID, message)
