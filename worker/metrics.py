"""Every Prometheus metric of coatstream, made on a given registry. Base units; label values bounded by configuration.

The ledger and the status are not counted here a second time: they are read when somebody scrapes, so one scrape always
balances.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.batching import LeftBecause
from worker.engine import ModelInfo
from worker.ledger import Ledger
from worker.status import Status

STAGES = ("decode", "prepare", "wait", "infer", "publish")

# A stage takes from 0.2 ms (preparing a small picture) to seconds (a large batch on a slow CPU).
_STAGE_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# A live label is worth having within some 100 ms; a queue that has fallen behind is minutes old.
_AGE_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_RATIO_BUCKETS = (0.25, 0.5, 0.625, 0.75, 0.875, 0.95, 1.0)


class Metrics:
    """What the worker observes. Called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._stage = Histogram(
            "coatstream_stage_seconds",
            "Time in one stage: decode, prepare and wait per frame, infer and publish per batch.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self._stages = {stage: self._stage.labels(stage) for stage in STAGES}  # touched, so that rate() begins at 0
        self.age = Histogram(
            "coatstream_frame_age_seconds",
            "Age of a frame when its label was published, from capture.",
            buckets=_AGE_BUCKETS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "coatstream_batch_size_frames", "Frames in a batch.", buckets=_SIZE_BUCKETS, registry=registry
        )
        self.fill_ratio = Histogram(
            "coatstream_batch_fill_ratio",
            "Frames in a batch over the prepared size that it ran at; the rest was padding.",
            buckets=_RATIO_BUCKETS,
            registry=registry,
        )
        batches = Counter("coatstream_batches_total", "Batches by why they left.", ["reason"], registry=registry)
        self.batches = {reason: batches.labels(reason.value) for reason in LeftBecause}
        self.model_errors = Counter(
            "coatstream_model_errors_total", "Calls of the model that raised.", registry=registry
        )
        self.redis_errors = Counter(
            "coatstream_redis_errors_total", "Calls to Redis that failed and were tried again.", registry=registry
        )
        self.latest_left_out = Counter(
            "coatstream_latest_left_out_total",
            "Labels that found the hash of newest labels full (results.latest_max_sources).",
            registry=registry,
        )
        self.queue_depth = Gauge(
            "coatstream_queue_depth_frames", "Entries in the frames stream: waiting and in work.", registry=registry
        )
        self.queue_oldest = Gauge(
            "coatstream_queue_oldest_age_seconds", "Age of the oldest entry in the frames stream.", registry=registry
        )
        self.queue_pending = Gauge(
            "coatstream_queue_pending_frames", "Entries that some worker has taken and not settled.", registry=registry
        )
        self.dead_letters = Gauge("coatstream_dead_letters", "Entries in the dead-letter stream.", registry=registry)
        self._model = Info("coatstream_model", "The model that classifies.", registry=registry)
        self._build = Info("coatstream_build", "This program.", registry=registry)

    def observe(self, stage: str, seconds: float) -> None:
        """One frame's or batch's time in a stage."""
        self._stages[stage].observe(seconds)

    def model(self, info: ModelInfo) -> None:
        self._model.info({"name": info.name, "weights": info.weights, "engine": info.engine, "device": info.device})

    def build(self, *, version: str, worker: str) -> None:
        self._build.info({"version": version, "worker": worker})

    def expose(self, ledger: Ledger, status: Status) -> None:
        """From now on each scrape reads these two as well."""
        self.registry.register(LedgerCollector(ledger))
        self.registry.register(StatusCollector(status))


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
            if name != "queue":
                up.add_metric([name], source.state == "up")
        yield up
        yield reopens
        yield GaugeMetricFamily("coatstream_redis_up", "1 while Redis answers.", value=self._status.redis_is_up())
        yield GaugeMetricFamily(
            "coatstream_ready", "1 while /readyz says yes.", value=not self._status.unready_because()
        )


def metrics_table(registry: CollectorRegistry) -> str:
    """Every metric of a registry as a Markdown table: name as it is scraped, type, what it says."""
    rows = ["| metric | type | meaning |", "| --- | --- | --- |"]
    for family in sorted(registry.collect(), key=lambda family: family.name):
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        rows.append(f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)
