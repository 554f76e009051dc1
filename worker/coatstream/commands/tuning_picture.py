"""The scores of tags over time as a picture, with the thresholds."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import cv2
from coatstream.settings.model import TagSettings

_SIZE: Final = (1000, 420)  # width, height
_EDGE: Final = (50, 20, 190, 40)  # left, top, right, bottom
_COLOURS: Final = ((180, 119, 31), (14, 127, 255), (44, 160, 44), (40, 39, 214), (189, 103, 148), (75, 86, 140))  # BGR
_GREY: Final = (150, 150, 150)


def drawn(times: Sequence[float], scores: Mapping[str, Sequence[float]], tags: TagSettings) -> Pixels:
    """uint8 [420, 1000, 3] BGR: a line for each tag, up to six; `start_at` and `end_below` are dashed."""
    picture = np.full((_SIZE[1], _SIZE[0], 3), 255, np.uint8)
    left, right = _EDGE[0], _SIZE[0] - _EDGE[2]
    longest = max(times[-1], 1e-9)
    for value in (0.0, 0.5, 1.0):
        cv2.line(picture, (left, _row(value)), (right, _row(value)), (225, 225, 225), 1)
        _write(picture, f"{value:g}", (left - 30, _row(value) + 4), _GREY)
    for name, value in (("start_at", tags.start_at), ("end_below", tags.end_below)):
        for x in range(left, right, 8):
            cv2.line(picture, (x, _row(value)), (x + 4, _row(value)), _GREY, 1)
        _write(picture, f"{name} {value:g}", (right + 6, _row(value) + 4), _GREY)
    for number, (tag, values) in enumerate(scores.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [
            (left + round((right - left) * at / longest), _row(score)) for at, score in zip(times, values, strict=True)
        ]
        cv2.polylines(
            picture, [np.array(points, np.int32)], isClosed=False, color=colour, thickness=2, lineType=cv2.LINE_AA
        )
        _write(picture, tag[:26], (right + 6, _EDGE[1] + 16 + 18 * number), colour)
    _write(picture, f"0 - {longest:.1f} s", (left, _SIZE[1] - 12), _GREY)
    return picture


def _row(score: float) -> int:
    top, bottom = _EDGE[1], _SIZE[1] - _EDGE[3]
    return round(bottom - (bottom - top) * min(1.0, max(0.0, score)))


def _write(picture: Pixels, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(picture, plain, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
