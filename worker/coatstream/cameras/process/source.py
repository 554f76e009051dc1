"""A camera, file or folder that is read in a process of its own, which the worker can kill.

Nothing that FFmpeg, a name server or a driver does can hang or crash the worker then: a process that misses its
deadline is killed, one that dies is a lost source, and no other camera notices. The intake backs off and opens again.

What it costs (bench/camera_process.py, two slow cores, 8 cameras of 320 x 240):

                                        noop engine     a model (torch 2.14 with CUDA)
    memory of its own, each camera      9 MB            11 MB
    share of all memory, each (PSS)     13 MB           45 MB
    of that the last pictures (shelf)   0.9 MB; 2.8 MB of a camera of 16:9 that has 640 pixels or more
    the process that forks, once        33 MB           507 MB, 290 of them not shared with a worker that has torch
    ready to fork, once                 0.4 s           1.5 to 2.3 s
    start of a process                  3 ms            10 to 14 ms
    a frame of 224 x 224, to the worker 0.07 to 0.11 ms, of which 0.035 ms of CPU on either side
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace

from coatstream.cameras.address import Kind, parse
from coatstream.cameras.capture.camera import Camera
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.process.conversation import (
    MARGIN,
    TICK,
    CameraCounts,
    CameraObserver,
    CameraStats,
    Conversation,
    Overdue,
    Traits,
    Unobserved,
)
from coatstream.cameras.process.forkserver import ForkServer, NoProcess, ReaderProcess
from coatstream.cameras.process.shelf import PictureShelf
from coatstream.cameras.process.wire import HungUp, Inbox, Nonsense, Order, one_line, send_order
from coatstream.cameras.view import regions_of
from coatstream.errors import DownReason, SourceLost
from coatstream.frames.frame import Frame, InputSpec
from coatstream.settings.model import CameraSettings


class CameraProcess:
    """A Source (`coatstream.pipeline.source.Source`). Linux only, like the fork server that starts its processes.

    Each frame leaves with the fence of the camera's lease and with the faults of its picture. Without a lease its
    frames are held back, and only the lease learns that they arrive.
    """

    def __init__(
        self,
        settings: CameraSettings,
        spec: InputSpec,
        *,
        fork_server: ForkServer,
        lease: CameraLease,
        observer: CameraObserver | None = None,
        shelf: PictureShelf | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError for an address of no known kind."""
        self.name = settings.name
        camera = Camera(settings, prepare=lambda picture: picture)  # only asked what it is
        self.live = camera.live
        is_folder = parse(settings).kind is Kind.FOLDER
        self._traits = Traits(camera.live, is_folder, settings.open_timeout, camera.read_timeout)
        self._shelf = shelf  # its memory lives as long as this
        self._order = Order(settings, spec, None if shelf is None else shelf.descriptor)
        self._regions = regions_of(settings)
        self._fork_server = fork_server
        self._lease = lease
        self._observer: CameraObserver = observer or Unobserved()
        self._clock = clock
        self._monotonic = monotonic
        self._counts = CameraCounts()

    def stats(self) -> CameraStats:
        """A snapshot, for any thread."""
        return self._counts.stats

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        """Start a process, yield its frames. Ends with a file's end or soon after `stop`, else raises SourceLost."""
        self._observer.opening()
        process = self._start(stop)
        if process is None:
            return
        with self._ending_well(process, stop):
            conversation, published = self._conversation(process), False
            send_order(process.work, self._order)
            while (frame := conversation.next(stop)) is not None:
                self._lease.arrived()
                fence = self._fence(stop, wait=published and not self.live)
                if fence is None:
                    conversation.hold_back()
                    continue
                published = True
                yield self._observer.judged(replace(frame, fence=fence, regions=self._regions))

    def _start(self, stop: threading.Event) -> ReaderProcess | None:
        try:
            process = self._fork_server.start(stop)
        except NoProcess as trouble:
            raise SourceLost(f"camera {self.name!r} cannot be read: {trouble}", reason=DownReason.CRASHED) from None
        if process is not None:
            self._counts.add(started=1)
            self._counts.note(pid=process.pid, step=None)
        return process

    def _conversation(self, process: ReaderProcess) -> Conversation:
        return Conversation(
            Inbox(process.work, source=self.name, spec=self._order.spec),
            self._traits,
            self._lease,
            observer=self._observer,
            counts=self._counts,
            clock=self._clock,
            monotonic=self._monotonic,
        )

    def _fence(self, stop: threading.Event, *, wait: bool) -> int | None:
        """The number to publish under, or None. `wait`: a file of which some frames were published waits for it."""
        while (fence := self._lease.fence) is None and wait and not stop.wait(TICK):
            pass
        return fence

    @contextmanager
    def _ending_well(self, process: ReaderProcess, stop: threading.Event) -> Iterator[None]:
        """While the process is read. Its death, or its bad behaviour, for which it is killed, is a SourceLost."""
        was_lost = f"camera {self.name!r} was lost: the process that read it"
        try:
            with process:
                try:
                    yield
                except HungUp:
                    if stop.is_set():
                        return
                    process.ended(within=MARGIN)
                    self._counts.add(crashed=1)
                    raise SourceLost(f"{was_lost} died ({process.how_it_ended()})", reason=DownReason.CRASHED) from None
                except Nonsense as nonsense:
                    self._kill(process)
                    sent = f"{was_lost} sent {one_line(nonsense)}, and was killed"
                    raise SourceLost(sent, reason=DownReason.CRASHED) from None
                except Overdue as overdue:
                    self._kill(process)
                    raise SourceLost(f"{was_lost} was killed: {overdue}", reason=DownReason.TIMEOUT) from None
        finally:
            self._lease.lost()
            self._counts.note(pid=None, step=None)

    def _kill(self, process: ReaderProcess) -> None:
        process.kill()
        self._counts.add(killed=1)
