"""Where frames come from: the contract that every source keeps, and its intake relies on."""

import threading
from collections.abc import Generator
from typing import Protocol

from coatstream.frames.frame import Frame


class Source(Protocol):
    """A blocking iterable of frames. A source works; its intake retries.

    name    the reader's name: the camera's, or `queue`
    live    True: only the newest frame matters, a newer one replaces it. False: frames wait for room
    """

    @property
    def name(self) -> str: ...

    @property
    def live(self) -> bool: ...

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        """Open, then yield frames until the source ends.

        Called by one intake thread, which also closes the iterator: what is open belongs to that thread, and is
        released there. Returning means ended for good, or stopped: once `stop` is set, within the source's own time-out
        for what it is doing. Raises SourceLost when the connection is gone or silent; the intake backs off and calls
        again. A source never restarts itself.
        """
        ...
