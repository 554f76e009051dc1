"""Work in a thread of its own for as long as a test needs it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDS_WITHIN = 30.0  # seconds after `stop`; a machine that is busy with others is slow


@contextmanager
def in_background(work: Callable[[], object], *, stop: Callable[[], object], name: str) -> Iterator[None]:
    """Run `work` in a thread; on leaving, call `stop` and wait for the thread to end."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(ENDS_WITHIN)
        assert not thread.is_alive(), f"the thread {name!r} does not end"
