"""Metrics of stages, batches and the engine."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coatstream.engine.protocol import Engine
from coatstream.frames.model import ModelInfo
from coatstream.pipeline.policy import BatchPolicy, BatchStats, LeftBecause

_STAGES = ("decode", "prepare", "wait", "infer", "publish")

# A stage takes from 0.2 ms (preparing a small picture) to seconds (a large batch on a slow CPU).
_STAGE_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# A live label is worth having within some 100 ms; a queue that has fallen behind is minutes old.
_AGE_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_RATIO_BUCKETS = (0.25, 0.5, 0.625, 0.75, 0.875, 0.95, 1.0)


class PipelineMetrics:
    """What a frame's way through the pipeline shows. Called from any thread.

    age           seconds from capture to publication, of each published frame
    batch_size    inputs of the model in one of its batches
    fill_ratio    the same over the prepared size that it ran at
    model_errors  calls of the model that raised
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.age = Histogram(
            "coatstream_frame_age_seconds",
            "Age of a frame when its label was published, from capture.",
            buckets=_AGE_BUCKETS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "coatstream_batch_size_frames",
            "Inputs of the model in one of its batches: a frame has several where more than the middle is seen.",
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )
        self.fill_ratio = Histogram(
            "coatstream_batch_fill_ratio",
            "Inputs in a batch over the prepared size that it ran at; the rest was padding.",
            buckets=_RATIO_BUCKETS,
            registry=registry,
        )
        self.model_errors = Counter(
            "coatstream_model_errors_total", "Calls of the model that raised.", registry=registry
        )
        stages = Histogram(
            "coatstream_stage_seconds",
            "Time in one stage: decode, prepare and wait per frame, infer and publish per batch.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        batches = Counter("coatstream_batches_total", "Batches by why they left.", ["reason"], registry=registry)
        self._memory_limit = Gauge(
            "coatstream_batch_memory_limit_frames",
            "Inputs of a batch at most for now, since a larger one found no memory; 0: no limit.",
            registry=registry,
        )
        # All labels are made here, so that rate() begins at 0.
        self._stages = {stage: stages.labels(stage) for stage in _STAGES}
        self._batches = {reason: batches.labels(reason.value) for reason in LeftBecause}
        self._engine = EngineMetrics(registry)

    @property
    def stages(self) -> Sequence[str]:
        return _STAGES

    @property
    def reasons(self) -> Sequence[str]:
        """Why batches leave."""
        return [reason.value for reason in LeftBecause]

    def totals(self) -> dict[str, float]:
        """All counts since the start, flat: `age_sum`, `age_count`, `age<=0.1`, `stage.infer_sum`, `left.full`."""
        histograms = {"age": self.age, "size": self.batch_size, "fill": self.fill_ratio}
        histograms |= {f"stage.{stage}": histogram for stage, histogram in self._stages.items()}
        found = {f"left.{reason.value}": _value(counter) for reason, counter in self._batches.items()}
        for name, histogram in histograms.items():
            for sample in next(iter(histogram.collect())).samples:
                bound = sample.labels.get("le")
                key = f"{name}<={float(bound)}" if bound else f"{name}_{sample.name.rpartition('_')[2]}"
                found[key] = sample.value
        return found

    def observe(self, stage: str, seconds: float) -> None:
        """One frame's or batch's time in a stage."""
        self._stages[stage].observe(seconds)

    def memory_limit(self, limit: Callable[[], int]) -> None:
        """Each scrape asks for it."""
        self._memory_limit.set_function(limit)

    def left(self, reason: LeftBecause) -> None:
        """A batch has left."""
        self._batches[reason].inc()

    def warm(self, engine: Engine, policy: BatchPolicy) -> None:
        """The engine is warm and its costs are known: each scrape shows them from now on."""
        self._engine.warm(engine, policy)


def _value(counter: Counter) -> float:
    return next(iter(counter.collect())).samples[0].value


class EngineMetrics:
    """The model, and what its engine did when it was measured at the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._model = Info("coatstream_model", "The model that classifies.", registry=registry)
        self._rate = Gauge(
            "coatstream_engine_rate_frames_per_second",
            "Inputs that the engine does at its best batch size: the best measurement at a start, or the last idle.",
            registry=registry,
        )

    def model(self, info: ModelInfo) -> None:
        """Which model it is."""
        words = ("name", "weights", "engine", "precision", "device")
        self._model.info({word: getattr(info, word) for word in words})

    def warm(self, engine: Engine, policy: BatchPolicy) -> None:
        """The engine is warm, and this is how its batches are chosen."""
        self.model(engine.info)
        self._rate.set_function(lambda: policy.stats().cost.rate)
        self._registry.register(BatchCollector(policy.stats))
        self._registry.register(EngineCollector(engine))


class BatchCollector(Collector):
    """How batches are chosen, and from which measured costs."""

    def __init__(self, stats: Callable[[], BatchStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return ()  # no other collector has these names, and costs are not known yet

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        costs = GaugeMetricFamily(
            "coatstream_batch_cost_seconds",
            "Time of a batch in the engine, as measured or remembered.",
            labels=["size"],
        )
        for size, seconds in stats.cost.measured:
            costs.add_metric([str(size)], seconds)
        yield costs
        for name, meaning, value in (
            (
                "fixed_cost_seconds",
                "What a batch costs whatever its size: the line through the costs.",
                stats.cost.fixed,
            ),
            ("frame_cost_seconds", "What each input adds to a batch: its slope.", stats.cost.per_frame),
            ("full_frames", "Inputs in a full batch: larger ones would only make frames older.", stats.full),
            ("inputs_per_frame", "Inputs of the model that a frame has on average, lately.", stats.views),
            ("expected_gap_seconds", "Mean time to the next frame lately.", stats.expected_gap),
            ("slowdown_ratio", "Times the measured cost that batches take lately.", stats.slowdown),
            ("margin_seconds", "Time that is kept for publishing, where there is a target.", stats.margin),
        ):
            yield GaugeMetricFamily(f"coatstream_batch_{name}", meaning, value=value)


class EngineCollector(Collector):
    """What an engine counts itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "coatstream_model_recompilations",
            "Batches that fitted none of the compiled graphs (model.engine: compile): 0 unless something is wrong.",
            value=self._engine.recompilations,
        )
