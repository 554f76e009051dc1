"""Metrics of events, read when Prometheus scrapes."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coatstream.results.events.publisher import EventStats
from coatstream.telemetry.families import counter


class EventCollector(Collector):
    """What the publisher of events has done."""

    def __init__(self, stats: Callable[[], EventStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        counters = (
            ("events", "Events that were written to the stream of events.", stats.sent),
            ("events_dropped", "Events given up because too many were waiting.", stats.dropped),
            ("events_repeated", "Events that had been published before.", stats.repeated),
            ("events_refused", "Events of cameras whose lease another worker had.", stats.refused),
        )
        for name, meaning, counts in counters:
            yield counter(name, meaning, (([kind], count) for kind, count in counts.items()), labels=("event",))
        yield CounterMetricFamily(
            "coatstream_events_replayed", "Events sent again to a server that had lost data.", value=stats.replayed
        )
        yield GaugeMetricFamily("coatstream_events_waiting", "Events not written yet.", value=stats.buffered)
