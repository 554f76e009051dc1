"""What happens to queue entries besides their labels, for metrics, ledger and log."""

import time
from typing import Final, Protocol

import structlog

from coatstream.pipeline.accounting import Accounting
from coatstream.queue.metrics import QueueEvent, QueueMetrics

WARN_EVERY: Final = 60.0  # seconds


class QueueObserver(Protocol):
    """Called by the readers and the heartbeat, each in its own thread. Neither blocks nor raises."""

    def count(self, event: QueueEvent, number: int) -> None:
        """So many entries, by what happened to them."""

    def gave_up(self, source: str) -> None:
        """An entry of this source was delivered too often; it is a dead letter now."""

    def letters_dropped(self, number: int) -> None:
        """So many dead letters had to go for newer ones."""

    def wrong_time(self, source: str, ahead: float) -> None:
        """A frame's time lay so many seconds in the future, or (below 0) in the past, that it cannot be right."""


class QueueReports:
    """The observer of a worker: metrics, ledger and log."""

    def __init__(self, metrics: QueueMetrics, accounting: Accounting) -> None:
        self._metrics = metrics
        self._accounting = accounting
        self._log = structlog.get_logger("queue")
        self._warned_at = float("-inf")  # of a wrong time; monotonic seconds

    def count(self, event: QueueEvent, number: int) -> None:
        self._metrics.count(event, number)

    def gave_up(self, source: str) -> None:
        self._log.error("a frame that no worker could finish is a dead letter now", source=source)
        self._accounting.gave_up(source)

    def wrong_time(self, source: str, ahead: float) -> None:
        self._metrics.count("wrong_times", 1)
        if (now := time.monotonic()) - self._warned_at < WARN_EVERY:
            return
        self._warned_at = now
        self._log.warning(
            "the time of frames cannot be right, so they take the time of reading; `coatstream check` tells more",
            source=source,
            seconds_ahead=round(ahead),
        )

    def letters_dropped(self, number: int) -> None:
        self._accounting.letters_dropped(number)
