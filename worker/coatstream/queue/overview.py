"""One queue at a glance: what waits, from whom, who works on it and how fast. Changes nothing."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script
from coatstream.queue.audit import Audit, audit
from coatstream.queue.monitor import QueueDepth, measure
from coatstream.queue.stranded import count_stranded

LOOKED_AT: Final = 500  # entries at the head of the queue, of which the sources are counted,
LOOKED_AT_BYTES: Final = 32 * 1024**2  # and at most so many bytes of them
LATELY: Final = 500  # labels from which the rates are taken
_CROWD: Final = Script("queue/crowd")


@dataclass(frozen=True, slots=True)
class ConsumerShare:
    """One worker in the group. `idle`: seconds since it last asked for entries; `rate`: labels a second lately."""

    name: str
    in_work: int
    idle: float
    rate: float


@dataclass(frozen=True, slots=True)
class QueueOverview:
    """All of nearly one moment.

    stranded    entries at the head that are neither new nor in work
    looked_at   entries at the head whose `sources` were counted, those with most entries first
    rate        labels of queue frames a second lately, of all workers
    """

    stream: str
    depth: QueueDepth
    audit: Audit
    stranded: int
    looked_at: int
    sources: Mapping[str, int]
    consumers: Sequence[ConsumerShare]
    rate: float


def overview(client: Client, queue: Queue) -> QueueOverview:
    """A few calls of the server. Raises RedisUnavailable, RedisRefuses."""
    depth, books = measure(client, queue), audit(client, queue)
    with calls(f"the queue {queue.stream} cannot be looked at", client):
        looked_at, sources, consumers = _CROWD(
            client, keys=[queue.stream], args=[queue.group, LOOKED_AT, LOOKED_AT_BYTES]
        )
    rates = _rates(client, queue, now=depth.server_time)
    return QueueOverview(
        queue.stream,
        depth,
        books,
        count_stranded(client, queue),
        int(looked_at),
        {_text(name): int(count) for name, count in _tuples(sources, 2)},
        [
            ConsumerShare(_text(name), int(pending), int(idle) / 1000, rates[_text(name)])
            for name, pending, idle in _tuples(consumers, 3)
            if _text(name) != "_released"  # stands for no worker: what was handed back
        ],
        sum(rates.values()),
    )


def _rates(client: Client, queue: Queue, *, now: float) -> Counter[str]:
    """Labels a second of each worker, over the newest labels."""
    with calls(f"the labels in {queue.labels} cannot be read", client):
        newest = client.xrevrange(queue.labels, count=LATELY)
    labels = [_worker(fields) for _, fields in newest if b"entry_id" in fields]
    if not newest:
        return Counter()
    oldest = int(newest[-1][0].partition(b"-")[0]) / 1000
    seconds = max(0.05, now - oldest)
    return Counter({worker: count / seconds for worker, count in Counter(labels).items()})


def _worker(fields: Mapping[bytes, bytes]) -> str:
    try:
        return str(json.loads(fields.get(b"json", b"{}")).get("worker", ""))
    except (ValueError, AttributeError, RecursionError):  # other programs may write there
        return ""


def _tuples(flat: Sequence[bytes], width: int) -> Iterator[tuple[bytes, ...]]:
    return zip(*(iter(flat),) * width, strict=True)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
