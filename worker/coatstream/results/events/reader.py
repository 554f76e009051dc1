"""The reader's side of the events stream: what is said, from a given entry on. Retries nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_core import from_json

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.results.labels import LATEST_MOMENT

READ_COUNT: Final = 256  # events of one reply


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """One event as it stands in the stream.

    at        Unix seconds
    detail    the document's fields
    document  the JSON document, as it was written
    """

    entry: str
    kind: str
    source: str
    at: float
    detail: Mapping[str, Any]
    document: str = field(repr=False)


class EventReader:
    """Reads on where it left off, also after a failure. Used from one thread.

    after  the entry after which reading begins; None: after the newest one, which the first call finds out
    block  seconds to wait for something new; less than the connection's socket timeout
    """

    def __init__(self, client: Client, stream: str, *, block: float, after: str | None = None) -> None:
        self._client = client
        self._stream = stream
        self._block = max(1, int(block * 1000))
        self._after = after

    def start(self) -> str:
        """Reading begins after what is there now; that entry. Raises RedisUnavailable."""
        if self._after is None:
            with calls("events cannot be read", self._client):
                newest = self._client.xrevrange(self._stream, count=1)
            self._after = newest[0][0].decode() if newest else "0-0"
        return self._after

    def read(self) -> list[PublishedEvent]:
        """What came since the last call, oldest first; empty if nothing did within `block`. Raises RedisUnavailable.

        Entries that coatstream did not write are passed over.
        """
        after = self.start()
        with calls("events cannot be read", self._client):
            reply = self._client.xread({self._stream: after}, count=READ_COUNT, block=self._block)
        entries = reply[0][1] if reply else []
        if entries:
            self._after = entries[-1][0].decode()
        events = (_event(entry_id.decode(), fields) for entry_id, fields in entries)
        return [event for event in events if event is not None]


def _event(entry: str, fields: Mapping[bytes, bytes]) -> PublishedEvent | None:
    try:
        document = fields[b"json"].decode()
        detail = from_json(document)
        at = float(detail["at"])
        if not 0 <= at < LATEST_MOMENT:
            return None
        return PublishedEvent(entry, str(detail["event"]), str(detail["source"]), at, detail, document)
    except (KeyError, ValueError, TypeError):
        return None
