"""Writes the tables of settings and metrics in this folder from the code: python docs/tables.py"""

from pathlib import Path

from coatstream.cameras.fleet.metrics import FleetCollector
from coatstream.cameras.fleet.stats import FleetStats
from coatstream.cameras.metrics import CameraCollector
from coatstream.engine.backends.noop import NoopEngine
from coatstream.frames.model import ModelInfo
from coatstream.pipeline.cost import BatchCost
from coatstream.pipeline.metrics import BatchCollector, EngineCollector
from coatstream.pipeline.policy import BatchPolicy
from coatstream.results.events.metrics import EventCollector
from coatstream.results.events.publisher import EventStats
from coatstream.settings.reference import settings_table
from coatstream.telemetry.ledger import Ledger
from coatstream.telemetry.metrics import Metrics, metrics_table
from coatstream.telemetry.status import Status
from prometheus_client import CollectorRegistry

HERE = Path(__file__).parent


def every_metric() -> CollectorRegistry:
    """A registry with all that a worker shows."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.model(ModelInfo("a", "b", "c", "d", "e", 0))
    metrics.build(version="1", worker="w")
    metrics.expose(Ledger(), Status(stall_after=1))
    registry.register(CameraCollector(lambda: ()))
    registry.register(FleetCollector(FleetStats))
    registry.register(EventCollector(lambda: EventStats({}, {}, {}, {}, 0, 0)))
    registry.register(BatchCollector(BatchPolicy(BatchCost.of({1: 1.0}), 1).stats))
    registry.register(EngineCollector(NoopEngine("noop", (1,))))
    return registry


def main() -> None:
    for name, table in (("settings", settings_table()), ("metrics", metrics_table(every_metric()))):
        page = HERE / f"{name}.md"
        head, _, rest = page.read_text("utf-8").partition(f"<!-- {name} -->")
        _, _, tail = rest.partition(f"<!-- /{name} -->")
        page.write_text(f"{head}<!-- {name} -->\n{table.strip()}\n<!-- /{name} -->{tail}", "utf-8")


if __name__ == "__main__":
    main()
