"""Threads that run as long as a block does."""

import threading

from coatstream.pipeline.threads import in_thread
from structlog.testing import capture_logs

from tests.support.workers import eventually


def test_it_runs_while_the_block_does_and_is_told_to_stop_at_its_end() -> None:
    running, ended = threading.Event(), threading.Event()

    def run(stop: threading.Event) -> None:
        running.set()
        stop.wait()
        ended.set()

    with in_thread(run, "worker"):
        assert running.wait(10)
        assert not ended.is_set()
    assert ended.wait(10)


def test_a_bug_is_said_and_it_runs_again() -> None:
    runs: list[int] = []

    def run(stop: threading.Event) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ZeroDivisionError("oh")
        stop.wait()

    with capture_logs() as log, in_thread(run, "worker"):
        eventually(lambda: len(runs) == 2, "the second run")

    assert [entry["error"] for entry in log] == ["ZeroDivisionError('oh')"]
