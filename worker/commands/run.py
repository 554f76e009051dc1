"""`coatstream run`: the worker, from signal to exit code."""

import asyncio
import os
import signal
import sys

from config.settings import SettingsTree
from worker import logs
from worker.errors import ConfigError
from worker.service import Service


def run_worker(settings: SettingsTree) -> int:
    """Work until the first SIGTERM or SIGINT, then drain: 0 if all that was read is settled. Raises as Service."""
    if settings.redis.url is None:
        raise ConfigError(
            "redis.url is not set: say where Redis is, for example COATSTREAM_REDIS__URL=redis://localhost:6379/0"
        )
    logs.configure(settings.log)
    service = Service(settings)
    asyncio.run(work(service, asyncio.Event()))
    return int(not service.drained)


async def work(service: Service, stop: asyncio.Event) -> None:
    """Run a service under signals: the first one drains, the second one leaves at once.

    While the model is still being loaded there is nothing to drain, and loading cannot be interrupted: leave with 0.
    """
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, _on_signal, service, stop)
    try:
        await service.run(stop)
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)


def _on_signal(service: Service, stop: asyncio.Event) -> None:
    if stop.is_set():
        _leave(1)
    if not service.reading:
        _leave(0)
    stop.set()


def _leave(code: int) -> None:
    """End this process without waiting for any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
