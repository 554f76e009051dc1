"""What the page costs with 100 cameras: its server watched and unwatched, the browser's memory and long tasks.

    python -m bench page [--cameras 100] [--minutes 10]

A script plays the fleet on an embedded server: labels and states of every camera change, and previews are published for
those that are wished for, twice a second. So the cost of cameras and engine is left out; what is measured is
`coatstream page` (the same code as in a worker) and a real Chromium of 1280 x 800 with some ten tiles in sight. Prints
one JSON line.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import redis
import typer
from coatstream.broker.embedded import embedded_server
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet.leases import Catalogue, CatalogueEntry, Leases
from coatstream.frames.decoding import decode
from coatstream.frames.still import Still
from coatstream.results.previews import preview_message
from coatstream.results.reports import CameraReport, WorkerReport
from playwright.sync_api import CDPSession

from tests.support.browsers import chromium
from tests.support.ports import free_port

TICK = os.sysconf("SC_CLK_TCK")
LONG_TASKS = """() => {
  window.longTasks = 0;
  new PerformanceObserver((list) => { for (const task of list.getEntries()) window.longTasks += task.duration; })
    .observe({ entryTypes: ["longtask"] });
}"""


def main(
    cameras: Annotated[int, typer.Option(help="How many.")] = 100,
    minutes: Annotated[float, typer.Option(help="How long the page is watched.")] = 10.0,
) -> None:
    with embedded_server() as server, redis.Redis.from_url(server.url) as client:
        names = [f"cam-{number:03}" for number in range(cameras)]
        client.hset("cameras", mapping=dict.fromkeys(names, '{"url": "rtsp://10.0.0.7/1", "fps": 5}'))
        stop = threading.Event()
        fleet = threading.Thread(target=play, args=(server.url, names, stop), daemon=True)
        fleet.start()
        with page_server(server.url) as (address, pid):
            time.sleep(5)
            unwatched = share_of(pid, 60 if minutes >= 5 else 20)
            found = watch(address, pid, minutes)
        stop.set()
        fleet.join(5)
    load = float(Path("/proc/loadavg").read_text().split()[0])
    print(
        json.dumps(
            {
                "case": "page",
                "cameras": cameras,
                "minutes": minutes,
                "unwatched_core": unwatched,
                **found,
                "load_1min": load,
            }
        )
    )


@contextmanager
def page_server(url: str) -> Iterator[tuple[str, int]]:
    """`coatstream page` in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "coatstream", "page", "--redis", url, "--set", f"http.port={port}"]
    with subprocess.Popen(command) as process:
        try:
            time.sleep(8)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def share_of(pid: int, seconds: float) -> float:
    """Of one core, by the process's own processor time."""
    before = cpu_of(pid)
    time.sleep(seconds)
    return round((cpu_of(pid) - before) / seconds, 5)


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def watch(address: str, pid: int, minutes: float) -> dict[str, Any]:
    """The heap is read after the collector has run, each tenth of the time; the first tenth warms up."""
    heaps: list[float] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        tools = page.context.new_cdp_session(page)
        tools.send("Performance.enable", {"timeDomain": "threadTicks"})  # processor time, whatever else works here
        page.goto(address)
        page.wait_for_selector(".tile[data-state=live] .preview:not(.empty)")
        seen = page.locator(".tile[data-state=live]").count()
        page.evaluate(LONG_TASKS)
        began, cpu, busy = time.monotonic(), cpu_of(pid), metrics_of(tools)["TaskDuration"]
        for _ in range(10):
            page.wait_for_timeout(minutes * 6000)
            heaps.append(min(heap_of(tools) for _ in range(3)))  # what was made since the collection is no leak
        seconds = time.monotonic() - began
        return {
            "tiles_in_sight": seen,
            "watched_core": round((cpu_of(pid) - cpu) / seconds, 4),
            "main_thread_core": round((metrics_of(tools)["TaskDuration"] - busy) / seconds, 4),
            "long_task_share": round(page.evaluate("window.longTasks") / 1000 / seconds, 5),
            "heap_mb": heaps,
            "heap_drift": round(max(heaps[1:]) / median(heaps[1:]) - 1, 3),
            "server_rss_mb": rss_of(pid),
        }


def heap_of(tools: CDPSession) -> float:
    """MB of JavaScript objects that are still in use."""
    tools.send("HeapProfiler.collectGarbage")
    return round(metrics_of(tools)["JSHeapUsedSize"] / 1e6, 2)


def metrics_of(tools: CDPSession) -> dict[str, float]:
    """Chromium's own, of the page."""
    return {one["name"]: float(one["value"]) for one in tools.send("Performance.getMetrics")["metrics"]}


def rss_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


def play(url: str, names: list[str], stop: threading.Event) -> None:
    """The fleet: once a second labels and reports, twice a second previews that are wished for."""
    rng, photo = (
        random.Random(1),
        decode((files("coatstream") / "assets" / "coffee.png").read_bytes(), max_bytes=2**24, max_pixels=2**24),
    )
    pictures = [Still("f", 0.0, np.roll(photo, 40 * turn, axis=1)).jpeg(side=320, quality=70) for turn in range(8)]
    catalogue = Catalogue(tuple(CatalogueEntry(name, "d") for name in names))
    with redis.Redis.from_url(url) as client:
        leases = Leases(client, FleetKeys(), worker="host-1-ab", lease=60)
        for turn in range(1_000_000):
            if stop.wait(0.5):
                return
            now = time.time()
            if turn % 2 == 0:
                client.hset("labels:latest", mapping={name: label(name, now, rng) for name in names})
                client.hset("cameras:reports", "host-1-ab", report(names, now))
            if turn % 10 == 0:
                states = {
                    name: json.dumps({"state": "live", "since": now - 60, "worker": "host-1-ab"}) for name in names
                }
                client.hset("cameras:states", mapping=states)
                leases.beat(catalogue, warm=names)
            wished = [
                name
                for name, one in zip(names, client.mget([f"preview:wish:{name}" for name in names]), strict=True)
                if one
            ]
            for name in wished:
                client.publish(f"preview:{name}", preview_message(name, now, rng.choice(pictures)))


def label(name: str, now: float, rng: random.Random) -> str:
    scores = sorted((rng.random() for _ in range(5)), reverse=True)
    labels = [
        {"index": place, "wnid": None, "label": f"class {place}", "score": score} for place, score in enumerate(scores)
    ]
    return json.dumps(
        {"source": name, "captured_at": now - 0.1, "published_at": now, "labels": labels, "worker": "host-1-ab"}
    )


def report(names: list[str], now: float) -> str:
    cameras = {name: CameraReport(fps=5, read_fps=25, last_picture=now) for name in names}
    return WorkerReport(
        worker="host-1-ab", at=now, started_at=now - 600, version="0", cameras=cameras
    ).model_dump_json()
