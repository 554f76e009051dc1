"""The right to speak for a camera, and the word that its pictures come."""

from coatstream.cameras.fleet.lease import CameraLease


def test_who_is_to_hear_of_pictures_hears_when_they_begin_and_when_they_stop_and_of_none_in_between() -> None:
    told: list[bool] = []
    lease = CameraLease(on_warmth=lambda: told.append(lease.warm))

    for happens in (lease.arrived, lease.arrived, lease.lost, lease.lost, lease.arrived):
        happens()

    assert told == [True, False, True]


def test_a_right_ends_by_the_clock_and_may_be_prolonged_before() -> None:
    now = [0.0]
    lease = CameraLease(monotonic=lambda: now[0])

    lease.grant(7, until=1.0)
    now[0] = 0.9
    lease.grant(7, until=2.0)
    now[0] = 1.9

    assert lease.fence == 7
    now[0] = 2.0
    assert lease.fence is None


def test_a_camera_that_is_not_shared_may_be_spoken_for_without_end() -> None:
    lease = CameraLease.unshared()

    assert lease.fence == 0
    lease.end()
    assert lease.fence is None
