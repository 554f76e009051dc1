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

from coatstream.errors import SLOW_RETRY, Backoff, DownReason, SourceLost
from coatstream.pipeline.mailbox import Mailbox
from coatstream.pipeline.source import Source
from coatstream.telemetry.ledger import Ledger
from coatstream.telemetry.status import State, Status

REOPEN_CAMERA = Backoff(first=0.5, longest=30.0)
REOPEN_QUEUE = Backoff(first=0.05, longest=2.0)
# A camera locks the account, or our address, for half an hour after some five wrong passwords in a few minutes.
REOPEN_LOCKED = Backoff(first=5.0, longest=900.0)
STABLE_AFTER = 60.0  # seconds of reading after which the next loss counts as the first
SETTLED_AFTER = 5.0  # the same where nothing but the size of its pictures has changed

OnState = Callable[[str, State, DownReason | None, str], None]


@dataclass(slots=True)
class _Reader:
    source: Source
    weight: float
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    ended: bool = False  # its thread has nothing more to say
    read: int = 0  # frames since it was opened


class Intake:
    """All methods are called on the loop; the readers' threads talk to mailbox, ledger and status only.

    `on_state` hears of every change of a source's state, `on_ended` of a source that has come to its own end; both are
    called in the reader's thread.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        ledger: Ledger,
        status: Status,
        *,
        on_state: OnState = lambda name, state, reason, message: None,
        on_ended: Callable[[str], None] = lambda name: None,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._ledger = ledger
        self._status = status
        self._on_state = on_state
        self._on_ended = on_ended
        self._monotonic = monotonic
        self._rng = rng or random.Random()
        self._log = structlog.get_logger("intake")
        self._loop = asyncio.get_running_loop()
        self._readers: dict[str, _Reader] = {}
        self._removed: list[_Reader] = []  # told to stop, and perhaps not through with it yet
        self._changed = asyncio.Event()  # a reader has ended, well or badly
        self._bug: BaseException | None = None

    def add(self, source: Source, *, weight: float = 1.0) -> None:
        """Start reading; from now on the source's frames arrive in the mailbox, with this weight in its shares."""
        if source.name in self._readers:
            raise ValueError(f"{source.name} is read already")
        reader = _Reader(source, weight)
        reader.thread = threading.Thread(target=self._run, args=(reader,), name=f"intake-{source.name}", daemon=True)
        self._readers[source.name] = reader
        self._state(source.name, "connecting")
        reader.thread.start()

    def remove(self, name: str) -> None:
        """Stop reading one source, if it is read; its name may be added again at once."""
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.stop.set()
            self._removed = [old for old in self._removed if not old.ended] + [reader]

    @property
    def names(self) -> list[str]:
        """The sources that are read, in the order in which they were added."""
        return list(self._readers)

    def look(self) -> None:
        """Whoever waits in `finished` shall look again."""
        self._changed.set()

    async def finished(self, *, more: Callable[[], bool] = lambda: False) -> None:
        """Wait until every source has ended for good and no `more` will come. Raises what a reader died of, if that was
        a bug. A change of what `more` says is noticed at the next `look`.
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
        except BaseException as bug:  # the edge of the thread: hand it to whoever waits in `finished`
            self._bug = bug
        finally:
            reader.ended = True
            self._loop.call_soon_threadsafe(self._changed.set)

    def _keep_reading(self, reader: _Reader) -> None:
        name, failures, denied = reader.source.name, 0, 0
        while not reader.stop.is_set():
            opened_at, reader.read = self._monotonic(), 0
            try:
                self._read(reader)
            except SourceLost as lost:
                failures = 0 if self._was_well(reader, lost, self._monotonic() - opened_at) else failures
                # Wrong passwords count by themselves: only they lock a camera, and their waits are long.
                delay = self._delay(lost, denied if lost.reason is DownReason.AUTH else failures)
                failures, denied = failures + 1, denied + 1 if lost.reason is DownReason.AUTH else 0
                if not reader.stop.is_set():
                    self._lost(name, lost, delay)
                reader.stop.wait(delay)
            else:
                if reader.stop.is_set() or self._mailbox.closed:  # a worker that ends is no end of a camera
                    self._log.info("source stopped", source=name)
                else:
                    self._state(name, "ended", DownReason.ENDED)
                    self._log.info("source ended", source=name)
                    self._on_ended(name)
                return

    def _was_well(self, reader: _Reader, lost: SourceLost, lasted: float) -> bool:
        """A camera that shows one picture is not well yet, nor is a file whose tenth picture kills its decoder: it
        begins anew each time. Only the queue goes on where it was.
        """
        match lost.reason:
            case DownReason.REDIS:
                return reader.read > 0 or lasted > STABLE_AFTER
            case DownReason.CHANGED:  # as often as it likes, but it must show something in between
                return reader.read > 0 and lasted > SETTLED_AFTER
            case _:
                return lasted > STABLE_AFTER

    def _delay(self, lost: SourceLost, failures: int) -> float:
        """Seconds until it is opened again."""
        match lost.reason:
            case DownReason.CHANGED if failures == 0:  # nothing is wrong with it
                return 0.0
            case DownReason.AUTH:
                backoff = REOPEN_LOCKED
            case _:
                backoff = REOPEN_QUEUE if lost.reason is DownReason.REDIS else REOPEN_CAMERA
        return max(backoff.delay(failures, self._rng), SLOW_RETRY if lost.slow else 0.0)

    def _lost(self, name: str, lost: SourceLost, delay: float) -> None:
        """A warning when that is news; a camera that is out for a week shall not fill the log."""
        news = self._state(name, "down", lost.reason, str(lost))
        say = self._log.warning if news else self._log.debug
        say("source lost", source=name, reason=lost.reason.value, trouble=str(lost), reopen_in=round(delay, 2))

    def _state(self, name: str, state: State, reason: DownReason | None = None, message: str = "") -> bool:
        news = self._status.source(name, state, reason, message)
        if news:
            self._on_state(name, state, reason, message)
        return news

    def _read(self, reader: _Reader) -> None:
        source = reader.source
        frames = source.frames(reader.stop)
        try:
            for frame in frames:
                reader.read += 1
                if reader.read == 1 and self._state(source.name, "live"):
                    self._log.info("source up", source=source.name)
                if frame.receipt is None:  # a queue's frame is received when a batch takes it: till then it can go back
                    self._ledger.received(frame.source)
                if not self._mailbox.put(frame, reader=source.name, live=source.live, weight=reader.weight):
                    return
        finally:
            frames.close()  # in this thread: only who reads a capture may release it
