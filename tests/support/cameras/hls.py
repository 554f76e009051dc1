"""HLS and MPEG-TS cameras for tests, from cam160.ts: 160 x 128, 25 frames/s, 12 segments of a second, numbered frames.

HLS serves a playlist of the three newest segments that grows by one each second and ends with the clip.
"""

import socket
import threading
import time
from itertools import accumulate, pairwise
from pathlib import Path
from ssl import SSLContext
from typing import Self

from tests.support.cameras.listener import Listener

STREAM = Path(__file__).with_name("cam160.ts")
_SIZES = (5452, 5828, 5640, 5828, 5640, 5640, 5828, 5640, 5640, 5828, 5452, 6016)  # bytes of the segments
SEGMENTS = [STREAM.read_bytes()[a:b] for a, b in pairwise(accumulate(_SIZES, initial=0))]


class HlsCamera:
    """Serves http(s)://127.0.0.1:<port>/live.m3u8 while its `with` block runs; the clip begins with the block.

    held    while it is set, no new segment appears; what was held back comes at once afterwards
    """

    def __init__(self, *, tls: SSLContext | None = None) -> None:
        self.held = threading.Event()
        self._tls = tls
        self._listener = Listener(self._serve, tls=tls)
        self._newest = 2

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._listener.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def url(self, query: str = "", *, credentials: str = "") -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{credentials and credentials + '@'}127.0.0.1:{self._listener.port}/live.m3u8{query}"

    def _serve(self, connection: socket.socket, _: threading.Event) -> None:
        with connection.makefile("rb") as stream:
            path = stream.readline().decode().split(" ")[1].partition("?")[0]
            while stream.readline().strip():
                pass
        body = self._playlist().encode() if path == "/live.m3u8" else SEGMENTS[int(path[1:].partition(".")[0])]
        kind = "application/vnd.apple.mpegurl" if path == "/live.m3u8" else "video/mp2t"
        head = f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    def _playlist(self) -> str:
        if not self.held.is_set():
            self._newest = min(len(SEGMENTS) - 1, 2 + int(time.monotonic() - self._started))
        shown = range(self._newest - 2, self._newest + 1)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{shown[0]}"]
        lines += [line for number in shown for line in ("#EXTINF:1.0,", f"{number}.ts")]
        lines += ["#EXT-X-ENDLIST"] if self._newest == len(SEGMENTS) - 1 else []
        return "\n".join(lines) + "\n"


def play_stream(connection: socket.socket, closing: threading.Event) -> None:
    """A Listener's handler: the MPEG-TS at its own speed, after the head of an HTTP answer if there was a request."""
    connection.settimeout(0.1)
    try:
        asked = connection.recv(4096).startswith(b"GET ")
    except TimeoutError:
        asked = False
    connection.settimeout(None)
    if asked:
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
    send_stream(connection.sendall, closing)


def send_stream(send: object, closing: threading.Event) -> None:
    """Packets of 7 x 188 bytes, each segment spread over its second."""
    assert callable(send)
    for segment in SEGMENTS:
        packets = [segment[at : at + 1316] for at in range(0, len(segment), 1316)]
        for packet in packets:
            send(packet)
            if closing.wait(1 / len(packets)):
                return
