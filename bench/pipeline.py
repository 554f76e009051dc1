"""`python -m bench pipeline`: Redis to Redis with the model, in three parts.

Throughput: a full queue of JPEGs through a worker's process, against the same decoding and engine run bare on the same
cores. Latency: frames that leave on an even schedule, whatever the worker does, at shares of the throughput; each is
timed from the moment at which it was due. Time by stage, from the worker's own metrics. The server is our own.
"""

import asyncio
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from statistics import mean, median
from typing import Any, Final

from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import embedded_server
from coatstream.broker.failures import calls
from coatstream.broker.keys import queues_of
from coatstream.broker.preflight import check_server
from coatstream.commands.bench.remote import RemoteObject, remote
from coatstream.commands.bench.report import (
    ROUNDS,
    Report,
    Value,
    figure,
    for_bench,
    interleave,
    machine,
    percentile,
    ratio,
)
from coatstream.commands.run import work
from coatstream.engine.protocol import prepared_size
from coatstream.errors import EngineError
from coatstream.frames.frame import InputSpec
from coatstream.frames.model import ModelInfo
from coatstream.service import Ready, Service
from coatstream.settings.model import ModelSettings, SettingsTree

from bench.bare import Bare, Drained
from bench.beside import as_worker, beside, leave_of
from bench.host import FEWEST_FRAMES, Spent, WorkerSide
from bench.pictures import PictureKind, make_kinds

KINDS: Final = ("jpeg_1080p", "jpeg_720p")  # the first one is used for latency, too
LOADS: Final = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2)  # of the throughput
HALF: Final = 0.5  # the load that has a bar: twice a batch, batch.max_wait and SLACK
SLACK: Final = 10.0  # ms
FEWEST: Final = 20  # frames of one load in one round
LOADING: Final = 600.0  # seconds: choosing an engine may measure several
PATIENCE: Final = 60.0  # seconds for the last label, beyond the schedule
_BLOCK: Final = 250  # ms of one blocking read
_STAGE: Final = re.compile(r'^coatstream_stage_seconds_(sum|count)\{stage="(\w+)"\} (\S+)$', re.MULTILINE)
_BATCHES: Final = re.compile(r"^coatstream_batch_size_frames_(sum|count) (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Started:
    """What a worker tells when it is ready."""

    port: int
    info: ModelInfo
    spec: InputSpec
    streams: int
    prepared: tuple[int, ...]


def run_bench_pipeline(
    settings: SettingsTree, *, seconds: float, kinds: Sequence[str] = KINDS, loads: Sequence[float] = LOADS
) -> int:
    """All three parts. Raises ConfigError, RedisUnavailable and EngineError."""
    with embedded_server() as server:
        settings = _with_model(for_bench(settings, server.url), settings.model)
        with connect(settings.redis) as client:
            report = Report("pipeline", machine(server=check_server(client, settings.redis)))
            report.note("a worker starts, half a minute where it has to choose an engine; then the bare side")
            with _worker(settings) as (process, started):
                made = {kind.name: kind for kind in make_kinds(started.spec)}
                bench = PipelineBench(report, settings, client, process, started)
                with remote("the bare side", Bare, bench.same_model(), settings.batch, settings.queue) as bare:
                    bare.call("warm_up", within=LOADING)
                    reached = [bench.throughput(made[name], bare, seconds) for name in kinds]
                bench.latency(made[kinds[0]], reached[0], loads, seconds)
    report.show()
    return 0


def _with_model(settings: SettingsTree, model: ModelSettings) -> SettingsTree:
    """The operator's model; with random weights where they would have to be fetched: speed does not depend on them."""
    if model.weights == "hub":
        model = model.model_copy(update={"weights": "random", "labels": None})
    return settings.model_copy(update={"model": model})


@dataclass(frozen=True, slots=True)
class Reached:
    """A worker's throughput: frames a second, and ms of one batch."""

    rate: float
    batch_ms: float


@dataclass(frozen=True, slots=True)
class PipelineBench:
    report: Report
    settings: SettingsTree
    client: Client
    process: BaseProcess
    started: Started

    def same_model(self) -> ModelSettings:
        """The engine that the worker has chosen, for the other side."""
        info = self.started.info
        chosen = {"engine": info.engine, "precision": info.precision, "streams": self.started.streams}
        return self.settings.model.model_copy(update=chosen)

    def words(self) -> dict[str, Value]:
        info = self.started.info
        return {
            "model": info.name,
            "weights": info.weights,
            "engine": info.engine,
            "precision": info.precision,
            "device": info.device,
            "streams": self.started.streams,
        }

    # ---- throughput

    def throughput(self, kind: PictureKind, bare: RemoteObject, seconds: float) -> Reached:
        """The worker against the bare work, and where its time goes; a line."""
        pipeline = WorkerSide(self.client, self.process, self.settings, kind)
        pipeline.warm_up()
        before = self.scrape()
        warm = pipeline.run(seconds / ROUNDS)
        size = prepared_size(max(1, round(self.scrape().since(before).batch)), self.started.prepared)
        other = BareSide(bare, kind, size, warm)
        other.run(0.0)
        before = self.scrape()
        runs = {"pipeline": pipeline.run, "bare": other.run}
        samples = interleave(runs, seconds, track=partial(self.report.track, kind.name))
        stages = self.scrape().since(before)
        self.report.add(
            case=f"full_{kind.name}",
            **self.words(),
            frames_per_s=figure(samples["pipeline"]),
            bare_frames_per_s=figure(samples["bare"]),
            share=ratio(samples["pipeline"], samples["bare"]),
            cpu_ms_per_frame=pipeline.spent.cpu_ms_per_frame,
            bare_cpu_ms_per_frame=other.spent.cpu_ms_per_frame,
            batch=stages.batch,
            bare_batch=size,
            batch_ms=stages.ms.get("infer"),
            mean_bytes=kind.mean_bytes,
            **{f"{stage}_ms_per_frame": ms for stage, ms in stages.per_frame().items()},
        )
        return Reached(median(samples["pipeline"]), stages.ms.get("infer", 0.0))

    def scrape(self) -> "Stages":
        with urllib.request.urlopen(f"http://127.0.0.1:{self.started.port}/metrics", timeout=10) as reply:
            return Stages.of(reply.read().decode())

    # ---- latency

    def latency(self, kind: PictureKind, reached: Reached, loads: Sequence[float], seconds: float) -> None:
        """A line per load."""
        queue = queues_of(self.settings)[0]
        with connect(self.settings.redis) as ear:
            trips = [
                OpenLoop(self.client, ear, queue.stream, queue.labels, kind, load * reached.rate) for load in loads
            ]
            runs = {str(number): partial(self._block, trip) for number, trip in enumerate(trips)}
            samples = interleave(runs, seconds, track=partial(self.report.track, "offered load"))
        for load, trip, p50 in zip(loads, trips, samples.values(), strict=True):
            self.report.add(
                case=f"load_{round(100 * load)}",
                **self.words(),
                **_latency(trip, load, p50),
                **self._bar(load, trip, reached),
            )

    def _block(self, trip: "OpenLoop", seconds: float) -> float:
        before = self.scrape()
        taken = trip.run(seconds, self.process)
        trip.stages.append(self.scrape().since(before))
        return taken

    def _bar(self, load: float, trip: "OpenLoop", reached: Reached) -> dict[str, Value]:
        if load != HALF:
            return {}
        bar = 2 * reached.batch_ms + 1000 * self.settings.batch.max_wait + SLACK
        return {"batch_ms": reached.batch_ms, "bar_ms": bar, "within_bar": percentile(trip.latencies, 99) <= bar}


def _latency(trip: "OpenLoop", load: float, p50: list[float]) -> dict[str, Value]:
    """p99_ms is of all frames of all rounds; p99_of_rounds_ms has the spread."""
    stages = {stage: mean(one.ms.get(stage, 0.0) for one in trip.stages) for stage in trip.stages[0].ms}
    return {
        "load": load,
        "offered_per_s": trip.rate,
        "frames_per_s": figure(trip.delivered),
        "frames": len(trip.latencies),
        "p50_ms": figure(p50),
        "p99_ms": percentile(trip.latencies, 99),
        "p99_of_rounds_ms": figure(trip.p99s),
        "mean_ms": mean(trip.latencies),
        "sent_late_p99_ms": percentile(trip.late, 99),
        "batch_frames": mean(one.batch for one in trip.stages),
        **{f"{stage}_ms": ms for stage, ms in stages.items()},
    }


class BareSide:
    """The bare side of one kind of picture: as many frames as fit into a slice."""

    def __init__(self, bare: RemoteObject, kind: PictureKind, batch: int, rate: float) -> None:
        self.spent = Spent()
        self._bare = bare
        self._kind = kind
        self._batch = batch
        self._rate = rate

    def run(self, seconds: float) -> float:
        frames = max(FEWEST_FRAMES, round(self._rate * seconds))
        done: Drained = self._bare.call("drain", self._kind, frames, self._batch, within=seconds + LOADING)
        self.spent.add(frames, done.cpu_seconds)
        self._rate = done.rate
        return done.rate


@dataclass(frozen=True, slots=True)
class Stages:
    """Sums and counts of a worker's stages, since it started or between two scrapes.

    totals  stage -> (seconds, how many); the batches' sizes stand under ""
    """

    totals: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, text: str) -> "Stages":
        """From what /metrics says."""
        sums: dict[tuple[str, str], float] = {
            (stage, part): float(value) for part, stage, value in _STAGE.findall(text)
        } | {("", part): float(value) for part, value in _BATCHES.findall(text)}
        return cls({stage: (sums[stage, "sum"], sums[stage, "count"]) for stage, part in sums if part == "sum"})

    def since(self, before: "Stages") -> "Stages":
        nothing = (0.0, 0.0)
        then = {stage: before.totals.get(stage, nothing) for stage in self.totals}
        return Stages({name: (total - then[name][0], n - then[name][1]) for name, (total, n) in self.totals.items()})

    @property
    def ms(self) -> dict[str, float]:
        """Mean milliseconds of each stage that took place, per frame or per batch as the metric has it."""
        return {name: 1000 * total / count for name, (total, count) in self.totals.items() if name and count}

    @property
    def batch(self) -> float:
        """Mean frames in a batch; 0 where there was none."""
        frames, batches = self.totals.get("", (0.0, 0.0))
        return frames / batches if batches else 0.0

    def per_frame(self) -> dict[str, float]:
        """Milliseconds of work that one frame takes of each stage; waiting is none."""
        frames = self.totals.get("", (0.0, 0.0))[0]
        return {
            name: 1000 * total / frames
            for name, (total, _) in self.totals.items()
            if name not in ("", "wait") and frames
        }


@dataclass(slots=True)
class OpenLoop:
    """Frames into the queue on an even schedule, whether or not the last ones have been answered.

    ear        a connection of its own: its reads block
    latencies  ms from when a frame was due to the arrival of its label, of all runs
    late       ms by which frames left later than they were due: our own doing
    """

    client: Client
    ear: Client
    into: str
    out: str
    kind: PictureKind
    rate: float
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    delivered: list[float] = field(default_factory=list)
    stages: list[Stages] = field(default_factory=list)

    def run(self, seconds: float, worker: BaseProcess) -> float:
        """The median of a block, in milliseconds. Raises EngineError where labels stay away."""
        frames = max(FEWEST, round(self.rate * seconds))
        deadline = time.perf_counter() + frames / self.rate + PATIENCE
        with calls("the benchmark's queue cannot be used"), ThreadPoolExecutor(1, "ear") as listening:
            arrivals = listening.submit(self._listen, self._newest(), frames, deadline, worker)
            due = self._send(frames)
            arrived = arrivals.result()
        if len(arrived) < frames:
            raise EngineError(f"{len(arrived)} of {frames} frames put into {self.into} were answered in time")
        block = [1000 * (arrived[frame_id] - moment) for frame_id, moment in due.items()]
        self.latencies += block
        self.p99s.append(percentile(block, 99))
        first = min(due.values())
        self.delivered.append(frames / max(max(arrived.values()) - first, frames / self.rate))
        return median(block)

    def _newest(self) -> str:
        """The last label of all that have been published so far."""
        if not self.client.exists(self.out):
            return "0-0"
        told: Any = self.client.xinfo_stream(self.out)
        return str(told["last-generated-id"].decode())

    def _send(self, frames: int) -> dict[str, float]:
        """When each frame was due."""
        due: dict[str, float] = {}
        began = time.perf_counter()
        for number in range(frames):
            frame_id = str(number)
            picture = self.kind.pictures[number % len(self.kind.pictures)]
            due[frame_id] = began + number / self.rate
            time.sleep(max(0.0, due[frame_id] - time.perf_counter()))
            self.late.append(1000 * (time.perf_counter() - due[frame_id]))
            self.client.xadd(self.into, {self.kind.key: picture, "frame_id": frame_id, "source": f"door-{number % 8}"})
        return due

    def _listen(self, after: str, frames: int, deadline: float, worker: BaseProcess) -> dict[str, float]:
        """When each label came; those that came."""
        arrived: dict[str, float] = {}
        while len(arrived) < frames and time.perf_counter() < deadline and worker.is_alive():
            reply: Any = self.ear.xread({self.out: after}, block=_BLOCK)
            moment = time.perf_counter()
            for entry_id, fields in reply[0][1] if reply else ():
                arrived[fields[b"frame_id"].decode()] = moment
                after = entry_id
        return arrived


# ---- the worker's process


@contextmanager
def _worker(settings: SettingsTree) -> Iterator[tuple[BaseProcess, Started]]:
    """A worker in a process of its own, ready; drained on leaving. Raises EngineError where it does not come up."""
    ours, theirs = Pipe()
    with beside(_serve, settings, theirs, leave=leave_of(settings)) as process:
        theirs.close()
        yield process, _started(ours)


def _started(connection: "Connection[Any, Any]") -> Started:
    try:
        if connection.poll(LOADING):
            told: Started = connection.recv()
            return told
    except EOFError:
        pass
    raise EngineError("the benchmark's worker did not start: what it said is above")


def _serve(settings: SettingsTree, connection: "Connection[Any, Any]") -> None:
    """The worker process: `coatstream run` without its parent."""

    def on_ready(ready: Ready) -> None:
        engine = ready.engine
        connection.send(Started(ready.port, engine.info, engine.spec, engine.streams, engine.prepared))

    as_worker(settings, lambda: asyncio.run(work(Service(settings, on_ready=on_ready), asyncio.Event())))
