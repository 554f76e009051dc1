"""One open stream of the page: a bounded buffer between the hub and a reader that may be slow."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

LARGEST: Final = 4 * 1024 * 1024  # bytes that wait for one reader; a snapshot of 1,000 cameras has 0.5 MB
MOST_PREVIEWS: Final = 40  # sources of one reader


class Watcher:
    """Used on the loop. Previews replace older ones of their source; a reader that lets all else pile up is dropped.

    previews   sources whose previews it wants
    labels_of  the source whose labels it wants; None: it is a page, which gets all else
    after      the last event that the page knows
    greeted    it has got everything once; from then on it gets what is new
    """

    def __init__(
        self,
        *,
        previews: frozenset[str] = frozenset(),
        labels_of: str | None = None,
        after: str = "",
        on_end: Callable[["Watcher"], None],
    ) -> None:
        self.previews = previews
        self.labels_of = labels_of
        self.after = after
        self.greeted = False
        self._on_end = on_end
        self._waiting: deque[bytes] = deque()
        self._previews: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._news = asyncio.Event()
        self._closed = False

    def send(self, message: bytes) -> bool:
        """False: the reader is too slow, and its stream ends."""
        if self._size + len(message) > LARGEST:
            self.close()
            return False
        self._waiting.append(message)
        self._size += len(message)
        self._news.set()
        return True

    def preview(self, source: str, message: bytes) -> None:
        """The newest picture of a source."""
        if source in self.previews:
            self._previews[source] = message
            self._news.set()

    def end(self) -> None:
        """The reader has gone."""
        self._closed = True
        self._on_end(self)

    def close(self) -> None:
        """The stream ends; what waits is dropped."""
        self._closed = True
        self._news.set()

    async def messages(self) -> AsyncIterator[bytes]:
        """Until `close`."""
        yield b": coatstream\n\n"
        while not self._closed:
            await self._news.wait()
            self._news.clear()
            while (self._waiting or self._previews) and not self._closed:
                yield self._next()

    def _next(self) -> bytes:
        if self._waiting:
            message = self._waiting.popleft()
            self._size -= len(message)
            return message
        return self._previews.popitem(last=False)[1]


class WatcherResponse(StreamingResponse):
    """Sends a watcher's messages. The watcher ends with it, also where its reader went before the first message."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(watcher.messages(), media_type="text/event-stream")
        self._watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._watcher.end()
