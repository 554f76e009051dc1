"""One camera, or a file or folder that is read like one: opens, reads, notices when it is gone. Never reopens itself.

A live stream is grabbed without pause, since a reader that pauses falls behind for good and ends the session; only the
pictures that are due are converted and prepared.

A change of the pictures' size in mid-stream ends the session (`DownReason.CHANGED`): OpenCV would squeeze the new ones
into the old size without a word. FFmpeg's own words give it away, so it is noticed only by who overhears them
(`coatstream.frames.opencv.overheard`), and of H.264 and JPEG only: HEVC changes in silence.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from itertools import count
from pathlib import Path

from coatstream.cameras.address import Address, Kind, parse
from coatstream.cameras.capture import diagnosis
from coatstream.cameras.capture import stream as capture
from coatstream.cameras.capture.decoder_log import Cause, DecoderLog
from coatstream.cameras.capture.folder import Folder, Found
from coatstream.cameras.capture.sampling import BurstPacer, Pacer, Sampler
from coatstream.cameras.capture.stream import STALE, Capture
from coatstream.cameras.capture.vitals import measure
from coatstream.errors import BadFrame, DeadReason, DownReason, SourceLost
from coatstream.frames.decoding import decode
from coatstream.frames.frame import Frame, Pixels
from coatstream.frames.opencv import cv2
from coatstream.settings.model import CameraSettings, QueueSettings

_WAITED = 0.008  # seconds: a grab that takes longer waited for the camera, so the backlog is used up
_WARM_UP = 1.5  # seconds after which a stream counts as current whatever its grabs took
_DEVICE_TIMEOUT = 5.0  # seconds: OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT in coatstream.frames.opencv
_LONGEST_PASSWORD = 4096  # bytes of a password file
_PICTURES = QueueSettings()  # bounds of a picture in a folder: those of a picture in the queue


class Step(StrEnum):
    """What the reader does now: who watches it gives each step its own deadline."""

    RESOLVING = "resolving"  # its name becomes an address
    OPENING = "opening"
    WAITING = "waiting"  # open; no current picture yet
    READING = "reading"


def _unobserved(stage: str, seconds: float) -> None:
    """The default observer."""


class Camera:
    """A Source of pictures (`pipeline.source.Source`) from a network stream, a V4L2 device, a video file or a folder.

    Frames are named `<name>-<session>-<number>`, the session being the nanosecond of `frames()`: unique across restarts
    and replicas. `captured_at` is the wall clock when the picture had arrived: of a live stream about its capture, of
    a file the time of reading; of a picture in a folder it is the time at which it was written.

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
        on_step: Callable[[Step], None] = lambda step: None,
        on_grab: Callable[[], None] = lambda: None,
        overheard: Callable[[], bytes] = lambda: b"",
        wanted: threading.Event | None = None,
    ) -> None:
        """`prepare` gets uint8 [height, width, 3] in *BGR* and must treat the channels alike, as resize and crop do.

        What it returns becomes RGB here: 0.004 ms for 224 x 224 pixels, where 1920 x 1080 would take 0.43 ms.
        `observe` is told the CPU seconds of "decode" (for one taken picture: it and all those skipped before it) and
        "prepare", `on_bad` of each picture that was due and could not be used, `on_step` of each change of step,
        `on_grab` of each picture that was read, taken or not. `overheard` returns what FFmpeg has written to its log
        since the last call: what `frames.opencv.overheard` gives, in a process of the camera's own. Once `wanted` is
        set, the next picture of a live stream is taken, due or not. Raises ConfigError for an address of no known kind.
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
        self._on_step = on_step
        self._on_grab = on_grab
        self._overheard = overheard
        self._wanted = wanted or threading.Event()
        self._log = DecoderLog()
        self._began = 0.0  # when the present opening began
        self._folder: Folder | None = None  # outlives a reopening, and knows what was given out

    @property
    def live(self) -> bool:
        """Whether only the newest frame matters: `realtime`, by default true for all but files and folders."""
        realtime = self._settings.realtime
        return self._address.kind not in (Kind.FILE, Kind.FOLDER) if realtime is None else realtime

    @property
    def read_timeout(self) -> float:
        """Seconds without a picture after which it is lost: as set, or longer where its kind needs that."""
        return capture.read_timeout(self._settings, self._address)

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        """Open, then yield the sampled pictures. Ends with a file's end or after `stop`, else raises SourceLost."""
        session = int(self._clock() * 1e9)
        ids = (f"{self.name}-{session:x}-{number}" for number in count())
        # Not in `parse`: here a file system that hangs holds up nobody but this camera.
        if self._address.kind is Kind.FILE and os.path.isdir(self._address.location):  # noqa: PTH112 (raises nothing)
            self._address = replace(self._address, kind=Kind.FOLDER)
        read = {Kind.FILE: self._play, Kind.FOLDER: self._gather}.get(self._address.kind, self._watch)
        try:
            yield from read(stop, ids)
        except SourceLost:
            if not stop.is_set():
                raise

    # ---- live streams

    def _watch(self, stop: threading.Event, ids: Iterator[str]) -> Iterator[Frame]:
        with self._opened() as reader:
            due = self._due_in_bursts(reader, stop) if self._address.is_hls else self._due_on_arrival(reader, stop)
            for _ in due:
                if frame := self._frame(reader, ids):
                    yield frame

    def _due_on_arrival(self, reader: Capture, stop: threading.Event) -> Iterator[None]:
        """Grab all, stop at each picture to take: by the time of arrival, since cameras make their timestamps up.

        So neither a jump of the camera's clock nor one of ours, which is not asked, stops the sampling.
        """
        sampler = Sampler(self._settings.fps)
        behind_until, current = self._monotonic() + _WARM_UP, False
        while not stop.is_set():
            waited, now = self._grab_live(reader), self._monotonic()
            # Opening reads some pictures ahead to learn the format: they are old, so they are skipped.
            if now < behind_until and waited < _WAITED:
                continue
            if not current:
                current, behind_until = True, now
                self._begin_live()
            if self._is_wanted():
                sampler = Sampler(self._settings.fps)
            if sampler.is_due(now):
                yield

    def _due_in_bursts(self, reader: Capture, stop: threading.Event) -> Iterator[None]:
        """HLS: a segment's pictures come all at once, and are shown when their time has come."""
        sampler, pacer, current = Sampler(self._settings.fps), BurstPacer(), False
        while not stop.is_set():
            self._grab_live(reader)
            if not current:
                current = True
                self._begin_live()
            if stop.wait(pacer.delay(reader.media_time, self._monotonic())):
                return
            if self._is_wanted():
                sampler = Sampler(self._settings.fps)
            if sampler.is_due(pacer.media):
                yield

    def _is_wanted(self) -> bool:
        """True once for each wish: sampling begins anew, with the present picture."""
        wanted = self._wanted.is_set()
        if wanted:
            self._wanted.clear()
        return wanted

    def _begin_live(self) -> None:
        if self._monotonic() - self._began > self._settings.open_timeout + _WARM_UP:
            raise self._lost(f"gave no picture within {self._settings.open_timeout:g} s", DownReason.TIMEOUT)
        self._begin_reading()

    def _begin_reading(self) -> None:
        self._log.take_damage()  # what is missed while a stream is joined is nobody's fault
        self._on_step(Step.READING)

    def _grab_live(self, reader: Capture) -> float:
        """Wait for the next picture; the seconds that it took. Raises SourceLost, after which only reopening helps."""
        before = self._monotonic()
        arrived = reader.grab()
        waited = self._monotonic() - before
        self._listen()
        timeout = _DEVICE_TIMEOUT if self._address.kind is Kind.DEVICE and not arrived else self.read_timeout
        if waited >= STALE * min(timeout, self.read_timeout):
            raise self._lost(f"stalled: no picture for {waited:.1f} s", DownReason.TIMEOUT)
        if not arrived:
            raise self._ended(reader)
        self._check_size()
        self._on_grab()
        return waited

    def _ended(self, reader: Capture) -> SourceLost:
        cause = self._log.cause
        if cause is not None and not reader.grabbed:  # a codec that nobody knows opens, and gives no picture
            return self._lost(f"cannot be read: {cause.words}", cause.reason)
        return self._lost("was lost: its stream ended", DownReason.ENDED)

    def _listen(self) -> None:
        if words := self._overheard():
            self._log.feed(words)

    def _check_size(self) -> None:
        if self._log.changed:
            raise self._lost("sends pictures of another size now", DownReason.CHANGED)

    # ---- files

    def _play(self, stop: threading.Event, ids: Iterator[str]) -> Iterator[Frame]:
        """A file, once or for ever."""
        show = _Show(self._settings.fps)
        yield from self._play_once(stop, ids, show)
        while self._settings.loop and not stop.is_set():
            # Like a camera it keeps its rate from round to round, be the clip a single picture.
            show = show if self.live else _Show(self._settings.fps)
            yield from self._play_once(stop, ids, show)

    def _play_once(self, stop: threading.Event, ids: Iterator[str], show: "_Show") -> Iterator[Frame]:
        """A file, sampled by its own timestamps; lossless as fast as it is taken, or at its own speed when live."""
        begun = show.time
        with self._opened() as reader:
            self._begin_reading()
            while not stop.is_set() and reader.grab():
                self._listen()
                self._on_grab()
                at = begun + reader.media_time
                show.time = at + reader.period
                if self.live and stop.wait(show.pacer.delay(at, self._monotonic())):
                    return
                if show.sampler.is_due(at) and (frame := self._frame(reader, ids)):
                    yield frame
            if not reader.grabbed:
                raise self._lost("holds no picture that can be decoded", DownReason.CODEC)

    # ---- folders

    def _gather(self, stop: threading.Event, ids: Iterator[str]) -> Iterator[Frame]:
        """Each new picture of a folder; all of them, or when live at most `fps` a second of those that come."""
        sampler = Sampler(self._settings.fps if self.live else 0)
        if self._folder is None:
            backlog, clock, monotonic = self._settings.backlog, self._clock, self._monotonic
            self._folder = Folder(self._address.location, backlog=backlog, clock=clock, monotonic=monotonic)
        self._on_step(Step.READING)
        try:
            for found in self._folder.pictures(stop):
                self._on_grab()
                if sampler.is_due(self._monotonic()) and (frame := self._from_file(self._folder, found, ids)):
                    yield frame
        except OSError as error:
            why = (error.strerror or "it is gone").lower()
            raise self._lost(f"cannot read its folder: {why}", DownReason.UNREACHABLE) from None

    def _from_file(self, folder: Folder, found: Found, ids: Iterator[str]) -> Frame | None:
        """A file's picture as a frame, or None, counted, where it is broken; None where it has gone meanwhile."""
        before = time.thread_time()
        try:
            data = folder.read(found, max_bytes=_PICTURES.max_bytes)
            if data is None:
                return None
            picture = decode(data, max_bytes=_PICTURES.max_bytes, max_pixels=_PICTURES.max_pixels)
            bgr: Pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)  # type: ignore[assignment]  # uint8 stays
        except BadFrame as bad:
            self._bad(BadFrame(bad.reason, f"{_shown(found.name)}: {bad}"))
            return None
        finally:
            self._observe("decode", time.thread_time() - before)
        frame = self._made(bgr, found.written / 1e9, ids)
        return None if frame is None else replace(frame, meta=json.dumps({"file": _shown(found.name)}))

    # ---- pictures

    def _frame(self, reader: Capture, ids: Iterator[str]) -> Frame | None:
        """The picture that was grabbed last as a frame, or None, counted, where it is broken."""
        captured_at = self._clock()
        picture = reader.retrieve()
        self._observe("decode", reader.take_cost())
        self._listen()
        if self._address.kind is not Kind.FILE:
            self._check_size()  # of JPEG it is known only now
        if picture is None:
            self._bad(BadFrame(DeadReason.UNDECODABLE, "the picture cannot be converted"))
            return None
        return self._made(picture, captured_at, ids)

    def _made(self, picture: Pixels, captured_at: float, ids: Iterator[str]) -> Frame | None:
        vitals = measure(picture, damage=self._log.take_damage())
        height, width = picture.shape[:2]
        try:
            pixels = self._pixels(picture)
        except BadFrame as bad:
            self._bad(bad)
            return None
        return Frame(self.name, next(ids), captured_at, pixels, width, height, vitals=vitals)

    def _bad(self, bad: BadFrame) -> None:
        self.lost += 1
        self._on_bad(bad)

    def _pixels(self, picture: Pixels) -> Pixels:
        before = time.thread_time()
        try:
            # The copy also frees the frame from the full picture, of which a mere crop would be a view.
            return cv2.cvtColor(self._prepare(picture), cv2.COLOR_BGR2RGB)  # type: ignore[return-value]  # uint8 stays
        finally:
            self._observe("prepare", time.thread_time() - before)

    # ---- opening

    @contextmanager
    def _opened(self) -> Iterator[Capture]:
        """The camera, open. Raises SourceLost."""
        self._overheard()  # what an earlier session left
        self._log = DecoderLog()
        address = self._address_now()
        self._began = self._monotonic()
        self._on_step(Step.RESOLVING)
        if cause := diagnosis.unresolved(address):
            raise self._not_opened(cause)
        self._on_step(Step.OPENING)
        try:
            with capture.opened(self._settings, address) as reader:
                took = self._monotonic() - self._began
                self._listen()
                if reader is None:
                    raise self._not_opened(diagnosis.why_not_opened(self._settings, address, self._log, took))
                self._check_opening(reader, address, took)
                self._on_step(Step.WAITING)
                yield reader
        except capture.Failure as failure:
            raise self._not_opened(failure.cause) from None

    def _check_opening(self, reader: Capture, address: Address, took: float) -> None:
        """OpenCV says that it is open where time ran out while it learned the format, and where it uses no hardware."""
        if address.kind is not Kind.NETWORK:
            return
        if took >= STALE * self._settings.open_timeout:
            raise self._not_opened(diagnosis.why_not_opened(self._settings, address, self._log, took))
        wanted = self._settings.acceleration
        if wanted not in ("none", "any") and not reader.accelerated_by(wanted):
            raise self._not_opened(diagnosis.no_acceleration(self._settings))

    def _address_now(self) -> Address:
        """With the password as its file holds it at present. Raises SourceLost."""
        if (path := self._settings.password_file) is None:
            return self._address
        return parse(self._settings, password=self._password(path))

    def _password(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                password = file.read(_LONGEST_PASSWORD).decode().strip()  # as the other secret files are read
        except (OSError, UnicodeDecodeError) as error:
            why = (error.strerror or "no answer").lower() if isinstance(error, OSError) else "it is not text in UTF-8"
            raise self._not_opened(Cause(DownReason.AUTH, f"password_file {path}: {why}")) from None
        if not password:
            raise self._not_opened(Cause(DownReason.AUTH, f"password_file {path} is empty"))
        return password

    def _not_opened(self, cause: Cause) -> SourceLost:
        return self._lost(f"cannot be opened: {cause.words}", cause.reason)

    def _lost(self, what: str, reason: DownReason) -> SourceLost:
        return SourceLost(f"camera {self.name!r} {what}", reason=reason)


class _Show:
    """What a clip's rounds have in common. `time`: seconds of it that were shown so far."""

    def __init__(self, fps: float) -> None:
        self.sampler, self.pacer, self.time = Sampler(fps), Pacer(), 0.0


def _shown(name: str) -> str:
    """A file's name as text that any reader takes; it may hold any bytes."""
    return name.encode("utf-8", "replace").decode()[:512]
