"""`coatstream tags groups|tune`: the groups that are ready, and what thresholds would make of a camera or a clip."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import SecretStr

from coatstream.cameras.capture.camera import Camera
from coatstream.cameras.view import regions_of, view_of
from coatstream.commands.terminal import complain, print_json, print_rows, shown, table
from coatstream.commands.tuning_picture import drawn
from coatstream.engine.loading import exact, load_engine
from coatstream.engine.model.labels import imagenet_labels
from coatstream.engine.protocol import Engine
from coatstream.errors import ConfigError
from coatstream.frames.files import readable_path
from coatstream.frames.frame import Frame, Prediction
from coatstream.frames.opencv import cv2
from coatstream.frames.views import look
from coatstream.pipeline.gates import WHOLE
from coatstream.pipeline.inference import prediction_of
from coatstream.pipeline.joining import joined
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.shipped_groups import SHIPPED
from coatstream.results.events.tag_classes import TagClasses, tag_classes
from coatstream.results.events.tags import Tagger
from coatstream.settings.model import CameraSettings, SettingsTree, TagSettings
from coatstream.telemetry import logs

TRIED: Final = (0.3, 0.4, 0.5, 0.6, 0.7)  # start_at; a tag ends at half of it
SHOWN: Final = 10  # tags in the table
_WORTH: Final = 0.05  # a tag below it in all frames is left out
_TOP_K: Final = 50


def print_groups(*, as_json: bool) -> int:
    """A table, or one JSON object a line. 0."""
    labels = imagenet_labels(1000)
    for name in SHIPPED if as_json else ():
        classes = _members(name)
        print_json({"group": name, "classes": classes, "names": [labels[index].name for index in classes]})
    if as_json:
        return 0
    settings = TagSettings()
    rows = []
    for name in SHIPPED:
        members = _members(name)
        own = tag_classes(TagSettings(include=(name,)), labels).thresholds(name, settings)
        names = ", ".join(labels[index].name for index in members[:4]) + (", ..." if len(members) > 4 else "")
        rows.append((name, str(len(members)), f"{own.start_at:g} / {own.end_below:g}", names))
    print_rows(table("group", "classes", "starts / ends", "such as", right=("classes",)), rows, empty="")
    print("use them: tags.include: [dog, car]; ImageNet has no class for people")
    return 0


def _members(name: str) -> list[int]:
    spans = (entry.partition("-") for entry in SHIPPED[name])
    return [index for first, _, last in spans for index in range(int(first), int(last or first) + 1)]


@dataclass(frozen=True, slots=True)
class Moment:
    """One frame: seconds from the first one, and what the model says of each of its regions, or of `WHOLE`."""

    at: float
    predictions: Mapping[str, Prediction]


def tune(settings: SettingsTree, what: str, *, seconds: float, save: Path | None, as_json: bool) -> int:
    """The scores of a camera of the settings, or of a clip, and what thresholds would have said. 1 if nothing was seen.

    Raises ConfigError, EngineError and SourceLost.
    """
    camera = _camera(settings, what)
    logs.configure(logs.quiet(settings.log))
    model = exact(settings.model)
    engine = load_engine(model.model_copy(update={"top_k": max(_TOP_K, model.top_k)}), settings.batch)
    engine.warm_up()
    tags = camera.tags or settings.tags
    parts = _parts(camera, tags, engine)
    moments = list(_moments(camera, engine, seconds))
    if not moments:
        complain(f"no picture of {shown(what)} was read")
        return 1
    found = [(part, _scores(part, moments)) for part in parts]
    rows = [_row(part, tag, own[tag], moments) for part, own in found for tag in list(own)[:SHOWN]]
    if as_json:
        for row in rows:
            print_json(row)
    else:
        _print(rows, moments)
    if save is not None:
        scores = _best({part.named(tag): values for part, own in found for tag, values in own.items()})
        picture = drawn([moment.at for moment in moments], dict(list(scores.items())[:6]), tags)
        if not cv2.imwrite(str(save), picture):
            raise ConfigError(f"{save} cannot be written")
    return 0


@dataclass(frozen=True, slots=True)
class TunedPart:
    """What has tags of its own: a region, or, with the name `WHOLE`, a picture without any."""

    region: str
    tags: TagSettings
    classes: TagClasses

    def named(self, tag: str) -> str:
        """As it stands in events."""
        return f"{self.region}/{tag}" if self.region else tag


def _parts(camera: CameraSettings, tags: TagSettings, engine: Engine) -> list[TunedPart]:
    if isinstance(camera.view, str):
        return [TunedPart(WHOLE, tags, tag_classes(tags, engine.labels))]
    named = [(region.name, region.tags or tags) for region in camera.view]
    return [TunedPart(name, own, tag_classes(own, engine.labels)) for name, own in named]


def _camera(settings: SettingsTree, what: str) -> CameraSettings:
    if own := next((camera for camera in settings.cameras if camera.name == what), None):
        return own
    if not Path(what).is_file():
        names = ", ".join(camera.name for camera in settings.cameras) or "none"
        raise ConfigError(f"{shown(what)} is no file, and no camera of the settings ({names})")
    with readable_path(Path(what)) as file:
        return CameraSettings(name="clip", url=SecretStr(str(file.resolve())), realtime=True)


def _moments(camera: CameraSettings, engine: Engine, seconds: float) -> Iterator[Moment]:
    """A clip is read to its end, as fast as the model takes it, and has its own times."""
    is_clip = Path(camera.url.get_secret_value()).is_file()
    if is_clip:
        camera = camera.model_copy(update={"realtime": False, "loop": False})
    source = Camera(camera, prepare=partial(look, spec=engine.spec, view=view_of(camera)))
    rate, first, regions = camera.fps or 25.0, 0.0, regions_of(camera)
    with closing(source.frames(threading.Event())) as frames:
        number = 0
        while batch := list(islice(frames, 4)):
            for frame, predictions in zip(batch, _predictions(batch, engine, regions), strict=True):
                first = first or frame.captured_at
                at = number / rate if is_clip else frame.captured_at - first
                number += 1
                yield Moment(at, predictions)
            if seconds and at >= seconds:
                return


def _predictions(frames: Sequence[Frame], engine: Engine, regions: Sequence[str]) -> list[dict[str, Prediction]]:
    views = [frame.views for frame in frames]
    scores = joined([engine.classify(each) for each in views], [len(each) for each in views])
    if not regions:
        return [{WHOLE: prediction_of(one, scores.frames, row, engine, shown=5)} for row, one in enumerate(frames)]
    return [
        {name: prediction_of(one, scores.views, start + place, engine, shown=5) for place, name in enumerate(regions)}
        for one, start in zip(frames, scores.starts, strict=True)
    ]


def _scores(part: TunedPart, moments: Sequence[Moment]) -> dict[str, list[float]]:
    """Of each tag in each frame, those with the most first."""
    found: dict[str, list[float]] = {}
    for number, moment in enumerate(moments):
        for tag, score in part.classes.scores(moment.predictions[part.region]).items():
            found.setdefault(tag, [0.0] * len(moments))[number] = score
    return _best({tag: values for tag, values in found.items() if max(values) >= _WORTH})


def _best(scores: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return dict(sorted(scores.items(), key=lambda item: -sum(item[1])))


def _row(part: TunedPart, tag: str, values: Sequence[float], moments: Sequence[Moment]) -> dict[str, Any]:
    low, middle, high = np.percentile(values, [10, 50, 90])
    own = part.classes.thresholds(tag, part.tags)
    return {
        "tag": part.named(tag),
        "p10": round(float(low), 3),
        "p50": round(float(middle), 3),
        "p90": round(float(high), 3),
        "max": round(max(values), 3),
        "start_at": own.start_at,
        "end_below": own.end_below,
        "said": {f"{start:g}": _said(part, tag, moments, start) for start in TRIED},
    }


def _said(part: TunedPart, tag: str, moments: Sequence[Moment], start: float) -> dict[str, float]:
    """How many tags with these thresholds, and their seconds."""
    tried = TagSettings.model_validate(
        part.tags.model_dump() | {"thresholds": {tag: {"start_at": start, "end_below": start / 2}}, "include": ()}
    )
    clock = _Clock()
    tagger = Tagger("tune", tried, part.classes, clock=clock, monotonic=clock)
    events: list[Event] = []
    for moment in moments:
        clock.now = moment.at
        events += tagger.seen(replace(moment.predictions[part.region], captured_at=moment.at))
    events += tagger.end("ended")
    own = [event.detail for event in events if event.kind == EventKind.TAG_ENDED and event.detail["tag"] == tag]
    return {"tags": len(own), "seconds": round(sum(detail["duration"] for detail in own), 1)}


class _Clock:
    """The scene's own time."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _print(rows: Sequence[Mapping[str, Any]], moments: Sequence[Moment]) -> None:
    print(
        f"{len(moments)} frames, {moments[-1].at:.1f} s. Columns by start_at (a tag ends at half of it): tags, seconds"
    )
    cells = []
    for row in rows:
        tried = (f"{one['tags']} x, {one['seconds']:g} s" if one["tags"] else "-" for one in row["said"].values())
        scores = (f"{row[name]:.2f}" for name in ("p10", "p50", "p90", "max"))
        cells.append((str(row["tag"]), *scores, *tried, f"{row['start_at']:g} / {row['end_below']:g}"))
    columns = ("tag", "10 %", "50 %", "90 %", "most", *(f"at {start:g}" for start in TRIED), "now")
    print_rows(table(*columns, right=columns[1:-1]), cells, empty="no tag has a score worth showing")
