"""Whether Redis is there, as each of its callers finds it: told to the status, the metrics and, once, to the log."""

from collections.abc import Callable
from functools import partial
from typing import TypedDict

import structlog

from coatstream.errors import CoatstreamError
from coatstream.telemetry.metrics import Metrics
from coatstream.telemetry.status import Status


class Reports(TypedDict):
    """What one caller tells, as arguments of its constructor."""

    on_trouble: Callable[[CoatstreamError], None]
    on_success: Callable[[], None]


class Outages:
    """`reading`: before that is so, nobody has missed Redis. Any thread may tell."""

    def __init__(self, status: Status, metrics: Metrics, *, reading: Callable[[], bool]) -> None:
        self._status = status
        self._metrics = metrics
        self._reading = reading
        self._log = structlog.get_logger("service")

    def of(self, caller: str) -> Reports:
        return {"on_trouble": partial(self.down, caller), "on_success": partial(self.up, caller)}

    def up(self, caller: str) -> None:
        """A call of this caller has gone through."""
        if self._status.redis_up(caller) and self._reading():
            self._log.info("Redis is back")

    def down(self, caller: str, trouble: CoatstreamError) -> None:
        """A call of this caller has failed."""
        self._metrics.redis_errors.inc()
        if self._status.redis_down(caller, str(trouble)):
            self._metrics.redis_outages.inc()
            self._log.warning("Redis is away: finished labels are kept and tried again", trouble=str(trouble))
