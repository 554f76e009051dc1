"""When a source that was lost is opened again: waits that grow with losses, and shrink with good time."""

import random
import time
from collections.abc import Callable
from typing import Final

from coatstream.errors import RETRY, SLOW_RETRY, Backoff, DownReason, SourceLost

CAMERA: Final = Backoff(first=0.5, longest=30.0)
# A camera locks the account, or our address, for half an hour after some five wrong passwords in a few minutes.
LOCKED: Final = Backoff(first=5.0, longest=900.0)
STABLE_AFTER: Final = 60.0  # seconds after which the next loss of Redis counts as the first
GOOD: Final = 5.0  # seconds of pictures that make up for one loss: a camera that works mostly is up mostly
TRIES: Final = 8  # at least while a loss lasts no longer than the pictures before it did
MOST_LOSSES: Final = 7  # that count: with them a pause is as long as it gets
SETTLED_AFTER: Final = 5.0  # the same where only the size of the pictures has changed


class Reopening:
    """Of one source, used by the thread that reads it."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic, rng: random.Random | None = None) -> None:
        self._monotonic = monotonic
        self._rng = rng or random.Random()
        self._failures = 0
        self._denied = 0  # wrong passwords count by themselves: only they lock a camera, and their waits are long
        self._opened_at = self._showing_since = self._lost_at = monotonic()
        self._good = 0.0  # seconds of pictures before the last loss

    def opens(self) -> None:
        """The source is opened now."""
        self._opened_at = self._monotonic()

    def shows(self) -> None:
        """Its first frame is there."""
        self._showing_since = self._monotonic()

    def after(self, lost: SourceLost, *, read: int) -> float:
        """The source was lost after so many frames; the seconds until it is opened again."""
        now = self._monotonic()
        if self._was_well(lost, read, now - self._opened_at):
            self._failures = 0
        elif read:
            self._lost_at, self._good = now, now - self._showing_since
            self._failures = max(0, self._failures - int(self._good / GOOD))
        denied = lost.reason is DownReason.AUTH
        delay = self._delay(lost, self._denied if denied else self._failures)
        self._failures = min(self._failures + 1, MOST_LOSSES)
        self._denied = self._denied + 1 if denied else 0
        if not denied and now - self._lost_at < self._good >= GOOD:
            delay = min(delay, max(CAMERA.first, self._good / TRIES))
        return delay

    def _was_well(self, lost: SourceLost, read: int, lasted: float) -> bool:
        """A camera that shows one picture is not well yet, nor is a file whose tenth picture kills its decoder: it
        begins anew each time. Only the queue goes on where it was.
        """
        match lost.reason:
            case DownReason.REDIS:
                return read > 0 or lasted > STABLE_AFTER
            case DownReason.CHANGED:  # as often as it likes, but it must show something in between
                return read > 0 and lasted > SETTLED_AFTER
            case _:
                return False

    def _delay(self, lost: SourceLost, failures: int) -> float:
        match lost.reason:
            case DownReason.CHANGED if failures == 0:  # nothing is wrong with it
                return 0.0
            case DownReason.AUTH:
                backoff = LOCKED
            case _:
                backoff = RETRY if lost.reason is DownReason.REDIS else CAMERA
        return max(backoff.delay(failures, self._rng), SLOW_RETRY if lost.slow else 0.0)
