"""Geometry: which pixels of a picture become which pixels of a model's input. Arithmetic only.

Sizes and rounding are those of timm's evaluation transform.
"""

import math
from dataclasses import dataclass
from typing import Final

from coatstream.frames.frame import InputSpec

_MAX_LEAD: Final = 4096  # pixels of the result that may be computed on either side only to be cut off


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: `source` pixels are resized to `resized`, of which those from `offset` to `offset + kept` remain."""

    source: int
    resized: int
    offset: int
    kept: int

    @property
    def scale(self) -> float:
        """Pixels of the picture in one of the result."""
        return self.source / self.resized

    @property
    def span(self) -> tuple[float, float]:
        """Where the kept part begins and ends in the picture, in pixels and fractions of them."""
        return self.offset * self.scale, (self.offset + self.kept) * self.scale


@dataclass(frozen=True, slots=True)
class Cut:
    """The computed part of an axis: result pixels `start` to `end`, from the picture's pixels `first` to `last`."""

    start: int
    end: int
    first: int
    last: int


def axes_of(height: int, width: int, spec: InputSpec) -> tuple[Axis, Axis]:
    """Rows and columns of timm's Resize or ResizeKeepRatio, then CenterCrop (torchvision's rounding)."""

    def axis(source: int, resized: int, target: int) -> Axis:
        kept = min(target, resized)
        return Axis(source, resized, offset=round((resized - kept) / 2.0), kept=kept)

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


def survives_halving(height: int, width: int, spec: InputSpec) -> bool:
    """Whether a picture of half the size still has twice the pixels that resizing leaves, along both sides.

    Halving it first then hardly shows. The test is for both orientations, since a JPEG tells its own in EXIF. Both
    sides must be even: half of an odd side would be resized to another shape.
    """
    if height % 2 or width % 2:
        return False
    halves = (*axes_of(height // 2, width // 2, spec), *axes_of(width // 2, height // 2, spec))
    return all(axis.source >= 2 * axis.resized for axis in halves)


def whole(axis: Axis) -> Cut:
    """All of an axis."""
    return Cut(0, axis.resized, 0, axis.source)


def exact_cut(axis: Axis, reach: int) -> Cut | None:
    """Where to cut the picture so that each kept pixel is the same as if the whole picture had been resized.

    A result pixel p is centred at (p + 0.5) * scale in the picture and reaches `reach` filter widths to both sides. The
    result can begin and end where that is a whole pixel of the picture: at multiples of resized / gcd(source, resized),
    and at the ends of the axis. None if the nearest of them is over `_MAX_LEAD` pixels away.
    """
    margin = math.ceil(reach * max(axis.scale, 1.0) / axis.scale) + 1  # in pixels of the result
    period = axis.resized // math.gcd(axis.source, axis.resized)
    wanted_start, wanted_end = max(0, axis.offset - margin), min(axis.resized, axis.offset + axis.kept + margin)
    start, end = wanted_start // period * period, min(axis.resized, -(-wanted_end // period) * period)
    if max(wanted_start - start, end - wanted_end) > _MAX_LEAD:
        return None
    return Cut(start, end, first=start * axis.source // axis.resized, last=end * axis.source // axis.resized)
