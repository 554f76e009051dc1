"""All that the page shows of the present: cameras, workers, queues. A few calls to Redis; changes nothing there."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.keys import Queue, queues_of
from coatstream.cameras.fleet.overview import CameraRow, FleetOverview, FleetView
from coatstream.errors import REDIS_TROUBLE
from coatstream.queue.audit import Audit, audit
from coatstream.queue.monitor import QueueDepth, measure
from coatstream.results.events.tags import PresentTag
from coatstream.results.reports import CameraReport, WorkerReport, read_reports
from coatstream.settings.model import SettingsTree

SHOWN_LABELS: Final = 5  # of one frame, or of one region of it
MOST_REGIONS: Final = 16
MOST_SOURCES: Final = 10_000


class _ShownPart(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShownLabel(_ShownPart):
    """One class and its probability."""

    label: str
    score: float


class LatestLabels(_ShownPart):
    """The newest frame of a source. `at` and `published_at` in Unix seconds: captured, labelled."""

    source: str
    at: float
    published_at: float
    labels: tuple[ShownLabel, ...]
    regions: dict[str, tuple[ShownLabel, ...]] = Field({}, description="of each region of the picture that has a name")
    picture: tuple[str, ...] = Field((), description="what is wrong with the picture")
    worker: str = ""
    model: str = ""
    weights: str = ""


class ShownTag(_ShownPart):
    """A tag that is present. `score`: now where the newest frame has it, else at its start; `since` in Unix seconds."""

    tag: str
    score: float
    since: float


class ShownCamera(_ShownPart):
    """One camera as the whole fleet knows it. Nothing in it is secret."""

    name: str
    url: str = Field(description="scheme, host and port, or a path; never credentials, path or query of a URL")
    origin: str = Field(description="settings or redis: only those from redis can be removed")
    state: str = Field(description="live, connecting, stalled, down, paused, ended, unread or unknown")
    reason: str
    message: str
    since: float | None = Field(description="of the state, Unix seconds")
    worker: str = Field(description="who reads it")
    wanted_fps: float
    fps: float | None = Field(description="labels a second lately; null where its worker reports nothing")
    read_fps: float | None = Field(description="pictures a second that are read")
    last_picture: float | None = Field(description="Unix seconds")
    sick: tuple[str, ...] = Field(description="what is wrong with its picture: black, frozen, ...")
    gate: str = Field("", description="why its change gate saves nothing, if so")
    tags: tuple[ShownTag, ...]
    latest: LatestLabels | None


class ShownQueue(_ShownPart):
    """One queue of frames, by Redis' own count."""

    stream: str
    entries: int = Field(description="unfinished: waiting and in work")
    in_work: int
    oldest_age: float = Field(description="seconds")
    dead: int = Field(description="dead letters that are there now")
    published: int
    dropped: int
    died: int
    gone: int = Field(description="entries that vanished without an outcome: trimmed or deleted by others")
    stranded: int
    refused: int
    balanced: bool = Field(description="whether the books account for every entry")


class Overview(_ShownPart):
    """The strip above the cameras. `faults`: cameras in Redis that cannot be used, with why."""

    at: float = Field(description="Unix seconds, by Redis' clock")
    workers: tuple[WorkerReport, ...]
    queues: tuple[ShownQueue, ...]
    faults: dict[str, str]


class Snapshot(_ShownPart):
    """Everything of one moment."""

    overview: Overview
    cameras: tuple[ShownCamera, ...]


class Snapshots:
    """Used from one thread at a time."""

    def __init__(self, client: Client, settings: SettingsTree) -> None:
        self._client = client
        self._queues = queues_of(settings)
        self._reads_queue = settings.queue.enabled
        self._reports = fleet_keys(settings).reports
        self._fleet = FleetOverview(client, settings)

    def read(self) -> Snapshot:
        """Raises RedisUnavailable and RedisRefuses."""
        at = server_time(self._client)
        workers = self._workers(at)
        reports = {name: one for worker in workers for name, one in worker.cameras.items()}
        view = self._fleet.read()
        latest = latest_labels(self._client, self._queues[:1], [row.camera for row in view.rows])
        cameras = tuple(_shown(row, reports.get(row.camera), latest.get(row.camera)) for row in view.rows)
        plain = tuple(worker.model_copy(update={"cameras": {}}) for worker in workers)
        return Snapshot(
            overview=Overview(at=at, workers=plain, queues=self.queues(), faults=_faults(view)), cameras=cameras
        )

    def queues(self) -> tuple[ShownQueue, ...]:
        if not self._reads_queue:
            return ()
        return tuple(_queue(queue, measure(self._client, queue), audit(self._client, queue)) for queue in self._queues)

    def _workers(self, at: float) -> list[WorkerReport]:
        """A user without the right to read reports sees the cameras all the same."""
        try:
            return read_reports(self._client, self._reports, now=at)
        except REDIS_TROUBLE:
            return []


def server_time(client: Client) -> float:
    """Unix seconds. Raises RedisUnavailable."""
    with calls("Redis does not answer", client):
        seconds, micros = client.time()
    return float(seconds + micros / 1e6)


def latest_labels(client: Client, queues: Sequence[Queue], sources: Sequence[str]) -> dict[str, LatestLabels]:
    """The newest labels of these sources. Raises RedisUnavailable and RedisRefuses."""
    found: dict[str, LatestLabels] = {}
    for key in dict.fromkeys(queue.latest for queue in queues):
        wanted = [source for source in sources if source not in found]
        if not wanted:
            break
        with calls("the newest labels cannot be read", client):
            texts = client.hmget(key, wanted)
        parsed = {source: parse_latest(text) for source, text in zip(wanted, texts, strict=True) if text}
        found |= {source: one for source, one in parsed.items() if one is not None}
    return found


def sources_of(client: Client, queues: Sequence[Queue]) -> list[str]:
    """All sources that have a newest label, by name. Raises RedisUnavailable and RedisRefuses."""
    names: set[str] = set()
    for key in dict.fromkeys(queue.latest for queue in queues):
        with calls("the newest labels cannot be read", client):
            names |= {name.decode("utf-8", "replace") for name in client.hkeys(key)[:MOST_SOURCES]}
    return sorted(names)


def parse_latest(text: bytes) -> LatestLabels | None:
    """None for what coatstream did not write. Not the whole model: an embedding is large, and need not be checked."""
    try:
        found: dict[str, Any] = from_json(text)
        regions = islice((found.get("regions") or {}).items(), MOST_REGIONS)
        return LatestLabels(
            source=str(found["source"]),
            at=float(found["captured_at"]),
            published_at=float(found["published_at"]),
            labels=_labels(found["labels"]),
            regions={str(name): _labels(own) for name, own in regions},
            picture=tuple(str(fault) for fault in found.get("picture") or ()),
            **{word: str(found.get(word) or "") for word in ("worker", "model", "weights")},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _labels(found: Sequence[Mapping[str, Any]]) -> tuple[ShownLabel, ...]:
    return tuple(ShownLabel(label=str(one["label"]), score=float(one["score"])) for one in found[:SHOWN_LABELS])


def _scores(latest: LatestLabels) -> dict[str, float]:
    """By the name that a tag of this class has: a region's stand behind the region's name."""
    scores = {one.label: one.score for one in latest.labels}
    return scores | {f"{region}/{one.label}": one.score for region, own in latest.regions.items() for one in own}


def _shown(row: CameraRow, report: CameraReport | None, latest: LatestLabels | None) -> ShownCamera:
    scores = _scores(latest) if latest else {}
    return ShownCamera(
        name=row.camera,
        url=row.url,
        origin=row.origin,
        state=row.state,
        reason=row.reason,
        message=row.message,
        since=row.since,
        worker=row.worker,
        wanted_fps=row.fps,
        fps=report.fps if report else None,
        read_fps=report.read_fps if report else None,
        last_picture=report.last_picture if report else None,
        sick=report.sick if report else latest.picture if latest else (),
        gate=report.gate if report else "",
        tags=tuple(_tag(name, tag, scores) for name, tag in sorted(row.tags.items())),
        latest=latest,
    )


def _tag(name: str, tag: PresentTag, scores: Mapping[str, float]) -> ShownTag:
    return ShownTag(tag=name, score=scores.get(name, tag.score), since=tag.started_at)


def _queue(queue: Queue, depth: QueueDepth, books: Audit) -> ShownQueue:
    return ShownQueue(
        stream=queue.stream,
        entries=depth.entries,
        in_work=depth.pending,
        oldest_age=round(depth.oldest_age, 3),
        dead=depth.dead,
        published=books.published,
        dropped=books.dropped,
        died=books.dead,
        gone=books.gone,
        stranded=books.stranded,
        refused=books.refused,
        balanced=books.balanced,
    )


def _faults(view: FleetView) -> dict[str, str]:
    faults = dict(view.faults)
    if view.beyond:
        faults["others"] = f"Redis holds {view.beyond} more cameras than fleet.max_cameras"
    return faults
