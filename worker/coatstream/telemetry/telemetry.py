"""What all parts of one worker report to: one argument instead of seven."""

from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry

from coatstream.settings.model import SettingsTree
from coatstream.telemetry.identity import FIRST, Lineage, worker_name
from coatstream.telemetry.ledger import Ledger
from coatstream.telemetry.metrics import Metrics
from coatstream.telemetry.outages import Outages
from coatstream.telemetry.status import Status


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Of one worker.

    worker    its name: the consumer in each group, `worker` in each label
    lineage   the crashed workers that it comes after
    ledger    every frame and its outcome
    status    what works and what does not
    metrics   what Prometheus scrapes
    outages   whether Redis answers
    """

    worker: str
    lineage: Lineage
    ledger: Ledger
    status: Status
    metrics: Metrics
    outages: Outages

    @classmethod
    def of(cls, settings: SettingsTree, worker: str | None = None, lineage: Lineage = FIRST) -> Self:
        """For a worker of these settings, under a name of its own unless the caller has one."""
        ledger = Ledger(camera.name for camera in settings.cameras)
        status, metrics = Status(stall_after=settings.batch.timeout), Metrics(CollectorRegistry())
        return cls(worker or worker_name(), lineage, ledger, status, metrics, Outages(status, metrics))
