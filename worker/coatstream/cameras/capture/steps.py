"""What a reader does now, and who is told of it."""

from enum import StrEnum
from typing import Protocol

from coatstream.errors import BadFrame
from coatstream.frames.frame import Frame, Pixels


class Step(StrEnum):
    """What the reader does now. Who watches it gives each step its own deadline."""

    RESOLVING = "resolving"  # its name becomes an address
    OPENING = "opening"
    WAITING = "waiting"  # open; no current picture yet
    READING = "reading"


class CaptureObserver(Protocol):
    """Told of all that happens while a camera is read, in the thread that reads it."""

    def step(self, step: Step) -> None:
        """The reader does something else now."""

    def grabbed(self) -> None:
        """A picture was read, taken or not."""

    def observe(self, stage: str, seconds: float) -> None:
        """CPU seconds of "decode" (of one taken picture and all those skipped before it) or "prepare"."""

    def picture(self, frame: Frame, picture: Pixels) -> None:
        """A frame was made of this picture, uint8 [height, width, 3] RGB of any size."""

    def bad(self, bad: BadFrame) -> None:
        """A picture was due and cannot be used."""

    def damaged(self, count: int) -> None:
        """So many more packets or pictures could not be decoded, or not in full."""

    def software(self) -> None:
        """Hardware was to decode, and there is none: the CPU does."""


class SilentObserver:
    """An observer that does nothing."""

    def step(self, step: Step) -> None: ...

    def grabbed(self) -> None: ...

    def observe(self, stage: str, seconds: float) -> None: ...

    def picture(self, frame: Frame, picture: Pixels) -> None: ...

    def bad(self, bad: BadFrame) -> None: ...

    def damaged(self, count: int) -> None: ...

    def software(self) -> None: ...
