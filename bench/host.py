"""`python -m bench host`: frames a second of everything but the model, and how much of a bare loop that is.

A worker with the noop engine, in a process of its own, takes pictures from a queue on an embedded server and publishes
their labels. The bare loop decodes and prepares the same pictures on as many threads and does nothing else: what no
pipeline around the same image code can beat. The bare consumer (`bench.consumer`) reads them from a queue and commits
them as a straightforward program would, without promises.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any, Final

from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import embedded_server
from coatstream.broker.failures import calls
from coatstream.broker.keys import queues_of
from coatstream.broker.preflight import check_server
from coatstream.commands.bench.report import Report, figure, for_bench, interleave, machine, ratio
from coatstream.commands.run import work
from coatstream.engine.cores import single_threaded, usable_cores
from coatstream.engine.memory import tune_allocator
from coatstream.errors import EngineError
from coatstream.frames.frame import InputSpec
from coatstream.frames.resizing import prepare
from coatstream.queue.entry import milliseconds_of
from coatstream.service import Service
from coatstream.settings.model import QueueSettings, SettingsTree
from coatstream.telemetry import logs

from bench.beside import as_worker, beside, cpu_seconds, leave_of
from bench.consumer import STREAM, Consumer
from bench.pictures import FILL, PictureKind, make_kinds
from bench.profile import Profile, Threads, answer

MOST_BYTES: Final = 256 * 1024**2  # of pictures in the queue at once: the server holds them in memory
FEWEST_FRAMES: Final = 32  # a slice; fewer would measure how a worker starts and ends
START_TIMEOUT: Final = 60.0  # seconds until the worker is ready
LOOK_EVERY: Final = 0.05  # seconds; when the last label came the server says, so this costs time and no accuracy
STUCK_AFTER: Final = 60.0  # seconds without a settled frame


def run_bench_host(settings: SettingsTree, *, seconds: float) -> int:
    """Frames a second of the pipeline and of the bare loop, and their share, for each kind of picture.

    Raises ConfigError, RedisUnavailable and EngineError.
    """
    spec = _spec(settings)
    with embedded_server() as server:
        settings = for_bench(settings, server.url)
        logs.configure(settings.log)
        tune_allocator()  # the bare sides shall have what the worker has
        with connect(settings.redis) as client, _worker(settings, spec) as (process, threads):
            report = Report("host", machine(server=check_server(client, settings.redis)))
            kinds = make_kinds(spec)
            report.note(f"about {len(kinds) * 3 * seconds:.0f} s of measuring")
            server_process = client.info("server").get("process_id")
            for kind in kinds:
                profile = Profile(process.pid, server_process, threads)
                pipeline = WorkerSide(client, process, settings, kind, profile)
                _measure(kind, spec, pipeline, BareConsumer(client, settings, kind, spec), report, seconds=seconds)
    report.show()
    return 0


def _spec(settings: SettingsTree) -> InputSpec:
    """How the configured model wants its pictures; its weights are not needed for that."""
    from coatstream.engine.model.classifier import input_spec
    from coatstream.engine.model.weights import load_model

    model = settings.model.model_copy(update={"weights": "random"})
    return input_spec(load_model(model).module, model.name)


def _measure(
    kind: PictureKind,
    spec: InputSpec,
    pipeline: "WorkerSide",
    consumer: "BareConsumer",
    report: Report,
    *,
    seconds: float,
) -> None:
    bare = BareLoop(kind, spec, pipeline.settings.queue)
    pipeline.warm_up()
    consumer.warm_up()
    runs = {"pipeline": pipeline.run, "bare": bare.run, "consumer": consumer.run}
    samples = interleave(runs, seconds, track=partial(report.track, kind.name))
    report.add(
        case=kind.name,
        frames_per_s=figure(samples["pipeline"]),
        bare_frames_per_s=figure(samples["bare"]),
        consumer_frames_per_s=figure(samples["consumer"]),
        share=ratio(samples["pipeline"], samples["bare"]),
        consumer_share=ratio(samples["pipeline"], samples["consumer"]),
        cpu_ms_per_frame=pipeline.spent.cpu_ms_per_frame,
        bare_cpu_ms_per_frame=bare.spent.cpu_ms_per_frame,
        mean_bytes=kind.mean_bytes,
        batch=pipeline.settings.batch.max_size,
        **(pipeline.profile.per_frame() if pipeline.profile else {}),
    )


# ---- the three sides


@dataclass(slots=True)
class Spent:
    """Processor time of one side over all its rounds: steadier than frames a second when neighbours are busy."""

    frames: int = 0
    seconds: float = 0.0

    def add(self, frames: int, seconds: float) -> None:
        self.frames += frames
        self.seconds += seconds

    @property
    def cpu_ms_per_frame(self) -> float | None:
        """None where the system does not tell a process's time."""
        return 1000 * self.seconds / self.frames if self.seconds else None


class BareLoop:
    """Decoding and preparing and nothing else, in this process."""

    def __init__(self, kind: PictureKind, spec: InputSpec, limits: QueueSettings) -> None:
        self.spent = Spent()
        self._kind = kind
        self._spec = spec
        self._limits = limits

    def run(self, seconds: float) -> float:
        """Frames a second, on the threads that the queue source would have."""
        threads = self._limits.decode_threads or usable_cores()
        started, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(threads, "bare", initializer=single_threaded) as pool:
            frames = sum(pool.map(partial(self._loop, until=started + seconds), range(threads)))
        self.spent.add(frames, time.process_time() - cpu)
        return frames / (time.perf_counter() - started)

    def _loop(self, first: int, *, until: float) -> int:
        """One thread: whole frames until the time is over, one at least."""
        done = 0
        while not done or time.perf_counter() < until:
            picture = self._kind.pictures[(first + done) % len(self._kind.pictures)]
            prepare(self._kind.open(picture, self._limits, self._spec), self._spec)
            done += 1
        return done


class BareConsumer:
    """`bench.consumer` over the same pictures, in this process."""

    def __init__(self, client: Client, settings: SettingsTree, kind: PictureKind, spec: InputSpec) -> None:
        self._kind = kind
        self._spec = spec
        self._limits = settings.queue
        self._fill = client.register_script(FILL)
        self._consumer = Consumer(client, settings, key=kind.key.encode(), open_picture=self._open)
        self._rate = 0.0

    def warm_up(self) -> None:
        self._rate = self._drain(FEWEST_FRAMES)

    def run(self, seconds: float) -> float:
        """Frames a second from a full queue to an empty one."""
        self._rate = self._drain(frames_of(self._kind, self._rate * seconds))
        return self._rate

    def _drain(self, frames: int) -> float:
        kind = self._kind
        with calls("the benchmark's queue cannot be used"):
            self._fill(keys=[STREAM], args=[frames, kind.key, kind.width, kind.height, *kind.pictures])
        return frames / self._consumer.drain()

    def _open(self, picture: bytes) -> tuple[int, int]:
        prepare(self._kind.open(picture, self._limits, self._spec), self._spec)
        return self._kind.width, self._kind.height


def frames_of(kind: PictureKind, wanted: float) -> int:
    """How many frames a slice has: no more than the server should hold, no fewer than tell something."""
    most = max(FEWEST_FRAMES, MOST_BYTES // kind.mean_bytes)
    return min(most, max(FEWEST_FRAMES, round(wanted)))


class WorkerSide:
    """The worker process as one side of the comparison, for one kind of picture."""

    def __init__(
        self,
        client: Client,
        process: BaseProcess,
        settings: SettingsTree,
        kind: PictureKind,
        profile: Profile | None = None,
    ) -> None:
        self.settings = settings
        self.profile = profile
        self.spent = Spent()  # by the worker's process, without the server's
        self._client = client
        self._process = process
        self._kind = kind
        self._fill = client.register_script(FILL)
        self._rate = 0.0  # of the last run: how many frames the next one needs

    def warm_up(self) -> None:
        """A short run that does not count: imports, allocations, and a first idea of the rate."""
        self._rate = self._settle(FEWEST_FRAMES)

    def run(self, seconds: float) -> float:
        """Frames a second from a full queue to an empty one."""
        frames = frames_of(self._kind, self._rate * seconds)
        cpu = cpu_seconds(self._process.pid)
        self._rate = self._settle(frames)
        self.spent.add(frames, cpu_seconds(self._process.pid) - cpu)
        return self._rate

    def _settle(self, frames: int) -> float:
        kind, stream = self._kind, queues_of(self.settings)[0].stream
        with calls("the benchmark's queue cannot be used"):
            before, _ = self._published()
            self._fill(keys=[stream], args=[frames, kind.key, kind.width, kind.height, *kind.pictures])
            if self.profile:
                self.profile.start()
            started = time.time()
            self._wait_until_empty(stream)
            if self.profile:
                self.profile.stop(frames)
            published, ended = self._published()
        if published - before != frames:
            raise EngineError(f"the worker labelled {published - before} of the {frames} frames of {kind.name}")
        return frames / (ended - started)

    def _wait_until_empty(self, stream: str) -> None:
        """Until every frame is settled: settled entries are deleted. Raises EngineError when nothing moves any more."""
        left, moved_at = self._client.xlen(stream), time.monotonic()
        while left:
            self._process.join(LOOK_EVERY)
            now_left = self._client.xlen(stream)
            if now_left != left:
                left, moved_at = now_left, time.monotonic()
            if not self._process.is_alive() or time.monotonic() - moved_at > STUCK_AFTER:
                raise EngineError(
                    f"the benchmark's worker stopped with {left} frames of {self._kind.name} in the queue"
                )

    def _published(self) -> tuple[int, float]:
        """Labels published so far, and when the newest was: Unix seconds, to a millisecond, of the server's clock."""
        labels = queues_of(self.settings)[0].labels
        if not self._client.exists(labels):
            return 0, 0.0
        told: Any = self._client.xinfo_stream(labels)
        return told["entries-added"], milliseconds_of(told["last-generated-id"].decode()) / 1000


@contextmanager
def _worker(settings: SettingsTree, spec: InputSpec) -> Iterator[tuple[BaseProcess, Threads]]:
    """A worker in a process of its own, ready; drained on leaving. Raises EngineError where it does not come up."""
    spawning = multiprocessing.get_context("spawn")
    ready, (ours, theirs) = spawning.Event(), spawning.Pipe()
    with beside(_serve, settings, spec, ready, theirs, leave=leave_of(settings)) as process:
        deadline = time.monotonic() + START_TIMEOUT
        while not ready.wait(0.2):
            if not process.is_alive() or time.monotonic() > deadline:
                raise EngineError("the benchmark's worker did not start: what it said is above")
        yield process, ours


def _serve(settings: SettingsTree, spec: InputSpec, ready: Event, asked: Threads) -> None:
    """The worker process: `coatstream run`, but for a noop engine that wants its pictures as the real model does."""
    import torch  # noqa: F401  (as a real engine would have: decode threads limit torch only if it is loaded already)
    from coatstream.engine.backends.noop import NoopEngine

    answer(asked)
    load = partial(NoopEngine.from_settings, spec=spec)
    service = Service(settings, load=load, on_ready=lambda _: ready.set())
    as_worker(settings, lambda: asyncio.run(work(service, asyncio.Event())))
