"""The page's own calls to Redis: in a few threads of their own, bounded in number, never on the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Final, TypeVar

from coatstream.broker.connection import Client, connect
from coatstream.errors import CoatstreamError
from coatstream.settings.model import SettingsTree

THREADS: Final = 4
WAITING: Final = 32  # calls at once, those that wait for a thread included
LONGEST: Final = 3.0  # seconds without an answer: a person is waiting

ResultT = TypeVar("ResultT")


class Busy(CoatstreamError):
    """Too many requests at once: this one was not begun."""


class RedisCalls:
    """Connects at the first call. `close` when no call will come any more."""

    def __init__(self, settings: SettingsTree) -> None:
        redis = settings.redis
        timeouts = {"socket_timeout": redis.socket_timeout, "connect_timeout": redis.connect_timeout}
        self._settings = redis.model_copy(update={name: min(LONGEST, value) for name, value in timeouts.items()})
        self._pool = ThreadPoolExecutor(THREADS, "web")
        self._waiting = 0
        self._client: Client | None = None
        self._lock = Lock()

    async def call(self, work: Callable[[Client], ResultT]) -> ResultT:
        """`work` with a client, in a thread. Raises Busy, RedisUnavailable, RedisRefuses and what `work` raises."""
        if self._waiting >= WAITING:
            raise Busy(f"{WAITING} requests are in work already: try again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._run, work))
        finally:
            self._waiting -= 1

    def client(self) -> Client:
        """The one client of all calls. The client of a cluster connects at once, and so may raise RedisUnavailable."""
        with self._lock:
            if self._client is None:
                self._client = connect(self._settings)
            return self._client

    def close(self) -> None:
        """A call that hangs is left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    def _run(self, work: Callable[[Client], ResultT]) -> ResultT:
        return work(self.client())
