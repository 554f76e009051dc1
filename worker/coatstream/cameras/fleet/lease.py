"""Whether this worker may publish for one camera, and under which fence. Decides nothing: `cameras.fleet` grants it.

Two workers may read one camera for a moment, while it is handed over: the standby opens it before the owner lets go, so
that no picture is missed. Only the one with the lease publishes, and the server refuses labels with an older fence than
the newest that it granted.
"""

import threading
import time
from collections.abc import Callable


class CameraLease:
    """One camera's, in one worker. Granted by the fleet's thread, asked by the camera's thread for every picture."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        on_warmth: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Both are called in the camera's thread: `on_warmth` when its pictures begin to come or stop, `on_end` when it
        has come to its own end.
        """
        self._monotonic = monotonic
        self._on_warmth = on_warmth
        self.camera_ended = on_end
        self._lock = threading.Lock()  # guards all below
        self._fence: int | None = None
        self._until = 0.0
        self._warm = False

    @classmethod
    def unshared(cls, *, on_end: Callable[[], None] = lambda: None) -> "CameraLease":
        """For a camera that is not shared: for ever, under the number 0."""
        lease = cls(on_end=on_end)
        lease.grant(0, until=float("inf"))
        return lease

    def grant(self, fence: int, *, until: float) -> None:
        """Publish for the camera from now on, or longer than granted before: `until`, monotonic seconds.

        `until` must lie before the moment at which the server may give the camera to another worker.
        """
        with self._lock:
            self._fence, self._until = fence, until

    def end(self) -> None:
        """Publish nothing more."""
        with self._lock:
            self._fence = None

    @property
    def fence(self) -> int | None:
        """The number to publish under; None: another worker has the lease, or this one could not renew it in time."""
        with self._lock:
            return self._fence if self._monotonic() < self._until else None

    def arrived(self) -> None:
        """A picture is here: from now on this worker could publish for the camera."""
        self._set_warm(warm=True)

    def lost(self) -> None:
        """Its pictures have stopped."""
        self._set_warm(warm=False)

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
