"""The reader's side of the labels stream: what is published, from a given entry on. Retries nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls

READ_COUNT: Final = 256  # labels of one reply: some 300 kB
LATEST_MOMENT: Final = 10_000_000_000.0  # Unix seconds: the year 2286


@dataclass(frozen=True, slots=True)
class PublishedLabel:
    """One label as it stands in the stream.

    captured_at, published_at    Unix seconds
    document                     the JSON document, as it was written
    """

    entry: str
    source: str
    label: str
    score: float
    captured_at: float
    published_at: float
    document: str = field(repr=False)


class LabelReader:
    """Reads on where it left off, also after a failure. Used from one thread.

    streams  more than one where a queue is spread over a cluster; they are looked at in turn then
    after    the entry after which reading begins; None: after the newest one, which the first call finds out
    block    seconds to wait for something new; less than the connection's socket timeout
    """

    def __init__(self, client: Client, streams: Sequence[str], *, after: str | None, block: float) -> None:
        self._client = client
        self._after = dict.fromkeys(streams, after)
        self._turn = cycle(streams)
        self._block = max(1, int(block * 1000 / len(streams)))

    def start(self) -> None:
        """Fix where reading begins, unless that is known. Raises RedisUnavailable."""
        for stream, after in self._after.items():
            if after is None:
                with calls("labels cannot be read", self._client):
                    newest = self._client.xrevrange(stream, count=1)
                self._after[stream] = newest[0][0].decode() if newest else "0-0"

    def read(self) -> list[PublishedLabel]:
        """What came since the last call, each stream's oldest first; empty if nothing did within `block`.

        Entries that coatstream did not write are passed over. Raises RedisUnavailable.
        """
        self.start()
        labels: list[PublishedLabel] = []
        for _ in self._after:
            labels += self._read(next(self._turn), block=None if labels else self._block)
        return labels

    def _read(self, stream: str, *, block: int | None) -> list[PublishedLabel]:
        with calls("labels cannot be read", self._client):
            reply = self._client.xread({stream: self._after[stream] or "0-0"}, count=READ_COUNT, block=block)
        entries = reply[0][1] if reply else []
        if entries:
            self._after[stream] = entries[-1][0].decode()
        labels = (_label(entry_id.decode(), fields) for entry_id, fields in entries)
        return [label for label in labels if label is not None]


def _label(entry: str, fields: dict[bytes, bytes]) -> PublishedLabel | None:
    try:
        return PublishedLabel(
            entry=entry,
            source=fields[b"source"].decode(),
            label=fields[b"label"].decode(),
            score=float(fields[b"score"]),
            captured_at=_moment(fields[b"captured_at"]),
            published_at=_moment(fields[b"published_at"]),
            document=fields[b"json"].decode(),
        )
    except (KeyError, ValueError):
        return None


def _moment(text: bytes) -> float:
    moment = float(text)
    if not 0 <= moment < LATEST_MOMENT:
        raise ValueError(moment)
    return moment
