"""The arithmetic of the scale test, which itself takes minutes: `python -m tests.deploy.scale`."""

from tests.deploy.scale import Label, waits


def label(captured: float, published: float) -> Label:
    return Label(entry=b"", frame=b"", captured=captured, published=published)


def test_a_frame_in_its_turn_waited_for_the_backlog_alone() -> None:
    assert waits([label(0.0, 1.0), label(0.0, 2.0), label(0.5, 3.0)]) == (2.5, 0.0)


def test_a_frame_of_a_killed_worker_waited_beyond_its_turn() -> None:
    longest, beyond = waits([label(0.0, 16.0), label(1.0, 1.5), label(2.0, 2.5)])

    assert (longest, beyond) == (14.0, 14.5)
