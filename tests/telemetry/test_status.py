"""Ready, healthy, and why not."""

import pytest
from coatstream.errors import DownReason
from coatstream.telemetry.status import State, Status

from tests.support.doubles import SettableClock


def ready_status(monotonic: SettableClock | None = None) -> Status:
    status = Status(stall_after=60, clock=SettableClock(), monotonic=monotonic or SettableClock())
    status.warm()
    status.redis_up("start")
    return status


def test_a_new_worker_is_healthy_and_not_ready() -> None:
    status = Status(stall_after=60)

    assert status.unhealthy_because() == []
    assert len(status.unready_because()) == 2


def test_a_warm_worker_with_redis_is_ready() -> None:
    assert ready_status().unready_because() == []


def test_redis_away_makes_it_unready_and_leaves_it_healthy() -> None:
    status = ready_status()

    news = status.redis_down("pump", "connection refused")
    again = status.redis_down("pump", "connection refused")

    assert (news, again) == (True, False)
    assert status.unready_because() == ["Redis: connection refused"]
    assert status.unhealthy_because() == []
    assert status.redis_up("pump") is True
    assert status.unready_because() == []


def test_one_caller_that_gets_through_does_not_hide_another_one_that_does_not() -> None:
    status = ready_status()
    status.redis_down("pump", "WRONGTYPE labels holds a string")

    news = status.redis_up("monitor")

    assert news is False
    assert status.unready_because() == ["Redis: WRONGTYPE labels holds a string"]


def test_an_engine_that_hangs_makes_it_unready_too() -> None:
    clock = SettableClock()
    status = ready_status(clock)

    with status.at_work("a batch"):
        clock.now += 61

        assert status.unready_because() == status.unhealthy_because() == ["a batch has been in hand for 61 s"]
    assert status.unready_because() == []


def test_started_means_that_the_model_is_warm_whether_or_not_redis_is_there() -> None:
    status = Status(stall_after=60)
    assert len(status.unstarted_because()) == 1

    status.loaded()

    assert status.unstarted_because() == []
    assert status.unready_because() == ["nothing is read yet", "Redis: not connected yet"]


def test_a_drain_makes_it_unready() -> None:
    status = ready_status()

    status.draining()

    assert status.unready_because() == ["draining"]


def test_a_broken_camera_is_seen_and_fails_neither() -> None:
    status = ready_status()

    status.source("door", "live")
    status.source("door", "down", DownReason.UNREACHABLE, "no route to host")

    assert (status.unready_because(), status.unhealthy_because()) == ([], [])
    assert status.sources()["door"].message == "no route to host"


_STATES: tuple[State, ...] = ("connecting", "down", "down", "live", "live", "down", "live")


def test_each_loss_counts_and_a_state_that_stays_is_no_news() -> None:
    status = ready_status()

    news = [status.source("door", state) for state in _STATES]

    assert news == [True, True, False, True, False, True, True]
    assert status.sources()["door"].reopened == 3


def test_a_batch_that_never_comes_back_makes_it_unhealthy() -> None:
    clock = SettableClock()
    status = ready_status(clock)
    with status.at_work("a picture"):
        pass

    with status.at_work("a batch"):
        clock.now += 59
        assert status.unhealthy_because() == []
        clock.now += 2
        assert status.unhealthy_because() == ["a batch has been in hand for 61 s"]

    assert status.unhealthy_because() == []


def test_of_several_things_that_hang_the_one_that_has_hung_longest_is_named_first() -> None:
    clock = SettableClock()
    status = ready_status(clock)

    with status.at_work("a batch"):
        clock.now += 10
        with status.at_work("a picture"):
            clock.now += 61
            reasons = status.unhealthy_because()

    assert reasons == ["a batch has been in hand for 71 s", "a picture has been in hand for 61 s"]


def test_what_raises_is_in_hand_no_longer() -> None:
    clock = SettableClock()
    status = ready_status(clock)

    with pytest.raises(ZeroDivisionError), status.at_work("a picture"):
        raise ZeroDivisionError
    clock.now += 61

    assert status.unhealthy_because() == []
