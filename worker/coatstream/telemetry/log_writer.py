"""Writes log lines so that the log can never stop the work: a stuck, full or closed stderr costs lines, not labels.

Lines wait in a bounded queue for a thread of their own. A line that finds the queue full, or that the system refuses,
is dropped and counted, and the next line that gets through reports how many were lost. A process that must have no
threads (the supervisor, which forks) writes without the thread: a pipe that takes no more costs the line at once.
"""

import io
import os
import select
import stat
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Final

MOST_LINES: Final = 10_000
MOST_BYTES: Final = 4 << 20
TICK: Final = 0.2  # seconds after which a wait for a stuck pipe looks whether the process ends
LAST_WORDS: Final = 0.5  # seconds that the end of the process waits for the log
_LOST: Final = "coatstream: {count} log lines were lost: nothing read the log, or its disk was full\n"


class LogWriter(io.TextIOBase):
    """A text stream over a file descriptor, in UTF-8. `write` never waits once `start` was called, and never raises.

    descriptor  stays open; where it is a pipe the writer opens it once more, since O_NONBLOCK belongs to the opening
                and another process may share this one
    """

    def __init__(self, descriptor: int = 2, *, most_lines: int = MOST_LINES, most_bytes: int = MOST_BYTES) -> None:
        self._descriptor = _own_opening(descriptor)
        self._terminal = os.isatty(self._descriptor)
        self._most_lines, self._most_bytes = most_lines, most_bytes
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._busy = False  # the thread has taken a line and not finished it
        self._thread: threading.Thread | None = None
        self._untold = 0
        self.dropped = 0

    def start(self) -> None:
        """From here on a thread writes. Call it after the fork: threads do not survive one."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._thread is None:
                self._deliver(data, may_wait=False)
            elif len(self._lines) < self._most_lines and self._bytes + len(data) <= self._most_bytes:
                self._lines.append(data)
                self._bytes += len(data)
                self._changed.notify_all()
            else:
                self._lose()
        return len(text)

    def flush(self) -> None:
        """Nothing: loggers flush after each line, and none of them shall wait. `drain` waits."""

    def drain(self, within: float = LAST_WORDS) -> None:
        """Wait until all lines are written, for `within` seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._busy, timeout=within)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._terminal

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                data = self._lines.popleft()
                self._bytes -= len(data)
                self._busy = True
            self._deliver(data, may_wait=True)

    def _deliver(self, data: bytes, *, may_wait: bool) -> None:
        """Write one line, after the count of those that were lost."""
        try:
            if self._untold and self._put(_LOST.format(count=self._untold).encode(), may_wait=may_wait):
                self._untold = 0
            if not self._put(data, may_wait=may_wait):
                self._lose()
        except OSError:  # the reader is gone, the disk is full
            self._lose()

    def _put(self, data: bytes, *, may_wait: bool) -> bool:
        """Whether it was written. Raises OSError."""
        while data:
            if not may_wait and not _is_writable(self._descriptor, within=0.0):
                return False
            piece = data if may_wait else data[: select.PIPE_BUF]  # so much never waits after such a look
            try:
                data = data[os.write(self._descriptor, piece) :]
            except BlockingIOError:
                if not may_wait:
                    return False
                _is_writable(self._descriptor, within=TICK)
        return True

    def _lose(self) -> None:
        with self._changed:
            self.dropped += 1
            self._untold += 1


def drain_log() -> None:
    """Let the last lines out before the process ends without its destructors. Waits for `LAST_WORDS` at most."""
    if isinstance(sys.stderr, LogWriter):
        sys.stderr.drain()
    elif sys.stderr is not None:
        with suppress(OSError, ValueError):  # the reader of the lines may be gone
            sys.stderr.flush()


def keep_standard_descriptors() -> None:
    """Open 0, 1 and 2 where they are closed (`coatstream run >&-`). Otherwise the next socket gets such a number, and
    what a C library prints goes to Redis.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  (for the whole process)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _own_opening(descriptor: int) -> int:
    with suppress(OSError):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return descriptor


def _is_writable(descriptor: int, *, within: float) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLOUT)
    return bool(waiting.poll(within * 1000))
