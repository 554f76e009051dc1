"""The package's own pictures, for benchmarks."""

import threading
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import as_file, files

from pydantic import SecretStr

from coatstream.cameras.capture.camera import Camera
from coatstream.frames.decoding import decode
from coatstream.frames.frame import Pixels
from coatstream.settings.model import CameraSettings, QueueSettings


def photos(*, clip_fps: float) -> Iterator[Pixels]:
    """uint8 [height, width, 3] RGB: three photos, then frames of the clip, `clip_fps` of each second of it."""
    limits = QueueSettings()
    with as_file(files("coatstream") / "assets") as assets:
        for photo in sorted(assets.glob("*.png")):
            yield decode(photo.read_bytes(), max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
        clip = CameraSettings(
            name="clip", url=SecretStr(str(assets / "cockatoo_360p.mp4")), fps=clip_fps, realtime=False
        )
        with closing(Camera(clip, prepare=lambda pixels: pixels).frames(threading.Event())) as frames:
            for frame in frames:
                yield frame.pixels
