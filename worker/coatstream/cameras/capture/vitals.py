"""What a camera's whole picture tells about its health, measured where it was decoded: a millisecond at 1080p.

Measures and judges nothing: `cameras.health` says what is sick, `pipeline.reuse` what is alike. Runs in the
camera's process, for each sampled picture, before the picture shrinks to the model's size.
"""

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coatstream.frames.frame import THUMBNAIL, Pixels, Vitals
from coatstream.frames.opencv import cv2

_WIDTH: Final = 320  # at which sharpness means the same for every camera
_ROWS: Final = 64  # about so many go into the fingerprint with their exact pixels

_MARGIN: Final = 6  # of the height that lies in each margin

_Grey = NDArray[np.uint8]


def measure(picture: Pixels, *, damage: int, keyframes: int = 1) -> Vitals:
    """The vitals of a picture, uint8 [height, width, 3] BGR or [height, width] grey, of any size from 1 x 1 on.

    The same pixels give the same vitals. A picture below 320 pixels wide is not enlarged: that would blur it.
    """
    grey = _reduced(_grey(picture))
    mean, deviation = cv2.meanStdDev(grey)
    _, edges = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    height, width = THUMBNAIL
    return Vitals(
        brightness=float(mean[0, 0]),
        contrast=float(deviation[0, 0]),
        sharpness=float(edges[0, 0]) ** 2,
        damage=damage,
        fingerprint=_fingerprint(picture, grey),
        thumbnail=cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA),  # type: ignore[arg-type]
        colours=_colours(picture),
        keyframes=keyframes,
    )


def _grey(picture: Pixels) -> _Grey:
    if picture.ndim == 3 and picture.shape[2] == 3:
        return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)  # type: ignore[return-value]
    return picture.reshape(picture.shape[:2])


def _colours(picture: Pixels) -> _Grey:
    """Cr and Cb at the thumbnail's size, of at most some 300 x 170 of its pixels; 128 where it is grey."""
    height, width = THUMBNAIL
    if picture.ndim != 3 or picture.shape[2] != 3:
        return np.full((2, height, width), 128, np.uint8)
    step = max(1, min(picture.shape[0] // 170, picture.shape[1] // 300))
    few = np.ascontiguousarray(picture[::step, ::step])
    small = cv2.cvtColor(cv2.resize(few, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2YCrCb)
    return np.ascontiguousarray(small.transpose(2, 0, 1)[1:], np.uint8)


def _reduced(grey: _Grey) -> _Grey:
    """320 pixels wide, each of them the average of those that it stands for.

    By halves first: one step from 1080p takes 2 ms, four steps 0.3 ms. An odd row or column falls off at a half.
    """
    while grey.shape[1] >= 2 * _WIDTH and grey.shape[0] >= 2:
        height, width = grey.shape[0] // 2, grey.shape[1] // 2
        even = grey[: 2 * height, : 2 * width]
        grey = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    if grey.shape[1] <= _WIDTH:
        return grey
    height = max(1, round(grey.shape[0] * _WIDTH / grey.shape[1]))
    return cv2.resize(grey, (_WIDTH, height), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _fingerprint(picture: Pixels, reduced: _Grey) -> int:
    """Of some 64 whole rows as they are, and of the reduced picture, in which every pixel has its share; without the
    margins, in which a clock may run over a picture that is frozen.

    Rows see noise of one grey level, which averages round away; averages see a change between the rows.
    """
    edge, reduced_edge = picture.shape[0] // _MARGIN, reduced.shape[0] // _MARGIN
    rows = picture[edge : picture.shape[0] - edge : max(1, picture.shape[0] // _ROWS)]
    reduced = np.ascontiguousarray(reduced[reduced_edge : reduced.shape[0] - reduced_edge])
    seed = zlib.crc32(repr(picture.shape).encode())
    return zlib.crc32(reduced.tobytes(), zlib.crc32(rows.tobytes(), seed))
