"""One camera, or a file or folder that is read like one: opens, reads, notices when it is gone. Never reopens itself.

A live stream is read without pause, since a reader that pauses falls behind for good and ends the session; only the
pictures that are due are converted and prepared.
"""

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from coatstream.cameras.address import Kind, parse
from coatstream.cameras.capture.folder import Folder
from coatstream.cameras.capture.live import LiveSampling
from coatstream.cameras.capture.making import FrameMaker
from coatstream.cameras.capture.opening import Opener, read_timeout
from coatstream.cameras.capture.reader import PictureReader, Trouble
from coatstream.cameras.capture.sampling import Pacer, Sampler
from coatstream.cameras.capture.steps import CaptureObserver, SilentObserver, Step
from coatstream.errors import DownReason, SourceLost
from coatstream.frames.frame import Frame, Pixels
from coatstream.settings.model import CameraSettings


class Camera:
    """A Source of pictures (`pipeline.source.Source`) from a network stream, a V4L2 device, a video file or a folder.

    Frames are named `<name>-<session>-<number>`, the session being the nanosecond of `frames()`: unique across restarts
    and replicas. `captured_at` is the wall clock when the picture had arrived: of a live stream about its capture, of
    a file the time of reading; of a picture in a folder it is the time at which it was written.

    lost      pictures so far that were due but could not be converted or prepared
    pictures  pictures so far, taken or not
    damaged   of the pictures and packets so far: those that could not be decoded, or not in full
    """

    def __init__(
        self,
        settings: CameraSettings,
        *,
        prepare: Callable[[Pixels], Pixels],
        observer: CaptureObserver | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        wanted: threading.Event | None = None,
    ) -> None:
        """`prepare` gets the whole picture, uint8 [height, width, 3] RGB.

        Once `wanted` is set, the next picture of a live stream is taken, due or not. Raises ConfigError for an address
        of no known kind.
        """
        self.name = settings.name
        self.pictures = 0
        self.damaged = 0
        self._settings = settings
        self._address = parse(settings)
        self._observer = observer or SilentObserver()
        self._clock = clock
        self._monotonic = monotonic
        self._wanted = wanted or threading.Event()
        self._opener = Opener(settings, self._address, self._observer.step, self._wanted)
        self._maker = FrameMaker(self.name, prepare, self._observer, clock)
        self._told = 0  # of the damage of the present reader
        self._folder: Folder | None = None  # outlives a reopening, and knows what was given out

    @property
    def lost(self) -> int:
        return self._maker.lost

    @property
    def live(self) -> bool:
        """Whether only the newest frame matters: `realtime`, by default true for all but files and folders."""
        realtime = self._settings.realtime
        return self._address.kind not in (Kind.FILE, Kind.FOLDER) if realtime is None else realtime

    @property
    def read_timeout(self) -> float:
        """Seconds without a picture after which it is lost: as set, or longer where its kind needs that."""
        return read_timeout(self._settings, self._address)

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        """Open, then yield the sampled pictures. Ends with a file's end or after `stop`, else raises SourceLost."""
        self._maker.begin_session()
        # Not in `parse`: here a file system that hangs holds up this camera alone.
        if self._address.kind is Kind.FILE and os.path.isdir(self._address.location):  # noqa: PTH112 (raises nothing)
            self._address = replace(self._address, kind=Kind.FOLDER)
        read = {Kind.FILE: self._play, Kind.FOLDER: self._gather}.get(self._address.kind, self._watch)
        try:
            yield from read(stop)
        except Trouble as trouble:
            if not stop.is_set():
                what = f"camera {self.name!r} {trouble.happened}: {trouble.words}"
                raise SourceLost(what, reason=trouble.reason) from None

    # ---- live streams

    def _watch(self, stop: threading.Event) -> Iterator[Frame]:
        began = self._monotonic()
        with self._opener.opened(stop) as reader:
            sampling = LiveSampling(
                self._settings,
                reader,
                opened_at=began,
                monotonic=self._monotonic,
                on_current=lambda: self._begin(reader),
                on_grab=lambda: self._grabbed(reader),
                wanted=self._wanted,
            )
            for _ in sampling.in_bursts(stop) if reader.bursts else sampling.on_arrival(stop):
                if frame := self._maker.take(reader):
                    yield frame

    def _begin(self, reader: PictureReader) -> None:
        """What was missed while a stream was joined is no fault of it."""
        self._maker.damage = self._told = reader.damaged
        self._maker.keyframes = reader.keyframes
        self._reads(reader)

    def _reads(self, reader: PictureReader) -> None:
        if reader.software:
            self._observer.software()
        self._observer.step(Step.READING)

    def _grabbed(self, reader: PictureReader) -> None:
        self.pictures += 1
        self._observer.grabbed()
        self._tell_damage(reader.damaged)

    def _tell_damage(self, so_far: int) -> None:
        if (new := so_far - self._told) > 0:
            self._told = so_far
            self.damaged += new
            self._observer.damaged(new)

    # ---- files

    def _play(self, stop: threading.Event) -> Iterator[Frame]:
        """A file, once or for ever."""
        show = _Show(self._settings.fps)
        yield from self._play_once(stop, show)
        while self._settings.loop and not stop.is_set():
            # Like a camera it keeps its rate from round to round, be the clip a single picture.
            show = show if self.live else _Show(self._settings.fps)
            yield from self._play_once(stop, show)

    def _play_once(self, stop: threading.Event, show: "_Show") -> Iterator[Frame]:
        """A file, sampled by its own timestamps; lossless as fast as it is taken, or at its own speed when live."""
        begun, self._told = show.time, 0
        with self._opener.opened(stop) as reader:
            self._maker.damage = self._maker.keyframes = 0
            self._reads(reader)
            while not stop.is_set() and reader.grab():
                self._grabbed(reader)
                at = begun + reader.media_time
                show.time = at + reader.period
                if self.live and stop.wait(show.pacer.delay(at, self._monotonic())):
                    return
                if show.sampler.is_due(at) and (frame := self._maker.take(reader)):
                    yield frame
            self._tell_damage(reader.damaged)
            if not reader.grabbed and not stop.is_set():
                raise Trouble(DownReason.CODEC, "it holds no picture that can be decoded")

    # ---- folders

    def _gather(self, stop: threading.Event) -> Iterator[Frame]:
        """Each new picture of a folder; all of them, or when live at most `fps` a second of those that come."""
        sampler = Sampler(self._settings.fps if self.live else 0)
        if self._folder is None:
            backlog, clock, monotonic = self._settings.backlog, self._clock, self._monotonic
            self._folder = Folder(self._address.location, backlog=backlog, clock=clock, monotonic=monotonic)
        self._observer.step(Step.READING)
        self._told = self._maker.damage
        try:
            for found in self._folder.pictures(stop):
                self.pictures += 1
                self._observer.grabbed()
                if sampler.is_due(self._monotonic()):
                    frame = self._maker.take_file(self._folder, found)
                    self._tell_damage(self._maker.damage)
                    if frame:
                        yield frame
        except OSError as error:
            why = (error.strerror or "it is gone").lower()
            raise Trouble(DownReason.UNREACHABLE, f"its folder cannot be read: {why}") from None


class _Show:
    """What a clip's rounds have in common. `time`: seconds of it that were shown so far."""

    def __init__(self, fps: float) -> None:
        self.sampler, self.pacer, self.time = Sampler(fps), Pacer(), 0.0
