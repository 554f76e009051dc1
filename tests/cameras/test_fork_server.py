"""Processes that can be killed: born, asked to end, killed, reaped; and none of them outlives the worker."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from coatstream.cameras.process.forkserver import ForkServer, NoProcess, ReaderProcess
from coatstream.frames.frame import InputSpec
from structlog.testing import capture_logs

from tests.support.load import slack
from tests.support.paths import ROOT
from tests.support.processes import ended
from tests.support.workers import eventually

if sys.platform != "linux":
    pytest.skip("Linux only", allow_module_level=True)

SPEC = InputSpec(32, 32, 1.0, "squash", "area", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer(SPEC) as made:
        yield made


def started(fork_server: ForkServer) -> ReaderProcess:
    child = fork_server.start(threading.Event())
    assert child is not None
    return child


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_child_is_another_process_that_lives(fork_server: ForkServer) -> None:
    with started(fork_server) as child:
        assert child.pid not in (os.getpid(), fork_server.pid)
        assert not child.ended()
        assert not ended(child.pid)


def test_the_process_that_forks_has_one_thread(fork_server: ForkServer) -> None:
    with started(fork_server):  # so it is ready
        tasks = list(Path(f"/proc/{fork_server.pid}/task").iterdir())

    assert len(tasks) == 1


def test_a_child_ends_by_itself_when_the_worker_hangs_up(fork_server: ForkServer) -> None:
    with started(fork_server) as child:
        child.work.shutdown(socket.SHUT_WR)

        assert child.ended(within=5)
        assert child.how_it_ended() == "exit status 0"
    assert not child.killed


def test_a_child_that_does_not_end_is_killed(fork_server: ForkServer) -> None:
    with started(fork_server) as child:
        os.kill(child.pid, signal.SIGSTOP)
        before = time.monotonic()

    assert child.killed
    assert time.monotonic() - before < 1.3 + slack()
    eventually(lambda: ended(child.pid), "the child is dead")


@pytest.mark.parametrize(
    ("sent", "words"),
    [(signal.SIGKILL, "signal 9 (Killed)"), (signal.SIGSEGV, "signal 11 (Segmentation fault)")],
)
def test_how_a_child_died_is_known(fork_server: ForkServer, sent: signal.Signals, words: str) -> None:
    with started(fork_server) as child:
        os.kill(child.pid, sent)

        assert child.ended(within=5)
        assert child.how_it_ended() == words


def test_ctrl_c_and_a_stop_signal_to_the_whole_group_end_neither_fork_server_nor_reader(
    fork_server: ForkServer,
) -> None:
    before = fork_server.pid
    assert before is not None
    with started(fork_server) as child:
        for pid in (before, child.pid):
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)

        with started(fork_server):
            assert not child.ended(within=0.2)
    assert fork_server.pid == before


def test_whoever_stops_waits_for_no_child() -> None:
    stop = threading.Event()
    stop.set()

    assert ForkServer(SPEC).start(stop) is None


def test_without_a_fork_server_there_is_an_error_and_no_endless_wait() -> None:
    with pytest.raises(NoProcess, match="does not run"):
        ForkServer(SPEC).start(threading.Event(), within=0.1)


@contextmanager
def open_at_most(most: int) -> Iterator[None]:
    """Let this process have so many files open."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@pytest.mark.parametrize("room", range(4))
def test_where_no_more_files_may_be_open_there_is_no_child_and_nothing_is_left_open(
    fork_server: ForkServer, room: int
) -> None:
    with started(fork_server):
        pass
    open_files = descriptors()
    fillers: list[int] = []
    with ExitStack() as closing, open_at_most(max(map(int, open_files)) + 50):
        with suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        for filler in fillers[room:]:
            closing.callback(os.close, filler)
        for filler in fillers[:room]:
            os.close(filler)

        with pytest.raises(NoProcess, match="no further process"):
            fork_server.start(threading.Event())

    assert descriptors() == open_files
    with started(fork_server) as child:
        assert not child.ended()


def test_a_fork_server_whose_successor_finds_no_room_at_first_has_one_later() -> None:
    with capture_logs() as logs, ForkServer(SPEC) as fork_server:
        with started(fork_server):
            pass
        first = fork_server.pid
        assert first is not None
        with open_at_most(3):
            os.kill(first, signal.SIGKILL)
            eventually(lambda: "Too many open files" in [line["status"] for line in logs], "there is no room")

        with started(fork_server) as child:
            assert not child.ended()


def test_a_fork_server_that_is_stopped_holds_nobody_up() -> None:
    with ForkServer(SPEC, start_within=0.3) as fork_server:
        with started(fork_server):
            pass
        assert fork_server.pid is not None
        os.kill(fork_server.pid, signal.SIGSTOP)

        with pytest.raises(NoProcess, match=r"no process within 0\.3 s"):
            fork_server.start(threading.Event())


def test_a_fork_server_that_dies_takes_its_children_along_and_is_followed_by_the_next() -> None:
    with ForkServer(SPEC) as fork_server, started(fork_server) as child:
        first = fork_server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

        assert child.ended(within=5)
        assert "together with the process that had started it" in child.how_it_ended()
        eventually(lambda: fork_server.pid not in (first, None), "another fork server")
        with started(fork_server) as other:
            assert not other.ended()


def test_nothing_remains_of_a_fork_server_and_its_children() -> None:
    threads, open_files = threading.active_count(), descriptors()
    with ForkServer(SPEC) as fork_server:
        parent = fork_server.pid
        children = [started(fork_server) for _ in range(3)]
        pids = [child.pid for child in children]
        for child in children:
            child.__exit__()

    assert (threading.active_count(), descriptors()) == (threads, open_files)
    for pid in filter(None, [parent, *pids]):
        eventually(lambda pid=pid: ended(pid), "every process has ended")  # type: ignore[misc]


def test_the_environment_of_its_processes_holds_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COATSTREAM_REDIS__URL", "redis://:hunter2@localhost")
    with ForkServer(SPEC) as fork_server, started(fork_server) as child:
        for pid in (fork_server.pid, child.pid):
            assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()


_WORKER = """
import sys, threading, time
from tests.cameras.test_fork_server import SPEC
from coatstream.cameras.process.forkserver import ForkServer
with ForkServer(SPEC) as fork_server:
    children = [fork_server.start(threading.Event()) for _ in range(3)]
    print(fork_server.pid, *(child.pid for child in children), flush=True)
    sys.stdin.read()
"""


def test_a_worker_that_is_killed_leaves_no_process_not_even_a_stopped_one() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as worker:
        assert worker.stdout is not None
        pids = [int(word) for word in worker.stdout.readline().split()]
        assert len(pids) == 4
        os.kill(pids[-1], signal.SIGSTOP)

        worker.kill()
        worker.wait(timeout=10)

        eventually(lambda: all(map(ended, pids)), "its processes are dead")
