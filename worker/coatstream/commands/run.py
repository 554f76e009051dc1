"""`coatstream run`: the worker, from signal to exit code."""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog

from coatstream import __version__
from coatstream.commands.exit_codes import report_bug
from coatstream.commands.summary import start_summary
from coatstream.engine.memory import tune_allocator
from coatstream.errors import CoatstreamError, ConfigError
from coatstream.service import Service
from coatstream.settings.errors import SettingsError
from coatstream.settings.model import SettingsTree
from coatstream.supervisor import STOP_SIGNALS, Lifeline, supervise
from coatstream.telemetry import logs
from coatstream.telemetry.identity import Lineage, worker_name
from coatstream.telemetry.log_writer import LogWriter

_ALONE = Lifeline()
_log = structlog.get_logger("service")


def run_worker(settings: SettingsTree, exit_code: Callable[[Callable[[], int]], int]) -> int:
    """Work until the first SIGTERM or SIGINT, then drain: 0 if all that was read is settled. Raises as Service.

    A supervised worker is a forked child and must not raise into the parent's code: `exit_code` calls it, prints what
    went wrong, and returns the exit code.
    """
    if settings.redis.url is None:
        raise ConfigError(
            "redis.url is not set: give --redis URL, or set for example COATSTREAM_REDIS__URL=redis://localhost:6379/0"
        )
    log = sys.stderr = LogWriter()  # for libraries and tracebacks, too
    logs.configure(settings.log)
    _log.info("starting", version=__version__)
    for line in settings.overridden:
        _log.info(line)
    tune_allocator()
    _allow_files()
    restarts = settings.process.restarts_per_minute
    if restarts == 0 or sys.platform != "linux":
        return _serve(settings, log, worker_name(), Lineage(), _ALONE)
    return supervise(
        lambda *place: exit_code(partial(_serve, settings, log, *place)),
        restarts_per_minute=restarts,
    )


def _allow_files() -> None:
    """As many open files as this process may have: each camera takes five, and many systems begin with 1,024."""
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve(settings: SettingsTree, log: LogWriter, name: str, lineage: Lineage, lifeline: Lifeline) -> int:
    log.start()
    told = start_summary(settings)
    service = Service(settings, worker=name, lineage=lineage, on_warm=lifeline.ready, on_ready=told)
    service.telemetry.metrics.lost_lines(lambda: log.dropped)
    try:
        asyncio.run(work(service, asyncio.Event(), lifeline))
    except (CoatstreamError, SettingsError, KeyboardInterrupt):
        raise
    except Exception as bug:
        if not lifeline.supervised:
            raise
        report_bug(bug)
        lifeline.crash()  # the next worker goes on: a bug that one frame meets must not end the work of all
    return int(not service.drained)


async def work(service: Service, stop: asyncio.Event, lifeline: Lifeline = _ALONE) -> None:
    """Run a service under signals: the first one drains, the second one leaves at once.

    While the model is still being loaded there is nothing to drain, and loading cannot be interrupted: leave with 0.
    A supervised worker gets one Ctrl-C twice, from the terminal and from its parent, so there the parent counts.
    """
    loop = asyncio.get_running_loop()
    for name in STOP_SIGNALS:
        loop.add_signal_handler(name, _on_signal, service, stop, lifeline)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a parent's child starts with them blocked
    try:
        await service.run(stop)
        if lifeline.supervised:  # while the handlers are there: that second Ctrl-C may come only now, and would kill
            lifeline.leave(int(not service.drained))
    finally:
        for name in STOP_SIGNALS:
            loop.remove_signal_handler(name)


def _on_signal(service: Service, stop: asyncio.Event, lifeline: Lifeline) -> None:
    if stop.is_set() and not lifeline.supervised:
        lifeline.leave(1)
    if not service.telemetry.status.reads:
        _log.info("asked to stop while loading: nothing was read")
        lifeline.leave(0)
    stop.set()
