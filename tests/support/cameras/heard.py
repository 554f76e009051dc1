"""What comes of reading one camera: its frames' sizes, its steps, and what it was lost with."""

import threading
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from coatstream.cameras.capture.camera import Camera
from coatstream.cameras.capture.steps import Step
from coatstream.errors import BadFrame, DownReason, SourceLost
from coatstream.frames.frame import Frame, Pixels
from coatstream.settings.model import CameraSettings


@dataclass(slots=True)
class Heard:
    """Everything that a camera told, as its observer.

    by_cpu          hardware was to decode, and there was none
    reason, words   what it was lost with, or None
    """

    frames: list[Frame] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    bads: list[BadFrame] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    pictures: int = 0
    damage: int = 0
    by_cpu: bool = False
    reason: DownReason | None = None
    words: str | None = None

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(frame.width, frame.height) for frame in self.frames]

    @property
    def marked(self) -> int:
        """Damage that the frames themselves tell."""
        return sum(frame.vitals.damage for frame in self.frames if frame.vitals is not None)

    def step(self, step: Step) -> None:
        self.steps.append(step)

    def grabbed(self) -> None:
        self.pictures += 1

    def observe(self, stage: str, seconds: float) -> None:
        assert seconds >= 0
        self.stages.append(stage)

    def bad(self, bad: BadFrame) -> None:
        self.bads.append(bad)

    def picture(self, frame: Frame, picture: Pixels) -> None: ...

    def damaged(self, count: int) -> None:
        self.damage += count

    def software(self) -> None:
        self.by_cpu = True


def hear(url: object, count: int | None = 1, **settings: Any) -> Heard:
    """Read up to `count` frames of a camera, or all of them."""
    heard = Heard()
    defaults = {"name": "door", "url": str(url), "fps": 0, "open_timeout": 5.0, "read_timeout": 2.0}
    camera = Camera(CameraSettings.model_validate(defaults | settings), prepare=lambda picture: picture, observer=heard)
    with closing(camera.frames(threading.Event())) as frames:
        try:
            heard.frames.extend(islice(frames, count))
        except SourceLost as loss:
            heard.reason, heard.words = loss.reason, str(loss)
    return heard
