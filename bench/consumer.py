"""A bare consumer of the same stream: what a straightforward program with redis-py reaches.

Each of its threads reads some entries (XREADGROUP), decodes and prepares them, and commits them in one pipeline: XADD
of the same label entries, JSON document included, XACK, XDEL. No hand-over between threads, no leases, no repetition
that is safe, no newest label, no message, no books, no metrics, no batches for an engine.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue, queues_of
from coatstream.engine.cores import single_threaded, usable_cores
from coatstream.frames.frame import Prediction, Receipt
from coatstream.queue.entry import milliseconds_of
from coatstream.results.outcomes import Published
from coatstream.settings.model import SettingsTree

from bench.queue import LABELS, settle_plainly

STREAM: Final = "bare:frames"
LABELS_STREAM: Final = "bare:labels"
CONSUMER: Final = "bare"

Open = Callable[[bytes], tuple[int, int]]  # a picture -> decoded and prepared; its width and height


class Consumer:
    """`key`: the field of an entry that holds the picture. Reads `batch.max_size` entries at a time."""

    def __init__(self, client: Client, settings: SettingsTree, *, key: bytes, open_picture: Open) -> None:
        self._client = client
        self._settings = settings.model_copy(
            update={
                "queue": settings.queue.model_copy(update={"stream": STREAM}),
                "results": settings.results.model_copy(update={"stream": LABELS_STREAM}),
            }
        )
        self._queue: Queue = queues_of(self._settings)[0]
        self._key = key
        self._open = open_picture

    def drain(self) -> float:
        """Seconds until the stream is empty."""
        with calls("the benchmark's queue cannot be used"):
            if not self._client.exists(STREAM) or not self._client.xinfo_groups(STREAM):
                self._client.xgroup_create(STREAM, self._queue.group, id="0", mkstream=True)
        threads = self._settings.queue.decode_threads or usable_cores()
        started = time.perf_counter()
        with ThreadPoolExecutor(threads, "bare", initializer=single_threaded) as pool:
            for done in [pool.submit(self._work) for _ in range(threads)]:
                done.result()
        return time.perf_counter() - started

    def _work(self) -> None:
        """One thread: until nothing new is left."""
        while entries := self._read():
            batch = [self._label(entry_id.decode(), fields) for entry_id, fields in entries]
            settle_plainly(self._client, self._queue, self._settings.results, batch)

    def _read(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        most = self._settings.batch.max_size
        with calls("frames cannot be read"):
            reply: Any = self._client.xreadgroup(self._queue.group, CONSUMER, {STREAM: ">"}, count=most)
        return reply[0][1] if reply else []

    def _label(self, entry_id: str, fields: dict[bytes, bytes]) -> Published:
        width, height = self._open(fields[self._key])
        return Published(
            Prediction(
                source=fields[b"source"].decode(),
                frame_id=entry_id,
                captured_at=milliseconds_of(entry_id) / 1000,
                labels=LABELS,
                width=width,
                height=height,
                receipt=Receipt(STREAM, entry_id),
            )
        )
