"""What becomes of age and shares when cameras ask three times what the engine can do; a real worker, a real server.

    python -m bench overload [--engine noop|random] [--streams N] [--seconds S] [--server PATH]

Twelve cameras (six with the real model) of three priorities play a clip for ever at their own speed. Every label that
was published in S seconds is looked at: its age at publication against two frame periods and its batch, each camera's
labels against its share by priority, each frame that was received against its outcome. Exits 1 where a bar is missed.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import embedded_server
from coatstream.pipeline.fairness import water_fill
from coatstream.settings.model import RedisSettings

from tests.support.workers import Worker, run_worker

CLIP = Path(__file__).parents[1] / "worker" / "coatstream" / "assets" / "camera_360p.mp4"
PRIORITIES = (1, 2, 4)
WARM_UP = 6.0  # seconds until all cameras play and shares have settled
WITHIN = 0.10  # of its share

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class CameraLoad:
    """Cameras and an engine; `settings` are the worker's."""

    cameras: int
    fps: float
    streams: int
    settings: dict[str, Any]

    @property
    def names(self) -> list[str]:
        return [f"cam{number:02d}" for number in range(self.cameras)]

    @property
    def priorities(self) -> dict[str, float]:
        return {name: PRIORITIES[number % len(PRIORITIES)] for number, name in enumerate(self.names)}

    def configured(self) -> str:
        fixed = {"url": str(CLIP), "realtime": True, "loop": True, "fps": self.fps}
        return json.dumps([{"name": name, "priority": self.priorities[name], **fixed} for name in self.names])


def main(
    engine: Annotated[Literal["noop", "random"], typer.Option(help="random: the real model.")] = "noop",
    streams: int = 1,
    seconds: float = 30.0,
    server: Annotated[str | None, typer.Option(metavar="PATH", help="Another server binary.")] = None,
) -> int:
    load = noop_load(streams) if engine == "noop" else model_load(streams)
    with (
        embedded_server(binary=server) as own,
        connect(RedisSettings.model_validate({"url": own.url})) as client,
        run_worker(own.url, cameras=load.configured(), queue__enabled="false", **load.settings) as worker,
    ):
        return int(not judge(load, *observe(worker, client, load, seconds)))


def noop_load(streams: int) -> CameraLoad:
    """Batches of four in 0.1 s a stream: 40 frames/s each, of which three times as many are offered."""
    settings = {"model__engine": "noop", "model__noop_delay": 0.1, "model__streams": streams, "batch__max_size": 4}
    return CameraLoad(12, 10.0 * streams, streams, settings)


def model_load(streams: int) -> CameraLoad:
    """The real model with random weights does some 10 to 40 frames/s on two cores."""
    settings = {"model__engine": "auto", "model__weights": "random", "model__streams": streams}
    return CameraLoad(6, 12.5, streams, {**settings, "batch__max_size": 4, "batch__prepared": "[1,2,3,4]"})


def observe(
    worker: Worker, client: Client, load: CameraLoad, seconds: float
) -> tuple[Metrics, Metrics, list[Any], float]:
    """(metrics before, metrics after, labels in between, seconds in between)."""
    deadline = time.monotonic() + 60
    while len(playing(worker.metrics())) < load.cameras:
        assert time.monotonic() < deadline, "not all cameras play"
        time.sleep(0.1)
    time.sleep(WARM_UP)
    before, began = worker.metrics(), time.time()
    time.sleep(seconds)
    after, ended = worker.metrics(), time.time()
    labels: Any = client.xrange("labels", min=int(began * 1000), max=int(ended * 1000))
    return before, after, [fields for _, fields in labels], ended - began


def playing(metrics: Metrics) -> set[str]:
    return {
        dict(labels)["source"]
        for (name, labels), value in metrics.items()
        if name == "coatstream_frames_published_total" and value
    }


def judge(load: CameraLoad, before: Metrics, after: Metrics, labels: list[Any], seconds: float) -> bool:
    """Print one line per bar. Whether all are held."""
    return all([_age(load, before, after, labels), _shares(load, before, after, labels, seconds), _books(load, after)])


def _age(load: CameraLoad, before: Metrics, after: Metrics, labels: list[Any]) -> bool:
    """Of each label against two frame periods and its own batch: uneven batches are the machine's doing."""
    published = [float(label[b"published_at"]) for label in labels]
    ages = [at - float(label[b"captured_at"]) for at, label in zip(published, labels, strict=True)]
    batches = _batches(published, load.streams)
    beyond = [age - batches[at] for at, age in zip(published, ages, strict=True) if at in batches]
    wait, infer, publish = (1000 * _mean(before, after, stage) for stage in ("wait", "infer", "publish"))
    p99, bound = _part(beyond, 0.99), 2 / load.fps
    print(
        f"age at publication: p50 {1000 * _part(ages, 0.5):.0f} ms, p99 {1000 * _part(ages, 0.99):.0f} ms; beyond its "
        f"own batch: p99 {1000 * p99:.0f} ms of at most {1000 * bound:.0f} ms, two periods; means: {wait:.0f} ms "
        f"waiting, {infer:.0f} ms in the engine, {publish:.0f} ms publishing; {len(ages)} labels "
        f"{_verdict(p99 < bound)}"
    )
    return p99 < bound


def _batches(published: list[float], streams: int) -> dict[float, float]:
    """Seconds of each batch, by when it was published: an engine that is never idle began it when its stream's last
    one was done.
    """
    moments = sorted(set(published))
    return {after: after - before for before, after in zip(moments, moments[streams:], strict=False)}


def _part(values: list[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]


def _shares(load: CameraLoad, before: Metrics, after: Metrics, labels: list[Any], seconds: float) -> bool:
    got = Counter(label[b"source"].decode() for label in labels)
    offered = {
        name: _of(after, "received", name) - _of(before, "received", name) for name in load.names
    }  # frames that the worker's own processes replaced before they were received are in it, too
    fair = water_fill({name: (offered[name], load.priorities[name]) for name in load.names}, len(labels))
    print(f"offered {sum(offered.values()) / seconds:.1f} frames/s, labelled {len(labels) / seconds:.1f}")
    for priority in PRIORITIES:
        names = [name for name in load.names if load.priorities[name] == priority]
        rates = ", ".join(f"{got[name] / seconds:.2f}" for name in names)
        print(f"  priority {priority}: {rates} labels/s; fair {fair[names[0]] / seconds:.2f}")
    off = {name: got[name] / fair[name] - 1 for name in load.names}
    worst = max(off.values(), key=abs)
    print(f"shares: at most {worst:+.1%} off {_verdict(abs(worst) <= WITHIN)}")
    return abs(worst) <= WITHIN


def _books(load: CameraLoad, after: Metrics) -> bool:
    drops: Counter[str] = Counter()
    for (name, labels), value in after.items():
        if name == "coatstream_frames_dropped_total":
            drops[dict(labels)["reason"]] += int(value)
    words = ("published", "dropped", "dead", "in_flight")
    off = [
        _of(after, "received", name) - sum(_of(after, word, name) for word in words) for name in load.names
    ]  # at one scrape
    shown = ", ".join(f"{count} {reason}" for reason, count in drops.items() if count)
    good = not any(off) and {reason for reason, count in drops.items() if count} <= {"replaced"}
    print(f"dropped: {shown}; received = published + dropped + dead + in flight for each camera {_verdict(good)}")
    return good


def _of(metrics: Metrics, word: str, source: str) -> float:
    name = f"coatstream_frames_{word}" + ("" if word == "in_flight" else "_total")
    return sum(value for (metric, labels), value in metrics.items() if metric == name and ("source", source) in labels)


def _mean(before: Metrics, after: Metrics, stage: str) -> float:
    name = "coatstream_stage_seconds"
    total, count = (
        sum(
            sign * value
            for metrics, sign in ((after, 1), (before, -1))
            for (metric, labels), value in metrics.items()
            if metric == f"{name}_{part}" and ("stage", stage) in labels
        )
        for part in ("sum", "count")
    )
    return total / count if count else 0.0


def _verdict(good: bool) -> str:
    return "- well" if good else "- MISSED"
