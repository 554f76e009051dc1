"""Events as they are published: what one is, and the readers of their stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from pydantic_core import from_json

from coatstream.broker.fleet_keys import fleet_keys
from coatstream.results.events.documents import EventDocument, EventUnion
from coatstream.results.following import AsyncStreamReader, Feed, StreamReader
from coatstream.results.labels import LATEST_MOMENT


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """One event as it stands in the stream.

    entry   its id there: `since=event.entry` goes on behind it
    kind    tag.started, tag.ended, camera.state, picture.sick, picture.well; later versions may have others
    at      Unix seconds
    detail  the document's fields
    json    the document, as it was written
    """

    entry: str
    kind: str
    source: str
    at: float
    detail: Mapping[str, Any]
    json: str = field(repr=False)

    @property
    def document(self) -> EventUnion:
        """The same as the model of its kind. Raises ValueError for a kind that this version does not know."""
        return EventDocument.model_validate_json(self.json).root


def parse_event(entry: str, fields: Mapping[bytes, bytes]) -> PublishedEvent | None:
    """None for what coatstream did not write."""
    try:
        json = fields[b"json"].decode()
        detail = from_json(json)
        at = float(detail["at"])
        if not 0 <= at < LATEST_MOMENT:
            return None
        return PublishedEvent(entry, str(detail["event"]), str(detail["source"]), at, detail, json)
    except (KeyError, ValueError, TypeError):
        return None


FEED: Final = Feed("events cannot be read", lambda settings: (fleet_keys(settings).events,), parse_event)


class EventReader(StreamReader[PublishedEvent]):
    """Events of all cameras, oldest first."""

    feed: ClassVar[Feed[PublishedEvent]] = FEED


class AsyncEventReader(AsyncStreamReader[PublishedEvent]):
    """`EventReader` for an event loop."""

    feed: ClassVar[Feed[PublishedEvent]] = FEED
