"""Metrics of the pictures of events, read when Prometheus scrapes."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coatstream.results.pictures.attaching import PictureStats
from coatstream.telemetry.families import counter


class PictureCollector(Collector):
    """What one worker has stored and removed."""

    def __init__(self, stats: Callable[[], PictureStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield CounterMetricFamily(
            "coatstream_event_pictures", "Pictures of events that were stored.", value=stats.stored
        )
        counters = (
            ("event_pictures_removed", "Older pictures of events that were removed.", stats.removed),
            ("event_pictures_missing", "Events that were published without a picture.", stats.missing),
        )
        for name, meaning, counts in counters:
            yield counter(name, meaning, (([reason], count) for reason, count in counts.items()), labels=("reason",))
        yield GaugeMetricFamily(
            "coatstream_event_pictures_bytes", "Size of all pictures of events, by the last reply.", value=stats.total
        )
