"""The one buffer of the program, and the one place where source threads meet the event loop.

A live source keeps only its newest frame here: a newer one replaces it. Any other source waits for room: that is the
back-pressure. Frames leave one per source in turn, so that no source waits behind another's backlog; where sources
differ in weight and frames are being lost, by weight (`fairness`). What is left out stays, and stays fresh: the
next frame of its source replaces it.
"""

import asyncio
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from coatstream.frames.frame import Frame
from coatstream.pipeline.fairness import Turns
from coatstream.telemetry.ledger import DropReason, Ledger


@dataclass(frozen=True, slots=True)
class QueuedFrame:
    """A frame, and when it was put here (monotonic seconds)."""

    frame: Frame
    reader: str
    put_at: float


class Mailbox:
    """`put` is called from source threads, everything else on the loop that was running at construction.

    `reader` names the source that puts a frame (a camera, `queue`). It may carry many sources; `room` bounds that.
    A frame that a newer one replaces is booked in the ledger as dropped.
    """

    def __init__(
        self,
        room: int,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._ledger = ledger
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()  # set on the loop when what `filled` waits for is here, or after a close
        self._lock = threading.Condition()  # guards all below; notified when room appears or the box closes
        self._queued: OrderedDict[tuple[str, str], deque[QueuedFrame]] = OrderedDict()  # in turn order, no empty ones
        self._waiting: Counter[str] = Counter()  # queued per reader, policies without any left out
        self._total = 0  # of all policies
        self._turns: Turns[tuple[str, str]] = Turns()
        self._wanted = 0  # frames that `filled` waits for; 0: no task waits, and the loop is not woken
        self._closed = False

    def put(self, frame: Frame, *, reader: str, live: bool, weight: float = 1.0) -> bool:
        """Leave a frame; wait for room unless `live`. False: the box is closed and the frame was not taken.

        `weight` is the source's share of what is taken when not everything can be.
        """
        queued = QueuedFrame(frame, reader, self._clock())
        with self._lock:
            if not live and self._waiting[reader] >= self._room:
                self._lock.wait_for(lambda: self._closed or self._waiting[reader] < self._room)
            if self._closed:
                return False
            replaced = self._add(queued, live=live, weight=weight)
            awaited = self._wanted > 0 and self._holds(self._wanted)
            if awaited:
                self._wanted = 0
        for old in replaced:
            self._ledger.dropped(old.frame.source, DropReason.REPLACED)
        if awaited:  # once for a whole batch: to wake the loop costs more than all the rest of a put
            self._loop.call_soon_threadsafe(self._changed.set)
        return True

    def _add(self, queued: QueuedFrame, *, live: bool, weight: float) -> list[QueuedFrame]:
        key = queued.reader, queued.frame.source
        queue = self._queued.setdefault(key, deque())
        replaced = list(queue) if live else []
        if live:
            queue.clear()
        queue.append(queued)
        self._waiting[queued.reader] += 1 - len(replaced)
        self._total += 1 - len(replaced)
        self._turns.arrived(key, weight=weight, live=live, now=queued.put_at, replaced=bool(replaced))
        return replaced

    @property
    def waiting(self) -> int:
        """Frames in the box."""
        with self._lock:
            return self._total

    @property
    def closed(self) -> bool:
        with self._lock:
            return self._closed

    def oldest(self) -> float:
        """When the oldest frame in the box was put there, monotonic seconds; now, if the box is empty."""
        with self._lock:
            return min((queue[0].put_at for queue in self._queued.values()), default=self._clock())

    async def filled(self, count: int) -> bool:
        """Wait until `count` frames are here. False: the box was closed before that.

        Where frames are being lost and weights differ, one is enough: what `take` leaves out must not be waited for.
        One task waits at a time.
        """
        while True:
            self._changed.clear()
            if self._want(count):
                return True
            if self.closed:
                return False
            await self._changed.wait()

    def _want(self, count: int) -> bool:
        """Whether `count` frames are here; if not, the put that brings the last of them wakes the loop."""
        with self._lock:
            here = self._holds(count)
            self._wanted = 0 if here else count
            return here

    def _holds(self, count: int) -> bool:
        return self._total >= count or (self._total > 0 and not self._turns.alike and self._turns.short)

    def take(self, count: int) -> list[QueuedFrame]:
        """Up to `count` frames, one at least if any is here: one per source in turn, oldest first within a source.

        By weight where weights differ; then a batch may end before it is full (`coatstream.pipeline.fairness`).
        """
        with self._lock:
            waiting, now = {key: len(queue) for key, queue in self._queued.items()}, self._clock()
            self._turns.forget(waiting, now)
            taken = [self._pop(key) for key in self._turns.choose(waiting, count, now=now)]
            self._lock.notify_all()
        return taken

    def _pop(self, key: tuple[str, str]) -> QueuedFrame:
        queue = self._queued.pop(key)
        queued = queue.popleft()
        self._total -= 1
        self._waiting[queued.reader] -= 1
        if not self._waiting[queued.reader]:
            del self._waiting[queued.reader]
        if queue:
            self._queued[key] = queue  # back to the end of the turn order
        return queued

    def close(self) -> None:
        """Take no more frames and wake all waits. What is here can still be taken."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._changed.set()
