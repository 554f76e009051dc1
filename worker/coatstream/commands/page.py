"""`coatstream page`: the page and its API alone, for all workers of one Redis. Loads no model and reads no camera."""

import asyncio
import signal

import structlog

from coatstream.broker.connection import address
from coatstream.errors import ConfigError
from coatstream.settings.model import SettingsTree
from coatstream.supervisor import STOP_SIGNALS
from coatstream.telemetry import logs
from coatstream.web.app import serve_alone
from coatstream.web.server import link


def run_page(settings: SettingsTree) -> int:
    """Serve until SIGTERM or Ctrl-C. 0. Raises ConfigError; Redis may come and go."""
    if settings.redis.url is None:
        raise ConfigError("redis.url is not set: give --redis URL, for example redis://localhost:6379/0")
    with logs.unstoppable(settings.log):
        asyncio.run(_serve(settings))
    return 0


async def _serve(settings: SettingsTree) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for name in STOP_SIGNALS:
        loop.add_signal_handler(name, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    async with serve_alone(settings) as port:
        log = structlog.get_logger("page")
        log.info("listening", http=link(settings.http.host, port), redis=address(settings.redis))
        await stop.wait()
