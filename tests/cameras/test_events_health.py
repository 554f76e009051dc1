"""Events that cannot be written make no worker unready while labels flow."""

from coatstream.cameras.manager import EventsHealth
from coatstream.errors import RedisRefuses, RedisUnavailable
from coatstream.settings.model import SettingsTree
from coatstream.telemetry.telemetry import Telemetry
from structlog.testing import capture_logs

FULL = RedisUnavailable("OOM command not allowed", full=True)


def telemetry() -> Telemetry:
    made = Telemetry.of(SettingsTree())
    made.status.redis_up("start")
    return made


def test_a_full_server_is_no_outage_for_events_and_is_named_once() -> None:
    made = telemetry()
    health = EventsHealth(made)

    with capture_logs() as log:
        for _ in range(3):
            health.down(FULL)
        assert made.status.redis_is_up()
        assert not health.refused
        health.up()

    assert [line["event"].partition(":")[0] for line in log] == ["Redis is full", "Redis has room again"]


def test_a_server_that_is_away_is_an_outage_and_a_missing_right_is_none() -> None:
    made = telemetry()
    health = EventsHealth(made)

    health.down(RedisUnavailable("nobody answers"))
    assert not made.status.redis_is_up()
    health.down(RedisRefuses("the Redis user lacks XADD"))

    assert made.status.redis_is_up()
    assert health.refused
