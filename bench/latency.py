"""The latency part of `python -m bench queue`: from just before a frame's XADD to the arrival of its label.

A worker as `coatstream run` starts it, with the noop engine, on an idle queue; beside it the bare trip that no consumer
can beat: the same entries into another stream, where a process that does nothing else answers each one. Frames leave on
a steady schedule, and the two sides take turns.
"""

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import as_file, files
from multiprocessing.process import BaseProcess
from statistics import median
from typing import Final

import numpy as np
from coatstream.broker.connection import Client, connect
from coatstream.broker.failures import calls
from coatstream.broker.keys import queues_of
from coatstream.commands.bench.report import Report, figure, for_bench, interleave, percentile, ratio
from coatstream.commands.exit_codes import exit_code
from coatstream.commands.run import run_worker
from coatstream.errors import EngineError
from coatstream.frames.decoding import decode
from coatstream.frames.opencv import cv2
from coatstream.settings.model import QueueSettings, RedisSettings, SettingsTree

from bench.beside import beside, leave_of

RATE: Final = 50.0  # frames a second: far below what the worker can do, so that each finds it idle
FEWEST: Final = 5  # frames in a block
WARM_UP: Final = 10  # frames that do not count
START_TIMEOUT: Final = 60.0  # seconds until the first label
PATIENCE: Final = 10.0  # seconds for a block's last label, beyond the schedule
QUALITY: Final = 85  # of the JPEG: 48 kB
ANSWER: Final = b"x" * 1000  # bytes, as a label has
_BLOCK: Final = 250  # ms of one blocking read
_ECHO_IN, _ECHO_OUT = "bench:echo:in", "bench:echo:out"

Entry = dict[str, str | bytes | int]


def measure_latency(settings: SettingsTree, url: str, report: Report, *, seconds: float) -> None:
    """Both trips for each kind of picture, on the server at `url`. Raises EngineError where a label stays away."""
    settings = for_bench(settings, url)
    queue = queues_of(settings)[0]
    with (
        connect(settings.redis) as client,
        connect(settings.redis) as ear,
        beside(_work, settings, leave=leave_of(settings)) as worker,
        beside(_echo, settings.redis, leave=5.0) as echo,
    ):
        for case, entry in pictures().items():
            trip = Trip(client, ear, worker, queue.stream, queue.labels, entry)
            bare = Trip(client, ear, echo, _ECHO_IN, _ECHO_OUT, entry)
            for each in (trip, bare):
                each.warm_up()
            runs = {"worker": trip.run, "bare": bare.run}
            samples = interleave(runs, seconds, track=partial(report.track, f"latency of {case}"))
            report.add(
                case=f"latency_{case}",
                frames_a_s=RATE,
                frames=len(trip.latencies),
                p50_ms=figure(samples["worker"]),
                p99_ms=percentile(trip.latencies, 99),
                bare_p50_ms=figure(samples["bare"]),
                bare_p99_ms=percentile(bare.latencies, 99),
                ratio=ratio(samples["worker"], samples["bare"]),
                ratio_p99=percentile(trip.latencies, 99) / percentile(bare.latencies, 99),
            )


def pictures() -> dict[str, Entry]:
    """Fields of a frame by the case's name: small raw pixels, and a JPEG as a camera at 360p has it."""
    with as_file(files("coatstream") / "assets" / "coffee.png") as path:
        limits = QueueSettings()
        photo = decode(path.read_bytes(), max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)[:, :, ::-1]
    small, large = (cv2.resize(photo, size, interpolation=cv2.INTER_AREA) for size in ((64, 64), (640, 360)))
    written, data = cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert written
    raw = np.ascontiguousarray(small).tobytes()
    return {
        "raw_64x64": {"pixels": raw, "width": 64, "height": 64, "source": "door"},
        "jpeg_360p": {"image": data.tobytes(), "source": "door"},
    }


@dataclass(slots=True)
class Trip:
    """Entries into one stream, answers out of another, which name the frame.

    ear        a connection of its own: its reads block
    answering  the process that answers
    latencies  milliseconds, of all runs
    """

    client: Client
    ear: Client
    answering: BaseProcess
    into: str
    out: str
    entry: Mapping[str, str | bytes | int]
    latencies: list[float] = field(default_factory=list)

    def warm_up(self) -> None:
        """Wait until the other side is up, then run shortly without counting."""
        self._trip(1, START_TIMEOUT)
        self._trip(WARM_UP, PATIENCE)

    def run(self, seconds: float) -> float:
        """The median of a block, in milliseconds."""
        block = self._trip(max(FEWEST, round(seconds * RATE)), PATIENCE)
        self.latencies += block
        return median(block)

    def _trip(self, frames: int, patience: float) -> list[float]:
        deadline = time.perf_counter() + frames / RATE + patience
        with calls("the benchmark's queue cannot be used"), ThreadPoolExecutor(1, "ear") as listening:
            self.client.delete(self.out)
            arrivals = listening.submit(self._listen, frames, deadline)
            sent = self._send(frames)
            arrived = arrivals.result()
            self.client.delete(_ECHO_IN)  # the worker deletes its own
        if len(arrived) < frames:
            raise EngineError(f"{len(arrived)} of {frames} frames put into {self.into} were answered in time")
        return [1000 * (arrived[frame_id] - moment) for frame_id, moment in sent.items()]

    def _send(self, frames: int) -> dict[str, float]:
        """One entry after the other, each at its time."""
        sent: dict[str, float] = {}
        due = time.perf_counter()
        for number in range(frames):
            frame_id = str(number)
            entry = {**self.entry, "frame_id": frame_id}
            time.sleep(max(0.0, due - time.perf_counter()))
            sent[frame_id] = time.perf_counter()
            self.client.xadd(self.into, entry)
            due += 1 / RATE
        return sent

    def _listen(self, frames: int, deadline: float) -> dict[str, float]:
        """When each answer came; those that came."""
        arrived: dict[str, float] = {}
        after = "0-0"
        while len(arrived) < frames and time.perf_counter() < deadline and self.answering.is_alive():
            reply = self.ear.xread({self.out: after}, block=_BLOCK)
            moment = time.perf_counter()
            for entry_id, fields in reply[0][1] if reply else ():
                arrived[fields[b"frame_id"].decode()] = moment
                after = entry_id
        return arrived


# ---- the processes that answer


def _work(settings: SettingsTree) -> None:
    """`coatstream run`, its parent process and all."""
    sys.exit(run_worker(settings, exit_code))


def _echo(settings: RedisSettings) -> None:
    """Answers each entry, and does nothing else."""
    after = "0-0"
    with connect(settings) as client, calls("the benchmark's echo lost its server"):
        while True:
            reply = client.xread({_ECHO_IN: after}, block=_BLOCK)
            for entry_id, fields in reply[0][1] if reply else ():
                client.xadd(_ECHO_OUT, {"frame_id": fields[b"frame_id"], "json": ANSWER})
                after = entry_id
