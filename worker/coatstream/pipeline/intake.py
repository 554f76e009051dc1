"""A thread per source: open, read, put into the mailbox; on loss back off and open again; stop one by name or all.

A source never restarts itself, and a thread that is stuck is named and left behind, never waited for without bound: it
must not hold the exit.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from coatstream.errors import DownReason, SourceLost
from coatstream.pipeline.mailbox import Mailbox
from coatstream.pipeline.reopening import Reopening
from coatstream.pipeline.source import Source, SourceObserver
from coatstream.telemetry.status import State
from coatstream.telemetry.telemetry import Telemetry


@dataclass(slots=True)
class _Reader:
    source: Source
    weight: float
    observer: SourceObserver | None
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    ended: bool = False  # its thread is done
    read: int = 0  # frames since it was opened


class Intake:
    """All methods are called on the loop; the readers' threads use the mailbox, the ledger and the status only."""

    def __init__(
        self,
        mailbox: Mailbox,
        telemetry: Telemetry,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.mailbox = mailbox
        self._ledger = telemetry.ledger
        self._status = telemetry.status
        self._monotonic = monotonic
        self._rng = rng or random.Random()
        self._log = structlog.get_logger("intake")
        self._loop = asyncio.get_running_loop()
        self._readers: dict[str, _Reader] = {}
        self._removed: list[_Reader] = []  # were told to stop, and may not have stopped yet
        self._changed = asyncio.Event()  # a reader has ended, well or badly
        self._bug: BaseException | None = None

    def add(self, source: Source, *, weight: float = 1.0, observer: SourceObserver | None = None) -> None:
        """Start reading; from now on the source's frames arrive in the mailbox, with this weight in its shares."""
        if source.name in self._readers:
            raise ValueError(f"{source.name} is read already")
        reader = _Reader(source, weight, observer)
        reader.thread = threading.Thread(target=self._run, args=(reader,), name=f"intake-{source.name}", daemon=True)
        self._readers[source.name] = reader
        self._state(reader, "connecting")
        reader.thread.start()

    def remove(self, name: str) -> None:
        """Stop reading one source, if it is read; its name may be added again at once."""
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.stop.set()
            self._removed = [old for old in self._removed if not old.ended] + [reader]

    def look(self) -> None:
        """Wake `finished`: what `more` returns may have changed."""
        self._changed.set()

    async def finished(self, *, more: Callable[[], bool] = lambda: False) -> None:
        """Wait until every source has ended for good and no `more` will come. Raises the bug that ended a reader's
        thread. A change of `more` is noticed at the next `look`.
        """
        while self._bug is None:
            if all(reader.ended for reader in self._readers.values()) and not more():
                return
            await self._changed.wait()
            self._changed.clear()
        raise self._bug

    async def halt(self, within: float) -> list[str]:
        """Stop all sources and wait for their threads. Returns the names of those that are stuck and left behind."""
        readers = [*self._readers.values(), *self._removed]
        for reader in readers:
            reader.stop.set()
        deadline = self._monotonic() + within
        stuck = []
        for reader in readers:
            if reader.thread is not None:
                await asyncio.to_thread(reader.thread.join, max(0.0, deadline - self._monotonic()))
                if reader.thread.is_alive():
                    stuck.append(reader.source.name)
        return stuck

    def _run(self, reader: _Reader) -> None:
        """The thread: policy here, work in `_read`."""
        try:
            self._keep_reading(reader)
        except BaseException as bug:  # the edge of the thread: `finished` raises it
            self._bug = bug
        finally:
            reader.ended = True
            self._loop.call_soon_threadsafe(self._changed.set)

    def _keep_reading(self, reader: _Reader) -> None:
        name, reopening = reader.source.name, Reopening(monotonic=self._monotonic, rng=self._rng)
        while not reader.stop.is_set():
            reader.read = 0
            reopening.opens()
            try:
                self._read(reader, reopening)
            except SourceLost as lost:
                delay = reopening.after(lost, read=reader.read)
                if not reader.stop.is_set():
                    self._lost(reader, lost, delay)
                reader.stop.wait(delay)
            else:
                if reader.stop.is_set() or self.mailbox.closed:  # the end of a worker is no end of a camera
                    self._log.info("source stopped", source=name)
                else:
                    self._state(reader, "ended", DownReason.ENDED)
                    self._log.info("source ended", source=name)
                return

    def _lost(self, reader: _Reader, lost: SourceLost, delay: float) -> None:
        """A warning for the first loss only: a camera that is out for a week must not fill the log."""
        news = self._state(reader, "down", lost.reason, str(lost))
        log = self._log.warning if news else self._log.debug
        reason = lost.reason.value
        log("source lost", source=reader.source.name, reason=reason, trouble=str(lost), reopen_in=round(delay, 2))

    def _state(self, reader: _Reader, state: State, reason: DownReason | None = None, message: str = "") -> bool:
        news = self._status.source(reader.source.name, state, reason, message)
        if news and reader.observer is not None:
            reader.observer.on_state(state, reason, message)
        return news

    def _read(self, reader: _Reader, reopening: Reopening) -> None:
        source = reader.source
        frames = source.frames(reader.stop)
        try:
            for frame in frames:
                reader.read += 1
                if reader.read == 1:
                    reopening.shows()
                    if self._state(reader, "live"):
                        self._log.info("source up", source=source.name)
                if frame.receipt is None:  # a queue's frame is received when a batch takes it: till then it can go back
                    self._ledger.received(frame.source)
                if not self.mailbox.put(frame, reader=source.name, live=source.live, weight=reader.weight):
                    return
        finally:
            frames.close()  # in this thread: a capture may only be released where it is read
