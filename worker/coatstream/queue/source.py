"""Frames from Redis streams with a consumer group: decoded in a small pool, handed on in order.

What can never be labelled is buried, and what has expired is dropped, here and at once. Everything else is settled when
its label is published. An entry that was read is never forgotten: it is handed on, or handed back.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import takewhile
from typing import Final, TypeVar

from coatstream.engine.cores import single_threaded
from coatstream.errors import DownReason, RedisRefuses, RedisUnavailable, Retries, SourceLost
from coatstream.frames.frame import Frame
from coatstream.pipeline.accounting import Accounting
from coatstream.queue.decoding import EntryDecoder, Prepared, Returned, Taken
from coatstream.queue.reader import TICK, EntryReader
from coatstream.results.outcomes import Buried, Dropped
from coatstream.results.publisher import Publisher
from coatstream.telemetry.outages import RedisHealth

Window = deque[tuple[Future[deque[Prepared]], int]]  # some entries each, with their bytes
T = TypeVar("T")

TOGETHER: Final = 4  # entries that a decode thread takes at most in one go, while there is enough for all threads
HANGS_AFTER: Final = 2.0  # seconds that a picture in the decoder may take when this source stops


class QueueSource:
    """The source of one or more queues.

    reader     decides which entries come next
    decode     makes frames of them, in the decode pool
    publisher  settles what is not labelled; called from this source's thread
    health     is told of each call to Redis that failed, before the source is lost, and of each look that did not
    """

    live: Final = False

    def __init__(
        self,
        name: str,
        reader: EntryReader,
        decode: EntryDecoder,
        publisher: Publisher,
        accounting: Accounting,
        health: RedisHealth,
    ) -> None:
        self.name = name
        self._reader = reader
        self._decode = decode
        self._publisher = publisher
        self._accounting = accounting
        self._health = health
        self._retries = Retries()  # of calls that Redis refused
        self._undecoded = 0  # bytes of the entries in the window

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        """Frames until `stop`, in the order in which they were read. Raises SourceLost when Redis is away, after
        handing on what was read before; RedisRefuses where that would never end.

        When it is stopped, what no batch has taken goes back to the server, for other workers.
        """
        self._reach(self._reader.join)
        window: Window = deque()  # read and being decoded, oldest first; at most the reader's prefetch
        self._undecoded = 0
        pool = ThreadPoolExecutor(self._decode.threads, "decode", initializer=single_threaded)
        try:
            while not stop.is_set():
                self._read(window, pool, stop)
                yield from self._ready(window, stop)
        except SourceLost:
            while window and not stop.is_set():
                yield from self._ready(window, stop)
            raise
        finally:
            if window or stop.is_set():
                self._reader.hand_back(self._hanging(window))
            self._reader.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _hanging(self, window: Window) -> frozenset[tuple[str, str]]:
        """Entries whose decoding has begun and does not end: to hand them back as new would be to try them for ever."""
        wait([future for future, _ in window if not future.cancel()], HANGS_AFTER)
        return self._decode.in_hand

    def _read(self, window: Window, pool: ThreadPoolExecutor, stop: threading.Event) -> None:
        """What the reader takes goes to the decode pool, and only there: it is large.

        A few entries at a time where there are many: each hand-over from thread to thread costs as much as a small
        picture's label.
        """
        entries = self._reach(lambda: self._reader.take(wait=not window, undecoded=self._undecoded))
        together = max(1, min(TOGETHER, len(entries) // (2 * self._decode.threads)))
        for first in range(0, len(entries), together):
            some = entries[first : first + together]
            size = sum(entry.size for entry in some)
            window.append((pool.submit(self._prepare_all, some, stop), size))
            self._undecoded += size
        self._retries.worked()
        self._health.up()

    def _reach(self, call: Callable[[], T]) -> T:
        """What `call` returns. Raises SourceLost where Redis is away."""
        try:
            return call()
        except RedisUnavailable as trouble:
            self._health.down(trouble)
            raise SourceLost(str(trouble), slow=trouble.slow, reason=DownReason.REDIS) from trouble
        except RedisRefuses as trouble:
            self._health.down(trouble)
            self._retries.failed(trouble)
            if self._retries.refused:
                raise
            raise SourceLost(str(trouble), slow=True, reason=DownReason.REDIS) from trouble

    def _ready(self, window: Window, stop: threading.Event) -> Iterator[Frame]:
        """The oldest entries, waiting for them, and those behind them that are done too."""
        lost: list[Buried | Dropped] = []
        waited = False
        while window and not stop.is_set() and (window[0][0].done() or (not waited and _done(window[0][0], stop))):
            waited = True
            future, size = window[0]
            done = future.result()
            while done:
                prepared = done.popleft()
                if isinstance(prepared, Returned):
                    self._reader.give_back(prepared.stream, prepared.entry_id)
                    continue
                if not isinstance(prepared, Frame):
                    lost.append(prepared)
                    continue
                self._settle(lost)
                lost = []
                yield prepared
            window.popleft()
            self._undecoded -= size
        self._settle(lost)

    def _settle(self, outcomes: list[Buried | Dropped]) -> None:
        if not outcomes:
            return
        try:
            settlement, _ = self._publisher.publish(outcomes)
        except RedisUnavailable as trouble:  # the drain's time is over: these were not received, they go back
            raise SourceLost(str(trouble), reason=DownReason.REDIS) from trouble
        self._accounting.received(outcomes)
        self._accounting.settled(outcomes, settlement)

    def _prepare_all(self, entries: Sequence[Taken], stop: threading.Event) -> deque[Prepared]:
        """Runs in the decode pool. After `stop` none is begun: what takes long would count as a picture that hangs."""
        return deque(map(self._decode, takewhile(lambda _: not stop.is_set(), entries)))


def _done(future: Future[deque[Prepared]], stop: threading.Event) -> bool:
    """Wait for it. False: stopped before it was done."""
    while not stop.is_set():
        if wait((future,), TICK).done:
            return True
    return False
