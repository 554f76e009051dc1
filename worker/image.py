"""Images: encoded or raw bytes to RGB pixels, and RGB pixels to what a model wants to see.

The geometry is timm's evaluation transform and the filters are PIL's, at a tenth of PIL's time. Normalising is the
engine's business, on its device; nothing here knows where a picture comes from.
"""

import io
import math
import sys
import warnings
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.Image import DecompressionBombError, fromarray
from PIL.Image import Resampling as Filter

from worker.cores import use_cores
from worker.errors import BadFrame, DeadReason
from worker.frames import InputSpec, Pixels
from worker.opencv import cv2

PixelFormat = Literal["bgr24", "rgb24", "gray8"]

INTERPOLATIONS: Final = ("bicubic", "bilinear", "area")  # what `prepare` can do

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


def single_threaded() -> None:
    """Keep image work of the calling thread on one core: called first in a source's or decoder's thread.

    OpenCV's setting is the process's and already 1 (worker.opencv); torch's is the thread's and set only where an
    engine has loaded torch: a worker with the noop engine never does. The engine's own threads are not touched.
    """
    if "torch" in sys.modules:
        use_cores(1)


# ---- bytes to pixels

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8"
_JPEG_SCAN: Final = b"\xff\xda"
_MAX_SCANS: Final = 100


def decode(data: bytes, *, max_bytes: int, max_pixels: int) -> Pixels:
    """A JPEG, PNG, WebP, BMP or TIFF picture -> uint8 [height, width, 3] RGB, upright (EXIF), alpha dropped.

    Both bounds are checked before anything is decoded. Raises BadFrame: `too_large` or `undecodable`.
    """
    if len(data) > max_bytes:
        raise BadFrame(DeadReason.TOO_LARGE, f"the picture has {len(data)} bytes, more than the {max_bytes} allowed")
    width, height = _announced_size(data)
    _check_area(width, height, max_pixels)
    _check_structure(data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise _undecodable(data, f"OpenCV error {error.code}") from None
    if pixels is None:
        raise _undecodable(data, f"damaged or cut off; its header says {width} x {height}")
    _check_area(pixels.shape[1], pixels.shape[0], max_pixels)  # a header can lie
    return pixels  # type: ignore[return-value]  # IMREAD_COLOR_RGB is 8 bit


def raw(data: bytes, *, width: int, height: int, pixel_format: str) -> Pixels:
    """Raw pixels, row-major and without padding, `bgr24`, `rgb24` or `gray8` -> uint8 [height, width, 3] RGB.

    The result of `rgb24` is a read-only view of `data`. Raises BadFrame `invalid`.
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
            return np.ascontiguousarray(pixels[:, :, ::-1])
        case "gray8":
            return np.repeat(pixels, 3, axis=2)
    return pixels


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
    elif data.startswith(_JPEG) and (scans := data.count(_JPEG_SCAN)) > _MAX_SCANS:
        raise _undecodable(data, f"{scans} scans, more than the {_MAX_SCANS} allowed")


def _undecodable(data: bytes, why: str) -> BadFrame:
    return BadFrame(DeadReason.UNDECODABLE, f"{len(data)} bytes are no picture that can be read: {why}")


def _invalid(message: str) -> BadFrame:
    return BadFrame(DeadReason.INVALID, message)


# ---- pixels to a model's input


def prepare(image: Pixels, spec: InputSpec) -> Pixels:
    """uint8 [any height, any width, 3] -> uint8 [spec.height, spec.width, 3], channels as they come.

    Equal to timm's evaluation transform before normalisation, for `bicubic` and `bilinear` within one grey level
    (two in some 1 of 1,000,000 values of noise). So a picture of the model's very size is enlarged and cropped too, as
    timm does. `area` has the same geometry, rounded to whole pixels of the picture. The result has its own memory.
    """
    rows, columns = _axes(image.shape[0], image.shape[1], spec)
    shrunk = _by_area(image, rows, columns) if spec.interpolation == "area" else _by_filter(image, rows, columns, spec)
    if rows.kept == spec.height and columns.kept == spec.width:
        return shrunk
    fill = [round(255 * mean) for mean in spec.mean] if spec.crop_mode == "border" else [0, 0, 0]
    canvas = np.full((spec.height, spec.width, 3), fill, np.uint8)
    top, left = (spec.height - rows.kept) // 2, (spec.width - columns.kept) // 2
    canvas[top : top + rows.kept, left : left + columns.kept] = shrunk
    return canvas


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: `source` pixels are resized to `resized`, of which those from `offset` to `offset + kept` remain."""

    source: int
    resized: int
    offset: int
    kept: int

    @property
    def scale(self) -> float:
        """Pixels of the picture in one of the result."""
        return self.source / self.resized


def _axes(height: int, width: int, spec: InputSpec) -> tuple[_Axis, _Axis]:
    """Rows and columns of timm's Resize or ResizeKeepRatio, then CenterCrop (torchvision's rounding)."""

    def axis(source: int, resized: int, target: int) -> _Axis:
        kept = min(target, resized)
        return _Axis(source, resized, offset=round((resized - kept) / 2.0), kept=kept)

    resized = _resized(height, width, spec)
    return axis(height, resized[0], spec.height), axis(width, resized[1], spec.width)


def _resized(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """(height, width) before the crop, as timm.data.transforms_factory.transforms_imagenet_eval works it out."""
    target_height, target_width = (math.floor(side / spec.crop_pct) for side in (spec.height, spec.width))
    if spec.crop_mode == "squash":
        return target_height, target_width
    if spec.crop_mode == "center" and target_height == target_width:
        long_side = int(target_height * max(height, width) / min(height, width))
        return (target_height, long_side) if height <= width else (long_side, target_height)
    ratios = height / target_height, width / target_width
    ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _by_area(image: Pixels, rows: _Axis, columns: _Axis) -> Pixels:
    """OpenCV's INTER_AREA over the crop: needs no torch."""
    box = tuple(
        slice(int(axis.offset * axis.scale), max(1, math.ceil((axis.offset + axis.kept) * axis.scale)))
        for axis in (rows, columns)
    )
    shrinks = rows.scale > 1 or columns.scale > 1
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image[box], (columns.kept, rows.kept), interpolation=interpolation)  # type: ignore[return-value]


# ---- PIL's filters, over the pixels that the crop keeps


@dataclass(frozen=True, slots=True)
class _Cut:
    """What of an axis is computed: result pixels `start` to `end`, out of the picture's pixels `first` to `last`."""

    start: int
    end: int
    first: int
    last: int


_MAX_LEAD: Final = 4096  # pixels of the result that may be computed on either side only to be cut off
_MAX_WHOLE: Final = 16_000_000  # pixels that a tall picture may have before its crop: 48 MB


def _by_filter(image: Pixels, rows: _Axis, columns: _Axis, spec: InputSpec) -> Pixels:
    """PIL's antialiased filter: torch's uint8 kernel wherever it is within one grey level of PIL, else PIL itself.

    torch's 16-bit weights round some values to the neighbouring level in the first pass. In the second pass they hardly
    ever add up to two levels while an axis shrinks by 1.75 or more; below that they do (1 of 100,000 values in photos).
    """
    reach = 2 if spec.interpolation == "bicubic" else 1
    cuts = _exact_cut(rows, reach), _exact_cut(columns, reach)
    if _is_tall(rows, columns) and rows.resized * columns.resized <= _MAX_WHOLE:
        return _by_pil(image, (rows, columns), (_whole(rows), _whole(columns)), reach)
    if cuts[0] is None or cuts[1] is None:
        return _by_pil_box(image, rows, columns, reach)
    if min(rows.scale, columns.scale) < 1.75:
        return _by_pil(image, (rows, columns), (cuts[0], cuts[1]), reach)
    return _by_torch(image, (rows, columns), (cuts[0], cuts[1]), spec.interpolation)


def _is_tall(rows: _Axis, columns: _Axis) -> bool:
    """True where Pillow 13 may take its two passes in the other order, which torch never does, and by the whole size.

    Seen from 2.3 times as tall as wide, and where the height is squashed (python-pillow/Pillow#9549).
    """
    return rows.source > 2 * columns.source or rows.scale > 1.01 * columns.scale


def _whole(axis: _Axis) -> _Cut:
    return _Cut(0, axis.resized, 0, axis.source)


def _exact_cut(axis: _Axis, reach: int) -> _Cut | None:
    """Where to cut the picture so that each kept pixel comes out as if all of it had been resized.

    A result pixel p is centred at (p + 0.5) * scale in the picture and reaches `reach` filter widths to both sides. The
    result can begin and end where that is a whole pixel of the picture: at multiples of resized / gcd(source, resized),
    and at the axis' own ends. None where the nearest is so far off that buffers would get out of hand.
    """
    margin = math.ceil(reach * max(axis.scale, 1.0) / axis.scale) + 1  # in pixels of the result
    period = axis.resized // math.gcd(axis.source, axis.resized)
    wanted_start, wanted_end = max(0, axis.offset - margin), min(axis.resized, axis.offset + axis.kept + margin)
    start, end = wanted_start // period * period, min(axis.resized, -(-wanted_end // period) * period)
    if max(wanted_start - start, end - wanted_end) > _MAX_LEAD:
        return None
    return _Cut(start, end, first=start * axis.source // axis.resized, last=end * axis.source // axis.resized)


def _by_torch(image: Pixels, axes: tuple[_Axis, _Axis], cuts: tuple[_Cut, _Cut], interpolation: str) -> Pixels:
    """The kernel behind F.interpolate(antialias=True), which cannot be given both a size and the true scale.

    uint8 [height, width, 3] viewed as a channels-last tensor runs in integers, as PIL does: a tenth of PIL's time.
    """
    import torch

    (rows, columns), (row_cut, column_cut) = axes, cuts
    pixels = image[row_cut.first : row_cut.last, column_cut.first : column_cut.last]
    tensor = torch.from_numpy(np.require(pixels, requirements=("C", "W"))).permute(2, 0, 1)[None]
    kernels = torch.ops.aten
    kernel = kernels._upsample_bicubic2d_aa if interpolation == "bicubic" else kernels._upsample_bilinear2d_aa
    size = [_computed(axis, cut) for axis, cut in zip(axes, cuts, strict=True)]
    resized = kernel(tensor, size, False, rows.resized / rows.source, columns.resized / columns.source)
    top, left = rows.offset - row_cut.start, columns.offset - column_cut.start
    kept = resized[0, :, top : top + rows.kept, left : left + columns.kept]
    return np.ascontiguousarray(kept.permute(1, 2, 0).numpy())


def _computed(axis: _Axis, cut: _Cut) -> int:
    """Result pixels to ask for. One more than needed where that is the cut's own length: torch would skip the axis."""
    needed = axis.offset + axis.kept - cut.start
    return needed + (axis.resized != axis.source and needed == cut.last - cut.first)


def _by_pil(image: Pixels, axes: tuple[_Axis, _Axis], cuts: tuple[_Cut, _Cut], reach: int) -> Pixels:
    """PIL over the cut, then the crop: the reference itself, at seven times the cost of torch."""
    (rows, columns), (row_cut, column_cut) = axes, cuts
    pixels = image[row_cut.first : row_cut.last, column_cut.first : column_cut.last]
    size = column_cut.end - column_cut.start, row_cut.end - row_cut.start
    resized = np.asarray(fromarray(np.ascontiguousarray(pixels)).resize(size, _pil_filter(reach)))
    top, left = rows.offset - row_cut.start, columns.offset - column_cut.start
    return np.array(resized[top : top + rows.kept, left : left + columns.kept])


def _pil_filter(reach: int) -> Filter:
    return Filter.BICUBIC if reach == 2 else Filter.BILINEAR


def _by_pil_box(image: Pixels, rows: _Axis, columns: _Axis, reach: int) -> Pixels:
    """PIL over a box, which need not begin at a whole pixel (its edges are float32): for endless panoramas."""

    def cut(axis: _Axis) -> tuple[slice, float, float]:
        begin, end = axis.offset * axis.scale, (axis.offset + axis.kept) * axis.scale
        margin = reach * max(axis.scale, 1.0) + 1
        first, last = max(0, math.floor(begin - margin)), min(axis.source, math.ceil(end + margin))
        return slice(first, last), begin - first, min(end, axis.source) - first

    (row_slice, top, bottom), (column_slice, left, right) = cut(rows), cut(columns)
    picture = fromarray(np.ascontiguousarray(image[row_slice, column_slice]))
    resized = picture.resize((columns.kept, rows.kept), _pil_filter(reach), box=(left, top, right, bottom))
    return np.array(resized)


# ---- pixels to bytes


def encode_jpeg(image: Pixels, *, quality: int = 90) -> bytes:
    """uint8 [height, width, 3] RGB -> a JPEG file's bytes; `quality` is libjpeg's, 1 to 100."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:  # JPEG ends at 65,535 pixels a side
        raise BadFrame(DeadReason.INVALID, f"{image.shape[1]} x {image.shape[0]} pixels cannot be a JPEG picture")
    return data.tobytes()
