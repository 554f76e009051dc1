"""Smaller batches for a while after one found no memory: another process may use the device."""

import sys
import time
from collections.abc import Callable
from typing import Final

from coatstream.engine.protocol import prepared_size

HELD_BACK: Final = 60.0  # seconds for which a size that found no memory is not tried again


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing, on the host or on a device. torch.OutOfMemoryError is known by its name: one that
    runs another engine has not imported torch. On the host torch has no class for it.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class MemoryRoom:
    """Called from all engine threads. `prepared`: the sizes that batches run at, ascending."""

    def __init__(self, prepared: tuple[int, ...], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._prepared = prepared
        self._monotonic = monotonic
        self._limited = (sys.maxsize, float("-inf"))  # to so many frames, until then

    def failed(self, frames: int, error: BaseException) -> None:
        """A batch of so many frames raised. Only a want of memory counts."""
        if is_out_of_memory(error):
            ran_at = prepared_size(frames, self._prepared)
            smaller = max((size for size in self._prepared if size < ran_at), default=1)
            self._limited = min(smaller, self.most()), self._monotonic() + HELD_BACK

    def most(self) -> int:
        """Frames of a batch for now; at least 1."""
        most, until = self._limited
        return most if self._monotonic() < until else sys.maxsize

    def limit(self) -> int:
        """The same for a metric: 0 where there is no limit."""
        most = self.most()
        return 0 if most == sys.maxsize else most
