"""The Redis server's time, between two looks at it: expiry is judged by one clock, whatever a worker's own says."""

import time
from collections.abc import Callable


class ServerClock:
    """Set by the monitor's thread, read by all. Until it was told, the server's clock counts as equal to ours."""

    def __init__(
        self, *, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._told: tuple[float, float] | None = None  # its Unix seconds; ours, of a clock that is never set

    def tell(self, server_time: float) -> None:
        """It is this moment there, in Unix seconds."""
        self._told = server_time, self._monotonic()

    def here(self) -> float:
        """Unix seconds by our own clock."""
        return self._clock()

    @property
    def ahead(self) -> float:
        """Seconds by which our clock is ahead of the server's."""
        if self._told is None:
            return 0.0
        then, at = self._told
        return self._clock() - (then + self._monotonic() - at)
