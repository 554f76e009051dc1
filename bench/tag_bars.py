"""The bars of tags, measured with real weights on scenes of which the truth is known (`python -m bench tags`)."""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event as StopEvent
from typing import Final

import numpy as np
from coatstream.cameras.capture.camera import Camera
from coatstream.cameras.capture.vitals import measure
from coatstream.cameras.health import PictureHealth
from coatstream.engine.protocol import Engine
from coatstream.frames.frame import Frame, InputSpec, Prediction
from coatstream.frames.views import Region, View, look
from coatstream.pipeline.inference import prediction_of
from coatstream.pipeline.joining import joined
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.tag_classes import tag_classes
from coatstream.results.events.tags import Tagger
from coatstream.settings.model import CameraSettings, HealthSettings, TagSettings

from bench.scenes import Photo, Shot, backgrounds, noisy, pasted, score_of
from tests.support.doubles import SettableClock

FOUND: Final = 0.4
WIDE: Final = (1280, 720)
ROOM: Final = (640, 480)
CUT: Final = 3.0  # seconds
FPS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Cuts:
    """Seconds; `said` and `gone` are the median delays of the events."""

    recall: float
    precision: float
    said: float
    gone: float


def predictions(
    shots: Iterable[Shot], engine: Engine, *, view: View = "auto", health: bool = True
) -> Iterator[Prediction]:
    """What a worker makes of a camera's pictures, with their health unless that is switched off."""
    judge = PictureHealth(HealthSettings(), "scene", publish=lambda event: None)
    for number, shot in enumerate(shots):
        faults = judge.look(measure(shot.pixels, damage=0), shot.at) if health else ()
        pixels = look(shot.pixels[:, :, ::-1], engine.spec, view)
        height, width = shot.pixels.shape[:2]
        frame = Frame("scene", str(number), shot.at, pixels, width, height, faults=faults, suspect=judge.suspect)
        scores = joined([engine.classify(frame.views)], [len(frame.views)])
        yield prediction_of(frame, scores.frames, 0, engine, shown=5)


def events(said: Iterable[Prediction], engine: Engine, settings: TagSettings, *, takeover: float = -1.0) -> list[Event]:
    """What the tagger publishes; at `takeover` seconds another worker's takes over."""
    clock = SettableClock(0.0)
    classes = tag_classes(settings, engine.labels)

    def tagger() -> Tagger:
        return Tagger("scene", settings, classes, clock=clock, monotonic=clock)

    found, now = list[Event](), tagger()
    for one in said:
        clock.now = one.captured_at
        if 0 <= takeover <= one.captured_at:
            before, now, takeover = now.present, tagger(), -1.0
            now.resume(before, fence=1)
        found += now.seen(one)
    return found + list(now.end("ended"))


def runs(found: Iterable[Event]) -> list[tuple[str, float, float, float, float]]:
    """(tag, started, ended, start said, end said) of each tag; seconds."""
    open_, done = dict[str, float](), list[tuple[str, float, float, float, float]]()
    for event in found:
        if event.kind == EventKind.TAG_STARTED:
            open_[event.detail["tag"]] = event.at
        elif event.kind == EventKind.TAG_ENDED:
            detail = event.detail
            done.append((detail["tag"], detail["started_at"], detail["ended_at"], open_.pop(detail["tag"]), event.at))
    return done


# ---- where an object may be


def places(engine: Engine, photos: Sequence[Photo], *, share: float, view: View) -> tuple[int, int, int]:
    """How many of all objects on all backgrounds are found at the left, in the middle, at the right of 1280 x 720."""
    width, height = WIDE
    counts = [0, 0, 0]
    for background in backgrounds(width, height):
        for photo in photos:
            for place in range(3):
                picture = pasted(background, photo, round(share * height), place / 2)
                views = look(picture[:, :, ::-1], engine.spec, view)
                inputs = views if views.ndim == 4 else views[None]
                counts[place] += score_of(engine, inputs, photo.index) >= FOUND
    return counts[0], counts[1], counts[2]


def in_region(engine: Engine, photos: Sequence[Photo], *, area: float, grow: float = 1.3, seed: int = 3) -> int:
    """Objects of so much of the area of 640 x 480, somewhere, found in a region of `grow` times their area."""
    width, height = ROOM
    rng = random.Random(seed)
    background, found = backgrounds(width, height)[0], 0
    for photo in photos:
        side = round((area * width * height) ** 0.5)
        more = round(side * (grow**0.5 - 1) / 2)
        left, top = rng.randint(more, width - side - more), rng.randint(more, height - side - more)
        square = pasted(background[: side + 2 * more, : side + 2 * more], photo, side, 0.5)
        picture = background.copy()
        picture[top - more : top + side + more, left - more : left + side + more] = square
        corners = ((left - more, top - more), (left + side + more, top + side + more))
        seen = look(picture[:, :, ::-1], engine.spec, (Region("object", corners),))
        found += score_of(engine, [seen], photo.index) >= FOUND
    return found


# ---- what the whole picture costs


def engine_cost(engine: Engine, rounds: int = 15) -> float:
    """Times the engine's time for one input that two take: the median over rounds in which both have their turn."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 255, (2, engine.spec.height, engine.spec.width, 3), np.uint8)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        engine.classify(inputs[:count])
        return time.perf_counter() - began

    return float(np.median([seconds(2) / seconds(1) for _ in range(rounds)]))


def process_cost(clip: Path, spec: InputSpec, rounds: int = 7) -> float:
    """Times the CPU time for the view `centre` that `whole` takes to read, measure and prepare a clip at 5 fps."""
    settings = CameraSettings.model_validate({"name": "clip", "url": str(clip)})

    def seconds(view: View) -> float:
        began = time.process_time()
        for _ in Camera(settings, prepare=partial(look, spec=spec, view=view)).frames(StopEvent()):
            pass
        return time.process_time() - began

    return float(np.median([seconds("whole") / seconds("centre") for _ in range(rounds)]))


# ---- when a tag is there


def cuts(engine: Engine, photos: Sequence[Photo], settings: TagSettings, *, rounds: int = 2) -> Cuts:
    """Full pictures, three seconds of each: seconds that are tagged rightly, and how late it is said."""
    rng, order = np.random.default_rng(5), list(photos)
    shots, truth = list[Shot](), list[tuple[str, float, float]]()
    for number in range(rounds * len(order)):
        photo, began = order[number % len(order)], number * CUT
        truth.append((engine.labels[photo.index].name, began, began + CUT))
        shots += [Shot(began + step / FPS, noisy(photo.pixels, rng)) for step in range(round(CUT * FPS))]
    told = runs(events(predictions(shots, engine), engine, settings))
    return _judged(told, truth)


def _judged(told: Sequence[tuple[str, float, float, float, float]], truth: Sequence[tuple[str, float, float]]) -> Cuts:
    right, said, gone = 0.0, list[float](), list[float]()
    for name, began, ended in truth:
        for tag, first, last, start_said, end_said in told:
            if tag == name and (over := min(ended, last + 1 / FPS) - max(began, first)) > 0:
                right += over
                said.append(start_said - began)
                gone.append(end_said - ended)
    all_told = sum(last + 1 / FPS - first for _, first, last, _, _ in told)
    known = sum(ended - began for _, began, ended in truth)
    return Cuts(right / known, right / all_told, float(np.median(said)), float(np.median(gone)))


def singles(engine: Engine, photos: Sequence[Photo], settings: TagSettings) -> dict[str, int]:
    """Tags that single frames make, of as many as there are photos in each case. None is right."""
    rng, wall = np.random.default_rng(6), backgrounds(*ROOM)[-1]
    black = np.zeros_like(wall)
    counts: dict[str, int] = {}
    for photo in photos:
        odd = pasted(wall, photo, ROOM[1], 0.5)
        for name, pictures, takeover in _odd_scenes(wall, odd, black):
            shots = [Shot(at, noisy(picture, rng) if picture is not black else black) for at, picture in pictures]
            told = runs(events(predictions(shots, engine, view="centre"), engine, settings, takeover=takeover))
            name_of = engine.labels[photo.index].name
            counts[name] = counts.get(name, 0) + any(tag == name_of for tag, *_ in told)
    return counts


def _odd_scenes(
    wall: np.ndarray, odd: np.ndarray, black: np.ndarray
) -> Iterator[tuple[str, list[tuple[float, np.ndarray]], float]]:
    def plain(start: float, seconds: float, fps: float = FPS) -> list[tuple[float, np.ndarray]]:
        return [(start + step / fps, wall) for step in range(round(seconds * fps))]

    yield "start", [(0.0, odd), *plain(0.1, 2)], -1.0
    yield "gap", [*plain(0, 1), (21.0, odd), *plain(21.1, 2)], -1.0
    yield "takeover", [*plain(0, 1), (1.0, odd), *plain(1.1, 2)], 1.0
    sick = [(1 + step / FPS, black) for step in range(10)]
    yield (
        "sick spell",
        [*plain(0, 1), *sick, (2.0, odd), *((2.1 + step / FPS, black) for step in range(10)), *plain(3.1, 1)],
        -1.0,
    )
    yield "1 fps", [*plain(0, 3, 1), (3.0, odd), *plain(4, 5, 1)], -1.0


def covered_for_a_while(engine: Engine, photos: Sequence[Photo], settings: TagSettings) -> int:
    """Objects of which a lens that is black for 3 s makes one tag, as it should."""
    rng, one = np.random.default_rng(8), 0
    for photo in photos:
        black = np.zeros_like(photo.pixels)
        shots = [Shot(step / FPS, black if 40 <= step < 70 else noisy(photo.pixels, rng)) for step in range(110)]
        told = runs(events(predictions(shots, engine), engine, settings))
        one += [tag for tag, *_ in told].count(engine.labels[photo.index].name) == 1
    return one


# ---- what is not there


def wrong(
    clips: Iterable[Sequence[Shot]], engine: Engine, settings: TagSettings, *, health: bool = True
) -> tuple[int, set[str]]:
    """(clips, the different tags that are said of them); all are wrong."""
    count, tags = 0, set[str]()
    for shots in clips:
        if shots:
            count += 1
            tags |= {tag for tag, *_ in runs(events(predictions(shots, engine, health=health), engine, settings))}
    return count, tags


def surfaces() -> Iterator[tuple[str, list[Shot]]]:
    """Plain surfaces of several colours, lit from one side, with noise: 4 s each."""
    width, height = ROOM
    ramp = np.linspace(-12, 12, width, dtype=np.float32)[None, :, None]
    for name, colour in {
        "white": (225, 225, 225), "grey": (128, 128, 128), "beige": (170, 200, 220), "blue": (190, 120, 60),
        "green": (70, 140, 80), "red": (60, 60, 180), "dim": (45, 45, 45), "yellow": (80, 210, 230),
    }.items():  # fmt: skip
        rng = np.random.default_rng(len(name))
        plain = np.broadcast_to(np.array(colour, np.float32) + ramp, (height, width, 3))
        yield name, [Shot(step / FPS, noisy(plain, rng, 3)) for step in range(40)]
