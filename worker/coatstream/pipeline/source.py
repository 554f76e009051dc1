"""Where frames come from: the contract of sources, and of those that observe them."""

import threading
from collections.abc import Generator
from typing import Protocol

from coatstream.errors import DownReason
from coatstream.frames.frame import Frame
from coatstream.telemetry.status import State


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


class SourceObserver(Protocol):
    """Is told what becomes of one source."""

    def on_state(self, state: State, reason: DownReason | None, message: str) -> None:
        """The source's state has changed. Called on the loop for the first state, then in the source's own thread.

        `ended` is the last state, and means that the source came to its own end: a file was read. A source that is
        stopped has no such state. Must not raise.
        """
