"""How long a worker takes to be ready, and how much memory it holds under full load, and for how long.

    python -m bench footprint [--minutes 10] [--starts 5] [--batch 32] [--engine auto] [--weights random] [--set ...]

A real `coatstream run` on an embedded server. Starts: from the process's start to its word that it is ready; one start
before them fills the caches. Memory: a queue that never runs empty of 1080p JPEGs, in batches of up to 32; the
proportional set size (each shared page counted once) of all the worker's processes, every second. Linux only. One JSON
line each, as `coatstream bench` prints them.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Annotated

import typer
from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import embedded_server
from coatstream.commands.bench.report import Report, figure, machine
from coatstream.frames.frame import InputSpec
from coatstream.settings.model import RedisSettings

from bench.pictures import FILL, PictureKind, make_kinds

LEAST, MOST = 200, 400  # frames in the queue
EVERY = 1.0  # seconds between two looks
SETTLED = 0.2  # share of the time that memory may still grow in
PATIENCE = 600.0  # seconds until ready
SPEC = InputSpec(224, 224, 0.9, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # of pictures that are sent raw


def main(
    minutes: float = 10.0,
    starts: int = 5,
    batch: int = 32,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="model.name")] = None,
    engine: str = "auto",
    weights: str = "random",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting. Repeatable.")] = None,
) -> None:
    settings = [f"model.engine={engine}", f"model.weights={weights}", *([f"model.name={model}"] if model else [])]
    report = Report("footprint", machine())
    with embedded_server() as server, connect(RedisSettings.model_validate({"url": server.url})) as client:
        if starts:
            measure_starts(report, server.url, [*settings, *(set_ or [])], starts)
        if minutes:
            settings += [f"batch.max_size={batch}"]
            measure_memory(report, server.url, client, [*settings, *(set_ or [])], minutes)
    report.show()


# ---- starts


def measure_starts(report: Report, url: str, settings: list[str], starts: int) -> None:
    with worker(url, settings):
        pass  # fills the caches
    seconds, resident = [], []
    for _ in range(starts):
        with worker(url, settings) as (process, took):
            seconds.append(took)
            resident.append(memory(process.pid) / 1e6)
    report.add(case="start", seconds_to_ready=figure(seconds), memory_mb=figure(resident))


@contextmanager
def worker(url: str, settings: list[str]) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A worker and the seconds until it was ready; drained on leaving."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
    environment |= {"COATSTREAM_REDIS__URL": url, "COATSTREAM_HTTP__PORT": "0", "COATSTREAM_LOG__FORMAT": "json"}
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "coatstream", "run", *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )
    said = Said()
    reader = threading.Thread(target=said.read, args=(process,), daemon=True)
    reader.start()
    try:
        if not said.ready.wait(PATIENCE) or not said.ready_at:
            sys.exit(f"the worker did not get ready: {said.last}")
        yield process, said.ready_at - began
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)


@dataclass
class Said:
    """What a worker's log says."""

    ready: threading.Event = field(default_factory=threading.Event)
    ready_at: float = 0.0
    last: str = ""

    def read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stderr or ():
            self.last = line.strip()
            if line.startswith("{") and json.loads(line).get("event") == "ready":
                self.ready_at = time.monotonic()
                self.ready.set()
        self.ready.set()  # it ended


# ---- memory


def measure_memory(report: Report, url: str, client: Client, settings: list[str], minutes: float) -> None:
    kind = next(kind for kind in make_kinds(SPEC) if kind.name == "jpeg_1080p")
    with worker(url, settings) as (process, _):
        began, samples, labelled = time.monotonic(), [], labels(client)
        while (elapsed := time.monotonic() - began) < 60 * minutes:
            refill(client, kind)
            samples.append((elapsed / 60, memory(process.pid) / 1e6))
            time.sleep(EVERY)
        rate = (labels(client) - labelled) / elapsed
    later = [sample for sample in samples if sample[0] >= SETTLED * minutes]
    slope = linear_regression(*zip(*later, strict=True)).slope if len(later) > 2 else 0.0
    report.add(
        case="memory",
        minutes=minutes,
        frames_per_s=rate,
        most_mb=max(value for _, value in samples),
        memory_mb=figure([value for _, value in later]),
        early_mb=median(value for at, value in samples if SETTLED * minutes <= at <= 0.4 * minutes),
        late_mb=median(value for at, value in samples if at >= 0.8 * minutes),
        growth_mb_per_minute=slope,
        settings=" ".join(settings),
    )


def refill(client: Client, kind: PictureKind) -> None:
    waiting = client.xlen("frames")
    if waiting < LEAST:
        fill = client.register_script(FILL)
        fill(keys=["frames"], args=[MOST - waiting, kind.key, kind.width, kind.height, *kind.pictures])


def labels(client: Client) -> int:
    """Published so far."""
    return int(client.xinfo_stream("labels")["entries-added"]) if client.exists("labels") else 0


def memory(pid: int) -> int:
    """Bytes of proportional set size of a process and all below it."""
    return sum(_pss(one) for one in _tree(pid))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(word) for thread in threads for word in (thread / "children").read_text().split()]
    except OSError:  # it ended meanwhile
        return
    for one in children:
        yield from _tree(one)


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
