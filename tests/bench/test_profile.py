"""Whose microseconds they are: threads by what they are there for, time by the kernel."""

import os
import threading
from multiprocessing import Pipe
from pathlib import Path

import pytest

from bench.profile import PARTS, REST, SERVER, Profile, answer, part_of, ran
from tests.support.absence import missing
from tests.support.workers import eventually


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("intake-queue", "read"),
        ("decode_1", "decode"),
        ("MainThread", "batch"),
        ("engine_0", "engine"),
        ("publish_0", "publish"),
        ("leases", REST),
    ],
)
def test_a_thread_belongs_to_the_part_that_its_name_says(name: str, part: str) -> None:
    assert part_of(name) == part


def test_time_that_a_thread_spends_is_its_parts_and_divided_by_the_frames() -> None:
    if not Path("/proc/self/task").exists():
        missing("no /proc on this system")
    ours, theirs = Pipe()
    answer(theirs)
    go, done, end = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        go.wait(5)
        started, own = ran(os.getpid(), threading.get_native_id()), 0
        while own < 30_000_000:
            own = ran(os.getpid(), threading.get_native_id()) - started
        done.set()
        end.wait(5)

    thread = threading.Thread(target=work, name="decode_0")
    thread.start()
    profile = Profile(os.getpid(), None, ours)

    profile.start()
    go.set()
    assert done.wait(5)
    profile.stop(100)
    end.set()
    thread.join(5)

    spent = profile.per_frame()
    assert spent.keys() == {f"{part}_us" for part in (*PARTS.values(), REST, SERVER)}
    assert spent["decode_us"] is not None
    assert 300 <= spent["decode_us"] < 3000
    assert spent["server_us"] == 0
    ours.close()
    eventually(lambda: "profile" not in {thread.name for thread in threading.enumerate()}, "who answers has ended")


def test_what_the_system_does_not_tell_is_left_out() -> None:
    ours, theirs = Pipe()
    answer(theirs)

    profile = Profile(None, None, ours)
    profile.start()
    profile.stop(10)

    assert set(profile.per_frame().values()) == {None}
    ours.close()
