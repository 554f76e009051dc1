"""What every way of reading has in common: one open source of pictures, and why it cannot be read."""

from dataclasses import dataclass
from typing import Protocol

from coatstream.errors import DownReason
from coatstream.frames.frame import Pixels


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a camera cannot be read: for the gauge, and for a person. The words never hold a URL."""

    reason: DownReason
    words: str


class Trouble(Exception):
    """A source is lost; only opening it again helps."""

    def __init__(self, reason: DownReason, words: str) -> None:
        super().__init__(words)
        self.reason = reason
        self.words = words

    @property
    def happened(self) -> str:
        return "stalled" if self.reason is DownReason.TIMEOUT else "was lost"


class NotOpened(Trouble):
    """A source cannot be opened."""

    happened = "cannot be opened"


class PictureReader(Protocol):
    """One open source of pictures, used by the one thread that opened it.

    bursts      its pictures come many at once, to be shown one after the other: HLS
    paced       its pictures come at the rate that was asked for, because it asks for each: they need no sampling
    grabbed     pictures so far
    damaged     of the pictures and packets so far: those that could not be decoded, or not in full
    keyframes   of the pictures so far: those that were coded whole
    software    hardware was to decode, and there is none: the CPU does
    media_time  seconds from the stream's first picture to the last one, by the stream's own clock
    period      seconds for which one picture is shown
    """

    bursts: bool
    paced: bool
    grabbed: int
    damaged: int
    software: bool

    @property
    def keyframes(self) -> int: ...

    @property
    def media_time(self) -> float: ...

    @property
    def period(self) -> float: ...

    def grab(self) -> bool:
        """Read on to the next picture. False: the stream has ended. Raises Trouble."""

    def retrieve(self) -> Pixels:
        """The picture that was grabbed last: uint8 [height, width, 3] RGB, upright, square pixels. Raises BadFrame."""

    def take_cost(self) -> float:
        """CPU seconds of this thread in decoding since the last call."""

    def close(self) -> None: ...


class Costs:
    """Damage and CPU time since the last call, for readers."""

    bursts = False
    paced = False

    def __init__(self) -> None:
        self.grabbed = 0
        self.damaged = 0
        self.software = False
        self._cost = 0.0

    @property
    def keyframes(self) -> int:
        """All, where each picture is coded by itself."""
        return self.grabbed

    def take_cost(self) -> float:
        """CPU seconds of this thread in decoding since the last call."""
        cost, self._cost = self._cost, 0.0
        return cost
