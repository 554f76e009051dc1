"""Writes the tables of settings and metrics in this folder from the code: python docs/tables.py"""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from config.reference import settings_table
from worker.batch_cost import BatchCost
from worker.batch_policy import BatchPolicy
from worker.broker.announcer import AnnouncerFigures
from worker.camera_metrics import CameraCollector, EventCollector, FleetCollector
from worker.engine import ModelInfo
from worker.engine.noop import NoopEngine
from worker.fleet import Figures
from worker.ledger import Ledger
from worker.metrics import BatchCollector, EngineCollector, Metrics, metrics_table
from worker.status import Status

HERE = Path(__file__).parent


def every_metric() -> CollectorRegistry:
    """A registry with all that a worker shows."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.model(ModelInfo("a", "b", "c", "d", "e", 0))
    metrics.build(version="1", worker="w")
    metrics.expose(Ledger(), Status(stall_after=1))
    registry.register(CameraCollector(lambda: ()))
    registry.register(FleetCollector(Figures))
    registry.register(EventCollector(lambda: AnnouncerFigures({}, {}, {}, {}, 0, 0)))
    registry.register(BatchCollector(BatchPolicy(BatchCost.of({1: 1.0}), 1).figures))
    registry.register(EngineCollector(NoopEngine("noop", (1,))))
    return registry


def main() -> None:
    for name, table in (("settings", settings_table()), ("metrics", metrics_table(every_metric()))):
        page = HERE / f"{name}.md"
        block = f"<!-- {name} -->\n{table.strip()}\n<!-- /{name} -->"
        text = page.read_text("utf-8")
        page.write_text(
            re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, new=block: new, text, flags=re.S), "utf-8"
        )


if __name__ == "__main__":
    main()
