"""A whole picture made small, for people to look at: previews and the pictures of events."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coatstream.frames.encoding import encode_jpeg
from coatstream.frames.frame import THUMBNAIL, Pixels
from coatstream.frames.opencv import cv2

LARGEST: Final = 640  # pixels of the longer side


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """One picture of a source.

    pixels       uint8 [height, width, 3] RGB, at most `LARGEST` a side
    captured_at  Unix seconds
    """

    frame_id: str
    captured_at: float
    pixels: Pixels = field(repr=False)

    def jpeg(self, *, side: int, quality: int) -> "Jpeg":
        """Of at most `side` pixels a side; `quality` is libjpeg's."""
        small = reduced(self.pixels, side)
        return Jpeg(encode_jpeg(small, quality=quality), small.shape[1], small.shape[0])


@dataclass(frozen=True, slots=True)
class Jpeg:
    """An encoded picture and its size in pixels."""

    data: bytes = field(repr=False)
    width: int
    height: int


def reduced(picture: Pixels, side: int = LARGEST) -> Pixels:
    """uint8 [height, width, 3] of any size -> the same picture, its longer side at most `side`; never enlarged.

    By halves first, each pixel the average of four; the rest is less than two, for which two samples an axis do.
    1080p takes 1.4 ms so, and 4.8 ms in one step of averages, which looks the same (bench/previews.py).
    """
    if min(picture.strides) < 0:  # a view of BGR, which OpenCV does not take
        picture = np.ascontiguousarray(picture)
    while max(picture.shape[:2]) >= 2 * side and min(picture.shape[:2]) >= 2:
        height, width = picture.shape[0] // 2, picture.shape[1] // 2
        even = picture[: 2 * height, : 2 * width]
        picture = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    longer = max(picture.shape[:2])
    if longer <= side:
        return picture
    height, width = (max(1, round(length * side / longer)) for length in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def thumbnail_of(picture: Pixels) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] RGB -> uint8 [36, 64], grey, area-averaged: to tell whether two pictures are alike."""
    height, width = THUMBNAIL
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]
