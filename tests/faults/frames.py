"""Sends frames with ids of our own, and counts from the streams what became of each. Never asks a worker."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coatstream.broker.connection import Client

PAGE = 1000  # entries of one reply, or of one pipeline
SIDE = 8  # pixels; the smallest frame that a worker accepts as a picture
PLAIN = 100  # the grey of a harmless frame; `inside.sitecustomize` lists the others


@dataclass(frozen=True, slots=True)
class Keys:
    """The streams of one queue, and its group."""

    stream: str = "frames"
    labels: str = "labels"
    dead: str = "frames:dead"
    group: str = "coatstream"

    @property
    def books(self) -> str:
        return f"{self.stream}:books"


KEYS = Keys()


def fields(frame_id: str, grey: int = PLAIN, side: int = SIDE) -> dict[str, str | bytes | int]:
    """One frame as its producer writes it: raw pixels of one grey."""
    pixels = bytes([grey]) * (side * side)
    return {"pixels": pixels, "width": side, "height": side, "format": "gray8", "frame_id": frame_id}


def names(count: int, prefix: str = "f") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def send(
    client: Client, frame_ids: Iterable[str], greys: Mapping[str, int] | None = None, *, keys: Keys = KEYS
) -> list[str]:
    """Put frames into the queue, many in one round trip; the entries' ids."""
    entries: list[str] = []
    for page in _pages(frame_ids):
        pipe = client.pipeline(transaction=False)
        for frame_id in page:
            pipe.xadd(keys.stream, fields(frame_id, (greys or {}).get(frame_id, PLAIN)))
        entries += [entry.decode() for entry in pipe.execute()]
    return entries


def _pages(frame_ids: Iterable[str]) -> Iterator[list[str]]:
    page: list[str] = []
    for frame_id in frame_ids:
        page.append(frame_id)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


@dataclass(slots=True)
class Outcomes:
    """What the streams say.

    labels   labels by frame id
    entries  labels by entry id
    dead     dead letters by frame id
    reasons  dead letters by reason
    waiting  frame ids that are still in the queue
    latency  longest time from an entry's id to its label, seconds
    """

    labels: Counter[str] = field(default_factory=Counter)
    entries: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    latency: float = 0.0

    def lost(self, sent: Collection[str]) -> int:
        """Sent, and nowhere now."""
        return sum(1 for name in set(sent) if not (self.labels[name] or self.dead[name] or self.waiting[name]))

    def doubled(self) -> int:
        """Outcomes beyond the first one of each frame, or of each entry."""
        by_frame = (self.labels + self.dead).values()
        by_entry = self.entries.values()
        return max(sum(count - 1 for count in by_frame), sum(count - 1 for count in by_entry))


def outcomes(client: Client, keys: Keys = KEYS) -> Outcomes:
    """Read all three streams from end to end."""
    found = Outcomes()
    for _, label in read(client, keys.labels):
        found.labels[label[b"frame_id"].decode()] += 1
        if b"entry_id" in label:
            entry = label[b"entry_id"].decode()
            found.entries[entry] += 1
            age = float(label[b"published_at"]) - int(entry.partition("-")[0]) / 1000
            found.latency = max(found.latency, age)
    for _, letter in read(client, keys.dead):
        found.dead[letter.get(b"frame_id", letter[b"entry_id"]).decode()] += 1
        found.reasons[letter[b"reason"].decode()] += 1
    for entry_id, frame in read(client, keys.stream):
        found.waiting[frame.get(b"frame_id", entry_id).decode()] += 1
    return found


def read(client: Client, stream: str) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """Every entry, page by page."""
    start = "-"
    while page := client.xrange(stream, start, "+", count=PAGE):
        yield from page
        start = f"({page[-1][0].decode()}"


def pending(client: Client, keys: Keys = KEYS) -> dict[str, tuple[str, int]]:
    """Entry id -> its consumer and how often it was delivered; {} where there is no group."""
    if not client.exists(keys.stream) or not client.xinfo_groups(keys.stream):
        return {}
    rows = client.xpending_range(keys.stream, keys.group, "-", "+", 1_000_000)
    return {row["message_id"].decode(): (row["consumer"].decode(), row["times_delivered"]) for row in rows}


def added(client: Client, keys: Keys = KEYS) -> int:
    """How many entries the frames stream was ever given."""
    info: dict[str, Any] = client.xinfo_stream(keys.stream)
    return int(info["entries-added"])


def booked(client: Client, account: str, keys: Keys = KEYS) -> int:
    """A count in the server's own books of this stream."""
    return int(client.hget(keys.books, account) or 0)
