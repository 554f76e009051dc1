"""Events as the page and the API show them."""

import math
from typing import Any, Final

from pydantic import BaseModel, Field

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.errors import redact
from coatstream.results.events.reader import PublishedEvent, parse_event

LONGEST_VALUE: Final = 1000  # characters
MOST_NEW: Final = 500  # events of one look


class ShownEvent(BaseModel):
    """One event. `id` orders events; `detail` holds what else its document has (docs/event.schema.json)."""

    id: str
    kind: str
    camera: str
    at: float
    tag: str | None = None
    score: float | None = None
    picture: str | None = Field(None, description="for /api/pictures/{picture}; it may be gone by now")
    detail: dict[str, Any]


def shown_event(event: PublishedEvent) -> ShownEvent:
    """Messages of cameras are redacted where they are written; here once more, since strangers may write events."""
    hidden = {"schema", "event", "source", "at", "tag", "score", "picture"}
    detail = {name: _plain(value) for name, value in event.detail.items() if name not in hidden}
    tag, score, picture = (event.detail.get(name) for name in ("tag", "score", "picture"))
    return ShownEvent(
        id=event.entry,
        kind=event.kind,
        camera=event.source,
        at=event.at,
        tag=str(tag) if tag is not None else None,
        score=float(score) if isinstance(score, int | float) and math.isfinite(score) else None,
        picture=picture if isinstance(picture, str) else None,
        detail=detail,
    )


def _plain(value: Any) -> Any:
    """Short texts and numbers; of anything else that it is there."""
    if isinstance(value, str):
        return redact(value[:LONGEST_VALUE])
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | bool | None) else "..."


def newest_event(client: Client, key: str) -> str:
    """The id of the last event; `0-0` where there is none. Raises RedisUnavailable and RedisRefuses."""
    with calls("events cannot be read", client):
        newest = client.xrevrange(key, "+", "-", count=1)
    return newest[0][0].decode() if newest else "0-0"


def events_after(client: Client, *, key: str, after: str) -> list[ShownEvent]:
    """Those behind this one, oldest first. Raises RedisUnavailable and RedisRefuses."""
    with calls("events cannot be read", client):
        entries = client.xrange(key, f"({after}", "+", count=MOST_NEW)
    events = (parse_event(entry.decode(), fields) for entry, fields in entries)
    return [shown_event(event) for event in events if event is not None]
