"""What runs in a process that reads one camera: one thread reads, another one sends to the worker.

Never waits for the worker while a live camera is read: a picture that the worker does not take in time is replaced by
the next one, and counted. A file waits. Ends when the worker hangs up. The worker judges whether this process hangs,
since it cannot tell that itself.
"""

import socket
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Final

from coatstream.cameras.capture.camera import Camera
from coatstream.cameras.capture.steps import Step
from coatstream.cameras.process.shelf import ShelfWriter
from coatstream.cameras.process.wire import (
    MAX_COSTS,
    STAGES,
    Bad,
    Loss,
    Message,
    Order,
    Tally,
    one_line,
    receive_order,
    send,
)
from coatstream.cameras.view import view_of
from coatstream.engine.cores import single_threaded
from coatstream.errors import BadFrame, CoatstreamError, DeadReason, DownReason, SourceLost
from coatstream.frames.frame import Frame, Pixels
from coatstream.frames.views import look
from coatstream.settings.process import show_as

BEAT: Final = 0.2  # seconds at most between two messages while pictures arrive
_OOM_SCORE = Path("/proc/self/oom_score_adj")


def run(work: socket.socket) -> None:
    """Read the camera of the order that comes first, until it ends, is lost, or the worker hangs up."""
    order = receive_order(work)
    if order is None:
        return
    show_as(order.settings.name)
    _be_the_first_to_die()
    single_threaded()
    stop = Stop()
    shelf = None if order.shelf is None else ShelfWriter(order.shelf)
    outbox = FrameOutbox(partial(send, work), shelf)
    sender = threading.Thread(target=outbox.deliver, args=(stop,), daemon=True)
    sender.start()
    wanted = threading.Event()
    threading.Thread(target=_listen, args=(work, stop, outbox, wanted), daemon=True).start()
    read(camera_of(order, outbox, wanted=wanted), outbox, stop)
    sender.join()


def _be_the_first_to_die() -> None:
    """Where the machine's memory runs out, the kernel should rather end a camera's process than the worker. At a
    container's limit the largest process ends all the same, and that is the worker.
    """
    with suppress(OSError, ValueError):
        score = int(_OOM_SCORE.read_text())
        _OOM_SCORE.write_text(str(min(1000, score + 300)))


def camera_of(order: Order, outbox: "FrameOutbox", *, wanted: threading.Event | None = None) -> Camera:
    """The camera, with everything that it has to tell going into the outbox."""
    view = view_of(order.settings)
    return Camera(order.settings, prepare=partial(look, spec=order.spec, view=view), observer=outbox, wanted=wanted)


def read(camera: Camera, outbox: "FrameOutbox", stop: "Stop") -> None:
    """Read until the camera ends, is lost, or `stop`; the outbox learns which."""
    lost: SourceLost | None = None
    try:
        with closing(camera.frames(stop)) as frames:
            for frame in frames:
                if not outbox.put(frame, live=camera.live):
                    break
    except SourceLost as loss:
        lost = loss
    except CoatstreamError as error:  # a password file that cannot be read, for example
        lost = SourceLost(f"camera {camera.name!r}: {error}", slow=True)
    except Exception as bug:  # the edge of the process: the worker logs it, and tries again
        lost = bug_in(f"camera {camera.name!r}", bug)
    outbox.end(lost)


def bug_in(what: str, bug: Exception) -> SourceLost:
    """A bug as one line for the worker's log."""
    return SourceLost(f"{what}: a bug: {type(bug).__name__}: {bug}", reason=DownReason.CRASHED)


def _listen(work: socket.socket, stop: "Stop", outbox: "FrameOutbox", wanted: threading.Event) -> None:
    """After the order the worker only asks for the next picture at once, and at last hangs up."""
    with suppress(OSError):
        while work.recv(1):
            wanted.set()
    stop.set()
    outbox.close()


class Stop(threading.Event):
    """Knows whether the reading thread waits on it: between a file's pictures, or for the next one in a folder."""

    waiting = False

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting = True
        try:
            return super().wait(timeout)
        finally:
            self.waiting = False


class FrameOutbox:
    """Between the thread that reads and the one that sends: a slot for one frame, and the counts."""

    def __init__(self, post: Callable[[Message], None], shelf: ShelfWriter | None = None) -> None:
        self._post = post
        self._shelf = shelf
        self._changed = threading.Condition()  # guards all below
        self._steps: deque[Step] = deque(maxlen=16)  # the newest; there are four kinds
        self._frame: Frame | None = None
        self._closed = False
        self._ending = False
        self._lost: SourceLost | None = None
        self._grabbed = 0
        self._sent = 0  # of those
        self._replaced = 0
        self._damaged = 0
        self._software = False
        self._cpu = 0.0
        self._costs: deque[tuple[str, float]] = deque(maxlen=MAX_COSTS)
        self._bad: Counter[DeadReason] = Counter()
        self._why_bad: dict[DeadReason, str] = {}

    # ---- the reading thread

    def step(self, step: Step) -> None:
        """The camera does something else now."""
        with self._changed:
            self._steps.append(step)
            self._changed.notify_all()

    def grabbed(self) -> None:
        """A picture was read, taken or not."""
        with self._changed:
            self._grabbed += 1

    def observe(self, stage: str, seconds: float) -> None:
        """CPU time that was spent."""
        if stage not in STAGES:
            raise ValueError(f"no such stage: {stage}")
        with self._changed:
            self._cpu += seconds
            self._costs.append((stage, seconds))

    def bad(self, bad: BadFrame) -> None:
        """A picture was due and could not be used."""
        with self._changed:
            self._bad[bad.reason] += 1
            self._why_bad[bad.reason] = one_line(bad)

    def damaged(self, count: int) -> None:
        """So many more packets or pictures could not be decoded, or not in full."""
        with self._changed:
            self._damaged += count

    def software(self) -> None:
        """Hardware was to decode, and there is none."""
        with self._changed:
            self._software = True

    def picture(self, frame: Frame, picture: Pixels) -> None:
        """A frame was made of this picture."""
        if self._shelf is not None:
            self._shelf.put(frame.frame_id, frame.captured_at, picture)

    def put(self, frame: Frame, *, live: bool) -> bool:
        """Leave a frame for the worker; wait for room unless `live`. False: the worker has hung up."""
        with self._changed:
            if not live:
                self._changed.wait_for(lambda: self._closed or self._frame is None)
            if self._closed:
                return False
            self._replaced += self._frame is not None
            self._frame = frame
            self._changed.notify_all()
        return True

    def end(self, lost: SourceLost | None) -> None:
        """Nothing comes after what is here: the camera ended (None), or was lost."""
        with self._changed:
            if not self._ending:
                self._ending, self._lost = True, lost
            self._changed.notify_all()

    # ---- the other threads

    def close(self) -> None:
        """The worker has hung up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def deliver(self, stop: Stop) -> None:
        """Send until the end; sets `stop` where the worker is gone."""
        while (message := self._next(stop)) is not None:
            try:
                self._post(message)
            except OSError:
                stop.set()
                self.close()
            except Exception as bug:  # a figure that does not fit into a message, for example
                self.end(bug_in("a message about a camera", bug))
                stop.set()
            if message.ended or message.loss is not None:
                return

    def _next(self, stop: Stop) -> Message | None:
        """Wait for a step, a frame, the end, or a sign of life. None: the worker has hung up."""
        with self._changed:
            while not self._closed:
                self._changed.wait_for(lambda: self._closed or self._steps or self._frame or self._ending, BEAT)
                if self._steps:
                    return Message(self._tally(), step=self._steps.popleft())
                if self._frame is not None:
                    frame, self._frame = self._frame, None
                    self._changed.notify_all()
                    return Message(self._tally(), frame=frame)
                if self._ending:
                    return self._last()
                if self._grabbed != self._sent or stop.waiting:
                    return Message(self._tally())
            return None

    def _last(self) -> Message:
        lost = self._lost
        if lost is None:
            return Message(self._tally(), ended=True)
        return Message(self._tally(), loss=Loss(reason=lost.reason, message=one_line(lost), slow=lost.slow))

    def _tally(self) -> Tally:
        """The counts; those since the last message begin anew."""
        bad = tuple(
            Bad(reason=reason, times=min(times, 100_000), message=self._why_bad[reason])
            for reason, times in self._bad.items()
        )
        tally = Tally(
            grabbed=self._grabbed,
            replaced=self._replaced,
            damaged=self._damaged,
            software=self._software,
            cpu=self._cpu,
            costs=tuple((stage, max(0.0, seconds)) for stage, seconds in self._costs),
            bad=bad,
        )
        self._sent = self._grabbed
        self._costs.clear()
        self._bad.clear()
        return tally
