"""Log set-up: lines for people on a terminal, JSON elsewhere, always to stderr, never a credential."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final

import structlog

from coatstream.errors import redact
from coatstream.settings.model import LogSettings
from coatstream.telemetry.log_writer import LogWriter


def configure(settings: LogSettings) -> None:
    """Set up logging for this process. Called once, by the command line."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
        if console
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
            structlog.processors.format_exc_info,
            _without_credentials,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
        # Writes a line in one call: parent and child share stderr, and print() ends its line with a second one.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Throttle())


@contextmanager
def unstoppable(settings: LogSettings) -> Iterator[None]:
    """The same for a command that serves until it is stopped: a log that is stuck, full or closed costs lines only."""
    before, writer = sys.stderr, LogWriter()
    sys.stderr = writer
    configure(settings)
    writer.start()
    try:
        yield
    finally:
        writer.drain()
        sys.stderr = before


class Throttle(logging.Filter):
    """One line a second of each kind that a library logs, with the count of those left out: asyncio alone logs one for
    each accept that finds no descriptor (cpython#151615).
    """

    EVERY: Final = 1.0  # seconds
    KINDS: Final = 256  # remembered; then all are forgotten

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._kinds: dict[tuple[str, int, str], tuple[float, int]] = {}  # when it was logged, how many were left out

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.name, record.lineno, record.getMessage()[:40]), self._monotonic()
        logged, left_out = self._kinds.get(kind, (float("-inf"), 0))
        if now - logged < self.EVERY:
            self._kinds[kind] = logged, left_out + 1
            return False
        if len(self._kinds) >= self.KINDS:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more like it)", None
        return True


def quiet(settings: LogSettings) -> LogSettings:
    """For a command whose work is what it prints: warnings alone, unless the user has chosen."""
    return settings if settings.model_fields_set else settings.model_copy(update={"level": "warning"})


def _without_credentials(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
    return event
