"""`coatstream cameras view`: a picture of a camera with what the model sees of it drawn in."""

import threading
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np

from coatstream.cameras.capture.camera import Camera
from coatstream.cameras.view import view_of
from coatstream.commands.terminal import shown
from coatstream.engine.loading import load_engine
from coatstream.errors import ConfigError, EngineError, SourceLost, redact
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.opencv import cv2
from coatstream.frames.views import View, beyond_picture, boxes
from coatstream.settings.model import CameraSettings, SettingsTree

_COLOURS: Final = ((60, 200, 60), (60, 60, 230), (230, 160, 40), (200, 60, 200))  # BGR


def view_camera(settings: SettingsTree, name: str, *, save: Path) -> int:
    """Open a camera of the settings, and write its first picture. Raises ConfigError, EngineError and SourceLost."""
    camera = next((one for one in settings.cameras if one.name == name), None)
    if camera is None:
        raise ConfigError(f"there is no camera {shown(name)} in the settings: name their file with --config FILE")
    picture, spec = _picture(camera), _spec(settings)
    made = drawn(picture, spec, view_of(camera))
    if not cv2.imwrite(str(save), made):
        raise ConfigError(f"{save} cannot be written: its suffix must be that of a picture, its folder must be there")
    height, width = picture.shape[:2]
    outside = beyond_picture(view_of(camera), height, width)
    for label, corners in boxes(height, width, spec, view_of(camera)):
        said = "; ".join(f"{x:.0f}, {y:.0f}" for x, y in corners)
        beyond = ", beyond the picture" if label in outside else ""
        print(f"{shown(label) if label else 'input'}: {said} of {width} x {height}{beyond}")
    return 0


def _picture(camera: CameraSettings) -> Pixels:
    source = Camera(camera, prepare=lambda picture: picture)
    with closing(source.frames(threading.Event())) as frames:
        frame = next(frames, None)
    if frame is None:
        raise SourceLost(redact(f"camera {camera.name!r} has no picture"))
    return np.ascontiguousarray(frame.pixels)


def _spec(settings: SettingsTree) -> InputSpec:
    """The model's own, from its configuration; weights do not matter."""
    model = settings.model.model_copy(update={"weights": "random", "labels": None, "engine": "eager"})
    try:
        return load_engine(settings.model if settings.model.engine == "noop" else model, settings.batch).spec
    except EngineError as error:
        raise EngineError(f"what the model sees is not known: {error}") from None


def drawn(picture: Pixels, spec: InputSpec, view: View) -> Pixels:
    """uint8 [height, width, 3] BGR: what no input shows is darker, and each input has a frame."""
    height, width = picture.shape[:2]
    seen, thickness = np.zeros((height, width), np.uint8), max(2, width // 320)
    shapes = [(name, _polygon(corners)) for name, corners in boxes(height, width, spec, view)]
    for _, points in shapes:
        cv2.fillPoly(seen, [points], (1,))
    made = np.where(seen[..., None] > 0, picture, picture // 3).astype(np.uint8)
    for number, (name, points) in enumerate(shapes):
        colour = _COLOURS[number % len(_COLOURS)]
        cv2.polylines(made, [points], isClosed=True, color=colour, thickness=thickness)
        at = int(points[:, 0].min()) + 4, int(points[:, 1].min()) + 8 * thickness
        plain = name.encode("ascii", "replace").decode()
        cv2.putText(made, plain, at, cv2.FONT_HERSHEY_SIMPLEX, width / 1200, colour, thickness)
    return made


def _polygon(corners: list[tuple[float, float]]) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    if len(corners) == 2:
        (left, top), (right, bottom) = corners
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return np.round(np.array(corners)).astype(np.int32)
