"""Log set-up: lines for people on a terminal, JSON elsewhere, always to stderr, never a credential."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from coatstream.errors import redact
from coatstream.settings.model import LogSettings


def configure(settings: LogSettings) -> None:
    """Set up logging for this process. Called once, by the command line."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
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


def quiet(settings: LogSettings) -> LogSettings:
    """For a command whose work is what it prints: warnings alone, unless the user has chosen."""
    return settings if settings.model_fields_set else settings.model_copy(update={"level": "warning"})


def _without_credentials(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
    return event
