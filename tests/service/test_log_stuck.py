"""A real worker whose log nobody reads, whose disk is full, whose output is closed: labels go on, and it drains."""

import fcntl
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from coatstream.broker.connection import Client

from tests.support.pictures import grey_jpeg
from tests.support.ports import HOST, free_port
from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import eventually

pytestmark = ON_ONE_SERVER
WORKER = [sys.executable, "-m", "coatstream", "run"]


def environment(url: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
    settings = {"REDIS__URL": url, "HTTP__PORT": "0", "MODEL__ENGINE": "noop", "LOG__FORMAT": "json"}
    return own | {f"COATSTREAM_{name}": value for name, value in settings.items()}


@contextmanager
def running(command: list[str], url: str, stderr: int) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, env=environment(url), stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)


def labels_after(client: Client, frames: int) -> None:
    """Frames go in; each gets its label."""
    before = client.xlen("labels")
    for number in range(frames):
        client.xadd("frames", {"image": grey_jpeg(number)})
    eventually(lambda: client.xlen("labels") == before + frames, "labels of the new frames")


def fill(say: int) -> None:
    """Leave no room in a pipe."""
    size = fcntl.fcntl(say, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(say, False)
    with suppress(BlockingIOError):
        while os.write(say, b"x" * size):
            pass
    os.set_blocking(say, True)


def answers(port: int) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://{HOST}:{port}/metrics", timeout=2).status_code == 200
    return False


def stop(process: "subprocess.Popen[bytes]") -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


def test_a_reader_of_the_log_that_dies_ends_no_label(client: Client, redis_url: str) -> None:
    hear, say = os.pipe()
    with running(WORKER, redis_url, say) as process:
        os.close(say)
        labels_after(client, 3)
        os.close(hear)
        client.xgroup_destroy("frames", "coatstream")  # worth a line of log

        labels_after(client, 5)

        assert process.poll() is None
        assert stop(process) == 0


def test_a_reader_of_the_log_that_sleeps_stops_neither_labels_nor_the_drain(client: Client, redis_url: str) -> None:
    hear, say = os.pipe()
    fill(say)
    with running(WORKER, redis_url, say) as process:
        os.close(say)

        labels_after(client, 5)

        assert stop(process) == 0
    os.close(hear)


def test_a_full_disk_under_the_log_stops_no_label(client: Client, redis_url: str) -> None:
    with Path("/dev/full").open("w") as full, running(WORKER, redis_url, full.fileno()) as process:
        labels_after(client, 5)

        assert stop(process) == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_output_that_is_closed_at_the_start_stops_no_label(client: Client, redis_url: str, closed: str) -> None:
    command = ["sh", "-c", f'exec "$0" "$@" {closed}', *WORKER]
    with running(command, redis_url, subprocess.DEVNULL) as process:
        labels_after(client, 5)

        assert stop(process) == 0


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("reader", ["gone", "asleep"])
@pytest.mark.parametrize("command", ["page", "queue"])
def test_what_serves_without_a_worker_is_stopped_by_no_reader_of_its_log(
    redis_url: str, command: str, reader: str
) -> None:
    hear, say = os.pipe()
    port = free_port()
    words = ["page", "--set", f"http.port={port}"] if command == "page" else ["queue", "--metrics", str(port)]
    if reader == "gone":
        os.close(hear)
    else:
        fill(say)
    with running([sys.executable, "-m", "coatstream", *words], redis_url, say) as process:
        os.close(say)

        eventually(functools.partial(answers, port), "an answer to a scrape")

        assert process.poll() is None
        assert stop(process) == 0
    if reader == "asleep":
        os.close(hear)
