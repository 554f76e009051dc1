"""What works, what does not, since when and why. Readiness and health are computed from it; it decides nothing.

Set from any thread, read by the web.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from coatstream.errors import DownReason

State = Literal["connecting", "live", "stalled", "down", "paused", "ended"]
STATES: tuple[State, ...] = get_args(State)
_COLD = "the model is not warm yet"


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One reader: a camera, a file, or `queue`.

    since     Unix seconds
    reason    why it is down
    message   the same as one line for a person
    reopened  how often it was lost
    """

    state: State
    since: float
    reason: DownReason | None = None
    message: str = ""
    reopened: int = 0


class Status:
    """The present condition of one worker.

    A worker is healthy while no batch or picture has been in hand for longer than `stall_after` seconds. Redis and
    cameras play no part: restarting the process would not mend them.
    """

    def __init__(
        self,
        *,
        stall_after: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stall_after = stall_after
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()  # guards all below
        self._loaded = self._warm = False
        self._reads = False
        self._draining = False
        self._redis_trouble = {"start": "not connected yet"}  # caller -> its last call's failure
        self._sources: dict[str, SourceStatus] = {}
        self._in_hand: dict[int, tuple[str, float]] = {}  # number -> what, monotonic seconds of its start
        self._taken = 0

    def loaded(self) -> None:
        """The model is loaded and warm."""
        with self._lock:
            self._loaded = True

    def warm(self) -> None:
        """The engine is warm and everything behind it runs."""
        with self._lock:
            self._loaded = self._warm = True

    def reading(self) -> None:
        """The first source is opened now: from here on there is something to drain."""
        with self._lock:
            self._reads = True

    @property
    def reads(self) -> bool:
        """Whether any source was opened."""
        with self._lock:
            return self._reads

    def draining(self) -> None:
        with self._lock:
            self._draining = True

    def redis_up(self, caller: str) -> bool:
        """A call of `caller` went through. True if that was the last one in trouble."""
        with self._lock:
            known = self._redis_trouble.pop(caller, None)
            return known is not None and not self._redis_trouble

    def redis_down(self, caller: str, reason: str) -> bool:
        """A call of `caller` failed: not ready until one of its calls goes through. True if no other was in trouble."""
        with self._lock:
            news = not self._redis_trouble
            self._redis_trouble[caller] = reason
            return news

    def source(self, name: str, state: State, reason: DownReason | None = None, message: str = "") -> bool:
        """A reader's state. True if that is news: a source that stays down for the same reason is none."""
        with self._lock:
            old = self._sources.get(name)
            news = old is None or (old.state, old.reason) != (state, reason)
            if not news and state != "down":
                return False
            since = self._clock() if news or old is None else old.since
            reopened = (old.reopened if old else 0) + (state == "down")
            self._sources[name] = SourceStatus(state, since, reason, message, reopened)
        return news

    def forget(self, name: str) -> None:
        """A reader that this worker reads no longer."""
        with self._lock:
            self._sources.pop(name, None)

    @contextmanager
    def at_work(self, what: str) -> Iterator[None]:
        """While something is in hand that could hang: "a batch", "a picture"."""
        with self._lock:
            self._taken += 1
            number = self._taken
            self._in_hand[number] = (what, self._monotonic())
        try:
            yield
        finally:
            with self._lock:
                del self._in_hand[number]

    def sources(self) -> dict[str, SourceStatus]:
        with self._lock:
            return dict(self._sources)

    def redis_is_up(self) -> bool:
        with self._lock:
            return not self._redis_trouble

    def unstarted_because(self) -> list[str]:
        """Why the worker cannot classify yet; empty = the model is loaded and warm, and stays so."""
        with self._lock:
            return [] if self._loaded else [_COLD]

    def unready_because(self) -> list[str]:
        """Why no work should be expected of this worker now; empty = ready."""
        with self._lock:
            reasons = [] if self._warm else ["nothing is read yet" if self._loaded else _COLD]
            reasons += [f"Redis: {reason}" for reason in sorted(set(self._redis_trouble.values()))]
            if self._draining:
                reasons.append("draining")
        return reasons + self.unhealthy_because()  # a label is not to be expected of an engine that hangs

    def unhealthy_because(self) -> list[str]:
        """Why this process should be restarted; empty = healthy."""
        with self._lock:
            now = self._monotonic()
            ages = [(now - started, what) for what, started in self._in_hand.values()]
        return [
            f"{what} has been in hand for {age:.0f} s"
            for age, what in sorted(ages, reverse=True)
            if age > self._stall_after
        ]
