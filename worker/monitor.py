"""Looks at Redis every few seconds: does it answer, and how full is the queue. Changes nothing there."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from config.settings import QueueSettings
from worker.broker.connection import Client, calls
from worker.errors import RedisUnavailable
from worker.metrics import Metrics
from worker.sources.entry import milliseconds_of

EVERY = 2.0  # seconds

# The id of the oldest entry. XRANGE itself would send its picture along, megabytes at every look.
_OLDEST = "local e = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1] return e and e[1]"


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What lies in the queue. Settled entries are deleted, so the stream is the set of unfinished frames."""

    entries: int
    pending: int
    dead: int
    oldest_age: float


def measure(client: Client, queue: QueueSettings) -> QueueDepth:
    """Five small commands in one round trip, no picture among the replies. Ages by the server's clock.

    Raises RedisUnavailable.
    """
    with calls("the queue cannot be measured"):
        pipe = client.pipeline(transaction=False)
        pipe.time()
        pipe.xlen(queue.stream)
        pipe.eval(_OLDEST, 1, queue.stream)
        pipe.xlen(queue.dead_stream)
        pipe.xpending(queue.stream, queue.group)
        replies = pipe.execute(raise_on_error=False)
        if failed := next((reply for reply in replies[:4] if isinstance(reply, Exception)), None):
            raise failed
        (seconds, micros), entries, oldest, dead, pending = replies
    age = max(0.0, seconds + micros / 1e6 - milliseconds_of(oldest.decode()) / 1000) if oldest else 0.0
    in_work = 0 if isinstance(pending, Exception) else pending["pending"]  # no group yet: nothing is in work
    return QueueDepth(entries, in_work, dead, age)


class Monitor:
    """Runs in a thread of its own until `stop`; `on_up` and `on_down` hear of each look."""

    def __init__(
        self,
        client: Client,
        queue: QueueSettings,
        metrics: Metrics,
        *,
        on_up: Callable[[], None],
        on_down: Callable[[RedisUnavailable], None],
    ) -> None:
        self._client = client
        self._queue = queue
        self._metrics = metrics
        self._on_up = on_up
        self._on_down = on_down

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            started = time.monotonic()
            self.look()
            stop.wait(max(0.0, EVERY - (time.monotonic() - started)))

    def look(self) -> None:
        """Look once."""
        try:
            depth = measure(self._client, self._queue)
        except RedisUnavailable as trouble:
            self._on_down(trouble)
            return
        self._on_up()
        self._metrics.queue_depth.set(depth.entries)
        self._metrics.queue_pending.set(depth.pending)
        self._metrics.queue_oldest.set(depth.oldest_age)
        self._metrics.dead_letters.set(depth.dead)
