"""`coatstream run`: the worker, from signal to exit code."""

import asyncio
import logging
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
    return leave_if_stuck(service)


def leave_if_stuck(service: Service) -> int:
    """0 after a full drain; else leave with 1 at once: threads stuck in a dead call would hold a normal exit."""
    if not service.drained:
        _leave(1)
    return 0


async def work(service: Service, stop: asyncio.Event) -> None:
    """Run a service under signals: the first one drains, the second one leaves at once."""
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, _on_signal, stop)
    try:
        await service.run(stop)
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)


def _on_signal(stop: asyncio.Event) -> None:
    if stop.is_set():
        _leave(1)
    stop.set()


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)
