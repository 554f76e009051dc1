"""Metrics of what the server did when labels were published."""

from prometheus_client import CollectorRegistry, Counter

from coatstream.results.settler import Settlement


class SettlementMetrics:
    """What had to be left out or dropped for want of room. Called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._left_out = Counter(
            "coatstream_latest_left_out_total",
            "Labels that found the hash of newest labels full (results.latest_max_sources).",
            registry=registry,
        )
        self._letters_dropped = Counter(
            "coatstream_queue_dead_letters_dropped_total",
            "Dead letters that had to go for newer ones (queue.dead_max_*).",
            registry=registry,
        )

    def settled(self, settlement: Settlement) -> None:
        """A batch was settled."""
        self._left_out.inc(settlement.sources_left_out)
        self.letters_dropped(settlement.letters_dropped)

    def letters_dropped(self, number: int) -> None:
        """Dead letters had to go for newer ones."""
        self._letters_dropped.inc(number)
