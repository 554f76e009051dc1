"""What all parts of one worker have in common: its settings, its name, and where they keep their accounts."""

from dataclasses import dataclass

from coatstream.settings.model import SettingsTree
from coatstream.telemetry.identity import Lineage
from coatstream.telemetry.ledger import Ledger
from coatstream.telemetry.metrics import Metrics
from coatstream.telemetry.outages import Outages
from coatstream.telemetry.status import Status


@dataclass(frozen=True, slots=True)
class Telemetry:
    """`worker` is this one's name, `lineage` says after whom it comes."""

    settings: SettingsTree
    worker: str
    lineage: Lineage
    ledger: Ledger
    status: Status
    metrics: Metrics
    outages: Outages
