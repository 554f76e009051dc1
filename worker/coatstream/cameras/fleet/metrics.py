"""Metrics of this worker's place in the fleet, read when Prometheus scrapes."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coatstream.cameras.fleet.stats import FleetStats
from coatstream.telemetry.families import counter


class FleetCollector(Collector):
    """This worker's place in the fleet."""

    def __init__(self, stats: Callable[[], FleetStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        gauges = (
            ("fleet_members", "Workers that share the cameras.", stats.members),
            ("fleet_cameras", "Shared cameras that this worker knows.", stats.known),
            ("fleet_held_cameras", "Cameras of which this worker has the lease.", stats.held),
            ("fleet_opening_cameras", "Cameras that this worker opens to take them over.", stats.standby),
            ("fleet_refused_cameras", "Cameras for which no worker has room.", stats.refused),
            ("fleet_faulty_entries", "Cameras in Redis that cannot be used.", stats.faults),
            ("fleet_lease_left_seconds", "Time until the leases end if they are not renewed.", stats.lease_left),
        )
        for name, meaning, value in gauges:
            yield GaugeMetricFamily(f"coatstream_{name}", meaning, value=value or 0)
        yield counter(
            "fleet_transfers",
            "Leases by how they came or went.",
            (([why], count) for why, count in stats.transfers.items()),
            labels=("why",),
        )
