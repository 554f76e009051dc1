"""Pictures as producers send them, made of the package's own photos and clip, and the script that queues them."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from coatstream.commands.bench.photos import photos
from coatstream.frames.decoding import decode_for, raw
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.opencv import cv2
from coatstream.frames.resizing import prepare
from coatstream.settings.model import QueueSettings

QUALITY: Final = 85  # of the JPEGs
CLIP_FPS: Final = 0.5  # frames taken from a second of the clip: seven

# Puts pictures into the stream in one step, over and over the same few: no producer shares the cores with the worker.
FILL: Final = """
local pictures = #ARGV - 4
for i = 0, tonumber(ARGV[1]) - 1 do
  redis.call('XADD', KEYS[1], '*', ARGV[2], ARGV[5 + i % pictures], 'width', ARGV[3], 'height', ARGV[4],
    'source', 'door-' .. i % 8)
end
"""


@dataclass(frozen=True, slots=True)
class PictureKind:
    """Pictures as a producer would send them: all of one size and encoding.

    name    of the case: `raw_224x224`, `jpeg_720p` ...
    key     of the stream's entries: `image` (encoded) or `pixels` (raw bgr24)
    """

    name: str
    key: str
    width: int
    height: int
    pictures: tuple[bytes, ...] = field(repr=False)

    @property
    def mean_bytes(self) -> int:
        return sum(map(len, self.pictures)) // len(self.pictures)

    def open(self, picture: bytes, limits: QueueSettings, spec: InputSpec | None = None) -> Pixels:
        """uint8 [height, width, 3] RGB, by the same calls as the queue source makes."""
        if self.key == "pixels":
            return raw(picture, width=self.width, height=self.height, pixel_format="bgr24")
        wanted = spec if limits.decoding == "auto" else None
        return decode_for(wanted, picture, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels).pixels


def make_kinds(spec: InputSpec) -> tuple[PictureKind, ...]:
    """The kinds that are measured, made of the package's own photos and clip."""
    made = list(photos(clip_fps=CLIP_FPS))
    size = f"{spec.width}x{spec.height}"
    return (
        PictureKind(
            f"raw_{size}", "pixels", spec.width, spec.height, tuple(_raw(prepare(photo, spec)) for photo in made)
        ),
        PictureKind("jpeg_small", "image", 320, 240, tuple(jpeg_of(photo, 320, 240) for photo in made)),
        PictureKind("jpeg_720p", "image", 1280, 720, tuple(jpeg_of(photo, 1280, 720) for photo in made)),
        PictureKind("jpeg_1080p", "image", 1920, 1080, tuple(jpeg_of(photo, 1920, 1080) for photo in made)),
    )


def _raw(pixels: Pixels) -> bytes:
    return np.ascontiguousarray(pixels[:, :, ::-1]).tobytes()


def jpeg_of(photo: Pixels, width: int, height: int) -> bytes:
    """The largest middle part of the right shape, enlarged: real content, though softer than a camera's own 1080p."""
    rows, columns = photo.shape[:2]
    kept_rows, kept_columns = min(rows, columns * height // width), min(columns, rows * width // height)
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    middle = photo[top : top + kept_rows, left : left + kept_columns]
    enlarged = cv2.resize(middle, (width, height), interpolation=cv2.INTER_CUBIC)
    written, data = cv2.imencode(".jpg", enlarged[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert written
    return data.tobytes()
