"""Threads that run as long as a block does."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

OBSERVERS: Final = 0.1  # seconds: what only observes is not waited for while a frozen server holds its call


@contextmanager
def in_thread(run: Callable[[threading.Event], None], name: str, *, leave_after: float = 0.25) -> Iterator[None]:
    """Runs `run` until the end of the block; a call that hangs then is left behind. After a bug it runs again.

    `leave_after`: seconds that such a call is waited for. They add up over all threads of a drain that runs late.
    """
    stop = threading.Event()

    def keep_running() -> None:
        while not stop.is_set():
            try:
                run(stop)
            except Exception as bug:  # the edge of the thread: without leases a worker only looks well
                structlog.get_logger(name).error("a bug: the thread starts again", error=repr(bug)[:300])
                stop.wait(1.0)

    thread = threading.Thread(target=keep_running, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=leave_after)
