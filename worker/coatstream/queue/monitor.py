"""Looks at Redis every few seconds: does it answer, and how full is the queue. Changes nothing there."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script
from coatstream.errors import REDIS_TROUBLE
from coatstream.queue.audit import audit
from coatstream.queue.entry import milliseconds_of
from coatstream.queue.metrics import QueueMetrics
from coatstream.queue.server_clock import ServerClock
from coatstream.telemetry.outages import RedisHealth

EVERY = 2.0  # seconds
AUDIT_EVERY = 5  # looks: the server copies two entries for it, which may hold megabytes each

_MEASURE = Script("queue/measure")


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What lies in a queue. Settled entries are deleted, so the stream is the set of unfinished frames."""

    entries: int
    pending: int
    dead: int
    oldest_age: float
    server_time: float


def measure(client: Client, queue: Queue) -> QueueDepth:
    """One round trip, no picture in the reply. The age is by the server's clock. Raises RedisUnavailable."""
    with calls("the queue cannot be measured", client):
        reply = _MEASURE(client, keys=[queue.stream, queue.dead], args=[queue.group])
    seconds, micros, entries, oldest, pending, dead = reply
    age = max(0.0, seconds + micros / 1e6 - milliseconds_of(oldest.decode()) / 1000) if oldest else 0.0
    return QueueDepth(entries, pending, dead, age, seconds + micros / 1e6)


class Monitor:
    """Runs in a thread of its own until `stop`; `health` is told of each look.

    clock   is told the server's time
    labels  the stream that a worker without a queue writes to: of a cluster it needs the node that has it, and no other
    """

    def __init__(
        self,
        client: Client,
        queues: Sequence[Queue],
        metrics: QueueMetrics,
        health: RedisHealth,
        *,
        labels: str,
        clock: ServerClock | None = None,
    ) -> None:
        self._client = client
        self._queues = queues
        self._metrics = metrics
        self._health = health
        self._labels = labels
        self._clock = clock or ServerClock()
        self._looks = 0

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            started = time.monotonic()
            self.look()
            stop.wait(max(0.0, EVERY - (time.monotonic() - started)))

    def look(self) -> None:
        """Look once."""
        try:
            if not self._queues:  # a worker of cameras: whether Redis is there must be seen without a label, too
                with calls("Redis does not answer", self._client):
                    self._client.type(self._labels)
            for queue in self._queues:
                self._show(queue)
            self._looks += 1
        except REDIS_TROUBLE as trouble:  # a look that fails is no reason to end the process
            self._health.down(trouble)
        else:
            self._health.up()

    def _show(self, queue: Queue) -> None:
        depth = measure(self._client, queue)
        self._clock.tell(depth.server_time)
        self._metrics.clock_ahead.set(round(self._clock.ahead, 3))
        self._metrics.depth.labels(queue.stream).set(depth.entries)
        self._metrics.pending.labels(queue.stream).set(depth.pending)
        self._metrics.oldest.labels(queue.stream).set(depth.oldest_age)
        self._metrics.dead_letters.labels(queue.stream).set(depth.dead)
        if self._looks % AUDIT_EVERY == 0:
            books = audit(self._client, queue)
            self._metrics.trimmed.labels(queue.stream).set(books.gone)
            self._metrics.stranded.labels(queue.stream).set(books.stranded)
