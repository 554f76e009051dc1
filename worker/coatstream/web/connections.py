"""Bounds on HTTP connections, in number and in time: the side door must never take from the main job.

uvicorn closes a connection that is idle between two requests. It keeps one for ever that never sends its first request,
sends half of one, or does not read its answer. Scanners and health checks behind a NAT leave many of those.
"""

import asyncio
import sys
from typing import Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

MOST: Final = 64  # connections at once; a scrape and three probes need four
SHARE: Final = 8  # at most this part of the process's descriptors: Redis and cameras need the others
REQUEST_WITHIN: Final = 10.0  # seconds from the first byte that may come to the last one of a request
READ_WITHIN: Final = 10.0  # seconds in which a client must read some of an answer that fills its buffers,
READ_AT_LEAST: Final = 4096  # namely so many bytes: a slow line is no fault


def most_connections() -> int:
    """How many connections may be open at once."""
    if sys.platform == "win32":
        return MOST
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if allowed == resource.RLIM_INFINITY else max(4, min(MOST, allowed // SHARE))


class BoundedProtocol(H11Protocol):
    """One HTTP/1.1 connection with deadlines. Where too many are open, the oldest without a request makes room."""

    _request_ends: asyncio.TimerHandle | None = None
    _reading_ends: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) > most_connections():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel(self._request_ends)
        self._cancel(self._reading_ends)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_busy() and not self.cycle.more_body:
            self._cancel(self._request_ends)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which may begin a request that came behind this one
        if not self._is_busy():
            self._expect_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        self._cancel(self._reading_ends)
        super().resume_writing()

    def _expect_reading(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reading_ends = self.loop.call_later(READ_WITHIN, self._has_read, left)

    def _has_read(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() >= READ_AT_LEAST:
            self._expect_reading()
        else:
            self.transport.abort()

    def _expect_request(self) -> None:
        self._cancel(self._request_ends)
        self._request_ends = self.loop.call_later(REQUEST_WITHIN, self.transport.abort)

    def _make_room(self) -> None:
        """The set of connections has no order, so each one's own deadline tells how old it is."""
        others = (cast("BoundedProtocol", one) for one in self.connections if one is not self)
        idle = {one._request_ends.when(): one for one in others if one._request_ends is not None and not one._is_busy()}
        oldest = idle[min(idle)] if idle else self
        self.connections.discard(oldest)  # it is lost only in the loop's next round, and must not count until then
        oldest.transport.abort()

    def _is_busy(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
