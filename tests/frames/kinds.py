"""Pictures of all kinds that cameras, scanners and programs write: a name, its bytes, and how far off it may be."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

SIZE = 61, 45  # odd, so that rows of whole bytes and of whole blocks show what they round


@dataclass(frozen=True, slots=True)
class Kind:
    """level: grey levels that a pixel may be off what Pillow makes of it."""

    name: str
    data: bytes
    level: int = 0


def photo(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """Slopes and waves, each channel its own; of an RGBA the left third is transparent."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    red, green = 255 * x / size[0], 255 * y / size[1]
    blue = 127 + 127 * np.sin(x / 9) * np.cos(y / 7)
    picture = Image.fromarray(np.dstack([red, green, blue]).astype(np.uint8)).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(np.where(3 * x < size[0], 0, 255).astype(np.uint8)))
    return picture


def kinds() -> Iterator[Kind]:
    yield from _jpegs()
    yield from _pngs()
    yield from _webps()
    yield from _bmps()
    yield from _tiffs()
    yield from _turned()


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def _jpegs() -> Iterator[Kind]:
    for subsampling, progressive in product((0, 1, 2), (False, True)):
        name = f"jpeg-{subsampling}-{'progressive' if progressive else 'baseline'}"
        yield Kind(name, saved(photo(), "JPEG", subsampling=subsampling, progressive=progressive, quality=90))
    for progressive in (False, True):
        yield Kind(f"jpeg-grey-{progressive}", saved(photo("L"), "JPEG", progressive=progressive))
        yield Kind(f"jpeg-cmyk-{progressive}", saved(photo("CMYK"), "JPEG", progressive=progressive), level=2)
    for quality in (1, 50, 100):
        yield Kind(f"jpeg-quality-{quality}", saved(photo(), "JPEG", quality=quality))
    yield Kind("jpeg-restart", saved(photo(), "JPEG", restart_marker_blocks=1))
    yield Kind("jpeg-optimised", saved(photo(), "JPEG", optimize=True))
    yield Kind("jpeg-rgb", saved(photo(), "JPEG", keep_rgb=True))
    yield Kind("jpeg-comment", saved(photo(), "JPEG", comment=b"\xff\xda" * 500))
    tail = b"MotionPhoto_Data" + b"\xff\xda\x12\x34" * 5000  # the clip of a motion photo
    yield Kind("jpeg-trailer", saved(photo(), "JPEG") + tail)
    yield Kind("jpeg-progressive-trailer", saved(photo(), "JPEG", progressive=True) + tail)


def _pngs() -> Iterator[Kind]:
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        yield Kind(f"png-{mode}", saved(photo(mode), "PNG"))
    for bits in (1, 2, 4):
        yield Kind(f"png-palette-{bits}", saved(photo().quantize(2**bits), "PNG", bits=bits))
    for alone in (False, True):  # the picture is the animation's first one, or no part of it
        name, more = f"png-animated-{alone}", [photo().rotate(180)]
        yield Kind(name, saved(photo(), "PNG", save_all=True, append_images=more, default_image=alone))
    yield Kind("png-transparent-colour", saved(photo("L"), "PNG", transparency=7))
    wide = (np.asarray(photo("L")).astype(np.uint16) << 8) + 77
    yield Kind("png-16-grey", saved(Image.fromarray(wide), "PNG"))


def _webps() -> Iterator[Kind]:
    for mode, lossless in product(("RGB", "RGBA"), (False, True)):
        yield Kind(f"webp-{mode}-{'lossless' if lossless else 'lossy'}", saved(photo(mode), "WEBP", lossless=lossless))
    frames = [photo(), photo().rotate(180)]
    yield Kind("webp-animated", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))


def _bmps() -> Iterator[Kind]:
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        yield Kind(f"bmp-{mode}", saved(photo(mode), "BMP"))
    for width in (1, 2, 3, 7, 61, 64):
        yield Kind(f"bmp-rle8-{width}", rle8(photo("L", (width, 45))))
    for masks, bits in (((0x7C00, 0x3E0, 0x1F), 16), ((0xF800, 0x7E0, 0x1F), 16), ((0xFF0000, 0xFF00, 0xFF), 32)):
        yield Kind(f"bmp-fields-{bits}-{masks[1]:x}", bitfields(photo(), bits, masks))


def rle8(picture: Image.Image) -> bytes:
    """Run lengths of 8 bits (BI_RLE8): runs and absolute stretches, each row ended."""
    rows = np.asarray(picture)[::-1]
    coded = bytearray()
    for row in rows.tolist():
        at = 0
        while at < len(row):
            stretch = row[at : at + 5]
            if len(stretch) >= 3 and len(set(stretch)) > 1:
                coded += bytes((0, len(stretch), *stretch)) + b"\0" * (len(stretch) % 2)
                at += len(stretch)
            else:
                coded += bytes((1, row[at]))
                at += 1
        coded += b"\0\0"
    coded[-2:] = b"\0\1"
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in range(256))
    return _bmp(picture.size, 8, 1, palette, bytes(coded), colours=256)


def bitfields(picture: Image.Image, bits: int, masks: tuple[int, int, int]) -> bytes:
    pixels: NDArray[np.uint32] = np.asarray(picture)[::-1].astype(np.uint32)
    packed: NDArray[np.uint32] = np.zeros((picture.height, picture.width), np.uint32)
    for channel, mask in zip(range(3), masks, strict=True):
        low = (mask & -mask).bit_length() - 1
        depth = (mask >> low).bit_length()
        packed |= (pixels[:, :, channel] >> (8 - depth)) << low
    rows = packed.astype("<u2" if bits == 16 else "<u4")
    padding = -picture.width * (bits // 8) % 4
    data = b"".join(row.tobytes() + b"\0" * padding for row in rows)
    return _bmp(picture.size, bits, 3, struct.pack("<3I", *masks), data, colours=0)


def _bmp(size: tuple[int, int], bits: int, compression: int, table: bytes, data: bytes, *, colours: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, *size, 1, bits, compression, len(data), 2835, 2835, colours, 0)
    start = 14 + len(header) + len(table)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + table + data


def _tiffs() -> Iterator[Kind]:
    for mode, compression in product(
        ("RGB", "RGBA", "L", "P", "CMYK", "LA"), ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd")
    ):
        yield Kind(f"tiff-{mode}-{compression}", saved(photo(mode), "TIFF", compression=compression))
    for compression in ("raw", "group3", "group4", "packbits"):
        yield Kind(f"tiff-1-{compression}", saved(photo("1"), "TIFF", compression=compression))
    yield Kind("tiff-jpeg", saved(photo(), "TIFF", compression="jpeg", quality=95), level=2)
    yield Kind("tiff-big-endian", saved(photo(), "TIFF", big_tiff=False, tiffinfo=ImageFileDirectory_v2(prefix=b"MM")))
    yield Kind("tiff-tiled", saved(photo(size=(64, 48)), "TIFF", tile=(16, 16)))
    yield Kind("tiff-two-pages", saved(photo(), "TIFF", save_all=True, append_images=[photo().rotate(180)]))
    wide = (np.asarray(photo("L")).astype(np.uint16) << 8) + 77
    yield Kind("tiff-16-grey", saved(Image.fromarray(wide), "TIFF"))


def _turned() -> Iterator[Kind]:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for form in ("JPEG", "PNG", "WEBP", "TIFF"):
            lossless = {"lossless": True} if form == "WEBP" else {}
            yield Kind(f"{form.lower()}-orientation-{orientation}", saved(photo(), form, exif=exif, **lossless))
    for order, kind in product(("<", ">"), (3, 4, 6, 8, 9)):
        name = f"jpeg-exif-{'little' if order == '<' else 'big'}-type-{kind}"
        yield Kind(name, saved(photo(), "JPEG", exif=exif_of(order, kind, 6)))


def exif_of(order: str, kind: int, orientation: int) -> bytes:
    """EXIF with one entry, the orientation, as an integer of this type (TIFF 6.0)."""
    value = struct.pack(order + {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}[kind], orientation).ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, 1)
    return b"Exif\0\0" + head + struct.pack(order + "HHI", 0x0112, kind, 1) + value + b"\0\0\0\0"
