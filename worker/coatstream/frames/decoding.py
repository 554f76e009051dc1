"""Decoding: encoded or raw bytes to RGB pixels, within bounds. Knows no sources.

bench/preparation.py measures the cost of each way at 1080p, and how far half size differs from the whole. This module
reads JPEG headers itself, because PIL's parser and a search for scans would add a tenth to the cost.
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

# The five plugins instead of PIL.Image.open, which obeys PIL's process-wide limit: it warns first and raises only at
# twice that value. Here `max_pixels` alone decides.
_READERS: Final = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II", TiffImagePlugin.TiffImageFile),
    (b"MM", TiffImagePlugin.TiffImageFile),
)

# PIL warns about headers that contradict themselves (mostly TIFF tags), and such a frame is refused, so the warning
# must be an exception. catch_warnings would swap the list of filters under other decoding threads; one filter that is
# added at import, for these plugins only, is safe.
warnings.filterwarnings("error", category=UserWarning, module=r"PIL\.(Jpeg|Png|WebP|Bmp|Tiff)ImagePlugin")

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_JPEG_SCAN: Final = b"\xff\xda"
_MAX_SCANS: Final = 100
_HALF: Final = cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB  # REDUCED_COLOR_2 would be BGR


@dataclass(frozen=True, slots=True, eq=False)
class DecodedPicture:
    """A decoded picture.

    pixels         uint8 [height, width, 3] RGB, upright; at full size, or half as high and half as wide
    width, height  of the whole picture, in pixels
    """

    pixels: Pixels = field(repr=False)
    width: int
    height: int


def decode(data: bytes, *, max_bytes: int, max_pixels: int) -> Pixels:
    """A JPEG, PNG, WebP, BMP or TIFF picture -> uint8 [height, width, 3] RGB, upright (EXIF), alpha dropped.

    Both bounds are checked before anything is decoded. Raises BadFrame: `too_large` or `undecodable`.
    """
    return decode_for(None, data, max_bytes=max_bytes, max_pixels=max_pixels).pixels


def decode_for(spec: InputSpec | None, data: bytes, *, max_bytes: int, max_pixels: int) -> DecodedPicture:
    """As `decode`, but a JPEG at half its size if that leaves twice what `spec` asks for (`spec` None: never).

    libjpeg then transforms 4 x 4 coefficients instead of 8 x 8. After resizing, the two differ by a fraction of a grey
    level. Bounds and errors are those of the whole picture.
    """
    if len(data) > max_bytes:
        raise BadFrame(DeadReason.TOO_LARGE, f"the picture has {len(data)} bytes, more than the {max_bytes} allowed")
    jpeg = _jpeg_header(data)
    width, height = (jpeg.width, jpeg.height) if jpeg else _announced_size(data)
    _check_area(width, height, max_pixels)
    if jpeg is None or jpeg.many_scans:
        _check_structure(data)
    # Only cv2 finds out whether the picture lies or stands, so half of it must be enough either way.
    halved = jpeg is not None and spec is not None and survives_halving(height, width, spec)
    pixels = _pixels(data, _HALF if halved else cv2.IMREAD_COLOR_RGB, f"{width} x {height}")
    factor = 2 if halved else 1
    decoded_height, decoded_width = factor * pixels.shape[0], factor * pixels.shape[1]
    _check_area(decoded_width, decoded_height, max_pixels)  # a header can lie
    return DecodedPicture(pixels, decoded_width, decoded_height)


def _pixels(data: bytes, flags: int, announced: str) -> Pixels:
    """OpenCV's result. Raises BadFrame `undecodable`."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _undecodable(data, f"OpenCV error {error.code}") from None
    if pixels is None:
        raise _undecodable(data, f"damaged or cut off; its header says {announced}")
    return pixels  # type: ignore[return-value]  # IMREAD_COLOR_RGB is 8 bit


def raw(data: bytes, *, width: int, height: int, pixel_format: str) -> Pixels:
    """Raw pixels, row-major without padding, `bgr24`, `rgb24` or `gray8` -> uint8 [height, width, 3] RGB.

    The result is a read-only view of `data`, except for `gray8`. That of `bgr24` has its channels reversed by strides,
    so that `prepare` reorders only the small picture. Raises BadFrame `invalid`.
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
    """The picture's size, and whether the decoder may go over its pixels more than once."""

    width: int
    height: int
    many_scans: bool


_SEQUENTIAL: Final = (0xC0, 0xC1)
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES: Final = frozenset((0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """The header of a JPEG that is well formed up to its first scan; None: PIL must judge.

    libjpeg reads a second scan only if the picture is progressive, or if the first scan lacks some components.
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
    except DecompressionBombError:  # PIL's own bound: WebP's reader always checks it
        raise BadFrame(DeadReason.TOO_LARGE, "the picture has more pixels than PIL reads") from None
    except Exception as error:  # a parser on a stranger's bytes: any error means the same
        raise _undecodable(data, f"its header does not parse ({type(error).__name__})") from None


def _check_area(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width} x {height} = {width * height} pixels"
        raise BadFrame(DeadReason.TOO_LARGE, f"the picture has {size}, more than the {max_pixels} allowed")


def _check_structure(data: bytes) -> None:
    """Refuse pictures that cost far more than their size suggests. Raises BadFrame `undecodable`.

    OpenCV's PNG reader allocates the length that a chunk claims (84 bytes took 4 GB). The decoder goes over all pixels
    of a progressive JPEG once for each scan, and a scan takes 75 bytes (2 MB took a quarter of an hour); photos have
    ten.
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
