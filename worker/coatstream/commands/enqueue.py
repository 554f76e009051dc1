"""`coatstream enqueue`: pictures, folders, clips and cameras into the frames stream."""

import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from types import FrameType

from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from coatstream.broker.connection import connect
from coatstream.cameras.address import Kind, parse
from coatstream.cameras.capture.camera import Camera
from coatstream.commands.terminal import passed_over, shown
from coatstream.errors import BadFrame, CoatstreamError, ConfigError, DeadReason, SourceLost
from coatstream.frames.encoding import encode_jpeg
from coatstream.frames.files import expand, kind_of, readable_name, readable_path
from coatstream.frames.frame import Frame
from coatstream.queue.entry import DEFAULT_SOURCE, MAX_FRAME_ID, MAX_SOURCE
from coatstream.queue.producing.admission import MAX_ENTRIES, Confirm
from coatstream.queue.producing.outbox import QueueFull, Terms
from coatstream.queue.producing.picture import Picture
from coatstream.queue.producing.producer import Producer, name_of_queue, queues_to_fill
from coatstream.settings.model import CameraSettings, SettingsTree

JPEG_QUALITY = 90
PATIENCE = 5.0  # seconds of waiting for room before it is worth a line
CONFIRM_TIMEOUT = 2.0  # seconds
_WORKING = "enqueue"
_CUT_SHORT = "interrupted before everything was enqueued"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)


class _InputKind(Enum):
    PICTURE = "picture"
    CLIP = "clip"
    CAMERA = "camera"


@dataclass(frozen=True, slots=True)
class _Input:
    """One picture, clip or camera, and how its frames are called. A camera's location may hold a password."""

    kind: _InputKind
    location: str = field(repr=False)
    source: str
    name: str


def run_enqueue(
    settings: SettingsTree,
    paths: Sequence[str],
    *,
    source: str | None,
    fps: float,
    stream: str | None = None,
    drop: bool = False,
    confirm: Confirm = "none",
) -> int:
    """0 if all was read, 1 if something could not be; the rest goes in all the same.

    Where the queue is full, files wait and cameras lose their newest frame; with `drop` files lose theirs, too. A
    camera runs until Ctrl-C, which is its proper end. Raises ConfigError, RedisUnavailable, and CoatstreamError where
    Ctrl-C cut short what would have ended by itself.
    """
    if source is not None and not 0 < len(source) <= MAX_SOURCE:
        raise ConfigError(f"--source has {len(source)} characters; give 1 to {MAX_SOURCE}")
    name = name_of_queue(settings, stream)
    with connect(settings.redis) as client, _until_interrupted() as stop:
        queues = queues_to_fill(client, settings, stream)
        run = _Enqueuing(settings, fps=fps, stop=stop)
        make = partial(Producer, client, queues, settings.queue, stop=stop)
        files = make(_terms(settings, confirm, wait=not drop, batch=MAX_ENTRIES), on_wait=run.note_full)
        cameras = make(_terms(settings, confirm, wait=False, batch=1))  # its next picture may be long in coming
        try:
            run.enqueue((item for path in paths for item in run.find(path, source)), files=files, cameras=cameras)
        finally:
            print(_summary(name, files, cameras, damaged=run.damaged, skipped=run.skipped), flush=True)
    return int(run.damaged > 0 or run.skipped > 0)


def _terms(settings: SettingsTree, confirm: Confirm, *, wait: bool, batch: int) -> Terms:
    return Terms(
        when_full="wait" if wait else "drop",
        batch=batch,
        confirm=confirm,
        confirm_timeout=min(CONFIRM_TIMEOUT, settings.redis.socket_timeout / 2),
    )


def _summary(name: str, *producers: Producer, damaged: int, skipped: int) -> str:
    sent, refused = (sum(getattr(one, count) for one in producers) for count in ("sent", "refused"))
    unsure = sum(one.unsure for one in producers)
    return (
        f"enqueued {sent} frame{'' if sent == 1 else 's'} into {shown(name)}"
        + (f", refused {refused}: it was full" if refused else "")
        + (f", {unsure} in doubt" if unsure else "")
        + (f"; {damaged} damaged, {skipped} skipped" if damaged or skipped else "")
    )


class _Enqueuing:
    """One call of the command."""

    def __init__(self, settings: SettingsTree, *, fps: float, stop: threading.Event) -> None:
        self.damaged = 0  # packets and pictures of clips
        self.skipped = 0  # inputs that could not be read, or not to their end
        self._others: list[str] = []  # files of folders that are neither pictures nor clips
        self._limits = settings.queue
        self._fps = fps
        self._stop = stop
        self._console = Console(stderr=True, highlight=False)
        self._progress = _progress(self._console)
        self._task = self._progress.add_task(_WORKING, total=None, frames=0)
        self._said_full = False

    def find(self, path: str, source: str | None) -> Iterator[_Input]:
        """What a path of the command line stands for; what it does not is a fault."""
        try:
            yield from _items(path, source, self._pass_over)
        except ConfigError as error:
            self._fault(str(error))
        except OSError as error:
            self._fault(_unread(path, error))

    def enqueue(self, items: Iterable[_Input], *, files: Producer, cameras: Producer) -> None:
        """One after the other, until Ctrl-C. Raises CoatstreamError where that left out more than cameras."""
        waiting = deque(items)
        with self._progress:
            self._progress.update(self._task, total=len(waiting))
            try:
                while waiting and not self._stop.is_set():
                    self._put(waiting[0], files, cameras)
                    if not self._stop.is_set():
                        waiting.popleft()
                        self._progress.advance(self._task)
                files.flush()
                self._show(files, cameras)
            except QueueFull:  # nothing but Ctrl-C ends the wait for room
                raise CoatstreamError(_CUT_SHORT) from None
        if any(item.kind is not _InputKind.CAMERA for item in waiting):
            raise CoatstreamError(_CUT_SHORT)
        if self._others:
            self._say(passed_over(self._others))

    def note_full(self, seconds: float, why: str) -> None:
        """The producer waits for room, and has for so many seconds."""
        self._progress.update(self._task, description=f"waiting: {shown(why)}")
        if seconds >= PATIENCE and not self._said_full and not self._console.is_terminal:
            self._said_full = True
            self._say(f"{why}: waiting for workers to make room")

    def _put(self, item: _Input, files: Producer, cameras: Producer) -> None:
        """All pictures of one item. What was read before a camera goes in before it, since that may never end."""
        producer = cameras if item.kind is _InputKind.CAMERA else files
        if producer is cameras:
            files.flush()
        for picture in self._readable(item):
            try:
                producer.put(picture)
            except BadFrame as error:
                self._fault(f"{item.name}: {error}")
            self._show(files, cameras)

    def _show(self, *producers: Producer) -> None:
        self._progress.update(self._task, description=_WORKING, frames=sum(one.sent for one in producers))

    def _readable(self, item: _Input) -> Iterator[Picture]:
        """The item's pictures as far as they can be read."""
        try:
            yield from self._pictures(item)
        except BadFrame as error:
            self._fault(f"{item.location}: {error}")
        except SourceLost as error:
            self._fault(str(error))
        except OSError as error:
            self._fault(_unread(item.location, error))

    def _pictures(self, item: _Input) -> Iterator[Picture]:
        if item.kind is _InputKind.PICTURE:
            image = _read(Path(item.location), self._limits.max_bytes)
            yield Picture(image, item.source, item.name, time.time())
            return
        if item.kind is _InputKind.CAMERA:
            for frame in self._frames(item, item.source, item.location):
                yield _encoded(frame, item.source, frame.frame_id)
            return
        with readable_path(Path(item.location)) as file:  # as a URL, because a path with a colon could be taken for one
            for number, frame in enumerate(self._frames(item, Path(item.name).name[-MAX_SOURCE:], file.as_uri())):
                yield _encoded(frame, item.source, f"{item.name}#{number}")

    def _frames(self, item: _Input, name: str, url: str) -> Iterator[Frame]:
        camera = Camera(CameraSettings(name=name, url=SecretStr(url), fps=self._fps), prepare=lambda image: image)
        with closing(camera.frames(self._stop)) as frames:
            yield from frames
        if camera.damaged and item.kind is _InputKind.CLIP:
            self.damaged += camera.damaged
            self._say(f"{item.name}: {camera.damaged} damaged places, {camera.pictures} pictures read")

    def _pass_over(self, path: Path) -> None:
        self._others.append(path.name)

    def _fault(self, message: str) -> None:
        self.skipped += 1
        self._say(message)

    def _say(self, message: str) -> None:
        self._console.print(Text(f"coatstream: {shown(readable_name(message))}"), soft_wrap=True)


def _progress(console: Console) -> Progress:
    """On stderr, and only where that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[frames]} frames"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


# ---- paths to items


def _items(path: str, source: str | None, pass_over: Callable[[Path], None]) -> Iterator[_Input]:
    """Raises ConfigError for what is none, OSError for what cannot be looked at."""
    here = Path(path)
    if here.is_dir():
        found = False
        for file in map(Path, expand([path], pass_over)):
            found = True
            yield _file(file, source or here.resolve().name, file.relative_to(here).as_posix())
        if not found:
            raise ConfigError(f"{path}: no pictures or clips in it")
    elif here.is_file():
        yield _file(here, source or here.stem, here.name)
    elif path.isdecimal() or path.startswith("/dev/") or _SCHEME.match(path):
        yield _camera(path, source)
    else:
        raise ConfigError(f"{path}: {'not a plain file' if here.exists() else 'there is no such file or folder'}")


def _file(path: Path, source: str, name: str) -> _Input:
    source, name = readable_name(source)[:MAX_SOURCE] or DEFAULT_SOURCE, readable_name(name)[-MAX_FRAME_ID:]
    kind = kind_of(path)
    if kind == "picture":
        return _Input(_InputKind.PICTURE, str(path), source, name)
    if kind is None:
        raise ConfigError(f"{path}: neither a picture nor a clip")
    return _Input(_InputKind.CLIP, str(path), source, name[-MAX_FRAME_ID + 12 :])  # the number of each frame follows


def _camera(url: str, source: str | None) -> _Input:
    """A camera, or a clip named by a URL. Raises ConfigError, which never holds the URL."""
    address = parse(CameraSettings(name=source or "camera", url=SecretStr(url)))
    name = address.host or Path(address.location).name
    if address.kind is Kind.FILE:
        return _file(Path(address.location), source or Path(name).stem, name)
    return _Input(_InputKind.CAMERA, url, source or name[:MAX_SOURCE], name)


def _encoded(frame: Frame, source: str, frame_id: str) -> Picture:
    return Picture(encode_jpeg(frame.pixels, quality=JPEG_QUALITY), source, frame_id, frame.captured_at)


def _read(path: Path, max_bytes: int) -> bytes:
    """The bytes of a picture file. Raises BadFrame where there are more than a worker would take, and OSError."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise BadFrame(DeadReason.TOO_LARGE, f"skipped, it is larger than queue.max_bytes ({max_bytes})")
    return data


def _unread(path: str, error: OSError) -> str:
    return f"{path}: {(error.strerror or 'it cannot be read').lower()}"


# ---- Ctrl-C


@contextmanager
def _until_interrupted() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C, so that a picture on its way is not cut off; the second one leaves at once."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
