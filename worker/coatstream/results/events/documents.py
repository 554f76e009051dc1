"""The JSON documents of events, and of what late comers read: present tags and states. Their schema is in docs/."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError
from pydantic_core import from_json, to_json

from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.tags import PresentTag, Why

LARGEST_FLAT: Final = 1024  # characters of one value that the stream's entry shows beside the document


class _Document(BaseModel):
    """The fields of every event. Later versions may add fields."""

    model_config = ConfigDict(frozen=True, extra="allow")

    version: Literal[1] = Field(1, alias="schema")
    source: str = Field(description="the camera")
    at: float = Field(description="Unix seconds")
    worker: str
    fence: int | None = Field(description="number of the lease under which a shared camera was read, else null")
    picture: str | None = Field(
        None,
        description="id of its picture, which was stored before this event was published; null where there is none",
    )


class TagStarted(_Document):
    """A tag has held for `tags.min_duration`."""

    event: Literal["tag.started"]
    tag: str = Field(description="of a camera with regions: `gate/car`")
    region: str | None = Field(None, description="where it is, for a camera with regions")
    score: float = Field(description="smoothed, at the time of this event", ge=0, le=1)
    started_at: float = Field(description="Unix seconds, of its first frame")
    frame_id: str | None = Field(description="its first frame's")
    peak: float = Field(0.0, description="highest smoothed score so far; 0: a worker that does not tell", ge=0, le=1)
    model: str = ""


class TagEnded(_Document):
    """A tag has been gone for `tags.min_gap`, its camera or file is, or its picture is sick."""

    event: Literal["tag.ended"]
    tag: str
    region: str | None = None
    started_at: float = Field(description="as in tag.started")
    ended_at: float = Field(description="Unix seconds, of its last frame")
    duration: float = Field(description="seconds", ge=0)
    peak: float = Field(description="highest smoothed score", ge=0, le=1)
    first_frame_id: str | None
    last_frame_id: str | None = Field(description="null where the worker that saw it is gone")
    why: Why
    model: str = Field("", description="that saw it; why `model`: another one reads the camera now")


class CameraState(_Document):
    """A camera's state changed."""

    event: Literal["camera.state"]
    state: str
    reason: str | None = Field(None, description="why it is down")
    message: str = Field("", description="the same as one line for a person")


class PictureSick(_Document):
    """Something is wrong with a camera's picture."""

    event: Literal["picture.sick"]


class PictureWell(_Document):
    """Nothing is wrong with it any more."""

    event: Literal["picture.well"]


EventUnion = TagStarted | TagEnded | CameraState | PictureSick | PictureWell


class EventDocument(RootModel[Annotated[EventUnion, Field(discriminator="event")]]):
    """One thing that happened to one camera."""


def encode(event: Event, *, worker: str) -> bytes:
    """The document of one event as JSON."""
    head = {"schema": 1, "event": event.kind, "source": event.camera, "at": event.at, "worker": worker}
    return to_json(head | {"fence": event.fence or None} | dict(event.detail), inf_nan_mode="null", fallback=str)


def flat(event: Event) -> list[str]:
    """What the stream's entry shows beside the document, field after value: all that is one short value."""
    fields = {"event": str(event.kind), "source": event.camera, "at": f"{event.at:.6f}"}
    for name, value in event.detail.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, str | int | float) and name not in (*fields, "json") and len(text) <= LARGEST_FLAT:
            fields[name] = text
    return [text for pair in fields.items() for text in pair]


def state_of(event: Event, *, worker: str) -> bytes:
    """What late comers read of a camera's state: nothing of one that was removed."""
    detail = event.detail
    if detail.get("state") == "removed":
        return b""
    return to_json(
        {
            "state": detail.get("state"),
            "reason": detail.get("reason"),
            "message": detail.get("message", ""),
            "since": detail.get("since", event.at),
            "worker": worker,
        },
        fallback=str,
    )


def started_event(camera: str, tag: str, present: PresentTag, *, fence: int) -> Event:
    """The event with which this tag began."""
    detail = {
        "tag": tag,
        "score": present.score,
        "started_at": present.started_at,
        "frame_id": present.first_frame_id,
        "peak": present.peak,
    } | _model_of(present)
    return Event(EventKind.TAG_STARTED, camera, present.started_at, detail, fence)


def ended_event(camera: str, tag: str, present: PresentTag, *, at: float, fence: int, why: Why = "gone") -> Event:
    """The end of a tag whose last frame is not known, at `at` or when it was seen last: another worker's clock may
    differ from that one's.
    """
    end = max(min(at, present.seen_at or at), present.started_at)
    detail = {
        "tag": tag,
        "started_at": present.started_at,
        "ended_at": end,
        "duration": round(end - present.started_at, 6),
        "peak": max(present.score, present.peak),
        "first_frame_id": present.first_frame_id,
        "last_frame_id": None,
        "why": why,
    } | _model_of(present)
    return Event(EventKind.TAG_ENDED, camera, at, detail, fence)


def _model_of(present: PresentTag) -> dict[str, str]:
    return {"model": present.model} if present.model else {}


def present_of(started: Mapping[str, Any]) -> bytes:
    """What late comers read of a present tag, from the detail of its `tag.started`."""
    names = {"score": "score", "started_at": "started_at", "first_frame_id": "frame_id", "model": "model"}
    found = {name: started.get(of) for name, of in names.items()}
    return to_json(found | {"peak": started.get("peak", 0.0)})  # seen.lua appends `seen_at`


class _Present(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    score: Annotated[float, Field(ge=0, le=1)] = 0.0
    started_at: Annotated[float, Field(ge=0, lt=10_000_000_000)] = 0.0
    first_frame_id: str | None = None
    model: str | None = None
    seen_at: Annotated[float, Field(ge=0, lt=10_000_000_000)] = 0.0
    peak: Annotated[float, Field(ge=0, le=1)] = 0.0


def parse_present(text: bytes) -> PresentTag:
    """The inverse of `present_of`. What another program wrote counts as a tag of which nothing is known."""
    try:
        found = _Present.model_validate_json(text)
    except ValidationError:
        found = _Present()
    model = found.model or ""
    return PresentTag(found.score, found.started_at, found.first_frame_id, model, found.seen_at, found.peak)


def worker_of(state: bytes) -> str:
    """The worker that wrote a camera's state; empty where that cannot be read."""
    try:
        found = from_json(state)
    except ValueError:
        return ""
    return str(found.get("worker", "")) if isinstance(found, dict) else ""


def schema() -> dict[str, Any]:
    """The JSON Schema of an event document, as published in docs/event.schema.json."""
    return EventDocument.model_json_schema(by_alias=True, mode="serialization")
