"""An HTTP camera for tests: Motion JPEG (multipart/x-mixed-replace), Basic authentication.

Faults by query:

    ?hang=S     no more pictures after S seconds, the connection stays
    ?die=S      the connection breaks off after S seconds
"""

import base64
import socket
import threading
import time
from itertools import count
from ssl import SSLContext
from typing import Self
from urllib.parse import parse_qs, urlsplit

from tests.support.cameras.listener import Listener


class HttpCamera:
    """Serves one JPEG again and again on http://127.0.0.1:<port>/video.mjpg while its `with` block runs.

    jpeg    may be changed at any time
    status  every request is answered with this, if any
    """

    def __init__(
        self, jpeg: bytes, *, fps: float = 25, credentials: str | None = None, tls: SSLContext | None = None
    ) -> None:
        self.jpeg = jpeg
        self.status = ""
        self._fps = fps
        self._credentials = credentials
        self._tls = tls
        self._listener = Listener(self._serve, tls=tls)

    def __enter__(self) -> Self:
        self._listener.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def url(self, query: str = "") -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._listener.port}/video.mjpg{query}"

    def _serve(self, connection: socket.socket, closing: threading.Event) -> None:
        with connection.makefile("rb") as stream:
            target = stream.readline().decode().split(" ")[1]
            headers = list(iter(lambda: stream.readline().decode().strip(), ""))
        if not self._admits(headers):
            connection.sendall(b'HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="test"\r\n\r\n')
            return
        if self.status:
            connection.sendall(f"HTTP/1.0 {self.status}\r\nLocation: /elsewhere\r\n\r\n".encode())
            return
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=next\r\n\r\n")
        faults = {name: float(values[0]) for name, values in parse_qs(urlsplit(target).query).items()}
        self._play(connection, faults, closing)

    def _admits(self, headers: list[str]) -> bool:
        if self._credentials is None:
            return True
        return f"Authorization: Basic {base64.b64encode(self._credentials.encode()).decode()}" in headers

    def _play(self, connection: socket.socket, faults: dict[str, float], closing: threading.Event) -> None:
        began = time.monotonic()
        for number in count():
            if closing.wait(max(0.0, began + number / self._fps - time.monotonic())):
                return
            played = time.monotonic() - began
            if played > faults.get("die", played):
                return
            if played > faults.get("hang", played):
                closing.wait()
            jpeg = self.jpeg
            head = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            connection.sendall(head + jpeg + b"\r\n")
