"""`coatstream bench cameras`: how many cameras fit on this machine, by size and rate, and what limits them.

Measures what reading a picture costs (the package's own clips, made as a camera would send them) and how many frames a
second the configured model does, each alone, and computes what fits from both (`cameras.capacity`). With cameras in
the settings it also reports whether those fit, and the share that each of them gets.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from statistics import median
from typing import Any, Final

from av.error import FFmpegError
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from coatstream.cameras.capacity import (
    KEY_INTERVAL,
    LOAD,
    Capacity,
    DecodeCost,
    Fit,
    Sampling,
    demand,
    measure_rates,
    served,
)
from coatstream.cameras.capture.video import Video, file_options
from coatstream.cameras.capture.vitals import measure
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.cameras.process.source import CameraProcess
from coatstream.cameras.view import OF_WIDE
from coatstream.commands.bench.report import machine, rounded
from coatstream.engine.cores import single_threaded, usable_cores
from coatstream.engine.loading import load_engine
from coatstream.engine.protocol import Engine
from coatstream.errors import EngineError
from coatstream.frames.frame import InputSpec
from coatstream.frames.views import look
from coatstream.settings.model import CameraSettings, SettingsTree
from coatstream.telemetry import logs

SIZES: Final = ("360p", "720p", "1080p")
KINDS: Final = (
    ("1 fps", Sampling(taken=1, inputs=OF_WIDE)),
    ("5 fps", Sampling(taken=5, inputs=OF_WIDE)),
    ("25 fps", Sampling(taken=25, inputs=OF_WIDE)),
    ("key frames", Sampling(taken=1 / KEY_INTERVAL, inputs=OF_WIDE, keyframes_only=True)),
)
_TAKE_EVERY: Final = 5  # pictures of a clip
_PICTURES: Final = 10  # after which a reader's memory has grown to its size


@dataclass(frozen=True, slots=True)
class ReadingCost:
    """What reading cameras of one size takes; `memory` in bytes, or None where the system does not report it."""

    cost: DecodeCost
    memory: int | None


def run_bench_cameras(settings: SettingsTree, *, seconds: float, as_json: bool) -> int:
    """Measure, and print a table, or one line of JSON. Raises EngineError."""
    logs.configure(logs.quiet(settings.log))
    described = machine()
    engine = _engine(settings)
    print(f"about {seconds * (len(SIZES) + 1):.0f} s of measuring {engine.info.name}", file=sys.stderr, flush=True)
    engine.warm_up()
    rates = measure_rates(engine, engine.prepared, seconds=seconds, most=max(3.0, 3 * seconds))
    assignments = {size: _reading(size, engine.spec, seconds) for size in SIZES}
    capacity = Capacity(max(rates.values()), usable_cores(), shares_cores=engine.info.device == "cpu")
    document = {
        "bench": "cameras",
        **_engine_words(engine, rates),
        "load": LOAD,
        "decode": {size: _reading_words(reading) for size, reading in assignments.items()},
        "fits": [_fit_words(size, name, fit) for size, name, fit in _fits(capacity, assignments)],
        # A file that waits for the model asks for nothing.
        "configured": configured([camera for camera in settings.cameras if demand(camera)], capacity.engine_rate),
        "machine": described,
    }
    if as_json:
        print(json.dumps(document), flush=True)
    else:
        _show(document)
    return 0


# ---- the model


def _engine(settings: SettingsTree) -> Engine:
    """The configured one, with random weights: speed does not depend on them."""
    model = settings.model
    if model.engine != "noop":
        model = model.model_copy(update={"weights": "random", "labels": None})
    return load_engine(model, settings.batch)


def _engine_words(engine: Engine, rates: dict[int, float]) -> dict[str, Any]:
    best = max(rates, key=rates.__getitem__)
    return {
        "model": engine.info.name,
        "engine": engine.info.engine,
        "device": engine.info.device,
        "streams": engine.streams,
        "engine_frames_per_s": rounded(rates[best]),
        "batch": best,
        "engine_frames_per_s_by_batch": {str(size): rounded(rate) for size, rate in rates.items()},
    }


# ---- reading


def _reading(size: str, spec: InputSpec, seconds: float) -> ReadingCost:
    with as_file(files("coatstream") / "assets" / f"camera_{size}.mp4") as clip:
        return ReadingCost(decode_cost(clip, spec, seconds=seconds), _memory(clip, spec))


def decode_cost(clip: Path, spec: InputSpec, *, seconds: float) -> DecodeCost:
    """Medians over rounds, of CPU time: what others do on the machine hardly matters. Raises EngineError."""
    # A camera prepares in BGR, and crop mode `border` pads with the mean.
    spec = replace(spec, mean=(spec.mean[2], spec.mean[1], spec.mean[0]))
    with ThreadPoolExecutor(1, "reading", initializer=single_threaded) as pool:
        pool.submit(_play, clip, spec).result()  # loads what is loaded late
        costs = pool.submit(_rounds, clip, spec, seconds).result()
    return DecodeCost(*(median(part) for part in zip(*costs, strict=True)))


def _rounds(clip: Path, spec: InputSpec, seconds: float) -> list[tuple[float, float, float]]:
    costs: list[tuple[float, float, float]] = []
    began = time.monotonic()
    while len(costs) < 2 or time.monotonic() - began < seconds:
        every, keys = _play(clip, spec), _play(clip, spec, keyframes_only=True)
        costs.append((every.decoding / every.pictures, keys.decoding / every.pictures, every.taking / every.taken))
    return costs


@dataclass(slots=True)
class _Played:
    """One clip, from end to end. CPU seconds of this thread."""

    pictures: int = 0
    taken: int = 0
    decoding: float = 0.0
    taking: float = 0.0


def _play(clip: Path, spec: InputSpec, *, keyframes_only: bool = False) -> _Played:
    """Raises EngineError."""
    try:
        with clip.open("rb") as file:
            return _played(Video(file, options=file_options(), keyframes_only=keyframes_only), spec, clip.name)
    except FFmpegError:
        raise EngineError(f"FFmpeg cannot decode {clip.name}, which came with the package") from None


def _played(open_clip: Video, spec: InputSpec, name: str) -> _Played:
    played = _Played()
    with closing(open_clip) as video:
        while video.grab():
            played.pictures += 1
            played.decoding += video.take_cost()
            if played.pictures % _TAKE_EVERY == 1:
                _take(video, spec, played)
    if not played.taken:
        raise EngineError(f"{name}, which came with the package, holds no picture")
    return played


def _take(video: Video, spec: InputSpec, played: _Played) -> None:
    """What a camera's process does with a picture that is due."""
    before = time.thread_time()
    pixels = video.retrieve()
    measure(pixels, damage=0)
    look(pixels, spec, "auto")
    played.taken += 1
    played.taking += time.thread_time() - before
    video.take_cost()


def _memory(clip: Path, spec: InputSpec) -> int | None:
    """Bytes that one more camera takes: what the process that reads it shares with no other."""
    settings = CameraSettings(name="bench", url=SecretStr(str(clip)), fps=0, realtime=True, loop=True)
    stop = threading.Event()
    with ForkServer(spec) as fork_server:
        camera = CameraProcess(settings, spec, fork_server=fork_server, lease=CameraLease.unshared())
        with closing(camera.frames(stop)) as frames:
            for _ in zip(range(_PICTURES), frames, strict=False):
                pass
            return private_bytes(camera.stats().pid)


def private_bytes(pid: int | None) -> int | None:
    """Memory of a process that is its own alone, as Linux counts it; None elsewhere."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _reading_words(reading: ReadingCost) -> dict[str, float | None]:
    return {
        "picture_ms": rounded(1000 * reading.cost.picture),
        "keys_only_ms": rounded(1000 * reading.cost.keys_only),
        "sampled_ms": rounded(1000 * reading.cost.sampled),
        "memory_mb": None if reading.memory is None else rounded(reading.memory / 1024**2),
    }


# ---- what fits


def _fits(capacity: Capacity, assignments: Mapping[str, ReadingCost]) -> Iterator[tuple[str, str, Fit]]:
    for size, reading in assignments.items():
        for name, sampling in KINDS:
            yield size, name, capacity.fit(reading.cost, sampling)


def _fit_words(size: str, sampled: str, fit: Fit) -> dict[str, str | int | float]:
    return {
        "size": size,
        "sampled": sampled,
        "cameras": fit.cameras,
        "limit": fit.limit,
        "cpu_percent_per_camera": rounded(100 * fit.cores),
    }


def configured(cameras: Sequence[CameraSettings], engine_rate: float) -> dict[str, Any] | None:
    """Whether the model can do what these cameras ask for, and what each gets; None where there are none.

    Their sizes are not known before they are read, so what decoding takes is not in it.
    """
    if not cameras:
        return None
    asked = sum(map(demand, cameras))
    shares = served(cameras, LOAD * engine_rate)
    return {
        "cameras": len(cameras),
        "asked_frames_per_s": rounded(asked),
        "fit": asked <= LOAD * engine_rate,
        "served_share": rounded(sum(demand(camera) * shares[camera.name] for camera in cameras) / asked),
        "served_share_by_camera": {name: rounded(share) for name, share in shares.items()},
    }


# ---- for people


def _show(document: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"cameras that fit at {LOAD:.0%} load", title_justify="left", box=None, pad_edge=False)
    for name in ("of 25 pictures/s", *SIZES):
        table.add_column(name, justify="left" if name not in SIZES else "right")
    for sampled, _ in KINDS:
        rows = [row for row in document["fits"] if row["sampled"] == sampled]
        table.add_row(sampled, *(f"{row['cameras']} ({row['limit']})" for row in rows))
    table.add_row("CPU each, 5 fps", *(_cpu_at_5(document, size) for size in SIZES))
    memory = [document["decode"][size]["memory_mb"] for size in SIZES]
    table.add_row("memory each", *("" if value is None else f"{value:.0f} MB" for value in memory))
    console.print(table)
    for line in _notes(document):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cpu_at_5(document: dict[str, Any], size: str) -> str:
    row = next(row for row in document["fits"] if (row["size"], row["sampled"]) == (size, "5 fps"))
    return f"{row['cpu_percent_per_camera']:.1f} % of a core"


def _notes(document: dict[str, Any]) -> Iterator[str]:
    words = document["machine"]
    yield (
        f"In brackets: what they would be too much for first. {document['model']} on {document['device']}: "
        f"{document['engine_frames_per_s']:g} inputs/s in batches of {document['batch']}, with nothing else to do. "
        f"A picture of 16:9 is {OF_WIDE} inputs (cameras[].view)."
    )
    yield f"{words['cpu']}, {words['cores']} usable cores, OpenCV {words['opencv']}, torch {words['torch']}"
    if (own := document["configured"]) is not None:
        yield (
            f"The {own['cameras']} configured cameras ask for {own['asked_frames_per_s']:g} inputs/s: "
            + ("the model can do that." if own["fit"] else f"{own['served_share']:.0%} of that can be done.")
        )
