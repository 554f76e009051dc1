"""A worker that crashes is there again at once: real processes, real signals, real crashes."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from coatstream.broker.connection import Client
from coatstream.supervisor import WINDOW, Pacing
from hypothesis import given
from hypothesis import strategies as st

from tests.support.absence import missing
from tests.support.pictures import jpeg
from tests.support.ports import free_port
from tests.support.processes import ended
from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import PATIENCE, Worker, eventually, run_worker, starting_worker


@pytest.fixture(autouse=True)
def no_core_files() -> Iterator[None]:
    """These crashes are meant: nobody wants to look at them afterwards."""
    if sys.platform != "linux":
        missing("the worker has a parent on Linux only")
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


# ---- how fast


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_restarts_within_the_limit_come_at_once_and_the_next_one_waits_for_the_minute_to_pass() -> None:
    clock = Clock()
    pacing = Pacing(2, clock)
    delays = []
    for _ in range(2):
        delays.append(pacing.delay())
        pacing.restarted()
        clock.now += 10

    assert delays == [0, 0]
    assert pacing.delay() == WINDOW - 20
    clock.now += WINDOW - 20
    assert pacing.delay() == 0


@given(limit=st.integers(1, 5), gaps=st.lists(st.integers(0, 70), max_size=30))
def test_no_minute_has_more_restarts_than_the_limit(limit: int, gaps: list[int]) -> None:
    clock = Clock()
    pacing = Pacing(limit, clock)
    restarts = []
    for gap in gaps:
        clock.now += max(gap, pacing.delay())
        pacing.restarted()
        restarts.append(clock.now)

    assert all(later - earlier >= WINDOW for earlier, later in zip(restarts, restarts[limit:], strict=False))


# ---- any child


@contextmanager
def supervised(body: str, *, restarts_per_minute: int = 60) -> Iterator[subprocess.Popen[str]]:
    """A process that supervises children whose life is `body`, with `worker`, `lineage` and `lifeline` as its names."""
    script = (
        "import os, signal, sys\n"
        "from coatstream.settings.model import LogSettings\n"
        "from coatstream.telemetry import logs\n"
        "from coatstream.errors import CoatstreamError\n"
        "from coatstream.supervisor import supervise\n"
        "def say(*words): print(*words, flush=True)\n"
        "def run(worker, lineage, lifeline):\n"
        f"{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        "logs.configure(LogSettings(format='json'))\n"
        "try:\n"
        f"    sys.exit(supervise(run, restarts_per_minute={restarts_per_minute}))\n"
        "except CoatstreamError as error:\n"
        "    sys.exit(f'coatstream: {error}')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def outcome(body: str) -> tuple[int, str, str]:
    with supervised(body) as process:
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err


@pytest.mark.parametrize("code", [0, 3, 101])
@pytest.mark.parametrize("way", ["return {}", "lifeline.leave({})", "lifeline.ready(); lifeline.leave({})"])
def test_an_end_on_purpose_is_the_end_with_the_same_code(way: str, code: int) -> None:
    ended, _, errors = outcome(way.format(code))

    assert ended == code
    assert errors == ""


@pytest.mark.parametrize(
    "crash",
    [
        "os._exit(0)",
        "os._exit(4)",
        "os.abort()",
        "os.kill(os.getpid(), signal.SIGRTMIN + 1)",
        "sys.stderr = open(os.devnull, 'w'); sys.exit(0)",
        "sys.stderr = open(os.devnull, 'w'); raise BrokenPipeError",
    ],
)
def test_an_end_without_a_word_is_a_crash_and_the_next_child_is_there_at_once(crash: str) -> None:
    ended, out, errors = outcome(f"""
        say(lineage.restarts)
        if lineage.restarts == 2:
            return 7
        lifeline.ready()
        {crash}
    """)

    assert out.split() == ["0", "1", "2"]
    assert ended == 7
    assert errors.count("worker crashed") == errors.count("worker restarted") == 2
    assert "Traceback" not in errors


def test_a_child_knows_by_name_whose_entries_are_not_taken_over_yet() -> None:
    ended, out, _ = outcome("""
        say(worker, *lineage.predecessors)
        if lineage.restarts in (0, 2):
            lifeline.ready()
        if lineage.restarts < 3:
            os._exit(1)
        return 0
    """)

    (first, *after_none), (second, *after_first), (third, *after_two), (_, *after_third) = map(
        str.split, out.splitlines()
    )
    assert ended == 0
    assert after_none == []
    assert after_first == [first]
    assert after_two == [first, second]  # the second one never got ready
    assert after_third == [third]


def test_three_crashes_in_a_row_before_it_is_ready_are_the_end_in_one_line() -> None:
    ended, out, errors = outcome("say(worker); os.kill(os.getpid(), signal.SIGSEGV)")

    (line,) = [line for line in errors.splitlines() if line.startswith("coatstream:")]
    assert ended == 1
    assert len(out.split()) == 3
    assert "crashed 3 times in a row before it was ready" in line
    assert "Segmentation fault" in line


def test_a_child_that_got_ready_begins_that_count_anew() -> None:
    ended, out, _ = outcome("""
        say(lineage.restarts)
        if lineage.restarts == 5:
            return 0
        if lineage.restarts == 2:
            lifeline.ready()
        os._exit(1)
    """)

    assert (ended, len(out.split())) == (0, 6)


def test_beyond_the_limit_a_restart_waits_and_a_signal_ends_the_waiting() -> None:
    with supervised("lifeline.ready(); os._exit(1)", restarts_per_minute=2) as process:
        assert process.stderr is not None
        log: list[str] = []
        while not log or "too many restarts" not in log[-1]:
            log.append(process.stderr.readline())
            assert log[-1], log
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=PATIENCE) == 0
        assert sum("worker restarted" in line for line in log) == 2


def test_a_signal_waits_until_the_child_has_a_handler_for_it() -> None:
    with supervised("say('there'); signal.sigwait({signal.SIGTERM}); return 5") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGINT)

        assert process.wait(timeout=PATIENCE) == 5


@pytest.mark.parametrize(("ready", "code"), [("lifeline.ready()", 1), ("pass", 0)])
def test_a_crash_after_a_signal_is_not_followed_by_a_restart(ready: str, code: int) -> None:
    with supervised(f"{ready}; say('there'); signal.sigwait({{signal.SIGTERM}}); os._exit(0)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=PATIENCE) == code
        assert process.stdout.read() == ""


def test_a_child_that_hears_no_signal_while_it_loads_is_ended_with_0() -> None:
    with supervised("say('there'); signal.pause()") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=PATIENCE) == 0
        assert process.stderr is not None
        (line,) = process.stderr.read().splitlines()
        assert json.loads(line)["event"] == "killed: it did not stop while it was loading"


def test_a_child_that_works_has_all_the_time_it_needs_to_drain() -> None:
    drain = "signal.sigwait({signal.SIGTERM}); time.sleep(1.5 * supervisor.LOADING_ENDS_WITHIN); return 5"
    with supervised(
        f"import time; from coatstream import supervisor; lifeline.ready(); say('there'); {drain}"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=PATIENCE) == 5


def test_a_parent_that_was_started_with_sigchld_ignored_hears_of_its_children_all_the_same() -> None:
    ignored = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); from coatstream.supervisor import supervise; "
    )
    done = subprocess.run(
        [sys.executable, "-c", ignored + "raise SystemExit(supervise(lambda *place: 6, restarts_per_minute=1))"],
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 6


def test_what_a_child_leaves_behind_holds_nobody_up() -> None:
    """A grandchild that lives on has the other end of the pipe, so there is no end of file."""
    ended, out, _ = outcome("""
        if lineage.restarts:
            return 2
        grandchild = os.fork()
        if grandchild:
            say(grandchild)
            os._exit(0)
        os.close(1), os.close(2)
        signal.alarm(60)
        signal.pause()
    """)
    os.kill(int(out), signal.SIGKILL)

    assert ended == 2


def test_nobody_forks_beside_threads() -> None:
    script = """
        import threading
        from coatstream.supervisor import supervise
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        supervise(lambda *place: 0, restarts_per_minute=1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )

    assert done.returncode == 1
    assert "threads at the fork" in done.stderr


# ---- the worker


def enqueue(client: Client, count: int) -> None:
    for _ in range(count):
        client.xadd("frames", {"image": jpeg(64, 48)})


def events(worker: Worker) -> list[str]:
    """All that it logged, once it has ended."""
    while not worker.lines.empty():
        worker.log.append(json.loads(worker.lines.get()))
    return [entry["event"] for entry in worker.log]


@ON_ONE_SERVER
def test_any_free_port_is_the_same_one_after_a_crash(redis_url: str) -> None:
    with run_worker(redis_url) as worker:
        os.kill(worker.child, signal.SIGKILL)
        again = worker.wait_for("listening")
        worker.wait_for("ready")

        assert int(again["http"].rpartition(":")[2]) == worker.port
        assert worker.get("/healthz").status_code == 200
        assert worker.stop() == 0


@ON_ONE_SERVER
def test_a_worker_that_is_killed_works_on_with_the_same_port_and_ends_well(client: Client, redis_url: str) -> None:
    with run_worker(redis_url, http__port=free_port()) as worker:
        for number, name in enumerate((signal.SIGSEGV, signal.SIGKILL), start=1):
            dead = worker.child
            os.kill(dead, name)
            crash = worker.wait_for("worker crashed")
            assert f"-{dead}-" in crash["worker"]
            assert crash["end"].startswith(f"signal {int(name)} ")
            assert worker.wait_for("worker restarted")["restarts"] == number
            worker.wait_for("ready")
            assert worker.get("/readyz").status_code == 200

        enqueue(client, 20)
        eventually(lambda: client.xlen("labels") == 20, "20 labels")
        assert worker.stop() == 0


@ON_ONE_SERVER
@pytest.mark.usefixtures("client")
def test_a_worker_does_not_outlive_its_parent(redis_url: str) -> None:
    with run_worker(redis_url) as worker:
        child = worker.child
        worker.process.kill()

        eventually(lambda: ended(child), "the child's end")


@ON_ONE_SERVER
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_reaches_parent_and_child_drains(client: Client, redis_url: str, name: signal.Signals) -> None:
    enqueue(client, 200)
    with run_worker(redis_url, model__noop_delay=0.05) as worker:
        eventually(lambda: client.xlen("labels") > 0, "a label")
        os.kill(worker.child, name)

        assert worker.stop(name) == 0

    assert "worker crashed" not in events(worker)
    assert [entry["drained"] for entry in worker.log if entry["event"] == "stopped"] == [True]
    assert client.xlen("frames") == 200 - client.xlen("labels") > 0


@ON_ONE_SERVER
@pytest.mark.usefixtures("client")
def test_no_moment_of_its_end_is_bad_for_one_more_signal_to_the_child(redis_url: str) -> None:
    with run_worker(redis_url) as worker:
        child = worker.child
        worker.process.send_signal(signal.SIGTERM)
        while not ended(child):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
            time.sleep(0.001)

        assert worker.process.wait(timeout=PATIENCE) == 0


@ON_ONE_SERVER
def test_a_second_signal_takes_the_child_along(client: Client, redis_url: str) -> None:
    enqueue(client, 5)
    with run_worker(redis_url, model__noop_delay=60) as worker:
        child = worker.child
        eventually(lambda: worker.total("coatstream_frames_received_total") > 0, "a frame in the engine")
        worker.process.send_signal(signal.SIGINT)
        worker.wait_for("draining")

        assert worker.stop(signal.SIGINT) == 1
        assert ended(child)


@ON_ONE_SERVER
@pytest.mark.usefixtures("client")
def test_the_parent_has_one_thread_and_neither_model_nor_connection(redis_url: str) -> None:
    with starting_worker(redis_url, model__engine="eager", model__weights="random") as worker:
        child, parent = (Path(f"/proc/{pid}") for pid in (worker.child, worker.process.pid))
        eventually(lambda: "libtorch" in (child / "maps").read_text(), "the model's library in the child")

        assert "libtorch" not in (parent / "maps").read_text()
        assert len(list((parent / "task").iterdir())) == 1
        assert [fd for fd in (parent / "fd").iterdir() if str(fd.readlink()).startswith("socket:")] == []
        assert worker.stop() == 0  # the model is still being loaded

    assert "ready" not in events(worker)


@ON_ONE_SERVER
@pytest.mark.usefixtures("client")
def test_what_is_wrong_at_the_start_of_the_child_is_no_crash(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
        port = taken.getsockname()[1]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "coatstream", "run", "--redis", redis_url, "--engine", "noop"),
                *("--set", f"http.port={port}"),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    assert done.returncode == 2
    (fault,) = [line for line in done.stderr.splitlines() if '"event": "starting"' not in line]
    assert fault.startswith("coatstream: ")
    assert str(port) in done.stderr


@ON_ONE_SERVER
def test_a_bug_in_the_worker_is_a_crash_and_the_next_worker_goes_on(client: Client, redis_url: str) -> None:
    script = (
        "import asyncio, sys\n"
        "from coatstream import cli\n"
        "from coatstream.service import Service\n"
        "run = Service.run\n"
        "async def broken(self, stop):\n"
        "    if self.telemetry.lineage.restarts == 0:\n"
        "        raise BrokenPipeError(32, 'Broken pipe')\n"
        "    await run(self, stop)\n"
        "Service.run = broken\n"
        "sys.exit(cli.run(['run', '--engine', 'noop', '--set', 'http.port=0']))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
    environment |= {"COATSTREAM_REDIS__URL": redis_url, "COATSTREAM_LOG__FORMAT": "json"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        client.xadd("frames", {"image": jpeg(32, 32)})
        eventually(lambda: client.xlen("labels") == 1, "a label by the second worker")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()

    assert process.returncode == 0
    assert "coatstream: a bug in coatstream: BrokenPipeError" in errors
    assert errors.count("worker crashed") == errors.count("worker restarted") == 1
    assert "Traceback" not in errors


@ON_ONE_SERVER
def test_without_a_parent_the_first_process_works_and_a_second_signal_leaves_at_once(
    client: Client, redis_url: str
) -> None:
    enqueue(client, 5)
    with run_worker(redis_url, process__restarts_per_minute=0, model__noop_delay=60) as worker:
        pid = worker.process.pid
        assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
        eventually(lambda: worker.total("coatstream_frames_received_total") > 0, "a frame in the engine")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("draining")

        assert worker.stop(signal.SIGTERM) == 1


def test_a_kill_from_outside_says_whether_memory_may_be_the_reason() -> None:
    with supervised("os.kill(os.getpid(), signal.SIGKILL)", restarts_per_minute=60) as process:
        _, err = process.communicate(timeout=PATIENCE)

    ends = {json.loads(line)["end"] for line in err.splitlines() if '"worker crashed"' in line}
    assert len(ends) == 1
    assert ends <= {"signal 9 (Killed)", "signal 9 (Killed): perhaps memory ran out, as the kernel's log would say"}
