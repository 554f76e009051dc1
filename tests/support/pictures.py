"""Pictures that tests make themselves: encoded ones of any size, and a header that lies."""

import zlib
from typing import Any

import numpy as np
from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import cv2

from tests.support.paths import ASSETS

CLIP = ASSETS / "cockatoo_360p.mp4"


def jpeg(width: int, height: int, *, seed: int = 0) -> bytes:
    """Blurred noise: as heavy to decode as a photo."""
    picture = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(picture, (width, height)))[1])


def grey_jpeg(value: int, *, width: int = 32, height: int = 24) -> bytes:
    """One even grey."""
    return bytes(cv2.imencode(".jpg", np.full((height, width, 3), value, np.uint8))[1])


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG whose header announces a huge picture, with a right checksum."""
    picture = bytearray(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    picture[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    picture[29:33] = zlib.crc32(picture[12:29]).to_bytes(4, "big")
    return bytes(picture)


def clip_frames(count: int) -> list[Pixels]:
    """The first `count` frames of the clip, uint8 [360, 640, 3] BGR."""
    with CLIP.open("rb") as file:
        stream: Any = file  # OpenCV's stub names an interface that nothing implements
        capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [])
        frames = [np.asarray(capture.read()[1], np.uint8) for _ in range(count)]
        capture.release()
    return frames
