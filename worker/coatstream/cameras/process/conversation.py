"""What one process sends, turned into frames: the newest of a live camera, all of a file; and whether it is silent.

Judges by the worker's own clock and by what arrives. Kills nothing, starts nothing, and knows no lease's rules.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from coatstream.cameras.capture.steps import Step
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.process.wire import Inbox, Message, Tally, one_line
from coatstream.errors import BadFrame, CoatstreamError, SourceLost
from coatstream.frames.frame import Frame

MARGIN: Final = 1.0  # seconds beyond the camera's own time-outs, which should hold, until its process is killed
TICK: Final = 0.1  # seconds until `stop` is noticed
_BRIEF: Final = 0.02  # the same for a lease that is about to be granted
_AWAY: Final = 0.5  # seconds; a worker that comes back after so long finds an old frame first
_SETTLE: Final = 0.2  # seconds in which the newest one has followed it
_RIPE: Final = 0.1  # seconds after which a frame goes, whether or not a newer one is there already


class CameraObserver(Protocol):
    """Learns about one camera, in the thread that iterates over its frames. Raises nothing."""

    def opening(self) -> None:
        """A process is about to be started for it."""

    def judged(self, frame: Frame) -> Frame:
        """The frame with what is wrong with its picture. Called for each frame that has a fence."""
        ...

    def spent(self, stage: str, seconds: float) -> None:
        """CPU seconds of "decode" or "prepare"."""

    def unusable(self, bad: BadFrame) -> None:
        """A picture was due and could not be used. It was never received: the ledger counts both."""

    def damaged(self, count: int) -> None:
        """So many more packets or pictures could not be decoded, or not in full."""

    def software(self) -> None:
        """Hardware was to decode, and there is none: the CPU does."""

    def replaced(self, count: int) -> None:
        """So many frames gave way to newer ones before they were received."""

    def flows(self, flowing: bool) -> None:
        """False: no picture has come for longer than half the read timeout (and a second). True: they are back."""


class Unobserved:
    """The observer of a camera about which only its frames matter."""

    def opening(self) -> None: ...

    def judged(self, frame: Frame) -> Frame:
        return frame

    def spent(self, stage: str, seconds: float) -> None: ...

    def unusable(self, bad: BadFrame) -> None: ...

    def damaged(self, count: int) -> None: ...

    def software(self) -> None: ...

    def replaced(self, count: int) -> None: ...

    def flows(self, flowing: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class CameraStats:
    """What one camera has done so far, over all its processes.

    grabbed        pictures that were read, taken or not
    damaged        packets and pictures that could not be decoded, or not in full
    replaced       frames that gave way to newer ones before they came here
    held_back      frames that this worker may not publish: another one has the camera
    cpu            seconds that its processes spent on decoding and preparing
    last_picture   Unix seconds, or 0
    started        processes
    killed         of these, for missing a deadline
    crashed        of these, by themselves
    pid            of the present one, or None
    step           what that one does
    """

    grabbed: int = 0
    damaged: int = 0
    replaced: int = 0
    held_back: int = 0
    cpu: float = 0.0
    last_picture: float = 0.0
    started: int = 0
    killed: int = 0
    crashed: int = 0
    pid: int | None = None
    step: Step | None = None


class CameraCounts:
    """Counts for one camera. Changed by the one thread that reads it."""

    def __init__(self) -> None:
        self.stats = CameraStats()  # replaced as a whole: any thread that looks sees the old one or the new one

    def add(self, *, cpu: float = 0.0, **more: int) -> None:
        stats = self.stats
        counts = {name: getattr(stats, name) + count for name, count in more.items()}
        self.stats = replace(stats, cpu=stats.cpu + cpu, **counts)

    def note(self, **now: object) -> None:
        self.stats = replace(self.stats, **now)  # type: ignore[arg-type]  # names and types of its own fields


@dataclass(frozen=True, slots=True)
class Traits:
    """What of a camera's settings decides how its process is listened to. Time-outs in seconds."""

    live: bool
    is_folder: bool
    open_timeout: float
    read_timeout: float


class Overdue(CoatstreamError):
    """The process has been silent for too long."""


class Conversation:
    """With one process. `next` is called by one thread; everything else here happens inside that call."""

    def __init__(
        self,
        inbox: Inbox,
        traits: Traits,
        lease: CameraLease,
        *,
        observer: CameraObserver,
        counts: CameraCounts,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inbox = inbox
        self._traits = traits
        self._lease = lease
        self._observer = observer
        self._counts = counts
        self._clock = clock
        self._silence = Silence(traits.open_timeout, traits.read_timeout, monotonic)
        self._newest: Frame | None = None  # goes next
        self._since = 0.0  # when the first one came since the last that went
        self._last: Message | None = None  # the one that ended the conversation
        self._held_back = False  # the last frame was: the first one that may be published shall come at once

    def hold_back(self) -> None:
        """The last frame may not be published."""
        self._counts.add(held_back=1)
        self._held_back = True

    def next(self, stop: threading.Event) -> Frame | None:
        """Wait for the next frame; None: the camera came to its own end, or `stop` was set.

        Raises SourceLost as the process reports it, Overdue where it is silent, HungUp and Nonsense.
        """
        while not stop.is_set():
            if self._last is not None:  # it has ended; the frame that waits goes before the end
                if self._newest is None:
                    self._end(self._last)
                return self._take()
            message = self._receive()
            if message is None and self._newest is not None:
                return self._take()
            if message is None:
                self._judge_silence()
                continue
            self._book(message)
            if message.ended or message.loss is not None:
                self._last = message
            if message.frame is not None and self._keep(message.frame):
                return self._take()
        return None

    def _receive(self) -> Message | None:
        tick = _BRIEF if self._held_back else TICK
        message = self._inbox.receive(tick if self._newest is None else self._silence.settling)
        self._silence.look(message)
        if self._held_back and self._lease.fence is not None:
            self._held_back = False
            self._inbox.ask_for_next()
        return message

    def _keep(self, frame: Frame) -> bool:
        """Keep a frame in place of the one that waits. True: it goes now."""
        if self._newest is None:
            self._since = self._silence.looked_at
        else:
            self._replaced(1)
        self._newest = frame
        return not self._traits.live or self._silence.is_ripe(self._since)

    def _take(self) -> Frame | None:
        frame, self._newest = self._newest, None
        return frame

    def _end(self, last: Message) -> None:
        """Return where the camera ended by itself; else raise SourceLost."""
        if last.loss is not None:
            raise SourceLost(one_line(last.loss.message), slow=last.loss.slow, reason=last.loss.reason)

    def _judge_silence(self) -> None:
        if self._silence.just_stalled():
            self._lease.lost()
            self._observer.flows(False)
        if (overdue := self._silence.overdue()) is not None:
            raise Overdue(overdue)

    def _book(self, message: Message) -> None:
        """Count what a message reports, and pass it on."""
        tally, before = message.tally, self._silence.tally
        self._silence.tally = tally
        if message.step is not None:
            self._counts.note(step=message.step)
            if message.step is Step.READING and self._traits.is_folder:  # it works, even if no picture comes today
                self._observer.flows(True)
        if tally.grabbed > before.grabbed or message.frame is not None:
            self._counts.note(last_picture=self._clock())
            if self._silence.just_recovered():
                self._lease.arrived()
                self._observer.flows(True)
        self._counts.add(grabbed=max(0, tally.grabbed - before.grabbed), cpu=max(0.0, tally.cpu - before.cpu))
        self._replaced(max(0, tally.replaced - before.replaced))
        if (damaged := tally.damaged - before.damaged) > 0:
            self._counts.add(damaged=damaged)
            self._observer.damaged(damaged)
        if tally.software and not before.software:
            self._observer.software()
        for stage, seconds in tally.costs:
            self._observer.spent(stage, seconds)
        for bad in tally.bad if self._lease.fence is not None else ():
            for _ in range(bad.times):
                self._observer.unusable(BadFrame(bad.reason, bad.message))

    def _replaced(self, count: int) -> None:
        if count:
            self._counts.add(replaced=count)
            if self._lease.fence is not None:
                self._observer.replaced(count)


class Silence:
    """How long a process has been silent while the worker listened.

    Time in which the worker did not listen does not count: a worker that was stopped for a minute, or that waits for
    room before it takes a file's next frame, has no reason to kill the process. So silence is the sum of waits, none of
    which counts for more than two ticks.
    """

    def __init__(self, open_timeout: float, read_timeout: float, monotonic: Callable[[], float]) -> None:
        self.tally = Tally()
        self._open_timeout = open_timeout
        self._read_timeout = read_timeout
        self._monotonic = monotonic
        self.looked_at = monotonic()
        self._settled_at = 0.0
        self._step: Step | None = None
        self._opening = 0.0  # seconds
        self._silent = 0.0  # seconds
        self._stalled = False

    def look(self, message: Message | None) -> None:
        """A wait is over, and it has brought this."""
        now = self._monotonic()
        waited, self.looked_at = now - self.looked_at, now
        if waited > _AWAY:
            self._settled_at = now + _SETTLE
        passed = min(waited, 2 * TICK)
        self._silent = self._silent + passed if message is None else 0.0
        if message is not None:
            self._step = message.step or self._step
            # A stream that was just opened is not current yet (the step WAITING), but it is read.
            if message.frame is not None or message.tally.grabbed > self.tally.grabbed:
                self._step = Step.READING
        self._opening = 0.0 if self._reading else self._opening + passed

    @property
    def _reading(self) -> bool:
        return self._step is Step.READING

    @property
    def settling(self) -> float:
        """Seconds to wait for a frame newer than the one that is here."""
        return max(0.0, self._settled_at - self._monotonic())

    def is_ripe(self, since: float) -> bool:
        """Whether newer frames have followed for so long that waiting for the last of them may have no end.

        A worker that is short of CPU reads them more slowly than they come: of 60 a second none went for 2 s.
        """
        return self.looked_at > max(since + _RIPE, self._settled_at)

    def just_stalled(self) -> bool:
        """True once, when pictures have not come for too long."""
        news = not self._stalled and self._reading and self._silent > max(1.0, self._read_timeout / 2)
        self._stalled = self._stalled or news
        return news

    def just_recovered(self) -> bool:
        """True once, when they come again."""
        news, self._stalled = self._stalled, False
        return news

    def overdue(self) -> str | None:
        """Why the process must be killed, or None."""
        if self._reading and self._silent > self._read_timeout + MARGIN:
            return f"no sign of it for {self._silent:.1f} s"
        if not self._reading and self._opening > self._open_timeout + MARGIN:
            return f"no picture after {self._opening:.1f} s, still {self._step or 'starting'}"
        return None
