"""Metrics of batches and of the engine, read when Prometheus scrapes."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coatstream.engine.protocol import Engine
from coatstream.pipeline.policy import BatchStats


class BatchCollector(Collector):
    """How batches are chosen, and from which measured costs."""

    def __init__(self, stats: Callable[[], BatchStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return ()  # names that nobody else uses, and costs that are not known yet

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        costs = GaugeMetricFamily(
            "coatstream_batch_cost_seconds", "Time of a batch in the engine, as measured at the start.", labels=["size"]
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
            ("frame_cost_seconds", "What each frame adds to a batch: its slope.", stats.cost.per_frame),
            ("full_frames", "Frames in a full batch: larger ones would only make frames older.", stats.cap),
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
