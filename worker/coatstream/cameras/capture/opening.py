"""Opens one camera or file by its kind, with the options of its kind. Retries nothing."""

import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Final, cast

import httpx
from av.error import FFmpegError

from coatstream.cameras.address import Address, Kind, parse
from coatstream.cameras.capture.causes import unresolved, why_not_opened
from coatstream.cameras.capture.device import Device
from coatstream.cameras.capture.jpegs import Jpegs
from coatstream.cameras.capture.reader import NotOpened, PictureReader, Trouble
from coatstream.cameras.capture.steps import Step
from coatstream.cameras.capture.video import Video, file_options, stream_options
from coatstream.cameras.capture.web import WebAnswer, WebClient, authorities, refusal
from coatstream.cameras.capture.web_file import WebFile
from coatstream.errors import DownReason
from coatstream.frames.files import is_other_picture
from coatstream.settings.model import CameraSettings

HLS_READ: Final = 30.0  # seconds: three segments of HLS at their usual longest
KEYFRAME_READ: Final = 12.0  # seconds: cameras send a key frame at least every 10
_LONGEST_PASSWORD: Final = 4096  # bytes of a password file
_LOOK: Final = 512  # bytes of a body, by which its kind is known


def read_timeout(settings: CameraSettings, address: Address) -> float:
    """Seconds that a picture may take to come: as set, but longer than what lies between two by nature."""
    if address.is_hls:
        return max(settings.read_timeout, HLS_READ)
    return max(settings.read_timeout, KEYFRAME_READ) if settings.keyframes_only else settings.read_timeout


class Opener:
    """Opens one camera as often as it is asked to. `wanted` hurries the next snapshot."""

    def __init__(
        self, settings: CameraSettings, address: Address, on_step: Callable[[Step], None], wanted: threading.Event
    ) -> None:
        self._settings = settings
        self._address = address
        self._on_step = on_step
        self._wanted = wanted
        self._read_timeout = read_timeout(settings, address)

    @contextmanager
    def opened(self, stop: threading.Event) -> Iterator[PictureReader]:
        """The camera, open; closed by the thread that reads it. Raises NotOpened."""
        with ExitStack() as stack:
            try:
                address = self._address_now()
                self._on_step(Step.RESOLVING)
                if cause := unresolved(address):
                    raise Trouble(cause.reason, cause.words)
                self._on_step(Step.OPENING)
                reader = self._open(address, stack, stop)
            except Trouble as trouble:
                raise NotOpened(trouble.reason, trouble.words) from None
            stack.callback(reader.close)
            self._on_step(Step.WAITING)
            yield reader

    def _open(self, address: Address, stack: ExitStack, stop: threading.Event) -> PictureReader:
        match address.kind:
            case Kind.DEVICE:
                return Device(address.location)
            case Kind.FILE:
                return self._file(address.location, stack)
            case Kind.NETWORK if address.is_http:
                return self._web(address, stack, stop)
            case Kind.NETWORK:
                return self._stream(address, address.location)
            case Kind.FOLDER:
                raise ValueError("a folder is no stream")

    def _file(self, location: str, stack: ExitStack) -> PictureReader:
        """A plain file, opened by Python: FFmpeg sees bytes and no path, so a playlist in it leads nowhere."""
        path = Path(location)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe's open would wait for a writer
                raise Trouble(DownReason.REFUSED, "it is not a plain file")
            if not status.st_size:
                raise Trouble(DownReason.CODEC, "it is empty")
            file = stack.enter_context(path.open("rb"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise Trouble(DownReason.UNREACHABLE, (why or "not a path").lower()) from None
        try:
            return Video(file, options=file_options(), acceleration=self._settings.acceleration)
        except FFmpegError:
            raise Trouble(DownReason.CODEC, "it is not a video that can be read") from None

    def _stream(self, address: Address, location: str | IO[bytes], *, playlist: bool = False) -> PictureReader:
        """A stream that FFmpeg reads, from its URL or through an open connection. `playlist`: HLS, of any name."""
        settings, options = self._settings, stream_options()
        if address.is_rtsp:  # RTSP over TLS is TCP in any case
            options |= stream_options(rtsp_transport="tcp" if address.is_secure else settings.transport)
        if address.is_secure and settings.tls_verify:
            options |= {"tls_verify": "1", "ca_file": authorities(settings.tls_ca)}
        began = time.monotonic()
        try:
            return Video(
                location,
                options=options,
                open_timeout=settings.open_timeout,
                read_timeout=self._read_timeout,
                keyframes_only=settings.keyframes_only,
                acceleration=settings.acceleration,
                playlist=playlist,
            )
        except FFmpegError as error:
            took = time.monotonic() - began
            cause = why_not_opened(error, address, took=took, open_timeout=settings.open_timeout)
            raise Trouble(cause.reason, cause.words) from None

    # ---- HTTP

    def _web(self, address: Address, stack: ExitStack, stop: threading.Event) -> PictureReader:
        """Pictures are read here; anything else is for FFmpeg, through the same connection."""
        client = WebClient(self._settings, address, read_timeout=self._read_timeout)
        stack.callback(client.close)
        try:
            answer = client.get()
        except httpx.RemoteProtocolError:  # not HTTP to the letter, `ICY 200 OK` say: FFmpeg minds less
            return self._stream(address, address.location, playlist=address.is_hls)
        if answer.status != 200:
            cause = refusal(answer.status)
            raise Trouble(cause.reason, cause.words)
        pieces = answer.pieces()
        head = self._first(pieces)
        whole = chain([head], pieces)
        if is_other_picture(head) or _is_picture(answer, head):
            return Jpegs(
                client,
                answer,
                whole,
                fps=self._settings.fps,
                read_timeout=self._read_timeout,
                stop=stop,
                wanted=self._wanted,
            )
        if head.lstrip().startswith(b"#EXTM3U"):
            answer.close()
            return self._stream(address, _with_credentials(address, answer.url), playlist=True)
        return self._stream(address, cast("IO[bytes]", WebFile(client, answer, whole)))

    def _first(self, pieces: Iterator[bytes]) -> bytes:
        """Enough of the body to tell what it is. Raises Trouble."""
        head, until = b"", time.monotonic() + self._settings.open_timeout
        for piece in pieces:
            head += piece
            if len(head) >= _LOOK or head.startswith(b"\xff\xd8\xff"):
                break
            if time.monotonic() > until:
                raise Trouble(DownReason.TIMEOUT, f"no answer within {self._settings.open_timeout:g} s")
        return head

    # ---- the password

    def _address_now(self) -> Address:
        """With the password as its file holds it at present. Raises Trouble."""
        if (path := self._settings.password_file) is None:
            return self._address
        return parse(self._settings, password=_password(path))


def _is_picture(answer: WebAnswer, head: bytes) -> bool:
    kind = answer.headers.get("content-type", "").lower()
    start = head.lstrip(b"\r\n")
    if start.startswith(b"\xff\xd8\xff"):
        return True
    return kind.startswith(("multipart/", "image/jp")) or (start.startswith(b"--") and b"content-" in start.lower())


def _with_credentials(address: Address, url: httpx.URL) -> str:
    """Where the redirects led, for FFmpeg's own HTTP."""
    userinfo = httpx.URL(address.location).userinfo
    return str(url.copy_with(userinfo=userinfo)) if userinfo else str(url)


def _password(path: Path) -> str:
    """Raises Trouble."""
    try:
        with path.open("rb") as file:
            password = file.read(_LONGEST_PASSWORD).decode().strip()  # as the other secret files are read
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or "no answer").lower() if isinstance(error, OSError) else "it is not text in UTF-8"
        raise Trouble(DownReason.AUTH, f"password_file {path}: {why}") from None
    if not password:
        raise Trouble(DownReason.AUTH, f"password_file {path} is empty")
    return password
