"""What tags make of labels that flicker: real weights, real pictures, known times. Prints one block per clip.

    python -m bench tags [--fps 10] [--set min_duration=1 ...] [--only PART ...]

Parts are places, regions, cost, cuts, single, cover, wrong and clips. Of each bar there is a line of JSON, too.

Two clips go through EfficientNet-Lite0: the package's own of a cockatoo that comes close and turns, and one that is
made here from a part of it and photos, with noise and a moving crop, so that it is known what is there when.
For each: how often the best label of a single frame changes, what the tags make of it, and the tags with their times.
Before them the bars: where objects are found, when tags start and end, and what is said of what is not there. Photos
are the first twelve of foolbox that Lite0 knows (its class has .6 when the photo fills the picture); "found" is .4.
"""

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from coatstream.commands.bench.report import machine
from coatstream.commands.demo import FALLBACK_MODEL, FALLBACK_WEIGHTS
from coatstream.engine.loading import load_engine
from coatstream.engine.protocol import Engine
from coatstream.frames.frame import Frame, Label, Pixels, Prediction
from coatstream.frames.opencv import cv2
from coatstream.frames.resizing import prepare
from coatstream.pipeline.inference import prediction_of
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.shipped_groups import SHIPPED
from coatstream.results.events.tag_classes import tag_classes
from coatstream.results.events.tags import Tagger
from coatstream.settings.model import BatchSettings, ModelSettings, TagSettings

from bench import tag_bars as bars
from bench.scenes import UNKNOWN, VTEST, photos, shots_of
from tests.support.doubles import SettableClock

ASSETS = Path(__file__).parents[1] / "worker" / "coatstream" / "assets"
COCKATOO = ASSETS / "cockatoo_360p.mp4"
PARTS = ("places", "regions", "cost", "cuts", "single", "cover", "wrong", "clips")
TOP_K = 50  # as a worker asks the engine for tags
SIZE = (640, 360)
CLIP_FPS = 10
# What the scripted clip shows: (picture, seconds, the tag that is right, or None). The cockatoo's part is one in which
# the model sees it in each frame.
SCRIPT: tuple[tuple[str, float, str | None], ...] = (
    ("black", 1.0, None),
    ("chelsea.png", 5.0, "cat"),
    ("black", 0.4, "cat"),  # a pause shorter than min_gap
    ("chelsea.png", 3.0, "cat"),
    ("coffee.png", 3.0, "cup"),
    ("chelsea.png", 0.5, None),  # shorter than min_duration
    ("coffee.png", 3.0, "cup"),
    ("cockatoo", 4.0, "cockatoo"),
    ("black", 3.0, None),
)
GROUPS = {
    "cat": ["281-285"],
    "cup": ["cup", "espresso", "coffee mug", "eggnog"],
    "cockatoo": ["sulphur-crested cockatoo"],
}


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag from its start to its end; `ended_at` None: it was there at the end. Seconds from the clip's start."""

    name: str
    started_at: float
    ended_at: float | None
    peak: float


@dataclass(frozen=True, slots=True)
class Story:
    """What became of one clip."""

    frames: int
    changes: int  # of the best label, from one frame to the next
    events: int
    tags: tuple[Tag, ...] = field(default=())

    @property
    def shortest(self) -> float:
        return min((tag.ended_at - tag.started_at for tag in self.tags if tag.ended_at is not None), default=0.0)


def main(
    fps: float = 10.0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of the section `tags`.")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="PART", help="Repeatable; default: all.")] = None,
    vtest: Annotated[Path, typer.Option(metavar="FILE", help="vtest.avi of Debian's opencv-doc.")] = VTEST,
) -> None:
    own = {name: json.loads(value) for name, _, value in (text.partition("=") for text in set_ or [])}
    engine, parts = lite0(), set(only or PARTS)
    print_bars(engine, TagSettings.model_validate(own), parts, vtest)
    if "clips" in parts:
        print_clips(engine, own, fps)


def print_bars(engine: Engine, settings: TagSettings, parts: set[str], vtest: Path) -> None:
    known = photos(engine)
    if "places" in parts:
        for share in (1.0, 0.75):
            for view in ("centre", "whole"):
                found = bars.places(engine, known, share=share, view=view)
                print(f"places: {share:.0%} of the height, {view}: left, middle, right {found} of {2 * len(known)}")
                left, middle, right = found
                print_line(f"places_{share:.0%}_{view}", left=left, middle=middle, right=right, of=2 * len(known))
    for area in (0.25, 0.1, 0.04) if "regions" in parts else ():
        in_region = bars.in_region(engine, known, area=area)
        print(f"regions: {area:.0%} of the area: {in_region} of {len(known)}")
        print_line(f"region_{area:.0%}", found=in_region, of=len(known))
    if "cost" in parts:
        print_cost(engine)
    if "cuts" in parts:
        cuts = bars.cuts(engine, known, settings)
        print(f"cuts of {bars.CUT:g} s: {cuts}")
        print_line("cuts", **asdict(cuts))
    if "single" in parts:
        print(f"tags of single frames, of {len(known)} each: {bars.singles(engine, known, settings)}")
    if "cover" in parts:
        print(f"one tag over a cover of 3 s: {bars.covered_for_a_while(engine, known, settings)} of {len(known)}")
    if "wrong" in parts:
        print_wrong(engine, settings, vtest)


def print_line(case: str, **figures: float) -> None:
    """For docs/performance.md."""
    print(json.dumps({"bench": "tags", "case": case, **figures, "machine": machine()}), flush=True)


def print_cost(engine: Engine) -> None:
    """Of the whole of 16:9, over that of its middle."""
    sizes = [ASSETS / f"camera_{height}p.mp4" for height in (360, 720, 1080)]
    process = {clip.stem: round(bars.process_cost(clip, engine.spec), 3) for clip in sizes}
    times = round(bars.engine_cost(engine), 3)
    print(f"cost of whole over centre: {times} times in the engine, in the camera's process {process}")
    print_line("cost", engine=times, process=max(process.values()))


def print_wrong(engine: Engine, settings: TagSettings, vtest: Path) -> None:
    grouped = settings.model_copy(update={"include": tuple(SHIPPED)})
    clips = [shots_of(part, fps=5, vtest=vtest) for part in UNKNOWN]
    for name, one in (("all classes", settings), ("the ready groups", grouped)):
        count, tags = bars.wrong(clips, engine, one)
        print(f"wrong, {name}: {len(tags)} tags in {count} clips without a known object: {', '.join(sorted(tags))}")
    surfaces = [shots for _, shots in bars.surfaces()]
    for health in (True, False):
        count, tags = bars.wrong(surfaces, engine, grouped, health=health)
        kind = "" if health else " (without picture health)"
        print(f"wrong, the ready groups: {len(tags)} tags on {count} plain surfaces{kind}: {', '.join(sorted(tags))}")


def print_clips(engine: Engine, own: dict[str, Any], fps: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scripted = write_scripted(Path(folder) / "scripted.avi")
        clips = {"cockatoo": (COCKATOO, {}), "scripted": (scripted, {"groups": GROUPS})}
        for name, (clip, settings) in clips.items():
            said = list(predictions_of(clip, engine, fps=fps))
            print_story(name, tell(said, engine.labels, TagSettings.model_validate({**settings, **own})))
    print("scripted, truth        " + ", ".join(f"{tag} {a:.1f}-{b:.1f}" for tag, a, b in truth()))


def lite0() -> Engine:
    """Real weights, from a pip package. Raises EngineError where that is not installed."""
    model = ModelSettings(name=FALLBACK_MODEL, weights=FALLBACK_WEIGHTS, top_k=TOP_K)
    engine = load_engine(model, BatchSettings())
    engine.warm_up()
    return engine


def tell(predictions: Sequence[Prediction], labels: tuple[Label, ...], settings: TagSettings) -> Story:
    """What the tagger makes of them, frame by frame."""
    best = [prediction.labels[0].label.index for prediction in predictions]
    moment = SettableClock(0.0)
    tagger = Tagger("clip", settings, tag_classes(settings, labels), clock=moment, monotonic=moment)
    events: list[Event] = []
    for prediction in predictions:
        moment.now = prediction.captured_at
        events += tagger.seen(prediction)
    changes = sum(one != other for one, other in itertools.pairwise(best))
    return Story(len(predictions), changes, len(events), _tags(events))


def predictions_of(clip: Path, engine: Engine, *, fps: float) -> Iterator[Prediction]:
    """What the model says of so many frames a second."""
    frames = list(_frames(clip, engine, fps))
    for first in range(0, len(frames), 8):
        some = frames[first : first + 8]
        scores = engine.classify(np.stack([frame.pixels for frame in some]))
        for row, frame in enumerate(some):
            yield prediction_of(frame, scores, row, engine, shown=5)


def _frames(clip: Path, engine: Engine, fps: float) -> Iterator[Frame]:
    next_at = 0.0
    for number, (at, picture) in enumerate(pictures_of(clip)):
        if at + 1e-6 < next_at:
            continue
        next_at += 1 / fps
        yield Frame("clip", str(number), at, prepare(picture, engine.spec), picture.shape[1], picture.shape[0])


def pictures_of(clip: Path) -> Iterator[tuple[float, Pixels]]:
    """Seconds from the start, and RGB."""
    with clip.open(
        "rb"
    ) as file:  # as a file object: coatstream.frames.opencv leaves FFmpeg no protocol to read files by
        stream: Any = file
        capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [])
        rate = capture.get(cv2.CAP_PROP_FPS)
        for number in itertools.count():
            found, picture = capture.read()
            if not found:
                break
            yield number / rate, np.ascontiguousarray(picture[:, :, ::-1], np.uint8)
        capture.release()


def _tags(events: Iterable[Event]) -> tuple[Tag, ...]:
    tags: dict[tuple[str, float], Tag] = {}
    for event in events:
        detail = event.detail
        ended_at = detail["ended_at"] if event.kind == EventKind.TAG_ENDED else None
        peak = detail["peak"] if event.kind == EventKind.TAG_ENDED else detail["score"]
        tags[detail["tag"], detail["started_at"]] = Tag(detail["tag"], detail["started_at"], ended_at, peak)
    return tuple(tags.values())


def print_story(name: str, story: Story) -> None:
    share = story.events / max(1, story.changes)
    print(f"{name}: {story.frames} frames, {story.changes} changes of the best label")
    print(f"{name}: {story.events} events of tags ({share:.0%} of that), shortest tag {story.shortest:.2f} s")
    for tag in story.tags:
        until = "the end" if tag.ended_at is None else f"{tag.ended_at:5.1f}"
        print(f"{name:<12}{tag.name:<28}{tag.started_at:5.1f} - {until}  peak {tag.peak:.2f}")


def truth() -> list[tuple[str, float, float]]:
    """What is there in the scripted clip, from when to when."""
    spans: list[tuple[str, float, float]] = []
    at = 0.0
    for _, seconds, tag in SCRIPT:
        if tag is not None and spans and spans[-1][0] == tag and at - spans[-1][2] < 1.0:
            spans[-1] = (tag, spans[-1][1], at + seconds)
        elif tag is not None:
            spans.append((tag, at, at + seconds))
        at += seconds
    return spans


def write_scripted(path: Path) -> Path:
    """The scripted clip, as MJPEG."""
    rng = np.random.default_rng(4)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), CLIP_FPS, SIZE)
    for name, seconds, _ in SCRIPT:
        pictures = itertools.cycle(_source(name))
        for picture in itertools.islice(pictures, round(seconds * CLIP_FPS)):
            writer.write(_shaken(picture, rng) if name.endswith(".png") else picture)
    writer.release()
    return path


def _source(name: str) -> list[Pixels]:
    """BGR pictures of the clip's size."""
    if name == "black":
        return [np.zeros((SIZE[1], SIZE[0], 3), np.uint8)]
    if name == "cockatoo":
        part = [picture for at, picture in pictures_of(COCKATOO) if 8.85 <= at <= 11.15]
        there = [np.ascontiguousarray(picture[:, :, ::-1]) for picture in part[::2]]  # of 20 a second
        return there + there[::-1]
    picture = np.asarray(cv2.imread(str(ASSETS / name)), np.uint8)
    height = picture.shape[1] * SIZE[1] // SIZE[0]
    top = max(0, (picture.shape[0] - height) // 2)
    return [np.asarray(cv2.resize(picture[top : top + height], SIZE, interpolation=cv2.INTER_AREA), np.uint8)]


def _shaken(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """As a cheap camera sees it: noise, and a crop that moves and zooms."""
    zoom = rng.uniform(1.0, 1.8)
    width, height = round(SIZE[0] / zoom), round(SIZE[1] / zoom)
    left, top = rng.integers(0, SIZE[0] - width + 1), rng.integers(0, SIZE[1] - height + 1)
    cut = np.asarray(cv2.resize(picture[top : top + height, left : left + width], SIZE), np.float32)
    noise = rng.standard_normal(cut.shape, np.float32) * np.float32(rng.uniform(10, 50))
    return np.asarray(np.clip(cut + noise, 0, 255), np.uint8)
