"""Real photos for tests: the package's own, and those inside the development packages scikit-image and foolbox."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import cv2

from tests.support.absence import missing
from tests.support.paths import ASSETS

CLIP = ASSETS / "cockatoo_360p.mp4"


def photo_files() -> list[Path]:
    """Some 50 JPEG and PNG files of 150 to 1,000 pixels a side, colour, grey and with alpha."""
    files = sorted(ASSETS.glob("*.png"))
    for package, patterns in (("skimage", ("*.png", "*.jpg")), ("foolbox", ("imagenet_*.jpg",))):
        found = importlib.util.find_spec(package)  # finds the folder without importing the package
        if found is None or found.origin is None:
            missing(f"{package} is not installed (development dependencies)")
        folder = Path(found.origin).parent / "data"
        files += sorted(file for pattern in patterns for file in folder.glob(pattern))
    return files


def clip_frames(count: int = 5) -> Iterator[Pixels]:
    """uint8 [360, 640, 3] RGB: `count` frames of the cockatoo clip, evenly spaced."""
    with CLIP.open(
        "rb"
    ) as file:  # as a file object: coatstream.frames.opencv leaves FFmpeg no protocol to read files by
        stream: Any = file  # OpenCV's stub names an interface that nothing implements
        clip = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [])
        for index in range(280):
            assert clip.grab(), f"{CLIP} ends after {index} frames"
            if index % (280 // count) == 0:
                yield np.ascontiguousarray(clip.retrieve()[1][:, :, ::-1], np.uint8)
        clip.release()
