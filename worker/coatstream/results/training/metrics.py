"""Metrics of frames that are kept for training, read when Prometheus scrapes."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from coatstream.results.training.folder import TrainingStats
from coatstream.telemetry.families import counter


class TrainingCollector(Collector):
    """What one worker has kept."""

    def __init__(self, stats: Callable[[], TrainingStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        counters = (
            ("training_frames", "Frames that were kept for training, by why.", stats.kept),
            ("training_frames_left_out", "Frames worth keeping that were not kept, by why not.", stats.left_out),
        )
        for name, meaning, counts in counters:
            yield counter(name, meaning, (([reason], count) for reason, count in counts.items()), labels=("reason",))
