"""A camera, file or folder that is read in a process of its own, which the worker can kill.

Nothing that FFmpeg, a name server or a driver does can hang or crash the worker then: a process that misses its
deadline is killed, one that dies is a lost source, and no other camera notices. Judges by its own clock and by what
arrives; backing off and opening again is the intake's business.

What it costs (bench/camera_process.py, two slow cores, 8 cameras of 320 x 240):

                                        noop engine     a model (torch 2.14 with CUDA)
    memory of its own, each camera      9 MB            11 MB
    share of all memory, each (PSS)     13 MB           45 MB
    the process that forks, once        33 MB           507 MB, 290 of them not shared with a worker that has torch
    ready to fork, once                 0.4 s           1.5 to 2.3 s
    birth of a process                  3 ms            10 to 14 ms
    a frame of 224 x 224, to the worker 0.07 to 0.11 ms, of which 0.035 ms of CPU on either side
"""

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Final

from coatstream.cameras.address import Kind, parse
from coatstream.cameras.capture.camera import Camera, Step
from coatstream.cameras.fleet.tenure import Tenure
from coatstream.cameras.process.forkserver import Child, ForkServer, NoChild
from coatstream.cameras.process.wire import (
    HungUp,
    Inbox,
    Message,
    Nonsense,
    Order,
    Tally,
    one_line,
    send_order,
    send_wish,
)
from coatstream.errors import BadFrame, DownReason, SourceLost
from coatstream.frames.frame import Frame, InputSpec, PictureFault, Vitals
from coatstream.settings.model import CameraSettings

MARGIN: Final = 1.0  # seconds beyond the camera's own time-outs, which should hold, until its process is killed
_TICK: Final = 0.1  # seconds until `stop` is noticed
_BRIEF: Final = 0.02  # the same for a tenure that is about to be granted
_AWAY: Final = 0.5  # seconds; who comes back after so long finds an old frame first
_SETTLE: Final = 0.2  # seconds in which the newest one has followed it
_RIPE: Final = 0.1  # seconds after which a frame goes, whether or not a newer one is there already

OnFlow = Callable[[bool], None]
Examine = Callable[[Vitals, float], tuple[PictureFault, ...]]


@dataclass(frozen=True, slots=True)
class CameraStats:
    """What one camera has done so far, over all its processes.

    grabbed        pictures that were read, taken or not
    replaced       frames that gave way to newer ones before they came here
    held_back      frames that nobody may speak for: another worker has the camera
    cpu            seconds that its processes spent on decoding and preparing
    last_picture   Unix seconds, or 0
    started        processes
    killed         of these, for missing a deadline
    crashed        of these, by themselves
    pid            of the present one, or None
    step           what that one does
    """

    grabbed: int = 0
    replaced: int = 0
    held_back: int = 0
    cpu: float = 0.0
    last_picture: float = 0.0
    started: int = 0
    killed: int = 0
    crashed: int = 0
    pid: int | None = None
    step: Step | None = None


class CameraProcess:
    """A Source (`coatstream.pipeline.source.Source`). Linux only, like the nursery that starts its processes.

    A frame leaves with the fence of its tenure and with the faults of its picture. While the tenure grants no fence,
    frames are held back and nobody is told of them, but that they arrive.
    """

    def __init__(
        self,
        settings: CameraSettings,
        spec: InputSpec,
        *,
        fork_server: ForkServer,
        tenure: Tenure,
        examine: Examine = lambda vitals, at: (),
        observe: Callable[[str, float], None] = lambda stage, seconds: None,
        on_bad: Callable[[BadFrame], None] = lambda bad: None,
        on_replaced: Callable[[int], None] = lambda count: None,
        on_flow: OnFlow = lambda flows: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """All callbacks are called in the thread that iterates over `frames`.

        `examine` gets each frame's vitals and `captured_at`, and its faults are the frame's. `observe` is told the CPU
        seconds of "decode" and "prepare". `on_bad` and `on_replaced` hear of pictures that were due and did not become
        frames, while there is a fence: they have never been received, so the ledger must be told that too. `on_flow`
        hears False when pictures fail to come for longer than half the read timeout (and a second), True when they are
        back. Raises ConfigError for an address of no known kind.
        """
        self.name = settings.name
        camera = Camera(settings, prepare=lambda picture: picture)  # only asked what it is
        self.live = camera.live
        self._timeouts = settings.open_timeout, camera.read_timeout
        self._is_folder = parse(settings).kind is Kind.FOLDER
        self._order = Order(settings, spec)
        self._nursery = fork_server
        self._tenure = tenure
        self._examine = examine
        self._observe = observe
        self._on_bad = on_bad
        self._on_replaced = on_replaced
        self._on_flow = on_flow
        self._clock = clock
        self._monotonic = monotonic
        self._held_back = False  # the last frame was; the first one that may be said shall come at once
        self._stats = CameraStats()  # replaced whole, by the one thread that reads: whoever looks sees one or other

    def stats(self) -> CameraStats:
        """A snapshot, for any thread."""
        return self._stats

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        """Start a process, yield its frames. Ends with a file's end or soon after `stop`, else raises SourceLost."""
        try:
            child = self._nursery.bear(stop)
        except NoChild as trouble:
            raise self._crash(f"cannot be read: {trouble}") from None
        if child is None:
            return
        self._count(started=1)
        self._note(pid=child.pid, step=None)
        try:
            with child:
                yield from self._attend(child, stop)
        finally:
            self._tenure.lost()
            self._note(pid=None, step=None)

    def _attend(self, child: Child, stop: threading.Event) -> Generator[Frame, None, None]:
        """One process, until it or the worker has had enough."""
        try:
            send_order(child.work, self._order)
            yield from self._passed(self._read(child, stop), stop)
        except HungUp:
            if stop.is_set():
                return
            child.ended(within=MARGIN)
            self._count(crashed=1)
            raise self._crash(f"was lost: the process that read it died ({child.how_it_ended()})") from None
        except Nonsense as nonsense:
            child.kill()
            self._count(killed=1)
            raise self._crash(f"was lost: the process that read it sent {one_line(nonsense)}, and was killed") from None

    def _passed(self, frames: Generator[Frame, None, None], stop: threading.Event) -> Generator[Frame, None, None]:
        """Those frames for which this worker may speak. A file that was spoken for waits until that is so again."""
        spoke = False
        for frame in frames:
            self._tenure.arrived()
            while (fence := self._tenure.fence) is None and spoke and not self.live:
                if stop.wait(_TICK):
                    return
            spoke = spoke or fence is not None
            if fence is None:
                self._count(held_back=1)
                self._held_back = True
                continue
            faults = () if frame.vitals is None else self._examine(frame.vitals, frame.captured_at)
            yield replace(frame, fence=fence, faults=faults)

    def _read(self, child: Child, stop: threading.Event) -> Generator[Frame, None, None]:
        """All frames of a file; of a live camera the newest whenever the next one is asked for."""
        inbox = Inbox(child.work, source=self.name, spec=self._order.spec)
        watch = _Watch(*self._timeouts, self._monotonic)
        newest: Frame | None = None  # that goes next
        since = 0.0  # when the first one came since the last that went
        while not stop.is_set():
            tick = _BRIEF if self._held_back else _TICK
            message = inbox.receive(tick if newest is None else watch.settling)
            watch.look(message)
            if self._held_back and self._tenure.fence is not None:
                self._held_back = False
                send_wish(child.work)
            if message is None:
                if newest is not None:
                    yield newest
                    newest = None
                else:
                    self._judge(child, watch)
                continue
            self._book(message, watch)
            if message.frame is not None:
                self._replaced(newest is not None)
                since = watch.looked_at if newest is None else since
                newest = message.frame
                if not self.live or watch.is_ripe(since):
                    yield newest
                    newest = None
            if message.ended or message.loss is not None:
                if newest is not None:
                    yield newest
                if message.loss is None:
                    return
                raise SourceLost(one_line(message.loss.message), slow=message.loss.slow, reason=message.loss.reason)

    def _judge(self, child: Child, watch: "_Watch") -> None:
        """Nothing is heard of it: is that too long? Raises SourceLost."""
        if watch.just_stalled():
            self._tenure.lost()
            self._on_flow(False)
        if (overdue := watch.overdue()) is not None:
            child.kill()
            self._count(killed=1)
            raise SourceLost(
                f"camera {self.name!r} was lost: the process that read it was killed: {overdue}",
                reason=DownReason.TIMEOUT,
            )

    def _book(self, message: Message, watch: "_Watch") -> None:
        """Count what a message says, and tell whom it concerns."""
        tally = message.tally
        before, watch.tally = watch.tally, tally
        if message.step is not None:
            self._note(step=message.step)
            if message.step is Step.READING and self._is_folder:  # it works, whether a picture comes today or not
                self._on_flow(True)
        if tally.grabbed > before.grabbed or message.frame is not None:
            self._note(last_picture=self._clock())
            if watch.just_recovered():
                self._tenure.arrived()
                self._on_flow(True)
        self._count(grabbed=max(0, tally.grabbed - before.grabbed), cpu=max(0.0, tally.cpu - before.cpu))
        self._replaced(max(0, tally.replaced - before.replaced))
        for stage, seconds in tally.costs:
            self._observe(stage, seconds)
        for bad in tally.bad if self._tenure.fence is not None else ():
            for _ in range(bad.times):
                self._on_bad(BadFrame(bad.reason, bad.message))

    def _replaced(self, count: int) -> None:
        if count:
            self._count(replaced=count)
            if self._tenure.fence is not None:
                self._on_replaced(count)

    def _count(self, *, cpu: float = 0.0, **more: int) -> None:
        stats = self._stats
        counts = {name: getattr(stats, name) + count for name, count in more.items()}
        self._stats = replace(stats, cpu=stats.cpu + cpu, **counts)

    def _note(self, **now: object) -> None:
        self._stats = replace(self._stats, **now)  # type: ignore[arg-type]  # names and types of its own fields

    def _crash(self, what: str) -> SourceLost:
        return SourceLost(f"camera {self.name!r} {what}", reason=DownReason.CRASHED)


class _Watch:
    """How long a process has been silent while somebody listened.

    Time in which nobody listened does not count: a worker that was stopped for a minute, or waits for room before it
    takes a file's next frame, has no reason to kill anybody. So silence is added up from waits, none of which counts
    for more than two ticks.
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
        """A wait is over, and this is what it has brought."""
        now = self._monotonic()
        waited, self.looked_at = now - self.looked_at, now
        if waited > _AWAY:
            self._settled_at = now + _SETTLE
        passed = min(waited, 2 * _TICK)
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
