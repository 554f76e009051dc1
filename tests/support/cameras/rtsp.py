"""An RTSP camera for tests: RTSP 1.0, RTP over TCP (interleaved) or UDP, H.264 by RFC 6184, Basic or Digest.

Plays cam320.h264 for ever: 320 x 240, 25 frames/s, a key frame each second, 250 frames, their number in the top row.
It keeps playing without a client, as a camera does, so a client that lags is seen to lag. A client spends the first
second on learning the format. Faults by query:

    ?hang=S     no more pictures after S seconds of them, the connection stays
    ?die=S      the connection breaks off after S seconds of pictures
    ?drop=P     a share P of the packets is lost
    ?corrupt=P  a share P of the packets is damaged
    ?nosdp=1    no parameter sets in the SDP
    ?audio=1    the SDP offers sound, and no video

Faults of the whole camera, at any time: `RtspCamera.faults`. As a process that can be stopped and killed, and told
its faults: `RtspProcess`.
"""

import base64
import hashlib
import itertools
import random
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import BinaryIO, Literal, Self
from urllib.parse import parse_qs, urlsplit

from coatstream.frames.frame import Pixels

from tests.support.cameras.listener import Listener

CLIP = Path(__file__).with_name("cam320.h264")
SMALL_CLIP = Path(__file__).with_name("cam160.h264")  # 160 x 128, 100 frames, else the same
FPS = 25
LENGTH = 250  # frames until the numbers begin anew
_PACKET = 1400  # bytes of payload
_SLICE, _KEY, _SPS, _PPS = 1, 5, 7, 8  # types of NAL units

NalUnits = list[bytes]


def number_of(pixels: Pixels) -> int:
    """The frame's number, read back from the 16 light or dark blocks of its top row."""
    height, width = pixels.shape[:2]
    block = width // 16
    return sum(1 << bit for bit in range(16) if pixels[height // 16, bit * block + block // 2, 1] > 125)


@dataclass(frozen=True, slots=True)
class Request:
    """One RTSP request. Faults are the numbers of its query."""

    method: str
    url: str
    headers: dict[str, str]

    @property
    def faults(self) -> dict[str, float]:
        query = urlsplit(self.url).query.rstrip("/")  # clients put "/" and the track after the whole base URL
        return {name: float(values[0].partition("/")[0]) for name, values in parse_qs(query).items()}


@dataclass(slots=True)
class Faults:
    """What is wrong with the camera now. Set by tests, read by every connection's threads.

    frozen         no pictures, the connections stay
    silent         requests are not answered
    small          the pictures have another size, from the next key frame on
    corrupt, drop  shares of the packets
    status         every DESCRIBE is answered with this, if any
    """

    frozen: bool = False
    silent: bool = False
    small: bool = False
    corrupt: float = 0.0
    drop: float = 0.0
    status: str = ""


class Wire:
    """The sending side of a connection, shared by the thread that answers and the one that plays."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._datagrams: socket.socket | None = None

    def send_datagrams(self, port: int) -> int:
        """Packets go to this port of the client from now on; the port that they come from."""
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.connect((self._connection.getpeername()[0], port))
        return int(self._datagrams.getsockname()[1])

    def close(self) -> None:
        if self._datagrams is not None:
            self._datagrams.close()

    def reply(self, request: Request, status: str, headers: dict[str, str], body: str) -> None:
        headers = {"CSeq": request.headers["cseq"], **headers, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._send(f"RTSP/1.0 {status}\r\n{head}\r\n{body}".encode())

    def packet(self, packet: bytes) -> None:
        if self._datagrams is not None:
            self._datagrams.send(packet)
        else:
            self._send(b"$\x00" + struct.pack("!H", len(packet)) + packet)

    def cut(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._connection.sendall(data)


class RtspCamera:
    """Serves rtsp://127.0.0.1:<port>/cam while its `with` block runs. A silent one takes connections, never answers.

    hung      set while a client waits in vain because of ?hang
    faults    what is wrong with it, at any time
    password  may be changed at any time
    """

    def __init__(
        self,
        *,
        user: str | None = None,
        password: str = "",
        scheme: Literal["basic", "digest"] = "digest",
        silent: bool = False,
        fps: float = FPS,
        tls: SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.hung = threading.Event()
        self.faults = Faults(silent=silent)
        self.password = password
        self._user = user
        self._scheme = scheme
        self._fps = fps
        self._tls = tls
        self._nonce = secrets.token_hex(8)
        self._listener = Listener(self._serve, tls=tls, port=port)
        self._pictures = pictures_of(CLIP.read_bytes())
        self._small = pictures_of(SMALL_CLIP.read_bytes())
        self._started = time.monotonic() - 0.8  # so that a test's first key frame is near

    def __enter__(self) -> Self:
        self._listener.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Die at once, as when the power fails. May be called twice."""
        self._listener.close()

    @property
    def port(self) -> int:
        return self._listener.port

    def hang_up(self) -> None:
        """Break off every connection; new ones are taken."""
        self._listener.hang_up()

    def url(self, query: str = "", *, credentials: str = "") -> str:
        scheme = "rtsps" if self._tls else "rtsp"
        return f"{scheme}://{credentials and credentials + '@'}127.0.0.1:{self._listener.port}/cam{query}"

    @property
    def now_showing(self) -> int:
        """The number of the frame that is in front of the lens."""
        return int((time.monotonic() - self._started) * self._fps) % LENGTH

    def _serve(self, connection: socket.socket, closing: threading.Event) -> None:
        wire = Wire(connection)
        with connection.makefile("rb") as stream:
            for request in _requests(stream):
                if self.faults.silent:
                    continue
                wire.reply(request, *self._answer(request, wire))
                if request.method == "TEARDOWN":
                    return
                if request.method == "PLAY":
                    threading.Thread(target=self._play, args=(wire, request.faults, closing), daemon=True).start()

    def _answer(self, request: Request, wire: Wire) -> tuple[str, dict[str, str], str]:
        """Status, headers and body."""
        if request.method == "OPTIONS":
            return "200 OK", {"Public": "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"}, ""
        if not self._admits(request):
            nonce = f', nonce="{self._nonce}"' if self._scheme == "digest" else ""
            return "401 Unauthorized", {"WWW-Authenticate": f'{self._scheme.title()} realm="test"{nonce}'}, ""
        if not urlsplit(request.url).path.startswith("/cam"):
            return "404 Not Found", {}, ""
        match request.method:
            case "DESCRIBE" if self.faults.status:
                return self.faults.status, {}, ""
            case "DESCRIBE":
                headers = {"Content-Type": "application/sdp", "Content-Base": f"{request.url}/"}
                return "200 OK", headers, self._sdp(request.faults)
            case "SETUP" if "TCP" not in request.headers["transport"]:
                client = re.search(r"client_port=(\d+)", request.headers["transport"])
                if client is None:
                    return "461 Unsupported Transport", {}, ""
                port = wire.send_datagrams(int(client[1]))
                ports = f"client_port={client[1]}-{int(client[1]) + 1};server_port={port}-{port + 1}"
                return "200 OK", {"Session": "1", "Transport": f"RTP/AVP;unicast;{ports}"}, ""
            case "SETUP":
                return "200 OK", {"Session": "1", "Transport": "RTP/AVP/TCP;unicast;interleaved=0-1"}, ""
            case _:
                return "200 OK", {"Session": "1"}, ""

    def _admits(self, request: Request) -> bool:
        if self._user is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != self._scheme:
            return False
        if self._scheme == "basic":
            return base64.b64decode(given).decode() == f"{self._user}:{self.password}"
        fields = dict(re.findall(r'(\w+)="([^"]*)"', given))
        user, resource = md5(f"{self._user}:test:{self.password}"), md5(f"{request.method}:{fields.get('uri')}")
        return fields.get("response") == md5(f"{user}:{self._nonce}:{resource}")

    def _sdp(self, faults: dict[str, float]) -> str:
        sps, pps = (next(u for u in self._pictures[0] if _type(u) == wanted) for wanted in (_SPS, _PPS))
        sets = f"{base64.b64encode(sps).decode()},{base64.b64encode(pps).decode()}"
        sets = "" if "nosdp" in faults else f";sprop-parameter-sets={sets};profile-level-id={sps[1:4].hex()}"
        video = (
            "m=video 0 RTP/AVP 96",
            "a=rtpmap:96 H264/90000",
            f"a=fmtp:96 packetization-mode=1{sets}",
            f"a=framerate:{self._fps:g}",
        )
        lines = (
            "v=0",
            "o=- 1 1 IN IP4 127.0.0.1",
            "s=test",
            "c=IN IP4 0.0.0.0",
            "t=0 0",
            "a=control:*",
            *(("m=audio 0 RTP/AVP 0",) if "audio" in faults else video),
            "a=control:track0",
        )
        return "\r\n".join(lines) + "\r\n"

    def _play(self, wire: Wire, faults: dict[str, float], closing: threading.Event) -> None:
        """Send what is in front of the lens, from the next key frame on, until the client leaves."""
        chance, sequence = random.Random(1), itertools.count()
        first = int((time.monotonic() - self._started) * self._fps) // FPS * FPS + FPS
        clip = self._clip()
        waits_for_key = False
        try:
            for n in itertools.count(first):
                if closing.wait(max(0.0, self._started + n / self._fps - time.monotonic())):
                    return
                played = (n - first) / self._fps
                if played > faults.get("die", played):
                    wire.cut()
                if played > faults.get("hang", played):
                    self.hung.set()
                    closing.wait()
                if n % FPS == 0:  # a key frame of either clip
                    clip, waits_for_key = self._clip(), False
                waits_for_key |= self.faults.frozen
                if not waits_for_key:
                    self._send(wire, packets(clip[n % len(clip)], n * 90_000 // FPS, sequence), chance, faults)
        except OSError:
            return
        finally:
            wire.close()

    def _clip(self) -> list[NalUnits]:
        return self._small if self.faults.small else self._pictures

    def _send(self, wire: Wire, packets: Iterator[bytes], chance: random.Random, faults: dict[str, float]) -> None:
        for packet in packets:
            if chance.random() >= max(self.faults.drop, faults.get("drop", 0)):
                wire.packet(damaged(packet, chance, max(self.faults.corrupt, faults.get("corrupt", 0))))


class RtspProcess:
    """An RtspCamera in a process of its own while its `with` block runs: to be stopped, killed and started again.

    Its port stays the same. `tell` sets a fault as in `Faults` (or `password`), or hangs up.
    """

    def __init__(self, *options: str) -> None:
        self.port = 0
        self._options = options

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Up when this returns. Not while it runs."""
        command = [sys.executable, "-m", "tests.support.cameras.rtsp", f"--port={self.port}", *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def freeze(self) -> None:
        """Stop the whole process: its connections stay, and are dead."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def tell(self, name: str, value: object = "") -> None:
        """At once, and without an answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {value}\n")
        self._process.stdin.flush()

    def url(self, query: str = "", *, credentials: str = "") -> str:
        return f"rtsp://{credentials and credentials + '@'}127.0.0.1:{self.port}/cam{query}"


def _requests(stream: BinaryIO) -> Iterator[Request]:
    """Requests until the client closes; the receiver reports that it sends between them are skipped."""
    while first := stream.read(1):
        if first == b"$":
            stream.read(struct.unpack("!BH", stream.read(3))[1])
            continue
        method, url, _ = (first + stream.readline()).decode().split(" ", 2)
        headers = {}
        while line := stream.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        yield Request(method, url.rstrip("/"), headers)


def pictures_of(stream: bytes) -> list[NalUnits]:
    """An Annex B stream, cut into pictures of one slice each with the parameter sets before it."""
    pictures: list[NalUnits] = []
    current: NalUnits = []
    for unit in (piece.rstrip(b"\x00") for piece in stream.split(b"\x00\x00\x01")[1:]):
        if _type(unit) in (_SLICE, _KEY, _SPS, _PPS):
            current.append(unit)
        if _type(unit) in (_SLICE, _KEY):
            pictures.append(current)
            current = []
    return pictures


def _type(unit: bytes) -> int:
    return unit[0] & 31


def packets(picture: NalUnits, timestamp: int, sequence: Iterator[int]) -> Iterator[bytes]:
    """RTP packets of one picture; the last one is marked."""
    payloads = [payload for unit in picture for payload in _payloads(unit)]
    for left, payload in zip(range(len(payloads) - 1, -1, -1), payloads, strict=True):
        marked = 96 if left else 96 | 0x80
        yield struct.pack("!BBHII", 0x80, marked, next(sequence) & 0xFFFF, timestamp & 0xFFFFFFFF, 1) + payload


def _payloads(unit: bytes) -> Iterator[bytes]:
    """A NAL unit whole, or in fragments of type FU-A (RFC 6184, 5.8)."""
    if len(unit) <= _PACKET:
        yield unit
        return
    indicator, kind, body = (unit[0] & 0x60) | 28, unit[0] & 31, unit[1:]
    for at in range(0, len(body), _PACKET - 2):
        first, last = at == 0, at + _PACKET - 2 >= len(body)
        yield bytes([indicator, kind | first << 7 | last << 6]) + body[at : at + _PACKET - 2]


def damaged(packet: bytes, chance: random.Random, share: float) -> bytes:
    if len(packet) <= 60 or chance.random() >= share:
        return packet
    damaged = bytearray(packet)
    for _ in range(8):
        damaged[chance.randrange(20, len(damaged))] ^= chance.randrange(1, 255)
    return bytes(damaged)


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()  # what Digest asks for (RFC 2617)


def _main() -> None:
    """`python -m tests.support.cameras.rtsp [--port=N] [--fps=F] ...`: prints its port, then obeys."""
    options = dict(option.removeprefix("--").split("=", 1) for option in sys.argv[1:])
    user, password = options.get("user"), options.get("password", "")
    port, fps = int(options.get("port", 0)), float(options.get("fps", FPS))
    with RtspCamera(user=user, password=password, port=port, fps=fps) as camera:
        print(camera.port, flush=True)
        for line in sys.stdin:
            name, _, value = line.rstrip("\n").partition(" ")
            if name == "hang_up":
                camera.hang_up()
            elif name == "password":
                camera.password = value
            else:
                kind = type(getattr(camera.faults, name))
                setattr(camera.faults, name, kind(float(value)) if kind in (bool, float) else value)


if __name__ == "__main__":
    _main()
