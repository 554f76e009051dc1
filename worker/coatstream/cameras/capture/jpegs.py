"""Pictures over HTTP: a stream of JPEGs (Motion JPEG), or a snapshot of any kind, asked for again and again."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from av import CodecContext, Packet
from av.error import FFmpegError, InvalidDataError

from coatstream.cameras.capture.parts import PartSplitter, WholeBody, boundary_of
from coatstream.cameras.capture.reader import Cause, Costs, Trouble
from coatstream.cameras.capture.web import WebAnswer, WebClient, refusal
from coatstream.errors import BadFrame, DownReason
from coatstream.frames.decoding import decode
from coatstream.frames.files import is_other_picture
from coatstream.frames.frame import Pixels
from coatstream.frames.jpeg import SOI
from coatstream.settings.model import QueueSettings

_BOUNDS: Final = QueueSettings()  # of a picture: those of a picture in the queue
_USUAL: Final = 5.0  # snapshots a second where every picture is wanted: a camera has no rate to give
_TICK: Final = 0.1  # seconds until a wish is noticed


class Jpegs(Costs):
    """Reads parts; only those that are taken are decoded. A part that is no picture is one damaged picture.

    An answer that held one picture, and was no multipart, was a snapshot: it is asked for again at the camera's rate.
    """

    def __init__(
        self,
        client: WebClient,
        answer: WebAnswer,
        pieces: Iterator[bytes],
        *,
        fps: float,
        read_timeout: float,
        stop: threading.Event,
        wanted: threading.Event,
    ) -> None:
        super().__init__()
        self._client = client
        self._read_timeout = read_timeout
        self._stop = stop
        self._wanted = wanted
        self._began = time.monotonic()
        self.period = 1 / (fps or _USUAL)
        kind = answer.headers.get("content-type", "")
        self._boundary = boundary_of(kind)
        self._may_be_asked_again = not kind.lower().startswith("multipart/")
        # What announces one picture and its length is a snapshot from the first one on.
        self.paced = self._may_be_asked_again and "content-length" in answer.headers
        self._asked_at = self._good_at = self._began
        self._head = answer.headers  # of the last answer with a picture
        self._parts: deque[bytes] = deque()
        self._part = b""
        self._answer = answer
        self._pieces = pieces
        self._splitter: PartSplitter | WholeBody | None = None  # until the answer begins
        self._in_answer = 0  # pictures in the present answer

    @property
    def media_time(self) -> float:
        """Cameras make their timestamps up: the time of arrival."""
        return time.monotonic() - self._began

    def grab(self) -> bool:
        """Wait for the next part."""
        before = time.thread_time()
        self._good_at = time.monotonic()
        try:
            while not self._parts:
                if not self._read_on():
                    return False
                if not self._parts and (silent := time.monotonic() - self._good_at) > self._read_timeout:
                    raise Trouble(DownReason.TIMEOUT, f"no picture for {silent:.1f} s")
        finally:
            self._cost += time.thread_time() - before
        self._part = self._parts.popleft()
        self.grabbed += 1
        return True

    def _read_on(self) -> bool:
        """Some more bytes, or another snapshot. False: there is nothing more. Raises Trouble."""
        if (piece := next(self._pieces, None)) is not None:
            self._splitter = self._splitter or self._splitter_for(piece)
            parts = list(self._splitter.feed(piece))
        elif self._splitter and (rest := self._splitter.rest()) is not None:
            parts = [rest]
        else:
            return self._ask_again()
        self._parts.extend(parts)
        self._in_answer += len(parts)
        return True

    def retrieve(self) -> Pixels:
        """The part that was grabbed last as a picture, by the queue's own way. Raises BadFrame."""
        before = time.thread_time()
        try:
            picture = decode(self._part, max_bytes=_BOUNDS.max_bytes, max_pixels=_BOUNDS.max_pixels)
            self.damaged += not is_whole(self._part)
            return picture
        except BadFrame:
            self.damaged += 1
            raise
        finally:
            self._cost += time.thread_time() - before

    def close(self) -> None:
        """Hang up."""
        self._answer.close()
        self._client.close()

    def _splitter_for(self, start: bytes) -> PartSplitter | WholeBody:
        if self._may_be_asked_again and is_other_picture(start):
            return WholeBody(max_bytes=_BOUNDS.max_bytes)
        return PartSplitter(self._boundary, max_bytes=_BOUNDS.max_bytes)

    def _ask_again(self) -> bool:
        """Another snapshot, when its time has come. False: there is none to be had. Raises Trouble."""
        if not self._may_be_asked_again or self._in_answer > 1 or not self.grabbed:
            return False
        self.paced = True
        if not self._wait():
            return False
        self._answer.close()
        self._answer = self._client.get(since=self._head)
        self._in_answer, self._splitter, self._pieces = 0, None, iter(())
        if self._answer.status == 200:
            self._head, self._pieces = self._answer.headers, self._answer.pieces()
        elif self._answer.status == 304:  # the same picture as before
            self._good_at = time.monotonic()
        else:
            self._refused(refusal(self._answer.status))
        return True

    def _wait(self) -> bool:
        """Until the next snapshot is due or wanted. False: told to stop."""
        waited_from = time.monotonic()
        while (left := self._asked_at + self.period - time.monotonic()) > 0 and not self._wanted.is_set():
            if self._stop.wait(min(left, _TICK)):
                return False
        self._asked_at = time.monotonic()
        self._good_at += self._asked_at - waited_from  # that was no silence of the camera's
        return not self._stop.is_set()

    def _refused(self, cause: Cause) -> None:
        """No picture this time. Raises Trouble where that is for good; it is too, after the read timeout."""
        self.damaged += 1
        if cause.reason is DownReason.AUTH:
            raise Trouble(cause.reason, cause.words)


def is_whole(picture: bytes) -> bool:
    """Whether every pixel of a picture that can be decoded came from it: other kinds than JPEG always are whole.

    libjpeg fills up what is missing, and OpenCV and Pillow do not tell; FFmpeg does. An eighth of the size will do.
    """
    if not picture.startswith(SOI):
        return True
    decoder = CodecContext.create("mjpeg", "r")
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode", "lowres": "3"}
    try:
        decoder.decode(Packet(picture))
    except InvalidDataError:
        return False
    except FFmpegError:  # of a kind that only libjpeg knows
        return True
    return True
