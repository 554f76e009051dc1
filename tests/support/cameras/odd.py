"""HTTP cameras as people report them, one oddity a path: parts, digest authentication, snapshots, HLS."""

import hashlib
import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

FPS = 20
USER, PASSWORD = "admin", "pa ss@#%/:?"
_HEAD = "Content-Type: multipart/x-mixed-replace; boundary=f"


class OddCamera:
    """Serves while its `with` block runs. `requests`: paths and headers so far."""

    def __init__(self, jpegs: list[bytes], folder: Path | None = None) -> None:
        self.jpegs = jpegs
        self.folder = folder
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.etag: str | None = None
        self.statuses: Iterator[int] = iter(())  # of the next snapshots
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                camera.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                with suppress(OSError):  # the reader has enough
                    camera._serve(self)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{path}"

    def _serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        kind, _, rest = urlsplit(request.path).path.strip("/").partition("/")
        if kind == "digest":
            if self._admits(request, unquote(rest)):
                self._play(request, _HEAD, PARTS["plain"])
        elif kind == "redirect":
            _answer(request, 302, f"Location: {rest}" if "://" in rest else f"Location: /{rest}?token=1")
        elif kind == "asks":
            _answer(request, 401, f"WWW-Authenticate: {unquote(rest)}")
        elif kind == "snap.jpg":
            self._snapshot(request)
        elif kind == "hls" and self.folder is not None:
            _answer(request, 200, "Content-Type: application/octet-stream", body=(self.folder / rest).read_bytes())
        elif kind == "bare":
            self._play(request, "Content-Type: image/jpeg", lambda jpeg: jpeg)
        elif kind == "no-boundary":
            self._play(request, "Content-Type: multipart/x-mixed-replace", PARTS["plain"])
        elif kind == "no-initial":
            self._play(request, _HEAD, lambda jpeg: PARTS["plain"](jpeg).removeprefix(b"--f\r\n") + b"--f\r\n")
        elif kind == "preamble":
            self._play(request, _HEAD, PARTS["plain"], first=b"This is a multipart message\r\n\r\n")
        elif kind in PARTS:
            self._play(request, _HEAD, PARTS[kind])
        else:
            _answer(request, 404)

    def _play(
        self,
        request: http.server.BaseHTTPRequestHandler,
        head: str,
        part: Callable[[bytes], bytes],
        first: bytes = b"",
    ) -> None:
        _answer(request, 200, head, length=False, body=first)
        began = time.monotonic()
        for number in range(600):
            request.wfile.write(part(self.jpegs[number % len(self.jpegs)]))
            time.sleep(max(0.0, began + (number + 1) / FPS - time.monotonic()))

    def _snapshot(self, request: http.server.BaseHTTPRequestHandler) -> None:
        status = next(self.statuses, 200)
        if status == 200 and self.etag is not None and request.headers.get("If-None-Match") == self.etag:
            status = 304
        tag = [] if self.etag is None else [f"ETag: {self.etag}"]
        body = self.jpegs[len(self.requests) % len(self.jpegs)] if status == 200 else b""
        _answer(request, status, "Content-Type: image/jpeg", *tag, body=body)

    def _admits(self, request: http.server.BaseHTTPRequestHandler, algorithm: str) -> bool:
        """RFC 7616, by its letter."""
        given = dict(re.findall(r'(\w+)="?([^",]*)"?', request.headers.get("Authorization", "")))
        make = {"sha-256": hashlib.sha256}.get(algorithm.lower().removesuffix("-sess"), hashlib.md5)

        def digest(*words: str) -> str:
            return make(":".join(words).encode()).hexdigest()

        secret = digest(USER, "cam", PASSWORD)
        if algorithm.lower().endswith("-sess"):
            secret = digest(secret, "n1", given.get("cnonce", ""))
        fields = [given.get(name, "") for name in ("nonce", "nc", "cnonce", "qop")]
        if given and given.get("response") == digest(secret, *fields, digest("GET", given.get("uri", ""))):
            return True
        _answer(request, 401, f'WWW-Authenticate: Digest realm="cam", nonce="n1", qop="auth", algorithm={algorithm}')
        return False


def _answer(
    request: http.server.BaseHTTPRequestHandler, status: int, *lines: str, body: bytes = b"", length: bool = True
) -> None:
    if length:
        lines = (*lines, f"Content-Length: {len(body)}")
    request.wfile.write("\r\n".join((f"HTTP/1.1 {status} x", *lines, "", "")).encode() + body)
    request.close_connection = True


def _part(jpeg: bytes, *headers: str) -> bytes:
    return "".join(f"{line}\r\n" for line in ("--f", *headers)).encode() + b"\r\n" + jpeg + b"\r\n"


PARTS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda jpeg: _part(jpeg, "Content-Type: image/jpeg", f"Content-Length: {len(jpeg)}"),
    "jpg": lambda jpeg: _part(jpeg, "Content-Type: image/jpg", f"Content-Length: {len(jpeg)}"),
    "charset": lambda jpeg: _part(jpeg, "content-type: image/jpeg; charset=utf-8", f"content-length: {len(jpeg)}"),
    "no-type": lambda jpeg: _part(jpeg, f"Content-Length: {len(jpeg)}"),
    "no-length": lambda jpeg: _part(jpeg, "Content-Type: image/jpeg"),
    "nothing": _part,
    "no-length-0": lambda jpeg: _part(jpeg, "Content-Length: 0"),
    "too-short": lambda jpeg: _part(jpeg, f"Content-Length: {len(jpeg) - 100}"),
    "much-too-long": lambda jpeg: _part(jpeg, "Content-Type: image/jpeg", "Content-Length: 9999999"),
    "too-long": lambda jpeg: _part(jpeg, f"Content-Length: {len(jpeg) + 100}"),
    "line-feeds": lambda jpeg: _part(b"", "Content-Type: image/jpeg").replace(b"\r", b"")[:-1] + jpeg + b"\n",
}
