"""Names of workers, and whom a restarted one comes after."""

import os

from coatstream.telemetry.identity import Lineage, draw_suffix, worker_name


def test_two_workers_of_one_process_have_two_names() -> None:
    assert worker_name() != worker_name()


def test_a_parent_knows_the_name_that_its_child_gives_itself() -> None:
    suffix = draw_suffix()

    assert worker_name(os.getpid(), suffix) == worker_name(suffix=suffix)


def test_the_first_worker_comes_after_nobody() -> None:
    assert Lineage() == Lineage(restarts=0, predecessors=())


def test_a_worker_that_crashed_before_it_took_over_leaves_its_predecessors_to_the_next() -> None:
    lineage = Lineage().after("first", took_over=True).after("second", took_over=False)

    assert lineage == Lineage(restarts=2, predecessors=("first", "second"))


def test_a_worker_that_took_over_leaves_only_itself() -> None:
    lineage = Lineage(1, ("first",)).after("second", took_over=True)

    assert lineage == Lineage(restarts=2, predecessors=("second",))


def test_only_the_last_sixteen_are_remembered() -> None:
    lineage = Lineage()
    for number in range(40):
        lineage = lineage.after(str(number), took_over=False)

    assert lineage == Lineage(40, tuple(str(number) for number in range(24, 40)))


def test_a_port_is_remembered_over_workers_that_never_had_one() -> None:
    lineage = Lineage().after("first", took_over=True, port=8081).after("second", took_over=False)

    assert lineage.port == 8081
