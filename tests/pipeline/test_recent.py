"""What the pipeline did lately: rates, means and quantiles of the last looks, and nothing of what was before."""

import pytest
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.policy import LeftBecause
from coatstream.pipeline.recent import LOOKS, RecentStats
from coatstream.telemetry.ledger import DropReason, Ledger
from prometheus_client import CollectorRegistry


class Lately:
    def __init__(self) -> None:
        self.now = 100.0
        self.metrics = PipelineMetrics(CollectorRegistry())
        self.ledger = Ledger(["door"])
        self.stats = RecentStats(self.metrics, self.ledger, monotonic=lambda: self.now)

    def publish(self, source: str, count: int) -> None:
        for _ in range(count):
            self.ledger.received(source)
            self.ledger.published(source)
            self.metrics.age.observe(0.09)
            self.metrics.observe("infer", 0.02)

    def look(self, after: float = 2.0) -> None:
        self.now += after
        self.stats.look()


def test_rates_and_means_are_those_of_the_last_looks() -> None:
    lately = Lately()
    lately.publish("door", 1000)
    lately.look()
    lately.publish("door", 10)
    lately.publish("queue-source", 30)
    lately.metrics.batch_size.observe(4)
    lately.metrics.fill_ratio.observe(0.5)
    lately.metrics.left(LeftBecause.FULL)
    lately.look()

    assert (lately.stats.rate(), lately.stats.rate("door"), lately.stats.rate("absent")) == (20, 5, 0)
    assert lately.stats.stages() == pytest.approx({"infer": 0.02})
    assert lately.stats.mean("age") == pytest.approx(0.09)
    assert lately.stats.quantile("age", 0.95) == 0.1
    batches = lately.stats.batches(full=8)
    assert (batches.per_second, batches.size, batches.fill, batches.full, batches.left) == (0.5, 4, 0.5, 8, {"full": 1})


def test_what_was_long_ago_counts_no_more() -> None:
    lately = Lately()
    lately.look()
    lately.publish("door", 50)
    for _ in range(LOOKS):
        lately.look()

    assert lately.stats.rate() == 0
    assert (lately.stats.mean("age"), lately.stats.quantile("age", 0.95), lately.stats.stages()) == (None, None, {})


def test_the_first_look_has_no_rate_and_the_frames_are_those_since_the_start() -> None:
    lately = Lately()
    lately.publish("door", 3)
    lately.ledger.received("door")
    lately.ledger.dropped("door", DropReason.STALE)
    lately.look()

    assert lately.stats.rate() == 0
    frames = lately.stats.frames
    assert (frames.received, frames.published, frames.dropped, frames.in_flight) == (4, 3, {"stale": 1}, 0)
