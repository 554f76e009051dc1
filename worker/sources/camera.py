"""One camera, or a file that is read like one: opens, reads, notices when it is gone. Never opens it again itself.

A live stream is grabbed without pause, since a reader that pauses falls behind for good and ends the session; only the
pictures that are due are converted and prepared.
"""

import socket
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from config.settings import CameraSettings
from worker.errors import BadFrame, DeadReason, SourceLost
from worker.frames import Frame, Pixels
from worker.opencv import cv2
from worker.sampling import Pacer, Sampler
from worker.sources.address import Address, Kind, parse

_STALE = 0.9  # of the read timeout: OpenCV answers a time-out with True and an old picture from the decoder
_WAITED = 0.008  # seconds: a grab that takes longer waited for the camera, so the backlog is used up
_WARM_UP = 1.5  # seconds after which a stream counts as current whatever its grabs took
_REACH = 2.0  # seconds to find out why a camera did not open


def _unobserved(stage: str, seconds: float) -> None:
    """The default observer."""


class Camera:
    """A Source of pictures from a network stream, a V4L2 device or a video file (`worker.sources.Source`).

    Frames are named `<name>-<session>-<number>`, the session being the nanosecond of `frames()`: unique across restarts
    and replicas. `captured_at` is the wall clock when the picture had arrived: of a live stream about its capture, of
    a file the time of reading.

    lost    pictures so far that were due but could not be converted or prepared
    """

    def __init__(
        self,
        settings: CameraSettings,
        *,
        prepare: Callable[[Pixels], Pixels],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        observe: Callable[[str, float], None] = _unobserved,
        on_bad: Callable[[BadFrame], None] = lambda bad: None,
    ) -> None:
        """`prepare` gets uint8 [height, width, 3] in *BGR* and must treat the channels alike, as resize and crop do.

        What it returns becomes RGB here: 0.004 ms for 224 x 224 pixels, where 1920 x 1080 would take 0.43 ms.
        `observe` is told the CPU seconds of "decode" (for one taken picture: it and all those skipped before it) and
        "prepare", `on_bad` of each picture that was due and could not be used. Raises ConfigError for an address of no
        known kind.
        """
        self.name = settings.name
        self.lost = 0
        self._on_bad = on_bad
        self._settings = settings
        self._address = parse(settings)
        self._prepare = prepare
        self._clock = clock
        self._monotonic = monotonic
        self._observe = observe

    @property
    def live(self) -> bool:
        """Whether only the newest frame matters: `realtime`, by default true for all but files."""
        realtime = self._settings.realtime
        return self._address.kind is not Kind.FILE if realtime is None else realtime

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        """Open, then yield the sampled pictures. Ends with a file's end or after `stop`, else raises SourceLost."""
        session = int(self._clock() * 1e9)
        ids = (f"{self.name}-{session:x}-{number}" for number in count())
        try:
            yield from self._play(stop, ids) if self._address.kind is Kind.FILE else self._watch(stop, ids)
        except SourceLost:
            if not stop.is_set():
                raise

    def _watch(self, stop: threading.Event, ids: Iterator[str]) -> Iterator[Frame]:
        """A live stream, sampled by the time of arrival: MJPEG's own timestamps are made up."""
        sampler = Sampler(self._settings.fps)
        with self._opened() as reader:
            behind_until = self._monotonic() + _WARM_UP
            while not stop.is_set():
                waited, now = self._grab_live(reader), self._monotonic()
                # Opening reads about a second of pictures ahead to learn the format: they are old, so they are skipped.
                if now < behind_until and waited < _WAITED:
                    continue
                behind_until = now
                if sampler.is_due(now) and (frame := self._frame(reader, ids)):
                    yield frame

    def _play(self, stop: threading.Event, ids: Iterator[str]) -> Iterator[Frame]:
        """A file, once or for ever."""
        yield from self._play_once(stop, ids)
        while self._settings.loop and not stop.is_set():
            yield from self._play_once(stop, ids)

    def _play_once(self, stop: threading.Event, ids: Iterator[str]) -> Iterator[Frame]:
        """A file, sampled by its own timestamps; lossless as fast as it is taken, or at its own speed when live."""
        sampler, pacer = Sampler(self._settings.fps), Pacer()
        with self._opened() as reader:
            while not stop.is_set() and reader.grab():
                if self.live and stop.wait(pacer.delay(reader.media_time, self._monotonic())):
                    return
                if sampler.is_due(reader.media_time) and (frame := self._frame(reader, ids)):
                    yield frame
            if not reader.grabbed:
                raise self._lost("holds no picture that can be decoded")

    def _grab_live(self, reader: "_Reader") -> float:
        """Wait for the next picture; the seconds that it took. Raises SourceLost, after which only reopening helps."""
        before = self._monotonic()
        arrived = reader.grab()
        waited = self._monotonic() - before
        if waited >= _STALE * self._settings.read_timeout:
            raise self._lost(f"stalled: no picture for {waited:.1f} s")
        if not arrived:
            raise self._lost("was lost: its stream ended")
        return waited

    def _frame(self, reader: "_Reader", ids: Iterator[str]) -> Frame | None:
        """The picture that was grabbed last as a frame, or None, counted, where it is broken."""
        captured_at = self._clock()
        picture = reader.retrieve()
        self._observe("decode", reader.take_cost())
        pixels = None
        try:
            if picture is None:
                raise BadFrame(DeadReason.UNDECODABLE, "the picture cannot be converted")
            pixels = self._pixels(picture)
        except BadFrame as bad:
            self.lost += 1
            self._on_bad(bad)
        if picture is None or pixels is None:
            return None
        height, width = picture.shape[:2]
        return Frame(self.name, next(ids), captured_at, pixels, width, height)

    def _pixels(self, picture: Pixels) -> Pixels:
        before = time.thread_time()
        try:
            # The copy also frees the frame from the full picture, of which a mere crop would be a view.
            return cv2.cvtColor(self._prepare(picture), cv2.COLOR_BGR2RGB)  # type: ignore[return-value]  # uint8 stays
        finally:
            self._observe("prepare", time.thread_time() - before)

    @contextmanager
    def _opened(self) -> Iterator["_Reader"]:
        """The camera, open; released by the thread that reads it, since a release elsewhere crashes OpenCV."""
        with ExitStack() as stack:
            before = self._monotonic()
            match self._address.kind:
                case Kind.NETWORK:
                    capture = cv2.VideoCapture(self._address.location, cv2.CAP_FFMPEG, self._network_options())
                case Kind.DEVICE:
                    capture = cv2.VideoCapture(self._address.location, cv2.CAP_V4L2)
                    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
                case Kind.FILE:
                    capture = self._open_file(stack)
            stack.callback(capture.release)
            if not capture.isOpened():
                raise self._lost(f"cannot be opened: {self._why_not(self._monotonic() - before)}")
            yield _Reader(capture)

    def _network_options(self) -> list[int]:
        return [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            int(self._settings.open_timeout * 1000),
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            int(self._settings.read_timeout * 1000),
            # Each further decoder thread delays the stream by one picture and takes 6 MB at 1080p.
            cv2.CAP_PROP_N_THREADS,
            1,
        ]

    def _open_file(self, stack: ExitStack) -> cv2.VideoCapture:
        """A plain file, opened by Python: FFmpeg sees bytes and no path, so a playlist in it leads nowhere."""
        path = Path(self._address.location)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe's open would wait for a writer
                raise self._lost("cannot be opened: it is not a plain file")
            file: Any = stack.enter_context(path.open("rb"))  # OpenCV's stub names an interface that nothing implements
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise self._lost(f"cannot be opened: {(why or 'not a path').lower()}") from None
        return cv2.VideoCapture(file, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])

    def _why_not(self, took: float) -> str:
        """OpenCV does not say why it failed; a person wants to know where to look."""
        match self._address.kind:
            case Kind.FILE:
                return "it is not a video that can be read"
            case Kind.DEVICE:
                return "there is no such device, or another program holds it"
            case Kind.NETWORK:
                if took >= _STALE * self._settings.open_timeout:
                    return f"no answer within {self._settings.open_timeout:g} s"
                return _unreachable(self._address) or "no stream comes from it; check its path, user and password"

    def _lost(self, what: str) -> SourceLost:
        return SourceLost(f"camera {self.name!r} {what}")


def _unreachable(address: Address) -> str | None:
    """Why no connection can be made to a network camera, or None where one can, or where there is none (UDP)."""
    if address.host is None or address.location.lower().startswith("udp:"):
        return None
    try:
        socket.create_connection((address.host, address.port), timeout=_REACH).close()
    except OSError as error:
        return f"it cannot be reached ({(error.strerror or 'no answer').lower()})"
    return None


class _Reader:
    """One open capture in the one thread that owns it, with what OpenCV does not count."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self.grabbed = 0
        self._capture = capture
        self._cost = 0.0
        self._rate = capture.get(cv2.CAP_PROP_FPS)

    def grab(self) -> bool:
        """Read and decode the next picture."""
        before = time.thread_time()
        grabbed = self._capture.grab()
        self._cost += time.thread_time() - before
        self.grabbed += grabbed
        return grabbed

    @property
    def media_time(self) -> float:
        """Seconds from the start of the stream to the picture that was grabbed last."""
        position = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if position > 0 or not self._rate:
            return position
        return (self.grabbed - 1) / self._rate  # a raw .h264 file has no timestamps: always 0

    def retrieve(self) -> Pixels | None:
        """The picture that was grabbed last, uint8 [height, width, 3] BGR, or None where it is broken."""
        before = time.thread_time()
        try:
            whole, picture = self._capture.retrieve()
        except cv2.error:  # a USB camera's broken JPEG
            return None
        finally:
            self._cost += time.thread_time() - before
        return picture if whole else None  # type: ignore[return-value]  # asked for uint8

    def take_cost(self) -> float:
        """CPU seconds of this thread in decoding since the last call; one decoder thread, so all of them."""
        cost, self._cost = self._cost, 0.0
        return cost
