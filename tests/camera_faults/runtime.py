"""C7: cameras that come, rest and go while the workers run, by the command line."""

import json
import os
import subprocess
import sys
import time
from typing import Final

from tests.camera_faults import judge
from tests.camera_faults.lab import LabCamera
from tests.camera_faults.shares import FPS
from tests.camera_faults.stage import Stage
from tests.camera_faults.streams import Tail, poll
from tests.faults.servers import Server

BEGIN: Final = 2.0  # seconds from the end of the command to the first label
STOP: Final = 0.5  # seconds after the command in which a last label may come
WATCHED: Final = 1.2  # seconds of silence that are looked at


def changed(stage: Stage, *, replicas: int, rounds: int) -> None:
    """C7, whole: one camera that is there all the time, and one that comes and goes."""
    server = stage.server()
    lab = stage.lab(2)
    tail = stage.tail(server)
    steady, guest = lab.cameras["cam-1"], lab.cameras["cam-2"]
    for _ in range(replicas):
        stage.replica(server.url, fleet__lease=3.0)
    stage.until_ready()
    begun: dict[str, list[float | None]] = {}
    stopped: dict[str, list[float]] = {}
    began = time.time()
    try:
        begun["add"] = [_begins(stage, server, tail, steady, "add")]
        began = time.time()
        for _ in range(rounds):
            begun["add"].append(_begins(stage, server, tail, guest, "add"))
            stopped.setdefault("pause", []).append(_stops(stage, server, tail, guest, "pause"))
            begun.setdefault("resume", []).append(_begins(stage, server, tail, guest, "resume"))
            stopped.setdefault("remove", []).append(_stops(stage, server, tail, guest, "remove"))
    finally:
        for word, times in begun.items():
            stage.bars.at_most(f"first label after {word}", judge.slowest(times), BEGIN, " s")
        for word, some in stopped.items():
            stage.bars.at_most(f"last label after {word}", max(some), STOP, " s")
        gap = judge.longest_gap(judge.by_camera(tail.labels).get(steady.name, []), began, time.time())
        stage.bars.at_most("longest gap of the camera that stays", gap, 1.0, " s")
        found = judge.fences(tail.labels)
        stage.bars.exactly("labels with an older fence than the one before", found.fell, 0)
    stage.bars.exactly("listed at the end", _listed(server, (steady.name, guest.name)), [steady.name])


def _begins(stage: Stage, server: Server, tail: Tail, camera: LabCamera, word: str) -> float | None:
    """Seconds from the end of the command to the first label; None: none came. The label may be there before."""
    told = time.time()
    _command(server, word, camera)
    done = time.time()
    poll(lambda: _first(tail, camera.name, told) is not None, until=time.monotonic() + 15)
    stage.pass_by(0.5)
    first = _first(tail, camera.name, told)
    return None if first is None else max(0.0, first - done)


def _first(tail: Tail, camera: str, since: float) -> float | None:
    return next((label.added for label in tail.since(since) if label.camera == camera), None)


def _stops(stage: Stage, server: Server, tail: Tail, camera: LabCamera, word: str) -> float:
    """Seconds from the end of the command to the last label."""
    _command(server, word, camera)
    done = time.time()
    stage.pass_by(WATCHED)
    late = [label.added - done for label in tail.since(done) if label.camera == camera.name]
    return max(late, default=0.0)


def _command(server: Server, word: str, camera: LabCamera) -> str:
    more = [camera.url, "--fps", f"{FPS:g}"] if word == "add" else []
    return _coatstream(server, "cameras", word, camera.name, *more)


def _listed(server: Server, names: tuple[str, ...]) -> list[str]:
    rows = [json.loads(line) for line in _coatstream(server, "cameras", "list", "--json").splitlines()]
    return [name for name in names if name in {row["camera"] for row in rows}]


def _coatstream(server: Server, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
    environment["COATSTREAM_REDIS__URL"] = server.url
    done = subprocess.run(
        [sys.executable, "-m", "coatstream", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    shown = " ".join(word for word in words if "://" not in word)
    assert done.returncode == 0, f"coatstream {shown} ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    return done.stdout
