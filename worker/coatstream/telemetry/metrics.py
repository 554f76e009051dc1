"""A worker's own Prometheus metrics, and the registry that all rooms put theirs into. Base units.

The ledger and the status are not counted here a second time: each scrape reads them, so one scrape always balances.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coatstream.telemetry.ledger import Ledger
from coatstream.telemetry.status import Status


class Metrics:
    """What the worker as a whole counts. Called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.redis_errors = Counter(
            "coatstream_redis_errors_total", "Calls to Redis that failed and were tried again.", registry=registry
        )
        self.redis_outages = Counter(
            "coatstream_redis_outages_total", "Times that Redis went away for this worker.", registry=registry
        )
        self._restarts = Gauge(
            "coatstream_process_restarts", "Times that this worker was started again after a crash.", registry=registry
        )
        self._build = Info("coatstream_build", "This program.", registry=registry)

    def build(self, *, version: str, worker: str, restarts: int = 0) -> None:
        """Which program this is."""
        self._build.info({"version": version, "worker": worker})
        self._restarts.set(restarts)

    def process(self) -> None:
        """From now on each scrape shows the process's memory, its CPU time and its garbage collection."""
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.registry.register(collector)

    def lost_lines(self, dropped: Callable[[], int]) -> None:
        """From now on each scrape shows how many log lines were dropped."""
        self.registry.register(LogCollector(dropped))

    def expose(self, ledger: Ledger, status: Status) -> None:
        """From now on each scrape reads these two as well."""
        self.registry.register(LedgerCollector(ledger))
        self.registry.register(StatusCollector(status))


class LogCollector(Collector):
    """Log lines that found no reader."""

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        meaning = "Log lines that were lost: nothing read the log, or its disk was full."
        yield CounterMetricFamily("coatstream_log_lines_dropped", meaning, value=self._dropped())


class LedgerCollector(Collector):
    """The ledger as metrics, from one consistent snapshot."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def collect(self) -> Iterator[Metric]:
        received, published, dropped, dead, in_flight = families = self._families()
        for source, account in self._ledger.snapshot().items():
            received.add_metric([source], account.received)
            published.add_metric([source], account.published)
            for drop_reason, count in account.dropped.items():
                dropped.add_metric([source, drop_reason.value], count)
            for dead_reason, count in account.dead.items():
                dead.add_metric([source, dead_reason.value], count)
            in_flight.add_metric([source], account.in_flight)
        yield from families

    @staticmethod
    def _families() -> tuple[
        CounterMetricFamily, CounterMetricFamily, CounterMetricFamily, CounterMetricFamily, GaugeMetricFamily
    ]:
        return (
            CounterMetricFamily("coatstream_frames_received", "Frames that came in.", labels=["source"]),
            CounterMetricFamily("coatstream_frames_published", "Frames whose label went out.", labels=["source"]),
            CounterMetricFamily(
                "coatstream_frames_dropped", "Frames left without a label.", labels=["source", "reason"]
            ),
            CounterMetricFamily(
                "coatstream_frames_dead", "Frames that can never be labelled.", labels=["source", "reason"]
            ),
            GaugeMetricFamily("coatstream_frames_in_flight", "Frames received and not settled yet.", labels=["source"]),
        )


class StatusCollector(Collector):
    """The status as metrics."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("coatstream_camera_up", "1 while a camera or file delivers frames.", labels=["source"])
        reopens = CounterMetricFamily(
            "coatstream_source_reopens", "Times that a source was lost and had to be opened again.", labels=["source"]
        )
        for name, source in self._status.sources().items():
            reopens.add_metric([name], source.reopened)
            if name.partition("/")[0] != "queue":
                up.add_metric([name], source.state == "live")
        yield up
        yield reopens
        yield GaugeMetricFamily("coatstream_redis_up", "1 while Redis answers.", value=self._status.redis_is_up())
        yield GaugeMetricFamily(
            "coatstream_ready", "1 while /readyz answers 200.", value=not self._status.unready_because()
        )


def metrics_table(registry: CollectorRegistry) -> str:
    """Every metric of a registry as a Markdown table: name as it is scraped, type, meaning."""
    rows = ["| metric | type | meaning |", "| --- | --- | --- |"]
    for family in sorted(registry.collect(), key=lambda family: family.name):
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        rows.append(f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)
