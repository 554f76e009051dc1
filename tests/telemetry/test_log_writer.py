"""The log never stops the work: stuck, gone and full readers cost lines, which are counted, and nothing else."""

import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from coatstream.telemetry.log_writer import LogWriter, keep_standard_descriptors

from tests.support.workers import eventually


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of 4 KiB: its end for reading, and its end for writing."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for end in (reading, writing):
        with suppress(OSError):
            os.close(end)


def test_lines_arrive_in_order_and_whole(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    writer.start()

    for number in range(100):
        writer.write(f"line {number}\n")
    writer.drain(within=60)

    assert os.read(pipe[0], 4096).decode().splitlines() == [f"line {number}" for number in range(100)]
    assert writer.dropped == 0


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1], most_lines=10)
    writer.start()

    for _ in range(1000):
        writer.write("x" * 99 + "\n")  # would wait for ever without the queue

    assert writer.dropped > 900


def test_a_process_without_the_thread_does_not_wait_either(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])

    for _ in range(1000):
        writer.write("x" * 99 + "\n")

    assert writer.dropped > 900


def test_when_the_log_is_read_again_it_tells_how_many_lines_it_lost(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1], most_lines=10)
    writer.start()
    for _ in range(200):
        writer.write("x" * 99 + "\n")

    text = ""
    while "back" not in text:
        writer.write("back\n")
        text += os.read(pipe[0], 65536).decode()

    lost = [line for line in text.splitlines() if "log lines were lost" in line]
    assert lost
    assert sum(int(line.split()[1]) for line in lost) <= writer.dropped


def test_a_reader_that_is_gone_costs_lines_only(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    writer.start()
    os.close(pipe[0])

    writer.write("to nobody\n")

    eventually(lambda: writer.dropped == 1, "the line is counted")


def test_a_full_disk_costs_lines_only() -> None:
    with Path("/dev/full").open("w") as full:
        writer = LogWriter(full.fileno())
        writer.start()

        writer.write("no room\n")

        eventually(lambda: writer.dropped == 1, "the line is counted")


def test_the_end_waits_for_a_stuck_log_no_longer_than_it_may(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    writer.start()
    writer.write("x" * 10_000)
    done = threading.Event()

    def drain() -> None:
        writer.drain(within=0.1)
        done.set()

    threading.Thread(target=drain, daemon=True).start()

    assert done.wait(60)


def test_the_other_owner_of_the_pipe_keeps_a_pipe_that_waits(pipe: tuple[int, int]) -> None:
    LogWriter(pipe[1])

    assert os.get_blocking(pipe[1])


def test_text_that_no_encoding_knows_is_written_with_escapes(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])

    writer.write("\udcff ü\n")

    assert os.read(pipe[0], 100) == b"\\udcff \xc3\xbc\n"


def test_descriptors_that_were_closed_at_the_start_are_open_before_anything_else_gets_their_numbers() -> None:
    script = (
        "import os\n"
        "for number in (0, 1, 2): os.close(number)\n"
        "from coatstream.telemetry.log_writer import keep_standard_descriptors\n"
        "keep_standard_descriptors()\n"
        "os._exit(0 if os.open('/dev/null', os.O_RDONLY) > 2 else 1)\n"
    )

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


def test_descriptors_that_are_open_stay_what_they_are() -> None:
    before = [os.fstat(number) for number in (0, 1, 2)]

    keep_standard_descriptors()

    assert [os.fstat(number).st_ino for number in (0, 1, 2)] == [status.st_ino for status in before]


def test_a_process_without_the_thread_does_not_wait_for_a_socket_that_nobody_reads() -> None:
    ours, _theirs = socket.socketpair()
    with ours, _theirs:
        writer = LogWriter(ours.fileno())

        for _ in range(2000):
            writer.write("x" * 999 + "\n")

    assert writer.dropped > 0
