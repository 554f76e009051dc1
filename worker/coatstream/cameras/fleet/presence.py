"""What passes between the fleet's thread and all others: how the worker takes part, what has ended, what is reached."""

import threading
from collections.abc import Callable, Iterable, Mapping

from coatstream.cameras.fleet.leases import Mode
from coatstream.cameras.fleet.stats import FleetStats


class Presence:
    """Of one worker. Any thread may call; nothing blocks but `retire` and `leave`.

    wake      set whenever the fleet's thread has something to do
    finished  True once no camera will ever deliver again
    """

    def __init__(self) -> None:
        self.wake = threading.Event()
        self.finished = False
        self._retired, self._left = threading.Event(), threading.Event()
        self._lock = threading.Lock()  # guards all below
        self._mode: Mode = "stay"
        self._ended: dict[str, str] = {}  # camera -> digest of the settings under which it ended
        self._stats = FleetStats()

    # ---- for other threads

    def retire(self, within: float) -> bool:
        """Keep all cameras until other workers have opened them. Whether that was so in time."""
        self._become("leaving")
        return self._retired.wait(within)

    def leave(self, within: float) -> bool:
        """Give all cameras up at once. Whether Redis confirmed it in time."""
        self._become("gone")
        return self._left.wait(within)

    def ended(self, name: str, digest: str) -> None:
        """A camera with these settings has come to its own end."""
        with self._lock:
            self._ended[name] = digest
        self.wake.set()

    def stats(self) -> FleetStats:
        with self._lock:
            return self._stats

    def _become(self, mode: Mode) -> None:
        with self._lock:
            if self._mode != "gone":
                self._mode = mode
        self.wake.set()

    # ---- for the fleet's thread

    @property
    def mode(self) -> Mode:
        with self._lock:
            return self._mode

    @property
    def has_left(self) -> bool:
        return self._left.is_set()

    def has_ended(self, name: str, digest: str | None = None) -> bool:
        """Whether this camera has ended; with `digest`: under these settings."""
        with self._lock:
            return name in self._ended if digest is None else self._ended.get(name) == digest

    def ended_of(self, digests: Mapping[str, str]) -> frozenset[str]:
        """Which of these cameras have ended under their present settings."""
        with self._lock:
            return frozenset(name for name, digest in self._ended.items() if digests.get(name) == digest)

    def all_ended(self, names: Iterable[str]) -> bool:
        with self._lock:
            return all(name in self._ended for name in names)

    def retired(self) -> None:
        """No other worker is about to take a camera any more, or none can."""
        self._retired.set()

    def left(self) -> None:
        """Redis has confirmed that this worker is gone, or need not."""
        self._left.set()

    def report(self, stats: FleetStats, *, finished: bool, then: Callable[[], None]) -> None:
        """New figures. `then` is called once, when `finished` becomes true."""
        with self._lock:
            self._stats = stats
        if finished and not self.finished:
            self.finished = True
            then()
