"""A thread per source: open, read, put into the mailbox; on loss back off and open again; stop one by name or all.

A source never restarts itself, and a thread that is stuck in a dead camera is named and left behind, never waited for
without bound: it must not hold the exit.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from worker.backoff import Backoff
from worker.errors import SLOW_RETRY, SourceLost
from worker.ledger import Ledger
from worker.mailbox import Mailbox
from worker.sources import Source
from worker.status import Status

REOPEN_CAMERA = Backoff(first=0.5, longest=30.0)
REOPEN_QUEUE = Backoff(first=0.05, longest=2.0)
STABLE_AFTER = 60.0  # seconds of reading after which the next loss counts as the first


@dataclass(slots=True)
class _Reader:
    source: Source
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    ended: bool = False  # its thread has nothing more to say
    read: int = 0  # frames since it was opened


class Intake:
    """`add` and `halt` are called on the loop; the readers' threads talk to mailbox, ledger and status only."""

    def __init__(
        self,
        mailbox: Mailbox,
        ledger: Ledger,
        status: Status,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._ledger = ledger
        self._status = status
        self._monotonic = monotonic
        self._rng = rng or random.Random()
        self._log = structlog.get_logger("intake")
        self._loop = asyncio.get_running_loop()
        self._readers: dict[str, _Reader] = {}
        self._finished = asyncio.Event()  # a reader has ended, well or badly
        self._bug: BaseException | None = None

    def add(self, source: Source) -> None:
        """Start reading; from now on the source's frames arrive in the mailbox."""
        if source.name in self._readers:
            raise ValueError(f"{source.name} is read already")
        reader = _Reader(source)
        reader.thread = threading.Thread(target=self._run, args=(reader,), name=f"intake-{source.name}", daemon=True)
        self._readers[source.name] = reader
        self._status.source(source.name, "connecting")
        reader.thread.start()

    @property
    def names(self) -> list[str]:
        """The sources that are read, in the order in which they were added."""
        return list(self._readers)

    async def finished(self) -> None:
        """Wait until every source has ended for good. Raises what a reader died of, if that was a bug."""
        while True:
            await self._finished.wait()
            self._finished.clear()
            if self._bug is not None:
                raise self._bug
            if all(reader.ended for reader in self._readers.values()):
                return

    async def halt(self, within: float) -> list[str]:
        """Stop all sources and wait for their threads. Returns the names of those that are stuck and left behind."""
        for reader in self._readers.values():
            reader.stop.set()
        deadline = self._monotonic() + within
        stuck = []
        for name, reader in self._readers.items():
            if reader.thread is not None:
                await asyncio.to_thread(reader.thread.join, max(0.0, deadline - self._monotonic()))
                if reader.thread.is_alive():
                    stuck.append(name)
        return stuck

    def _run(self, reader: _Reader) -> None:
        """The thread: policy here, work in `_read`."""
        try:
            self._keep_reading(reader)
        except BaseException as bug:  # the edge of the thread: hand it to whoever waits in `finished`
            self._bug = bug
        finally:
            reader.ended = True
            self._loop.call_soon_threadsafe(self._finished.set)

    def _keep_reading(self, reader: _Reader) -> None:
        name = reader.source.name
        backoff = REOPEN_CAMERA if reader.source.live else REOPEN_QUEUE
        failures = 0
        while not reader.stop.is_set():
            opened_at, reader.read = self._monotonic(), 0
            try:
                self._read(reader)
            except SourceLost as lost:
                well = reader.read > 0 and not reader.source.live  # a camera that shows one picture is not well yet
                failures = 0 if well or self._monotonic() - opened_at > STABLE_AFTER else failures
                delay = max(backoff.delay(failures, self._rng), SLOW_RETRY if lost.slow else 0.0)
                failures += 1
                self._status.source(name, "down", lost.reason, str(lost))
                self._log.warning("source lost", source=name, reason=str(lost), reopen_in=round(delay, 2))
                reader.stop.wait(delay)
            else:
                self._status.source(name, "ended")
                self._log.info("source stopped" if reader.stop.is_set() else "source ended", source=name)
                return

    def _read(self, reader: _Reader) -> None:
        source = reader.source
        frames = source.frames(reader.stop)
        try:
            for frame in frames:
                reader.read += 1
                if self._status.source(source.name, "live"):
                    self._log.info("source up", source=source.name)
                if frame.receipt is None:  # a queue's frame is received when a batch takes it: till then it can go back
                    self._ledger.received(frame.source)
                if not self._mailbox.put(frame, lane=source.name, live=source.live):
                    return
        finally:
            frames.close()  # in this thread: only who reads a capture may release it
