"""Every Prometheus metric of coatstream, made on a given registry. Base units; label values bounded by configuration.

The ledger and the status are not counted here a second time: they are read when somebody scrapes, so one scrape always
balances.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coatstream.frames.model import ModelInfo
from coatstream.telemetry.ledger import Ledger
from coatstream.telemetry.status import Status

# What happens to queue entries and their leases, as the readers and the heartbeat name it -> (metric, meaning).
_QUEUE_EVENTS = {
    "redelivered": (
        "redelivered_frames",
        "Entries taken over from a worker that was silent, or that handed them back.",
    ),
    "orphaned": ("orphaned_frames", "Entries whose delivery never arrived here; they were handed back."),
    "released": ("released_frames", "Entries handed back unseen when this worker stopped."),
    "leases_lost": ("leases_lost", "Entries that went to another worker while this one held them."),
    "groups_made": ("groups_made", "Times that the consumer group was missing and was made again."),
    "letters_dropped": ("dead_letters_dropped", "Dead letters that had to go for newer ones (queue.dead_max_*)."),
}

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
        self.batches = Counter("coatstream_batches_total", "Batches by why they left.", ["reason"], registry=registry)
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
        self.redis_outages = Counter(
            "coatstream_redis_outages_total", "Times that Redis went away for this worker.", registry=registry
        )
        self._queue_events = {
            event: Counter(f"coatstream_queue_{name}_total", meaning, registry=registry)
            for event, (name, meaning) in _QUEUE_EVENTS.items()
        }
        self.queue_depth = _per_stream("queue_depth_frames", "Unfinished entries: waiting and in work.", registry)
        self.queue_oldest = _per_stream("queue_oldest_age_seconds", "Age of the oldest unfinished entry.", registry)
        self.queue_pending = _per_stream(
            "queue_pending_frames", "Entries that some worker has taken and not settled.", registry
        )
        self.queue_trimmed = _per_stream(
            "queue_trimmed_frames", "Entries that vanished without an outcome: trimmed or deleted by others.", registry
        )
        self.dead_letters = _per_stream("dead_letters", "Entries in the dead-letter stream.", registry)
        self.restarts = Gauge(
            "coatstream_process_restarts", "Times that this worker was started again after a crash.", registry=registry
        )
        self.engine_rate = Gauge(
            "coatstream_engine_rate_frames_per_second",
            "What the engine did at its best batch size when it was measured at the start.",
            registry=registry,
        )
        self._model = Info("coatstream_model", "The model that classifies.", registry=registry)
        self._build = Info("coatstream_build", "This program.", registry=registry)

    def observe(self, stage: str, seconds: float) -> None:
        """One frame's or batch's time in a stage."""
        self._stages[stage].observe(seconds)

    def count(self, event: str, number: int) -> None:
        """So many entries, by what happened to them: redelivered, orphaned, released, leases_lost and so on."""
        self._queue_events[event].inc(number)

    def model(self, info: ModelInfo) -> None:
        self._model.info(
            {
                "name": info.name,
                "weights": info.weights,
                "engine": info.engine,
                "precision": info.precision,
                "device": info.device,
            }
        )

    def build(self, *, version: str, worker: str) -> None:
        self._build.info({"version": version, "worker": worker})

    def expose(self, ledger: Ledger, status: Status) -> None:
        """From now on each scrape reads these two as well."""
        self.registry.register(LedgerCollector(ledger))
        self.registry.register(StatusCollector(status))


def _per_stream(name: str, meaning: str, registry: CollectorRegistry) -> Gauge:
    """All workers of a queue show the same figure: aggregate with max by (stream), not sum."""
    return Gauge(f"coatstream_{name}", meaning, ["stream"], registry=registry)


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
            "coatstream_ready", "1 while /readyz says yes.", value=not self._status.unready_because()
        )


def metrics_table(registry: CollectorRegistry) -> str:
    """Every metric of a registry as a Markdown table: name as it is scraped, type, what it says."""
    rows = ["| metric | type | meaning |", "| --- | --- | --- |"]
    for family in sorted(registry.collect(), key=lambda family: family.name):
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        rows.append(f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)
