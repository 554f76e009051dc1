"""Resizing: RGB pixels of any size to a model's input.

The geometry is that of timm's evaluation transform and the filters are PIL's, at a fraction of PIL's time. The engine
normalises, on its device.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL.Image import Resampling as Filter
from PIL.Image import fromarray

from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.geometry import Axis, Cut, axes_of, exact_cut, whole
from coatstream.frames.opencv import cv2

if TYPE_CHECKING:
    from torch import Tensor

INTERPOLATIONS: Final = ("bicubic", "bilinear", "area")  # what `prepare` can do


def prepare(image: Pixels, spec: InputSpec) -> Pixels:
    """uint8 [any height, any width, 3] -> uint8 [spec.height, spec.width, 3], channels as they come.

    Equal to timm's evaluation transform before normalisation: for `bicubic` and `bilinear` within one grey level, two
    in a value of many millions (bench/preparation.py counts them). A picture of exactly the model's size is enlarged
    and cropped too, as timm does. `area` has the same geometry, rounded to whole pixels of the picture. The result has
    its own memory.
    """
    if backwards := image.strides[2] < 0:  # a view of BGR, as `decoding.raw` gives: turned round once it is small
        image = image[:, :, ::-1]
    rows, columns = axes_of(image.shape[0], image.shape[1], spec)
    shrunk = _by_area(image, rows, columns) if spec.interpolation == "area" else _by_filter(image, rows, columns, spec)
    if backwards:
        shrunk = cv2.cvtColor(shrunk, cv2.COLOR_BGR2RGB)  # type: ignore[assignment]  # 8 bit in, 8 bit out
    if rows.kept == spec.height and columns.kept == spec.width:
        return shrunk
    fill = [round(255 * mean) for mean in spec.mean] if spec.crop_mode == "border" else [0, 0, 0]
    canvas = np.full((spec.height, spec.width, 3), fill, np.uint8)
    top, left = (spec.height - rows.kept) // 2, (spec.width - columns.kept) // 2
    canvas[top : top + rows.kept, left : left + columns.kept] = shrunk
    return canvas


def _by_area(image: Pixels, rows: Axis, columns: Axis) -> Pixels:
    """OpenCV's INTER_AREA over the crop: needs no torch."""
    spans = (axis.span for axis in (rows, columns))
    box = tuple(slice(int(begin), max(1, math.ceil(end))) for begin, end in spans)
    shrinks = rows.scale > 1 or columns.scale > 1
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image[box], (columns.kept, rows.kept), interpolation=interpolation)  # type: ignore[return-value]


# ---- PIL's filters, over the pixels that the crop keeps

_MAX_WHOLE: Final = 16_000_000  # pixels that a tall picture may have before its crop: 48 MB


def _by_filter(image: Pixels, rows: Axis, columns: Axis, spec: InputSpec) -> Pixels:
    """PIL's antialiased filter: torch's uint8 kernel if it is within one grey level of PIL, else PIL itself.

    torch's 16-bit weights (PIL's have 22) round some values to the neighbouring level in the first pass. In the second
    pass those hardly ever add up to two levels while an axis shrinks by 1.75 or more; below that they do. A finer
    second pass would not help; a finer first one is most of PIL's time.
    """
    reach = 2 if spec.interpolation == "bicubic" else 1
    cuts = exact_cut(rows, reach), exact_cut(columns, reach)
    if _is_tall(rows, columns) and rows.resized * columns.resized <= _MAX_WHOLE:
        return _by_pil(image, (rows, columns), (whole(rows), whole(columns)), reach)
    if cuts[0] is None or cuts[1] is None:
        return _by_pil_box(image, rows, columns, reach)
    if min(rows.scale, columns.scale) < 1.75:
        return _by_pil(image, (rows, columns), (cuts[0], cuts[1]), reach)
    return _by_torch(image, (rows, columns), (cuts[0], cuts[1]), spec.interpolation)


def _is_tall(rows: Axis, columns: Axis) -> bool:
    """Whether Pillow 13 may take its two passes in the other order, by the whole size; torch never does.

    Seen from 2.3 times as tall as wide, and where the height is squashed (python-pillow/Pillow#9549).
    """
    return rows.source > 2 * columns.source or rows.scale > 1.01 * columns.scale


def _by_torch(image: Pixels, axes: tuple[Axis, Axis], cuts: tuple[Cut, Cut], interpolation: str) -> Pixels:
    """The kernel behind F.interpolate(antialias=True), which cannot be given both a size and the true scale.

    uint8 [height, width, 3] viewed as a channels-last tensor runs in integers, as PIL does, and far faster.
    """
    import torch

    (rows, columns), (row_cut, column_cut) = axes, cuts
    pixels = image[row_cut.first : row_cut.last, column_cut.first : column_cut.last]
    kernels = torch.ops.aten
    kernel = kernels._upsample_bicubic2d_aa if interpolation == "bicubic" else kernels._upsample_bilinear2d_aa
    height, width = (_computed(axis, cut) for axis, cut in zip(axes, cuts, strict=True))
    # Without `out` the kernel returns planes for a part of a picture, and reordering those takes time again.
    resized = np.empty((height, width, 3), np.uint8)
    scales = rows.resized / rows.source, columns.resized / columns.source
    kernel.out(_planes(_readable(pixels)), [height, width], False, *scales, out=_planes(resized))
    top, left = rows.offset - row_cut.start, columns.offset - column_cut.start
    return np.ascontiguousarray(resized[top : top + rows.kept, left : left + columns.kept])


def _planes(pixels: Pixels) -> "Tensor":
    """The same memory as a channels-last tensor, uint8 [1, 3, height, width].

    numpy makes the view: each view by torch releases the interpreter lock, and decode threads queue to get it back.
    """
    import torch

    return torch.from_numpy(pixels.transpose(2, 0, 1)[np.newaxis])


def _readable(pixels: Pixels) -> Pixels:
    """The same memory for torch, which has no read-only tensors and warns about each. The kernel only reads it.

    It is a copy only if rows, columns or channels run backwards.
    """
    if min(pixels.strides) < 0:
        return np.ascontiguousarray(pixels)
    if pixels.flags.writeable:
        return pixels
    address, _ = pixels.__array_interface__["data"]
    return np.asarray(_Writable(pixels, pixels.__array_interface__ | {"data": (address, False)}))


@dataclass(frozen=True, slots=True, eq=False)
class _Writable:
    """An array's memory without its flag; keeps the array alive."""

    array: Pixels
    __array_interface__: dict[str, Any]


def _computed(axis: Axis, cut: Cut) -> int:
    """Result pixels to ask for. One more than needed if that is the cut's length: torch would skip the axis."""
    needed = axis.offset + axis.kept - cut.start
    return needed + (axis.resized != axis.source and needed == cut.last - cut.first)


def _by_pil(image: Pixels, axes: tuple[Axis, Axis], cuts: tuple[Cut, Cut], reach: int) -> Pixels:
    """PIL over the cut, then the crop: the reference, at many times the cost of torch."""
    (rows, columns), (row_cut, column_cut) = axes, cuts
    pixels = image[row_cut.first : row_cut.last, column_cut.first : column_cut.last]
    size = column_cut.end - column_cut.start, row_cut.end - row_cut.start
    resized = np.asarray(fromarray(np.ascontiguousarray(pixels)).resize(size, _pil_filter(reach)))
    top, left = rows.offset - row_cut.start, columns.offset - column_cut.start
    return np.array(resized[top : top + rows.kept, left : left + columns.kept])


def _pil_filter(reach: int) -> Filter:
    return Filter.BICUBIC if reach == 2 else Filter.BILINEAR


def _by_pil_box(image: Pixels, rows: Axis, columns: Axis, reach: int) -> Pixels:
    """PIL over a box, which need not begin at a whole pixel (its edges are float32): for endless panoramas."""

    def cut(axis: Axis) -> tuple[slice, float, float]:
        begin, end = axis.span
        margin = reach * max(axis.scale, 1.0) + 1
        first, last = max(0, math.floor(begin - margin)), min(axis.source, math.ceil(end + margin))
        return slice(first, last), begin - first, min(end, axis.source) - first

    (row_slice, top, bottom), (column_slice, left, right) = cut(rows), cut(columns)
    picture = fromarray(np.ascontiguousarray(image[row_slice, column_slice]))
    resized = picture.resize((columns.kept, rows.kept), _pil_filter(reach), box=(left, top, right, bottom))
    return np.array(resized)
