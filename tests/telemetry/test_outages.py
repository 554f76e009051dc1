"""Outages of Redis, as its callers find them."""

from coatstream.errors import RedisUnavailable
from coatstream.telemetry.metrics import Metrics
from coatstream.telemetry.outages import Outages
from coatstream.telemetry.status import Status
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

GONE = RedisUnavailable("nobody answers")


def test_one_outage_of_two_callers_is_said_once_and_its_end_when_both_are_back() -> None:
    registry = CollectorRegistry()
    status = Status(stall_after=60)
    status.redis_up("start")
    outages = Outages(status, Metrics(registry), reading=lambda: True)
    one, other = outages.of("one"), outages.of("other")

    with capture_logs() as log:
        one["on_trouble"](GONE)
        other["on_trouble"](GONE)
        one["on_success"]()
        assert not status.redis_is_up()
        other["on_success"]()

    assert status.redis_is_up()
    assert [entry["event"].partition(":")[0] for entry in log] == ["Redis is away", "Redis is back"]
    assert registry.get_sample_value("coatstream_redis_errors_total") == 2
    assert registry.get_sample_value("coatstream_redis_outages_total") == 1


def test_before_anything_is_read_nobody_has_missed_it() -> None:
    outages = Outages(Status(stall_after=60), Metrics(CollectorRegistry()), reading=lambda: False)

    with capture_logs() as log:
        outages.down("start", GONE)
        outages.up("start")

    assert [entry["event"] for entry in log if entry["event"] == "Redis is back"] == []
