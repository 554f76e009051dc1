"""Serves the app on the worker's own event loop. Signals stay with the worker."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette

from coatstream.errors import ConfigError
from coatstream.settings.model import HttpSettings


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # one owner of signals: the service


@asynccontextmanager
async def serve(app: Starlette, settings: HttpSettings) -> AsyncIterator[int]:
    """Serve while entered; yields the port. Raises ConfigError if the address cannot be used."""
    listener = _listen(settings)
    server = _Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2)
    )
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


def _listen(settings: HttpSettings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"http.host {settings.host} with http.port {settings.port} cannot be listened on: {error.args[-1]}; "
            "set COATSTREAM_HTTP__PORT to another port (0 = any free one)"
        ) from None
