"""A process of RTSP cameras that are told what to do while they run: one JSON line on stdin, one answer on stdout.

`python -m tests.camera_faults.cameras '[{"name": "cam-1"}, ...]'`. All of them live on one event loop, so that thirty
cost little; one that a case freezes has a process of its own. It speaks the format of `tests.support.cameras.rtsp`.

    kill        every connection is reset, further ones are refused
    start       listen again, on the same port
    silence     connections live, requests are answered, no picture comes
    speak       pictures again
    password    this one from now on, and every connection is reset
    show        another clip from the next picture on, perhaps of another size
    spoil       a share `corrupt` of the packets is damaged, a share `drop` of them is lost
    sessions    how many clients play now, how many ever did, and the newest one's wait for a whole picture
"""

import asyncio
import base64
import json
import random
import re
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Final

from tests.support.cameras import rtsp

FOLDER: Final = Path(__file__).parent / "clips"
USER: Final = "admin"
_BEHIND: Final = 256 * 1024  # bytes that wait for a client; one that is slower loses pictures, as a camera does
_PORTS: Final = (20_000, 32_000)  # none that the system hands out itself: a port must be free when its camera returns


@dataclass(frozen=True)
class Clip:
    """`gop`: pictures from one that stands alone to the next."""

    path: Path
    fps: int
    gop: int

    @cached_property
    def pictures(self) -> list[rtsp.NalUnits]:
        pictures = rtsp.pictures_of(self.path.read_bytes())
        assert len(pictures) % self.gop == 0
        return pictures

    def sdp(self) -> str:
        sps, pps = (next(unit for unit in self.pictures[0] if unit[0] & 31 == kind) for kind in (7, 8))
        sets = f"{base64.b64encode(sps).decode()},{base64.b64encode(pps).decode()}"
        lines = (
            *("v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=test", "c=IN IP4 0.0.0.0", "t=0 0", "a=control:*"),
            *("m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000"),
            f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets};profile-level-id={sps[1:4].hex()}",
            *(f"a=framerate:{self.fps}", "a=control:track0"),
        )
        return "\r\n".join(lines) + "\r\n"


CLIPS: Final = {
    "cam320": Clip(rtsp.CLIP, 25, 25),
    "cam160": Clip(rtsp.SMALL_CLIP, 25, 25),  # another size
    "scenes": Clip(FOLDER / "scenes.h264", 25, 25),  # four seconds of a dark scene, four of a light one
}


@dataclass(slots=True)
class Camera:
    """One camera. Its clip runs for ever, with or without a client."""

    name: str
    password: str = ""
    clip: str = "cam320"
    port: int = 0
    silent: bool = False
    corrupt: float = 0.0
    drop: float = 0.0
    opened: int = 0
    playing: int = 0
    wait: float = 0.0  # seconds from the newest client's PLAY to its first picture
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    began: float = field(default_factory=time.monotonic)
    base: int = 0  # the number of the picture at which the clip began
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        """Listen. The first time on any free port, later on the same."""
        for _ in range(1 if self.port else 50):
            port = self.port or random.SystemRandom().randint(*_PORTS)
            try:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, reuse_address=True)
            except OSError:
                if self.port:
                    raise
            else:
                self.port = port
                return
        raise OSError(f"no free port for {self.name}")

    def show(self, clip: str) -> None:
        """This clip from its first picture on, which stands alone: so does a camera whose size is changed."""
        assert CLIPS[clip].fps == CLIPS[self.clip].fps
        self.clip, self.base = clip, self._now() + 1

    def say_pictures(self, *, wanted: bool) -> None:
        self.silent = not wanted

    def change_password(self, password: str) -> None:
        """Clients that are connected must connect again."""
        self.password = password
        self.reset()

    def spoil(self, corrupt: float, drop: float) -> None:
        self.corrupt, self.drop = corrupt, drop

    def _now(self) -> int:
        """The number of the picture in front of the lens."""
        return int((time.monotonic() - self.began) * CLIPS[self.clip].fps)

    def kill(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> None:
        """Break every connection, as a power failure does: with RST."""
        for writer in list(self._writers):
            known = writer.get_extra_info("socket")
            with suppress(OSError):
                known.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        player: asyncio.Task[None] | None = None
        try:
            while (request := await _request(reader)) is not None:
                status, headers, body = self._answer(request)
                told = {"CSeq": request.headers.get("cseq", "0"), **headers, "Content-Length": str(len(body))}
                head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
                writer.write(f"RTSP/1.0 {status}\r\n{head}\r\n{body}".encode())
                if request.method == "TEARDOWN":
                    break
                if request.method == "PLAY" and player is None and status.startswith("200"):
                    player = asyncio.create_task(self._play(writer))
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass  # the client is gone
        finally:
            if player is not None:
                player.cancel()
            self._writers.discard(writer)
            writer.transport.abort()

    def _answer(self, request: rtsp.Request) -> tuple[str, dict[str, str], str]:
        match request.method:
            case "OPTIONS":
                return "200 OK", {"Public": "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"}, ""
            case _ if not self._admits(request):
                return "401 Unauthorized", {"WWW-Authenticate": f'Digest realm="test", nonce="{self.nonce}"'}, ""
            case "DESCRIBE":
                return (
                    "200 OK",
                    {"Content-Type": "application/sdp", "Content-Base": f"{request.url}/"},
                    CLIPS[self.clip].sdp(),
                )
            case "SETUP" if "TCP" not in request.headers.get("transport", ""):
                return "461 Unsupported Transport", {}, ""
            case "SETUP":
                return "200 OK", {"Session": "1", "Transport": "RTP/AVP/TCP;unicast;interleaved=0-1"}, ""
            case _:
                return "200 OK", {"Session": "1"}, ""

    def _admits(self, request: rtsp.Request) -> bool:
        if not self.password:
            return True
        fields = dict(re.findall(r'(\w+)="([^"]*)"', request.headers.get("authorization", "")))
        user, what = rtsp.md5(f"{USER}:test:{self.password}"), rtsp.md5(f"{request.method}:{fields.get('uri')}")
        return fields.get("response") == rtsp.md5(f"{user}:{self.nonce}:{what}")

    async def _play(self, writer: asyncio.StreamWriter) -> None:
        """What is in front of the lens, from the next whole picture on."""
        self.opened += 1
        self.playing += 1
        sequence, whole = count(), True  # whole: no picture was left out since the last one that stands alone
        try:
            clip = CLIPS[self.clip]
            first = self.base + ((self._now() - self.base) // clip.gop + 1) * clip.gop
            self.wait = self.began + first / clip.fps - time.monotonic()
            for number in count(first):
                await asyncio.sleep(max(0.0, self.began + number / clip.fps - time.monotonic()))
                if writer.transport.is_closing():
                    return
                whole = (whole and not self.silent) or (number - self.base) % clip.gop == 0
                if whole and not self.silent and writer.transport.get_write_buffer_size() < _BEHIND:
                    self._send(writer, number, sequence)
        except OSError:
            pass
        finally:
            self.playing -= 1

    def _send(self, writer: asyncio.StreamWriter, number: int, sequence: "count[int]") -> None:
        clip = CLIPS[self.clip]
        picture = clip.pictures[(number - self.base) % len(clip.pictures)]
        for packet in rtsp.packets(picture, number * 90_000 // clip.fps, sequence):
            if self.rng.random() >= self.drop:
                sent = rtsp.damaged(packet, self.rng, self.corrupt)
                writer.write(b"$\x00" + struct.pack("!H", len(sent)) + sent)


async def _request(reader: asyncio.StreamReader) -> rtsp.Request | None:
    """The next request, or None when the client has left; the receiver reports between requests are skipped."""
    while first := await reader.read(1):
        if first == b"$":
            await reader.readexactly(struct.unpack("!BH", await reader.readexactly(3))[1])
            continue
        method, url, _ = (first + await reader.readline()).decode().split(" ", 2)
        headers = {}
        while line := (await reader.readline()).decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return rtsp.Request(method, url.rstrip("/"), headers)
    return None


async def _obey(camera: Camera, do: str, told: dict[str, Any]) -> None:
    actions: dict[str, Callable[[], None]] = {
        "kill": camera.kill,
        "silence": lambda: camera.say_pictures(wanted=False),
        "speak": lambda: camera.say_pictures(wanted=True),
        "password": lambda: camera.change_password(told["password"]),
        "show": lambda: camera.show(told["clip"]),
        "spoil": lambda: camera.spoil(told["corrupt"], told["drop"]),
        "sessions": lambda: None,
    }
    if do == "start":
        await camera.start()
    else:
        actions[do]()


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _main(cameras: dict[str, Camera]) -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    told = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    for camera in cameras.values():
        await camera.start()
    _say({"ports": {camera.name: camera.port for camera in cameras.values()}})
    while line := await told.readline():
        command = json.loads(line)
        camera = cameras[command["camera"]]
        await _obey(camera, command["do"], command)
        _say({"at": time.time(), "playing": camera.playing, "opened": camera.opened, "wait": camera.wait})


if __name__ == "__main__":
    asyncio.run(_main({one["name"]: Camera(**one) for one in json.loads(sys.argv[1])}))
