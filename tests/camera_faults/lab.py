"""The harness's side of its cameras: starts their processes, sends them commands, freezes them. Judges nothing."""

import json
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.camera_faults.cameras import USER

ROOT: Final = Path(__file__).parents[2]
ANSWER_WITHIN: Final = 10.0  # seconds
PASSWORD: Final = "right-one"


class Process:
    """One process of cameras."""

    def __init__(self, cameras: Sequence[dict[str, str]]) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.camera_faults.cameras", json.dumps(list(cameras))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def ports(self) -> dict[str, int]:
        """Where its cameras listen; they do from now on."""
        return {str(name): int(port) for name, port in self._answer()["ports"].items()}

    def tell(self, camera: str, do: str, **how: object) -> dict[str, Any]:
        """Let a camera do it; return its answer, with the moment `at` which it was done, in Unix seconds."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"camera": camera, "do": do, **how}) + "\n")
            self._process.stdin.flush()
            return self._answer()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=ANSWER_WITHIN)

    def _answer(self) -> dict[str, Any]:
        """A line that it has written whole or not at all, so that waiting for its first byte bounds the wait."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_WITHIN)
        line = self._process.stdout.readline() if ready else ""
        assert line, f"a process of cameras {'has ended' if ready else 'does not answer'}"
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(slots=True)
class LabCamera:
    """One camera as the harness holds it. `process` is its own where it may be frozen."""

    name: str
    process: Process
    port: int

    @property
    def url(self) -> str:
        return f"rtsp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/cam"

    def tell(self, do: str, **how: object) -> dict[str, Any]:
        return self.process.tell(self.name, do, **how)


@dataclass(slots=True)
class Lab:
    """All cameras of a run, by name."""

    cameras: dict[str, LabCamera] = field(default_factory=dict)

    def settings(self, fps: float, **more: object) -> str:
        """The value of COATSTREAM_CAMERAS that lists them."""
        return json.dumps(
            [{"name": camera.name, "url": camera.url, "fps": fps, **more} for camera in self.cameras.values()]
        )

    def tell_all(self, do: str, **how: object) -> None:
        for camera in self.cameras.values():
            camera.tell(do, **how)


@contextmanager
def running_lab(number: int, *, each_alone: bool = False, clip: str = "cam320") -> Iterator[Lab]:
    """`number` cameras, cam-1 and on; each in a process of its own, or ten to a process."""
    together = 1 if each_alone else 10
    names = [f"cam-{n + 1}" for n in range(number)]
    with ExitStack() as stack:
        groups = [names[first : first + together] for first in range(0, number, together)]
        processes = []
        for group in groups:  # all are started before one is waited for
            process = Process([{"name": name, "password": PASSWORD, "clip": clip} for name in group])
            stack.callback(process.close)
            processes.append(process)
        lab = Lab()
        for process in processes:
            for name, port in process.ports().items():
                lab.cameras[name] = LabCamera(name, process, port)
        yield lab
