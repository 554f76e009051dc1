"""A body over HTTP as a file for FFmpeg: read in order, and from elsewhere where the server gives parts of it."""

import io
from collections.abc import Iterator

from coatstream.cameras.capture.web import WebAnswer, WebClient


class WebFile(io.RawIOBase):
    """A seek asks for the rest from there. Raises Trouble out of the call of FFmpeg's that reads."""

    name = "stream"  # what FFmpeg calls it, for PyAV's messages: never the URL

    def __init__(self, client: WebClient, answer: WebAnswer, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._client = client
        self._answer = answer
        self._pieces = pieces
        self._left = b""
        self._at = 0
        length = answer.headers.get("content-length", "")
        gives_parts = answer.headers.get("accept-ranges", "").lower() == "bytes"
        self._length = int(length) if gives_parts and length.isdecimal() and len(length) < 20 else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._length is not None

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left = piece
        data, self._left = (self._left, b"") if size < 0 else (self._left[:size], self._left[size:])
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length or 0}[whence]
        target = max(0, base + offset)
        if target != self._at:
            self._answer.close()
            self._left, self._at = b"", target
            self._answer = self._client.get(start=target)
            self._pieces = self._answer.pieces() if self._answer.status == 206 else iter(())
        return target
