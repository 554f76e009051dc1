"""Whether this worker may speak for one camera, and under which number. Decides nothing: `cameras.fleet` grants it.

Two replicas may read one camera for a moment, while it is handed over: the heir opens it before the owner lets go, so
that no picture is missed. Only the one with the tenure says anything, and the server refuses labels with an older
number than the newest that it granted.
"""

import threading
import time
from collections.abc import Callable


class Tenure:
    """One camera's, in one worker. Granted by the fleet's thread, asked by the camera's thread for every picture."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        on_warmth: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_warmth` is told, in the camera's thread, when its pictures begin to come or stop; `on_end` when it has
        come to its own end.
        """
        self._monotonic = monotonic
        self._on_warmth = on_warmth
        self._on_end = on_end
        self._lock = threading.Lock()  # guards all below
        self._fence: int | None = None
        self._until = 0.0
        self._warm = False

    @classmethod
    def unshared(cls, *, on_end: Callable[[], None] = lambda: None) -> "Tenure":
        """For a camera that is not shared: for ever, under the number 0."""
        tenure = cls(on_end=on_end)
        tenure.grant(0, until=float("inf"))
        return tenure

    def grant(self, fence: int, *, until: float) -> None:
        """Speak for the camera from now on, or longer than was said before: `until`, monotonic seconds.

        `until` must lie before the moment at which the server may give the camera to another worker.
        """
        with self._lock:
            self._fence, self._until = fence, until

    def end(self) -> None:
        """Say nothing more."""
        with self._lock:
            self._fence = None

    @property
    def fence(self) -> int | None:
        """The number to speak under, or None: say nothing (another worker does, or the lease could not be renewed)."""
        with self._lock:
            return self._fence if self._monotonic() < self._until else None

    def arrived(self) -> None:
        """A picture is here: from now on this worker could speak for the camera."""
        self._set_warm(warm=True)

    def lost(self) -> None:
        """Its pictures have stopped."""
        self._set_warm(warm=False)

    def read_out(self) -> None:
        """The camera has come to its own end: it was a file."""
        self._on_end()

    def _set_warm(self, *, warm: bool) -> None:
        with self._lock:
            news, self._warm = warm != self._warm, warm
        if news:
            self._on_warmth()

    @property
    def warm(self) -> bool:
        """Whether pictures come in now."""
        with self._lock:
            return self._warm
