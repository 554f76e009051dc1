"""Who takes part: nine cameras of five kinds, and three producers of which each has its own bad habits."""

import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from coatstream.broker.connection import Client
from redis.exceptions import RedisError

from tests.camera_faults.lab import LabCamera, running_lab
from tests.faults.servers import Server
from tests.support.cameras.hls import HlsCamera
from tests.support.cameras.odd import OddCamera
from tests.support.pictures import CLIP, grey_jpeg, jpeg
from tests.support.threads import in_background

FPS: Final = 5
PICTURES: Final = [jpeg(320, 240), jpeg(640, 360), grey_jpeg(90)]
BROKEN: Final = [b"", b"no picture", PICTURES[0][: len(PICTURES[0]) // 2]]


@dataclass(slots=True)
class Cast:
    """`settings`: the value of COATSTREAM_CAMERAS. `rough`: the cameras that troubles may befall."""

    settings: str
    names: list[str]
    rough: list[LabCamera]


@contextmanager
def cameras(folder: Path) -> Iterator[Cast]:
    """Four over RTSP, two Motion JPEG, one HLS, a file that is played for ever, and a folder that grows."""
    with ExitStack() as stack:
        lab = stack.enter_context(running_lab(4, each_alone=True))
        odd = stack.enter_context(OddCamera([PICTURES[0], jpeg(320, 240)]))
        hls = stack.enter_context(HlsCamera())
        growing = folder / "growing"
        growing.mkdir()
        stop = threading.Event()
        stack.enter_context(in_background(lambda: _grow(growing, stop), stop=stop.set, name="folder"))
        every: list[dict[str, Any]] = json.loads(lab.settings(FPS))
        every += [
            {"name": "mjpeg-plain", "url": odd.url("plain"), "fps": FPS},
            {"name": "mjpeg-breaks", "url": odd.url("no-length"), "fps": FPS},
            {"name": "hls", "url": hls.url(), "fps": FPS},
            {"name": "loop", "url": str(CLIP), "fps": FPS, "realtime": True, "loop": True},
            {"name": "folder", "url": str(growing), "fps": FPS},
        ]
        yield Cast(json.dumps(every), [camera["name"] for camera in every], list(lab.cameras.values()))


def _grow(folder: Path, stop: threading.Event) -> None:
    """A picture a second, one in twenty broken; the newest hundred stay."""
    for number in itertools.count():
        new = folder / f"{number:08}.jpg"
        new.with_suffix(".part").write_bytes(BROKEN[1] if number % 20 == 7 else PICTURES[number % 3])
        new.with_suffix(".part").rename(new)
        (folder / f"{number - 100:08}.jpg").unlink(missing_ok=True)
        if stop.wait(1.0):
            return


@dataclass(slots=True)
class Producers:
    """They go on while the server is away, and do not try again what it may have taken. `sent`: entries accepted."""

    server: Server
    rate: float
    rng: random.Random
    sent: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        client = self.server.client()
        while not self.stop.wait(self.rng.expovariate(self.rate)):
            with suppress(RedisError, OSError):
                self._send(client)

    def _send(self, client: Client) -> None:
        """Uneven: one source of three sends most; some come in bursts, are broken, have expired, or belong to many."""
        for _ in range(20 if self.rng.random() < 0.02 else 1):
            source = self.rng.choices(["door", "gate", f"phone-{self.rng.randrange(300)}"], [6, 3, 1])[0]
            fields: dict[str, Any] = {"image": self.rng.choice(PICTURES), "source": source}
            if self.rng.random() < 0.03:
                fields["image"] = self.rng.choice(BROKEN)
            if self.rng.random() < 0.05:
                fields["expires_at"] = time.time() + self.rng.uniform(-1, 3)
            client.xadd("frames", fields)
            self.sent += 1
