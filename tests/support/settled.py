"""What workers do to a queue and leave behind there, made by their own scripts."""

from collections.abc import Iterable, Sequence
from typing import Any

from coatstream.broker.connection import Client
from coatstream.broker.keys import Queue
from coatstream.errors import DeadReason
from coatstream.frames.frame import Label, Prediction, Receipt, ScoredLabel
from coatstream.frames.model import ModelInfo
from coatstream.queue.audit import audit
from coatstream.queue.group import ConsumerGroup, RawEntry
from coatstream.results.outcomes import Buried, Dropped, Published
from coatstream.results.settler import Settler, SettlingTerms
from coatstream.settings.model import QueueSettings, ResultsSettings
from coatstream.telemetry.ledger import DropReason

NOW = 1_700_000_000.5  # when everything was settled, Unix seconds
QUEUE = Queue("frames", "coatstream", "frames:dead", "labels")
MODEL = ModelInfo("coat_lite_mini.in1k", "random", "eager", "fp32", "cpu", 512)
HOUR = 3600.0


def settler(
    client: Client,
    name: str = "pump",
    *,
    worker: str = "me",
    queues: Sequence[Queue] = (QUEUE,),
    results: ResultsSettings | None = None,
    fences: str = "cameras:fences",
    **limits: object,
) -> Settler:
    """Of one caller; `limits` are fields of QueueSettings."""
    settling = terms(worker, queues, results=results, fences=fences, **limits)
    return Settler(client, settling, model=MODEL, name=name)


def terms(
    worker: str = "me",
    queues: Sequence[Queue] = (QUEUE,),
    *,
    results: ResultsSettings | None = None,
    fences: str = "cameras:fences",
    **limits: object,
) -> SettlingTerms:
    """Of one worker; `limits` are fields of QueueSettings."""
    return SettlingTerms(queues, QueueSettings.model_validate(limits), results or ResultsSettings(), worker, fences)


def member(client: Client, consumer: str = "me", *, queue: Queue = QUEUE, **limits: object) -> ConsumerGroup:
    """A worker's place in the group. What is silent has been so for an hour: nothing is until a test says so."""
    settings = QueueSettings.model_validate({"min_idle": HOUR / 2, **limits})
    return ConsumerGroup(client, queue, settings, consumer=consumer, clock=lambda: NOW)


def add(client: Client, count: int = 1, *, stream: str = "frames", **fields: str | bytes | int) -> list[str]:
    """Frames as any producer adds them."""
    content = fields or {"image": b"jpeg", "source": "door"}
    return [client.xadd(stream, {**content, "number": number}).decode() for number in range(count)]


def admit(client: Client, size: int, *, source: str = "door", queue: Queue = QUEUE) -> str:
    """A frame as admission leaves it: counted in the books and for its source."""
    client.hincrby(queue.books, "admitted_bytes", size)
    client.hincrby(queue.sources, source, 1)
    return str(client.xadd(queue.stream, {"image": b"jpeg", "source": source, "admitted": size}).decode())


def read(client: Client, consumer: str = "me", count: int = 1000, *, queue: Queue = QUEUE) -> list[str]:
    """Entries as a worker reads them: pending now, and its own."""
    reply = client.xreadgroup(queue.group, consumer, {queue.stream: ">"}, count=count)
    return [entry_id.decode() for _stream, entries in reply for entry_id, _fields in entries]


def silence(client: Client, consumer: str, *, deliveries: int = 1, queue: Queue = QUEUE) -> list[str]:
    """All that this worker holds has been idle for an hour, and was delivered so often."""
    held = [item["message_id"] for item in pending(client, consumer, queue=queue)]
    client.xclaim(
        queue.stream, queue.group, consumer, 0, held, idle=int(HOUR * 1000), retrycount=deliveries, justid=True
    )
    return [entry_id.decode() for entry_id in held]


def pending(client: Client, consumer: str | None = None, *, queue: Queue = QUEUE) -> list[dict[str, Any]]:
    """What the group knows of each entry in work."""
    found = client.xpending_range(queue.stream, queue.group, "-", "+", 10_000, consumername=consumer)
    return list(found)


def owners(client: Client, *, queue: Queue = QUEUE) -> dict[str, tuple[str, int]]:
    """Entry id -> its consumer, and how often it was delivered."""
    return {
        item["message_id"].decode(): (item["consumer"].decode(), item["times_delivered"])
        for item in pending(client, queue=queue)
    }


def consumers(client: Client, *, queue: Queue = QUEUE) -> set[str]:
    return {consumer["name"].decode() for consumer in client.xinfo_consumers(queue.stream, queue.group)}


def books(client: Client, *, queue: Queue = QUEUE) -> dict[str, int]:
    """The counters, without those that are 0 or were never written; no marks (where strand.lua looks next)."""
    written = client.hgetall(queue.books)
    return {name.decode(): int(value) for name, value in written.items() if value.isdigit() and int(value)}


def assert_balanced(client: Client, *, vanished: int = 0, queue: Queue = QUEUE) -> None:
    """Every entry has its outcome or is still there, but for those that a producer deleted."""
    assert audit(client, queue).unaccounted == vanished


def published(
    entry_id: str | None,
    *,
    source: str = "door",
    frame_id: str = "f",
    captured_at: float = NOW - 0.034,
    label: str = "Egyptian cat",
    admitted: int = 0,
    stream: str = "frames",
) -> Published:
    """A label, 34 ms old, of this entry, or of a camera's frame."""
    receipt = Receipt(stream, entry_id, admitted) if entry_id else None
    labels = (ScoredLabel(Label(285, "n02124075", label), 0.91),)
    return Published(Prediction(source, frame_id, captured_at, labels, 1920, 1080, receipt))


def dropped(entry_id: str, *, source: str = "door", admitted: int = 0) -> Dropped:
    return Dropped(source, DropReason.EXPIRED, Receipt("frames", entry_id, admitted))


def buried(entry_id: str, *, source: str = "door", admitted: int = 0, error: str = "no picture") -> Buried:
    return Buried(source, DeadReason.UNDECODABLE, error, Receipt("frames", entry_id, admitted))


def labels(client: Client) -> list[dict[bytes, bytes]]:
    """Fields of each label, oldest first."""
    return [fields for _, fields in client.xrange("labels")]


def letters(client: Client) -> list[dict[bytes, bytes]]:
    """Fields of each dead letter, oldest first."""
    return [fields for _, fields in client.xrange("frames:dead")]


def publish(client: Client, frame_id: str, *, source: str = "door", label: str = "Egyptian cat") -> str:
    """A camera frame's label; its JSON document as it stands in the stream."""
    outcome = published(None, source=source, frame_id=frame_id, label=label)
    settler(client, f"label {frame_id}").settle([outcome], now=NOW)
    return str(labels(client)[-1][b"json"].decode())


def ids(entries: Iterable[RawEntry]) -> list[str]:
    return [entry.entry_id for entry in entries]
