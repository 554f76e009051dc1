"""Outages of Redis, as its callers find them."""

from coatstream.errors import RedisUnavailable
from coatstream.settings.model import SettingsTree
from coatstream.telemetry.telemetry import Telemetry
from structlog.testing import capture_logs

GONE = RedisUnavailable("nobody answers")


def test_one_outage_of_two_callers_is_logged_once_and_its_end_when_both_are_back() -> None:
    telemetry = Telemetry.of(SettingsTree())
    status, registry = telemetry.status, telemetry.metrics.registry
    status.redis_up("start")
    status.reading()
    one, other = telemetry.outages.of("one"), telemetry.outages.of("other")

    with capture_logs() as log:
        one.down(GONE)
        other.down(GONE)
        one.up()
        assert not status.redis_is_up()
        other.up()

    assert status.redis_is_up()
    assert [entry["event"].partition(":")[0] for entry in log] == ["Redis is away", "Redis is back"]
    assert registry.get_sample_value("coatstream_redis_errors_total") == 2
    assert registry.get_sample_value("coatstream_redis_outages_total") == 1


def test_a_full_server_is_called_full_and_not_away() -> None:
    telemetry = Telemetry.of(SettingsTree())
    telemetry.status.redis_up("start")

    with capture_logs() as log:
        telemetry.outages.down("pump", RedisUnavailable("OOM command not allowed", full=True))

    assert [entry["event"].partition(":")[0] for entry in log] == ["Redis is full"]


def test_that_redis_is_back_is_no_news_before_anything_is_read() -> None:
    telemetry = Telemetry.of(SettingsTree())

    with capture_logs() as log:
        telemetry.outages.down("start", GONE)
        telemetry.outages.up("start")

    assert [entry["event"] for entry in log if entry["event"] == "Redis is back"] == []
