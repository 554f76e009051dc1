"""What all parts of one worker have in common: its settings, its name, and where they keep their accounts."""

from dataclasses import dataclass

from config.settings import SettingsTree
from worker.identity import Lineage
from worker.ledger import Ledger
from worker.metrics import Metrics
from worker.outages import Outages
from worker.status import Status


@dataclass(frozen=True, slots=True)
class Commons:
    """`worker` is this one's name, `lineage` says after whom it comes."""

    settings: SettingsTree
    worker: str
    lineage: Lineage
    ledger: Ledger
    status: Status
    metrics: Metrics
    outages: Outages
