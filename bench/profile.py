"""Where a frame's microseconds go: processor time of a worker's threads, by what each is there for.

A thread of the worker names the others when it is asked; the time itself the kernel counts, so that nothing is slower
for being measured. Knows nothing of frames.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, TypeAlias

# What a thread's name begins with -> the part of the work that it is there for, in a frame's own order.
PARTS: Final[Mapping[str, str]] = {
    "intake-queue": "read",  # XREADGROUP and its reply, what was decoded in order, into the mailbox
    "decode": "decode",  # the entry's fields, decoding, preparing
    "MainThread": "batch",  # the loop: batches out of the mailbox, to the engine and to Redis
    "engine": "engine",  # pictures stacked, the noop engine, outcomes
    "publish": "publish",  # documents, the call that settles, the books
}
REST: Final = "rest"  # heartbeat, monitor, fleet, events
SERVER: Final = "server"

Threads: TypeAlias = "Connection[Any, Any]"  # of one pipe; subscripts exist for type checkers only


def answer(asked: Threads) -> None:
    """In the worker: from now on who asks by the pipe is told each thread's name and its number for the kernel."""

    def tell() -> None:
        try:
            while asked.recv():
                asked.send({thread.native_id: thread.name for thread in threading.enumerate()})
        except (EOFError, OSError):
            pass  # who asked is gone

    threading.Thread(target=tell, name="profile", daemon=True).start()


class Profile:
    """Adds up the time between pairs of `start` and `stop`, by part, over a number of frames."""

    def __init__(self, worker: int | None, server: int | None, threads: Threads) -> None:
        self._worker = worker
        self._server = server
        self._threads = threads
        self._began: Counter[str] = Counter()
        self._spent: Counter[str] = Counter()
        self._frames = 0

    def start(self) -> None:
        self._began = self._now()

    def stop(self, frames: int) -> None:
        now = self._now()
        now.subtract(self._began)
        self._spent.update(now)
        self._frames += frames

    def per_frame(self) -> dict[str, float | None]:
        """Microseconds of each part; None where the system does not tell."""
        parts = (*PARTS.values(), REST, SERVER)
        known = self._frames > 0 and self._spent.total() > 0
        return {f"{part}_us": self._spent[part] / 1000 / self._frames if known else None for part in parts}

    def _now(self) -> Counter[str]:
        """Nanoseconds so far, by part."""
        self._threads.send(True)
        spent: Counter[str] = Counter()
        for number, name in self._threads.recv().items():
            spent[part_of(name)] += ran(self._worker, number)
        spent[SERVER] += ran(self._server, self._server)
        return spent


def part_of(name: str) -> str:
    """What a thread of this name is there for."""
    return next((part for start, part in PARTS.items() if name.startswith(start)), REST)


def ran(process: int | None, thread: int | None) -> int:
    """Nanoseconds that a thread has run (schedstat, Linux); 0 where that is not told, or the thread is gone."""
    try:
        return int(Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
