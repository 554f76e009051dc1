"""A process that reads cameras one after the other and overhears FFmpeg, as a camera's own process does.

OpenCV decides once in a process whether FFmpeg may speak: not in that of the tests.
"""

import json
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Self

from coatstream.cameras.capture.camera import Camera
from coatstream.errors import SourceLost
from coatstream.frames.frame import Frame
from coatstream.frames.opencv import overheard
from coatstream.settings.model import CameraSettings

from tests.support.paths import ROOT


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of reading one camera.

    lost    what it was lost with: the reason and the words, or None
    """

    sizes: list[list[int]]  # of the frames
    damage: int
    steps: list[str]
    reason: str | None = None
    words: str | None = None


class Hearing:
    """The process, while its `with` block runs. `said` is all that it wrote to its stdout and stderr otherwise."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.cameras.hearing"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, url: str, count: int = 1, **settings: Any) -> Heard:
        """Up to `count` frames of a camera."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"name": "door", "url": url, "fps": 0, "open_timeout": 5.0, "read_timeout": 2.0} | settings
        self._process.stdin.write(json.dumps([order, count], default=str) + "\n")
        self._process.stdin.flush()
        return Heard(**json.loads(self._process.stdout.readline()))

    def rest(self) -> str:
        """All that it said besides; it ends."""
        return "".join(self._process.communicate())


def _read(settings: dict[str, Any], count: int, overheard: Any) -> Heard:
    steps: list[str] = []
    camera = Camera(
        CameraSettings(**settings), prepare=lambda picture: picture, overheard=overheard, on_step=steps.append
    )
    frames: list[Frame] = []
    lost: SourceLost | None = None
    with closing(camera.frames(threading.Event())) as source:
        try:
            frames.extend(islice(source, count))
        except SourceLost as loss:
            lost = loss
    vitals = [frame.vitals for frame in frames if frame.vitals is not None]
    return Heard(
        sizes=[[frame.width, frame.height] for frame in frames],
        damage=sum(one.damage for one in vitals),
        steps=steps,
        reason=lost.reason if lost else None,
        words=str(lost) if lost else None,
    )


def _main() -> None:
    with overheard() as words:
        for line in sys.stdin:
            settings, count = json.loads(line)
            print(json.dumps(asdict(_read(settings, count, words))), flush=True)


if __name__ == "__main__":
    _main()
