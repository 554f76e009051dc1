"""Whether Redis answers, as each caller in this worker finds it; written to the status, the metrics and the log."""

from typing import Protocol

import structlog

from coatstream.errors import CoatstreamError
from coatstream.telemetry.metrics import Metrics
from coatstream.telemetry.status import Status


class RedisHealth(Protocol):
    """Where one caller of Redis reports how its calls went. Called from any thread; neither blocks nor raises."""

    def up(self) -> None:
        """A call went through."""

    def down(self, trouble: CoatstreamError) -> None:
        """A call failed. The caller will try again."""


class CallerHealth:
    """The reports of one caller, by name."""

    def __init__(self, outages: "Outages", caller: str) -> None:
        self._outages = outages
        self._caller = caller

    def up(self) -> None:
        self._outages.up(self._caller)

    def down(self, trouble: CoatstreamError) -> None:
        self._outages.down(self._caller, trouble)


class Outages:
    """The reports of all callers. An outage begins when the first caller fails, and ends when the last one is back."""

    def __init__(self, status: Status, metrics: Metrics) -> None:
        self._status = status
        self._metrics = metrics
        self._log = structlog.get_logger("service")

    def of(self, caller: str) -> CallerHealth:
        """Where this caller reports."""
        return CallerHealth(self, caller)

    def up(self, caller: str) -> None:
        """A call of this caller went through. The log has it only once the worker reads: no frame waited before."""
        if self._status.redis_up(caller) and self._status.reads:
            self._log.info("Redis is back")

    def down(self, caller: str, trouble: CoatstreamError) -> None:
        """A call of this caller failed."""
        self._metrics.redis_errors.inc()
        if self._status.redis_down(caller, str(trouble)):
            self._metrics.redis_outages.inc()
            what = "full" if getattr(trouble, "full", False) else "away"
            self._log.warning(f"Redis is {what}: finished labels are kept and tried again", trouble=str(trouble))
