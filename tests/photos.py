"""Real photos for tests: the package's own, and those inside the development packages scikit-image and foolbox."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from worker.frames import Pixels

ASSETS = Path(__file__).parent.parent / "worker" / "assets"
CLIP = ASSETS / "cockatoo_360p.mp4"


def missing(reason: str) -> None:
    """Skip on a user's machine, fail where CI=true says that everything must be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def photo_files() -> list[Path]:
    """Some 45 JPEG, PNG and TIFF files of 150 to 1,000 pixels a side, colour, grey and with alpha."""
    files = sorted(ASSETS.glob("*.png"))
    for package, patterns in (("skimage", ("*.png", "*.jpg", "*.tif")), ("foolbox", ("imagenet_*.jpg",))):
        found = importlib.util.find_spec(package)  # finds the folder without importing the package
        if found is None or found.origin is None:
            missing(f"{package} is not installed (development dependencies)")
            continue
        folder = Path(found.origin).parent / "data"
        files += sorted(file for pattern in patterns for file in folder.glob(pattern))
    return files


def clip_frames(count: int = 5) -> Iterator[Pixels]:
    """uint8 [360, 640, 3] RGB: `count` frames of the cockatoo clip, evenly spaced."""
    clip = cv2.VideoCapture(str(CLIP))
    for index in range(280):
        ok, frame = clip.read()
        if ok and index % (280 // count) == 0:
            yield np.ascontiguousarray(frame[:, :, ::-1])
    clip.release()
