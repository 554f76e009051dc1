"""One soak: starts everything, plays the troubles in turn, lets the workers drain, judges."""

import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.faults.findings import Findings
from tests.faults.servers import running_server
from tests.soak.cast import Producers, cameras
from tests.soak.gauges import Gauges
from tests.soak.troubles import Troubles
from tests.support.threads import in_background
from tests.support.workers import Worker, eventually, run_worker

LOOK_EVERY = 5.0  # seconds
QUIET = 0.5  # of the time between two troubles nothing is wrong


def soak(
    findings: Findings,
    folder: Path,
    *,
    seconds: float,
    kind: str,
    model: dict[str, object],
    rate: float = 8.0,
    seed: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """`seconds` of everything at once on a server of this kind; `rate`: entries a second of each producer."""
    rng = random.Random(seed)
    with ExitStack() as stack:
        server = stack.enter_context(running_server(kind, "--appendonly", "yes"))
        client = server.client()
        cast = stack.enter_context(cameras(folder))
        settings: dict[str, Any] = {"cameras": cast.settings, "results__max_length": 10_000_000, **model}
        workers = [stack.enter_context(run_worker(server.url, **settings)) for _ in range(2)]
        gauges = Gauges(workers, client)
        ended = threading.Event()
        with ExitStack() as producing:
            for _ in range(3):
                one = Producers(server, rate, random.Random(rng.random()))
                producing.enter_context(in_background(one.run, stop=one.stop.set, name="producer"))
            looking = in_background(lambda: _look(gauges, ended), stop=ended.set, name="gauges")
            producing.enter_context(looking)
            _play(Troubles(server, client, workers, cast, rng, min(25.0, seconds / 40)), seconds, tell)
        eventually(lambda: client.xlen("frames") == 0, "the queue becomes empty")
        findings.exactly("exit codes", sorted(_stopped(worker) for worker in workers), [0, 0])
        gauges.judge(findings, cast.names)


def _look(gauges: Gauges, ended: threading.Event) -> None:
    while not ended.is_set():
        gauges.look()
        _read_on(gauges.workers)
        ended.wait(LOOK_EVERY)


def _read_on(workers: list[Worker]) -> None:
    """The logs of an hour would be kept as lines that wait."""
    for worker in workers:
        while worker.lines.qsize() > 1000:
            worker.lines.get_nowait()


def _play(troubles: Troubles, seconds: float, tell: Callable[[str], None]) -> None:
    ends, every = time.monotonic() + seconds, troubles.every()
    pause = max(2.0, seconds / max(len(every), seconds / 120) * QUIET)
    number = 0
    while time.monotonic() + pause < ends:
        time.sleep(pause)
        name, befall = every[number % len(every)]
        tell(name)
        befall()
        number += 1
    time.sleep(max(0.0, ends - time.monotonic()))


def _stopped(worker: Worker) -> int:
    return worker.stop()
