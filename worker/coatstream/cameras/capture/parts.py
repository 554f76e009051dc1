"""Splits Motion JPEG into its pictures, whatever a camera writes between them. Decodes nothing.

Cameras leave out boundaries, headers and line ends, or send wrong ones. So a part ends where its length says, if a
picture ends there; else where the picture itself ends (ITU T.81, B.1) or at the next boundary. A part that is no
picture is given out as well: its reader counts it.
"""

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final

from coatstream.frames.jpeg import EOI, SOI, JpegWalk

_LENGTH: Final = re.compile(rb"^content-length[ \t]*:[ \t]*(\d{1,9})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_END_OF_HEADERS: Final = re.compile(rb"\A\r?\n|\n\r?\n")
_HEADERS: Final = 8192  # bytes at most
_OVERLAP: Final = 256  # bytes that are searched again, since a boundary may arrive in two pieces
_BOUNDARY: Final = re.compile(r"boundary\s*=\s*\"?([^\";,\s]{1,200})", re.IGNORECASE)


def boundary_of(content_type: str) -> bytes | None:
    """The boundary that a Content-Type names, without its dashes."""
    found = _BOUNDARY.search(content_type)
    return (found[1].strip("-").encode("latin-1", "replace") or None) if found else None


class _At(Enum):
    """Where in the stream the first byte is that has not been taken yet."""

    START = auto()
    BETWEEN = auto()  # behind a picture, or in what comes before the first one
    HEADERS = auto()
    CONTENT = auto()


class PartSplitter:
    """Fed with bytes as they arrive. Holds one part of at most `max_bytes`; of a longer one, an empty part is left."""

    def __init__(self, boundary: bytes | None, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        dashes = rb"-{0,8}" if boundary is not None and len(boundary) > 3 else rb"-+"
        self._boundary = None if boundary is None else _line(dashes + re.escape(boundary))
        self._mark = boundary or b""  # is in every boundary
        self._at = _At.START
        self._length = 0  # of the part, by its header; 0: unknown
        self._searched = 0  # bytes of the content in which there is no boundary
        self._end = JpegWalk()
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The parts that are complete with these bytes."""
        self._buffer += data
        steps = {_At.START: self._start, _At.BETWEEN: self._seek, _At.HEADERS: self._take_headers}
        while True:
            if self._at is not _At.CONTENT:
                if not steps[self._at]():
                    return
            elif (part := self._content()) is not None:
                yield part
            else:
                return

    def rest(self) -> bytes | None:
        """The part that had begun when the stream ended."""
        begun = self._at is _At.CONTENT and len(self._buffer) > 0
        left = bytes(self._buffer) if begun else None
        self._buffer.clear()
        self._at = _At.START
        return left

    def _start(self) -> bool:
        """A first line that looks like a boundary is one, whatever the Content-Type names."""
        del self._buffer[: len(self._buffer) - len(self._buffer.lstrip(b"\r\n"))]
        line, newline, _ = self._buffer.partition(b"\n")
        if not newline and len(self._buffer) < _OVERLAP and not self._buffer.startswith(SOI[:2]):
            return False
        if line.startswith(b"--") and line.strip(b"-\r\n \t"):
            self._mark = bytes(line.rstrip()[:_OVERLAP])
            self._boundary = _line(re.escape(self._mark))
        has_headers = line[:8].lower().startswith((b"content-", b"x-"))  # no boundary before the first part
        self._at = _At.HEADERS if has_headers else _At.BETWEEN
        return True

    def _seek(self) -> bool:
        """Go to the next boundary, or to a picture that comes without one."""
        boundary = self._boundary.search(self._buffer) if self._boundary else None
        picture = self._buffer.find(SOI)
        if boundary is not None and not 0 <= picture < boundary.start():
            del self._buffer[: boundary.end()]
            self._at = _At.HEADERS
        elif picture >= 0:
            del self._buffer[:picture]
            self._begin_content(0)
        else:
            del self._buffer[:-_OVERLAP]
            return False
        return True

    def _take_headers(self) -> bool:
        if self._buffer.startswith(SOI[:2]):
            self._begin_content(0)
            return True
        end = _END_OF_HEADERS.search(self._buffer, 0, _HEADERS)
        if end is None and len(self._buffer) < _HEADERS:
            return False
        stated = _LENGTH.search(self._buffer, 0, end.end()) if end else None
        length = int(stated[1]) if stated else 0  # read before the buffer changes
        del self._buffer[: end.end() if end else 0]
        self._begin_content(length)
        return True

    def _begin_content(self, length: int) -> None:
        self._at, self._searched, self._end = _At.CONTENT, 0, JpegWalk()
        self._length = length if length <= self._max_bytes else 0

    def _content(self) -> bytes | None:
        buffer, length = self._buffer, self._length
        if length:
            if len(buffer) < length:
                return self._before_its_length()
            if buffer.startswith(SOI) and buffer.endswith(EOI, 0, length):
                return self._taken(length, length, _At.BETWEEN)
        end = self._end.end_of(buffer)
        boundary = self._boundary.search(buffer, max(0, self._searched - _OVERLAP)) if self._boundary else None
        self._searched = len(buffer)
        if end is not None and (boundary is None or end <= boundary.start()):
            return self._taken(end, end, _At.BETWEEN)
        if boundary is not None:
            return self._taken(boundary.start(), boundary.end(), _At.HEADERS)
        if self._boundary is None and self._end.is_lost and (again := buffer.find(SOI, len(SOI))) > 0:
            return self._taken(again, again, _At.BETWEEN)
        return self._taken(0, len(buffer), _At.BETWEEN) if len(buffer) > self._max_bytes else None

    def _before_its_length(self) -> bytes | None:
        """A picture whose length says too much: a boundary stands right behind its end."""
        buffer, begun = self._buffer, self._searched
        self._searched = len(buffer)
        if not self._mark or buffer.find(self._mark, max(0, begun - _OVERLAP)) < 0:
            return None
        end = self._end.end_of(buffer)
        boundary = self._boundary.search(buffer, end) if self._boundary and end is not None else None
        if end is None or boundary is None or buffer[end : boundary.start()].strip(b"\r\n"):
            return None
        return self._taken(end, boundary.end(), _At.HEADERS)

    def _taken(self, end: int, gone: int, at: _At) -> bytes:
        part = bytes(self._buffer[:end])
        del self._buffer[:gone]
        self._at = at
        return part


class WholeBody:
    """A splitter for a body that is one picture, of another kind than JPEG. Of a longer one, an empty part is left."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer: bytearray | None = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """No part yet."""
        if self._buffer is not None:
            self._buffer += data
            if len(self._buffer) > self._max_bytes:
                self._buffer = bytearray()
                yield b""

    def rest(self) -> bytes | None:
        """The picture, once."""
        picture, self._buffer = self._buffer, None
        return bytes(picture) if picture else None


def _line(boundary: bytes) -> re.Pattern[bytes]:
    """A boundary on a line of its own; the first line of the buffer is one."""
    return re.compile(rb"(?:\A|\n)\r?" + boundary + rb"(?:--)?[ \t]*\r?\n")
