"""Serves the app on the worker's own event loop. The service handles signals; the server does not."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
import uvicorn
from starlette.applications import Starlette

from coatstream.errors import ConfigError
from coatstream.settings.model import HttpSettings
from coatstream.web.connections import BoundedProtocol

MOST_TRIED: Final = 100  # ports, where the user chose none
ANY_IPV6: Final = "::"  # means all addresses of both families
BACKLOG: Final = 32  # asyncio tries so many accepts in a row, and logs each that finds no descriptor (cpython#151615)

_log = structlog.get_logger("http")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve(app: Starlette, settings: HttpSettings, *, port_before: int = 0) -> AsyncIterator[int]:
    """Serve while entered; yields the port. Raises ConfigError if the address cannot be used.

    Where the user chose no port and `http.port` is taken, the next free one is used and logged. `port_before` is the
    port of the worker that this one replaces (0: none); it is tried first where the user chose none, or chose 0.
    """
    listener = _listen(settings, port_before)
    server = _Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,  # or a client on this machine could name any address as its own
            server_header=False,
            timeout_graceful_shutdown=2,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        with contextlib.closing(listener):  # even where the wait is cancelled
            await task


def _listen(settings: HttpSettings, port_before: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    ports = _candidates(settings, port_before)
    for port in ports:
        try:
            listener = socket.create_server(
                (settings.host, port), family=family, backlog=128, dualstack_ipv6=settings.host == ANY_IPV6
            )
        except (OSError, OverflowError) as error:
            if port != ports[-1] and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                continue
            tried = f"{ports[0]} to {port}" if len(ports) > 1 else str(port)
            raise ConfigError(
                f"http.host {settings.host} with http.port {tried} cannot be listened on: {error.args[-1]}; "
                "set COATSTREAM_HTTP__PORT to another port (0 = any free one)"
            ) from None
        if settings.port and port not in (settings.port, port_before):
            _log.warning("http.port is taken, so the next free port is used", wanted=settings.port, used=port)
        return listener
    raise AssertionError(ports)  # there is always one, and the last one returns or raises


def link(host: str, port: int) -> str:
    """A URL that a person can open on this machine, also where the server listens on all addresses."""
    host = {ANY_IPV6: "localhost", "0.0.0.0": "localhost", "": "localhost"}.get(host, host)  # noqa: S104  (looked up)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _candidates(settings: HttpSettings, port_before: int) -> list[int]:
    """The ports to try, in order."""
    before = [port_before] if port_before else []
    if settings.port == 0:
        return [*before, 0]
    if "port" in settings.model_fields_set:
        return [settings.port]
    return [*before, *range(settings.port, min(settings.port + MOST_TRIED, 65_536))]
