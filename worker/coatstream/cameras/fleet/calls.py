"""Calls Redis for the fleet's thread, one call at a time, in a thread of its own.

A call that hangs (the name server does not answer, for example) must not keep the fleet from stopping its readers in
time.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Self

from coatstream.errors import REDIS_TROUBLE, CoatstreamError


class BackgroundCall:
    """Used by one thread, inside its `with` block. `wake` is set when a call is over."""

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._under_way: tuple[Future[Any], Callable[[Any], None]] | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self._work, name="fleet-calls", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """No more calls; one that is under way is not waited for."""
        self._calls.put(None)

    @property
    def idle(self) -> bool:
        return self._under_way is None

    def send(self, call: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Begin a call. `deliver` will pass its result to `then`."""
        future: Future[Any] = Future()
        self._under_way = (future, then)
        self._calls.put((future, call))

    def deliver(self, failed: Callable[[CoatstreamError], None]) -> None:
        """If the call is over: pass its result to `then`, or its trouble to `failed`."""
        if self._under_way is None or not self._under_way[0].done():
            return
        future, then = self._under_way
        self._under_way = None
        try:
            result = future.result()
        except REDIS_TROUBLE as trouble:
            failed(trouble)
        else:
            then(result)

    def _work(self) -> None:
        while (task := self._calls.get()) is not None:
            future, call = task
            try:
                future.set_result(call())
            except BaseException as error:  # the edge of the thread: `deliver` raises it
                future.set_exception(error)
            self._wake.set()
