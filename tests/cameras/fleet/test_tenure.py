"""The right to speak for a camera, and the word that its pictures come."""

from coatstream.cameras.fleet.tenure import Tenure


def test_who_is_to_hear_of_pictures_hears_when_they_begin_and_when_they_stop_and_of_none_in_between() -> None:
    told: list[bool] = []
    tenure = Tenure(on_warmth=lambda: told.append(tenure.warm))

    for happens in (tenure.arrived, tenure.arrived, tenure.lost, tenure.lost, tenure.arrived):
        happens()

    assert told == [True, False, True]


def test_a_right_ends_by_the_clock_and_may_be_prolonged_before() -> None:
    now = [0.0]
    tenure = Tenure(monotonic=lambda: now[0])

    tenure.grant(7, until=1.0)
    now[0] = 0.9
    tenure.grant(7, until=2.0)
    now[0] = 1.9

    assert tenure.fence == 7
    now[0] = 2.0
    assert tenure.fence is None


def test_a_camera_that_is_not_shared_may_be_spoken_for_without_end() -> None:
    tenure = Tenure.unshared()

    assert tenure.fence == 0
    tenure.end()
    assert tenure.fence is None
