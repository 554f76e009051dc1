"""Views: which parts of a camera's picture the model sees, each an input of its own.

The crop of a model's evaluation keeps the middle: of 16:9 it never sees the left and right fifth, and with its border
43 % of the area are left. `whole` covers the picture with as few squares as do (inputs of the model's own shape); their
scores are joined class by class, by the best (`pipeline.joining`).
"""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.opencv import cv2
from coatstream.frames.resizing import prepare

MOST_SQUARES: Final = 4  # of a panorama the middle is covered
MOST_LOST: Final = 0.2  # share of a picture that may lie beside its largest square before `auto` takes the whole
_NEARLY: Final = 0.02  # of a square that may be missing: 1366 x 768 is 16:9

Wide = Literal["auto", "centre", "whole"]


@dataclass(frozen=True, slots=True)
class Region:
    """A named part of the picture: a rectangle by two corners, or a polygon by three and more.

    points  (x, y), shares of the picture's width and height where none is over 1, else pixels
    """

    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def is_relative(self) -> bool:
        return all(value <= 1 for point in self.points for value in point)

    def polygon(self, height: int, width: int) -> list[tuple[float, float]]:
        """Its corners in pixels, within the picture; of a rectangle two."""
        scale = (width, height) if self.is_relative else (1, 1)
        return [(min(width, max(0.0, x * scale[0])), min(height, max(0.0, y * scale[1]))) for x, y in self.points]


View = Wide | tuple[Region, ...]


def look(picture: Pixels, spec: InputSpec, view: View) -> Pixels:
    """What the model sees of a picture, uint8 [height, width, 3]: uint8 [views, spec.height, spec.width, 3], or without
    the first axis where it is one. Channels as they come.
    """
    if isinstance(view, tuple):
        views = np.stack([_of_region(picture, spec, region) for region in view])
    elif view == "whole" or (view == "auto" and is_wide(picture.shape[0], picture.shape[1], spec)):
        views = _whole(picture, spec)
    else:
        return prepare(picture, spec)
    return views if len(views) > 1 else views[0]


def beyond_picture(view: View, height: int, width: int) -> tuple[str, ...]:
    """Names of regions with a corner outside of a picture of this size: their pixels are those of a larger one."""
    if isinstance(view, str):
        return ()
    absolute = (region for region in view if not region.is_relative)
    return tuple(region.name for region in absolute if any(x > width or y > height for x, y in region.points))


def is_wide(height: int, width: int, spec: InputSpec) -> bool:
    """Whether so much lies beside the largest part of the model's shape that `auto` takes the whole picture.

    Models that squeeze or pad a picture see all of it anyway.
    """
    if spec.crop_mode != "center":
        return False
    shape, wanted = width / height, spec.width / spec.height
    return 1 - min(shape / wanted, wanted / shape) > MOST_LOST


def boxes(height: int, width: int, spec: InputSpec, view: View) -> list[tuple[str, list[tuple[float, float]]]]:
    """Name and corners (x, y) in pixels of what each input shows, two for a rectangle."""
    if isinstance(view, tuple):
        return [(region.name, region.polygon(height, width)) for region in view]
    if view == "whole" or (view == "auto" and is_wide(height, width, spec)):
        (rows, columns), starts, across = _spread(height, width, spec)
        scale = height / rows, width / columns
        size = spec.width * scale[1], spec.height * scale[0]
        corners = [(start * scale[1], 0.0) if across else (0.0, start * scale[0]) for start in starts]
        return [("", [(x, y), (x + size[0], y + size[1])]) for x, y in corners]
    share = spec.crop_pct if spec.crop_mode == "center" else 1.0
    if spec.crop_mode != "center":
        return [("", [(0.0, 0.0), (float(width), float(height))])]
    unit = min(width / spec.width, height / spec.height) * share
    x, y = (width - unit * spec.width) / 2, (height - unit * spec.height) / 2
    return [("", [(x, y), (x + unit * spec.width, y + unit * spec.height)])]


def _spread(height: int, width: int, spec: InputSpec) -> tuple[tuple[int, int], list[int], bool]:
    """(rows, columns) of the picture made small, where inputs begin along its long side, and whether that is across."""
    across = width * spec.height >= height * spec.width
    if across:
        resized = spec.height, max(spec.width, round(width * spec.height / height))
    else:
        resized = max(spec.height, round(height * spec.width / width)), spec.width
    starts = _starts(resized[1], spec.width) if across else _starts(resized[0], spec.height)
    return resized, starts, across


def _starts(long: int, short: int) -> list[int]:
    count = min(MOST_SQUARES, max(1, math.ceil(long / short - _NEARLY)))
    if count == MOST_SQUARES and long > MOST_SQUARES * short:
        first = (long - MOST_SQUARES * short) // 2
        return [first + number * short for number in range(MOST_SQUARES)]
    return [round(number * (long - short) / max(1, count - 1)) for number in range(count)]


def _whole(picture: Pixels, spec: InputSpec) -> Pixels:
    """The picture is made small once, and then cut."""
    (rows, columns), starts, across = _spread(picture.shape[0], picture.shape[1], spec)
    small = prepare(picture, replace(spec, height=rows, width=columns, crop_pct=1.0, crop_mode="squash"))
    if across:
        return np.stack([small[:, start : start + spec.width] for start in starts])
    return np.stack([small[start : start + spec.height] for start in starts])


def _of_region(picture: Pixels, spec: InputSpec, region: Region) -> Pixels:
    """Its rectangle, squeezed into the model's shape; what lies beside a polygon is grey."""
    height, width = picture.shape[:2]
    corners = np.array(region.polygon(height, width))
    (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    left, top = min(int(left), width - 1), min(int(top), height - 1)
    right, bottom = max(left + 1, int(right)), max(top + 1, int(bottom))
    cut = picture[top:bottom, left:right]
    if len(corners) > 2:
        cut = _masked(cut, corners - (left, top))
    return prepare(cut, replace(spec, crop_pct=1.0, crop_mode="squash"))


def _masked(cut: Pixels, corners: NDArray[np.float64]) -> Pixels:
    mask = np.zeros(cut.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], (1,))
    masked = np.full_like(cut, 127)
    masked[mask > 0] = cut[mask > 0]
    return masked
