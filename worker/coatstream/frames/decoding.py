"""Decoding: encoded or raw bytes to RGB pixels, within bounds. Knows no sources.

bench/preparation.py measures the cost of each way at 1080p, and how far half size differs from the whole. This module
reads JPEG headers itself, because PIL's parser and a search for scans would add a tenth to the cost.
"""

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from PIL import BmpImagePlugin, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.Image import DecompressionBombError
from PIL.ImageFile import ImageFile

from coatstream.errors import BadFrame, DeadReason
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.geometry import survives_halving
from coatstream.frames.jpeg import SOI, jpeg_header, scans_of
from coatstream.frames.opencv import cv2
from coatstream.frames.orientation import UPRIGHT, orientation_in, upright

PixelFormat = Literal["bgr24", "rgb24", "gray8"]

_CHANNELS: Final = {"bgr24": 3, "rgb24": 3, "gray8": 1}

# The five plugins instead of PIL.Image.open, which obeys PIL's process-wide limit: it warns first and raises only at
# twice that value. Here `max_pixels` alone decides.
_READERS: Final = (
    (SOI, JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II", TiffImagePlugin.TiffImageFile),
    (b"MM", TiffImagePlugin.TiffImageFile),
)

_PILLOWS: Final = (BmpImagePlugin.BmpImageFile, TiffImagePlugin.TiffImageFile)  # decode too, where OpenCV errs
_WIDE: Final = (
    "I;16",
    "I;16L",
    "I;16B",
    "I;16N",
    "I",
    "F",
)  # Pillow's modes of which it would cut off the upper values

# PIL warns about headers that contradict themselves (mostly TIFF tags), and such a frame is refused, so the warning
# must be an exception. catch_warnings would swap the list of filters under other decoding threads; one filter that is
# added at import, for these plugins only, is safe.
warnings.filterwarnings("error", category=UserWarning, module=r"PIL\.(Jpeg|Png|WebP|Bmp|Tiff)ImagePlugin")

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_MAX_SCANS: Final = 100
_NO_MEMORY: Final = -4  # cv2.Error.StsNoMem
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
    jpeg = jpeg_header(data)
    head = _Head(jpeg.width, jpeg.height, jpeg.orientation) if jpeg else _head(data)
    _check_area(head.width, head.height, max_pixels)
    if jpeg is None or jpeg.many_scans:
        _check_structure(data)
    if head.by_pillow is not None:
        pixels, factor = _by_pillow(head.by_pillow, data), 1
    else:
        halved = jpeg is not None and spec is not None and survives_halving(jpeg.height, jpeg.width, spec)
        flags = (_HALF if halved else cv2.IMREAD_COLOR_RGB) | cv2.IMREAD_IGNORE_ORIENTATION
        pixels, factor = _by_opencv(data, flags, f"{head.width} x {head.height}"), 2 if halved else 1
    decoded_height, decoded_width = factor * pixels.shape[0], factor * pixels.shape[1]
    _check_area(decoded_width, decoded_height, max_pixels)  # a header can lie
    if head.orientation >= 5:
        decoded_height, decoded_width = decoded_width, decoded_height
    return DecodedPicture(upright(pixels, head.orientation), decoded_width, decoded_height)


def _by_opencv(data: bytes, flags: int, announced: str) -> Pixels:
    """Raises BadFrame `undecodable`, and MemoryError, which is no fault of the picture."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == _NO_MEMORY:
            raise MemoryError from None
        raise _undecodable(data, f"OpenCV error {error.code}") from None
    if pixels is None:
        raise _undecodable(data, f"damaged or cut off; its header says {announced}")
    return pixels  # type: ignore[return-value]  # IMREAD_COLOR_RGB is 8 bit


def _by_pillow(reader: type[ImageFile], data: bytes) -> Pixels:
    """Kinds of which OpenCV reads some wrongly: it multiplies TIFF's alpha in, and shears BMP's run lengths.

    Of 16-bit grey the upper byte counts, as in PNG. Raises BadFrame `undecodable`.
    """
    try:
        with reader(io.BytesIO(data)) as picture:
            mode = picture.mode
            if mode not in _WIDE:
                return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
            wide = np.asarray(picture)
    except MemoryError:
        raise
    except Exception as error:  # a parser at work on a stranger's bytes: whatever it raises means the same
        raise _undecodable(data, f"damaged, cut off or of an unknown kind ({type(error).__name__})") from None
    if wide.dtype.kind != "u" or wide.itemsize != 2:
        raise _undecodable(
            data, "its pixels have signs, fractions or more than 16 bits; plain ones of 8 and 16 can be read"
        )
    return np.repeat((wide >> 8).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)


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
class _Head:
    """What a picture announces. by_pillow: who reads it, if not OpenCV."""

    width: int
    height: int
    orientation: int
    by_pillow: type[ImageFile] | None = None


def _head(data: bytes) -> _Head:
    """Raises BadFrame."""
    reader = next((reader for magic, reader in _READERS if data.startswith(magic)), None)
    if reader is None:
        other = next((f"; it is {name}" for start, name in _OTHERS if start.match(data)), "")
        raise _undecodable(data, f"neither JPEG, PNG, WebP, BMP nor TIFF{other}")
    try:
        with reader(io.BytesIO(data)) as picture:
            width, height = picture.size
            orientation = _orientation(picture, data)
    except DecompressionBombError:  # PIL's own bound, which WebP's reader checks whatever we ask
        raise BadFrame(DeadReason.TOO_LARGE, "the picture has more pixels than PIL reads") from None
    except MemoryError:
        raise
    except Exception as error:  # a parser at work on a stranger's bytes: whatever it raises means the same
        raise _undecodable(
            data, f"its header is damaged, cut off or of an unknown kind ({type(error).__name__})"
        ) from None
    return _Head(width, height, orientation, reader if reader in _PILLOWS or _has_default_image(data) else None)


def _orientation(picture: ImageFile, data: bytes) -> int:
    """Without Pillow's `getexif`, which decodes all of a PNG to find it."""
    if isinstance(picture, _PILLOWS):  # which turn it themselves
        return UPRIGHT
    exif = picture.info.get("exif", b"")
    if data.startswith(_PNG) and not exif:
        exif = next((body for kind, body in _png_chunks(data) if kind == b"eXIf"), b"")
    return orientation_in(bytes(exif).removeprefix(b"Exif\0\0"))


def _has_default_image(data: bytes) -> bool:
    """Whether the picture of an animated PNG is no part of its animation, from which OpenCV would take the first."""
    kinds = [kind for kind, _ in _png_chunks(data)] if data.startswith(_PNG) else []
    return b"acTL" in kinds and b"fcTL" not in kinds[: kinds.index(b"IDAT")] if b"IDAT" in kinds else False


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk, as far as they are whole."""
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        kind = data[at + 4 : at + 8]
        yield kind, data[at + 8 : end] if kind == b"eXIf" else b""
        at = end + 4


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
        if all(kind != b"IEND" for kind, _ in _png_chunks(data)):
            raise _undecodable(data, "damaged or cut off; a chunk is longer than the file")
    elif data.startswith(SOI[:2]) and (scans := scans_of(data)) > _MAX_SCANS:
        raise _undecodable(data, f"{scans} scans, more than the {_MAX_SCANS} allowed")


_OTHERS: Final = tuple(  # how a picture begins that is of none of the kinds
    (re.compile(start, re.DOTALL), name)
    for start, name in (
        (rb"GIF8", "GIF"),
        (rb".{4}ftypavi[fs]", "AVIF"),
        (rb".{4}ftyp(?:hei|hev|mif|msf)", "HEIC"),
        (rb"\xff\x0a|.{4}JXL ", "JPEG XL"),
        (rb".{4}jP  |\xff\x4f\xff\x51", "JPEG 2000"),
        (rb"P[1-7Ff]\s", "a picture of the PNM family"),
        (rb"\x00\x00\x01\x00[^\x00]\x00", "ICO"),
        (rb"qoif", "QOI"),
        (rb"8BPS", "a Photoshop file"),
        (rb"%PDF", "PDF"),
        (rb".{4}ftyp|\x1a\x45\xdf\xa3|RIFF.{4}AVI ", "a clip"),
        (rb"(?i)\s*<(?:!doctype|html|\?xml|svg)", "text of the web"),
    )
)

_JPEG_START: Final = b"\xff\xd8\xff"
_MANGLED: Final = "\N{REPLACEMENT CHARACTER}".encode()
_AS_TEXT: Final = (  # how a picture begins that was made text of, and what the producer must change
    (b"data:", "a data URL; send the bytes that its base64 text stands for"),
    (b"b'\\x", "Python's notation of bytes; send the bytes themselves"),
    (b'b"\\x', "Python's notation of bytes; send the bytes themselves"),
    *(
        (start + digits, "hexadecimal text; send the bytes that it stands for")
        for magic in (_JPEG_START.hex(), _PNG.hex())
        for digits in (magic.encode(), magic.upper().encode())
        for start in (b"", b"0x", b"\\x")
    ),
    *(
        (text, "base64 text; send the bytes that it stands for")
        for text in (b"/9j/", b"_9j_", b"iVBORw0K", b"UklGR", b"SUkqA", b"TU0AK")
    ),
    *(
        (magic.decode("latin-1").encode(), "Latin-1 text that was encoded as UTF-8; send the bytes as they are")
        for magic in (_JPEG_START, _PNG[:4])
    ),
    (_MANGLED, "bytes that were taken for UTF-8 text, which cannot be undone; send the bytes as they are"),
)


def _undecodable(data: bytes, why: str) -> BadFrame:
    text = data[:64].lstrip(b' \t\r\n"')  # a JSON string keeps its quotes at times
    mistake = next((f"; this is {what}" for start, what in _AS_TEXT if text.startswith(start)), "")
    return BadFrame(DeadReason.UNDECODABLE, f"{len(data)} bytes are no picture that can be read: {why}{mistake}")


def _invalid(message: str) -> BadFrame:
    return BadFrame(DeadReason.INVALID, message)
