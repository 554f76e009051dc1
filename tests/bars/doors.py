"""Side doors under pressure: idle HTTP connections by the thousand, and a log that is never read."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Any

from coatstream.broker.connection import Client

from tests.faults import frames
from tests.faults.findings import Findings
from tests.faults.servers import Server, running_server
from tests.support import processes
from tests.support.workers import PATIENCE, eventually, run_worker

HALF = b"GET /metrics HTTP/1.1\r\nhost: x\r\n"
DESCRIPTORS = 1024
RATE = 300.0  # frames a second that are offered while doors are under pressure


def idle_connections(findings: Findings, *, kind: str, connections: int, seconds: float) -> None:
    """Half of them never send a byte, half never end their request; one that is closed comes again."""
    with running_server(kind) as server, run_worker(server.url) as worker:
        client, (child,) = server.client(), processes.children(worker.process.pid)
        resource.prlimit(child, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        before = _labelled_while(client, lambda: time.sleep(seconds / 4))
        resident, lines = processes.resident_bytes(child), worker.lines.qsize()
        crowd = [sys.executable, "-m", "tests.bars.doors", str(worker.port), str(connections), str(seconds)]
        during = _labelled_while(client, lambda: subprocess.run(crowd, check=True, timeout=seconds + PATIENCE))
        findings.note("labels/s before", before)
        findings.at_least("labels/s with them, share", during / before, 0.95)
        grown = (processes.resident_bytes(child) - resident) / 2**20
        findings.at_most("memory grown", grown, 20.0, " MB")
        findings.at_most("log lines", worker.lines.qsize() - lines, 100)
        eventually(lambda: worker.get("/healthz").status_code == 200, "a probe gets through")
        findings.exactly("exit code", worker.stop(), 0)


def _labelled_while(client: Client, wait: Callable[[], object]) -> float:
    """Labels a second under a steady offer."""
    offer = subprocess.Popen(
        [sys.executable, "-m", "tests.bars.doors", "offer", str(client.connection_pool.connection_kwargs["port"])]
    )
    try:
        eventually(lambda: client.xlen("labels") > 0, "labels")
        began, labelled = time.monotonic(), _published(client)
        wait()
        return (_published(client) - labelled) / (time.monotonic() - began)
    finally:
        offer.kill()
        offer.wait()
        eventually(lambda: client.xlen("frames") == 0, "the queue becomes empty")


def _published(client: Client) -> int:
    return int(client.hget("frames:books", "published") or 0)


def unread_log(findings: Findings, *, kind: str, frame_count: int, pairs: int) -> None:
    """A pipe of 64 KiB that is never read, against one with a reader, in turns: at full load, with a broken frame in
    fifty.
    """
    rates: dict[bool, list[float]] = {True: [], False: []}
    with running_server(kind) as server:
        for _ in range(pairs):
            for read, some in rates.items():
                some.append(_rate_with_log(findings, server, frame_count, read=read))
    findings.note("labels/s with a reader", median(rates[True]))
    findings.at_least("labels/s without, share", median(rates[False]) / median(rates[True]), 0.95)


def _rate_with_log(findings: Findings, server: Server, frame_count: int, *, read: bool) -> float:
    client = server.client()
    client.flushall()
    for number, page in enumerate(range(0, frame_count, 50)):
        frames.send(client, frames.names(50, f"{number}-"))
        client.xadd("frames", {"image": b"broken", "frame_id": str(page)})
    process = subprocess.Popen(
        [sys.executable, "-m", "coatstream", "run", "--engine", "noop", "--redis", server.url],
        env=os.environ | {"COATSTREAM_HTTP__PORT": "0", "COATSTREAM_RESULTS__MAX_LENGTH": "10000000"},
        stderr=subprocess.DEVNULL if read else subprocess.PIPE,
    )
    try:
        eventually(lambda: client.xlen("labels") >= frame_count // 10, "labels begin")
        began, first = time.monotonic(), client.xlen("labels")
        eventually(lambda: client.xlen("frames") == 0, "the queue becomes empty")
        rate = float(client.xlen("labels") - first) / (time.monotonic() - began)
        stopped = time.monotonic()
        process.send_signal(signal.SIGTERM)
        findings.exactly("exit code", process.wait(PATIENCE), 0)
        findings.at_most("ends after", time.monotonic() - stopped, 22.0, " s")
        return rate
    finally:
        process.kill()
        process.communicate()


# ---- processes of their own, so that the harness costs the worker nothing


async def _crowd(port: int, connections: int, seconds: float) -> None:
    ends = time.monotonic() + seconds

    async def one(number: int) -> None:
        await asyncio.sleep(number / connections * min(10.0, seconds / 4))
        while time.monotonic() < ends:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                if number % 2:
                    writer.write(HALF)
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), max(0.0, ends - time.monotonic()))
                writer.close()
            await asyncio.sleep(5.0)

    await asyncio.gather(*(one(number) for number in range(connections)))


def _offer(port: int) -> None:
    import redis

    client, began, sent = redis.Redis(port=port), time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * RATE) - sent
        pipe = client.pipeline(transaction=False)
        for number in range(due):
            pipe.xadd("frames", dict[Any, Any](frames.fields(f"{sent + number}")))
        pipe.execute()
        sent += due
        time.sleep(0.02)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1] == "offer":
        _offer(int(sys.argv[2]))
    else:
        asyncio.run(_crowd(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
