"""Events: tags that start and end, states of cameras, sick pictures."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.errors import ConfigError, redact
from coatstream.results.events.reader import parse_event
from coatstream.results.since import entry_before
from coatstream.web.api.backend import Desk, Entry, Limit
from coatstream.web.event_documents import ShownEvent, shown_event

router = APIRouter(tags=["events"])

CHUNK: Final = 500  # entries of one call to Redis
MOST_READ: Final = 5000  # entries of one request; the answer's `next` goes on behind them


class EventPage(BaseModel):
    """Newest first. `next`: pass it as `before`; null: there are no older ones. A page may be empty and have a next."""

    items: list[ShownEvent]
    next: str | None


@dataclass(frozen=True, slots=True)
class _Wanted:
    camera: str | None
    label: str | None
    kind: str | None

    def matches(self, fields: Mapping[bytes, bytes]) -> bool:
        """By the entry's flat fields, before its document is parsed."""
        kind = fields.get(b"event", b"").decode("utf-8", "replace")
        if self.kind is not None and self.kind not in (kind, kind.partition(".")[0]):
            return False
        if self.camera is not None and fields.get(b"source") != self.camera.encode("utf-8", "surrogatepass"):
            return False
        if self.label is None:
            return True
        return self.label.lower() in fields.get(b"tag", b"").decode("utf-8", "replace").lower()


@router.get("/events", summary="What happened, newest first")
async def list_events(
    desk: Desk,
    limit: Limit = 50,
    since: Annotated[str | None, Query(max_length=64, description="10m, 2h, 1d, a date and time, Unix seconds")] = None,
    until: Annotated[str | None, Query(max_length=64, description="the same")] = None,
    before: Annotated[Entry | None, Query(description="`next` of a page")] = None,
    camera: Annotated[str | None, Query(max_length=128)] = None,
    label: Annotated[str | None, Query(max_length=128, description="part of a tag's name")] = None,
    kind: Annotated[str | None, Query(max_length=32, description="tag.started, tag.ended, camera.state, ...")] = None,
) -> EventPage:
    stream = fleet_keys(desk.settings).events
    try:
        now = time.time()
        first = "-" if since is None else f"({_moment(since, now)}"
        last = "+" if until is None else _moment(until, now)
    except ConfigError as fault:
        raise HTTPException(422, redact(str(fault))) from None
    last = last if before is None else f"({before}"
    if before is not None and not before.strip("0-"):
        return EventPage(items=[], next=None)
    wanted = _Wanted(camera, label or None, kind or None)
    return await desk.calls.call(lambda client: _read(client, stream, first, last, wanted, limit))


def _moment(text: str, now: float) -> str:
    """The id before all entries since then. Raises ConfigError, also for ids that Redis does not take."""
    entry = entry_before(text, now=now)
    milliseconds, _, number = entry.partition("-")
    if int(milliseconds) >= 2**64 - 1 or int(number) >= 2**64:
        raise ConfigError("no entry has this id")
    return entry


def _read(client: Client, stream: str, first: str, last: str, wanted: _Wanted, limit: int) -> EventPage:
    """At most MOST_READ entries, whatever they are."""
    items: list[ShownEvent] = []
    for _ in range(MOST_READ // CHUNK):
        with calls("events cannot be read", client):
            entries = client.xrevrange(stream, last, first, count=CHUNK)
        for entry, fields in entries:
            last = f"({entry.decode()}"
            event = parse_event(entry.decode(), fields) if wanted.matches(fields) else None
            if event is not None:
                items.append(shown_event(event))
            if len(items) == limit:
                return EventPage(items=items, next=entry.decode())
        if len(entries) < CHUNK:
            return EventPage(items=items, next=None)
    return EventPage(items=items, next=last.removeprefix("("))
