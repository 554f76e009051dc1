"""`coatstream check`: tests settings, Redis, the model and every camera, and says what to do about each fault."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from config.errors import SettingsError
from config.settings import CameraSettings, SettingsTree
from worker.broker.connection import address, connect
from worker.broker.preflight import check_keys, check_server
from worker.engine import load_engine
from worker.errors import CoatstreamError, SourceLost
from worker.redaction import redact
from worker.sources.camera import Camera

Verdict = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    detail: str


def run_check(load: Callable[[], SettingsTree], *, as_json: bool) -> int:
    """0 if nothing is at fault, else 1. `load` reads the settings, and may raise SettingsError."""
    findings = list(_findings(load))
    if as_json:
        for finding in findings:
            print(json.dumps(asdict(finding)))
    else:
        _show(findings)
    return int(any(finding.verdict == "fault" for finding in findings))


def _findings(load: Callable[[], SettingsTree]) -> Iterator[Finding]:
    try:
        settings = load()
    except SettingsError as error:
        yield from (Finding("settings", "fault", redact(line)) for line in error.lines)
        return
    yield Finding(
        "settings", "ok", f"{len(settings.cameras)} cameras, queue {'on' if settings.queue.enabled else 'off'}"
    )
    yield from _redis(settings)
    yield _tried("model", lambda: _model(settings))
    for camera in settings.cameras:
        yield _tried(f"camera {camera.name}", lambda camera=camera: _camera(camera))  # type: ignore[misc]


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except CoatstreamError as error:
        return Finding(what, "fault", redact(str(error)))


def _redis(settings: SettingsTree) -> Iterator[Finding]:
    """The server, our keys, and what would lose frames one day."""
    try:
        with connect(settings.redis) as client:
            server = check_server(client, settings.redis)
            check_keys(client, settings.queue, settings.results)
            memory = client.info("memory")
            persistence = client.info("persistence")
    except CoatstreamError as error:
        yield Finding("redis", "fault", redact(str(error)))
        return
    yield Finding("redis", "ok", f"{server} at {address(settings.redis)}")
    if (policy := memory.get("maxmemory_policy", "noeviction")) != "noeviction":
        yield Finding(
            "redis", "warning", f"maxmemory-policy is {policy}: a full server would evict the queue; set noeviction"
        )
    if not persistence.get("aof_enabled"):
        yield Finding(
            "redis", "warning", "no append-only file: a restart of the server loses the queue; set appendonly yes"
        )


def _model(settings: SettingsTree) -> str:
    started = time.monotonic()
    engine = load_engine(settings.model, settings.batch)
    engine.warm_up()
    info = engine.info
    note = "; RANDOM WEIGHTS: the labels mean nothing" if info.weights == "random" else ""
    return (
        f"{info.name}, weights {info.weights}, engine {info.engine} on {info.device}, "
        f"{len(engine.labels)} classes, warm in {time.monotonic() - started:.1f} s{note}"
    )


def _camera(settings: CameraSettings) -> str:
    """Open it and wait for one picture; the camera's own time-outs bound the wait."""
    camera = Camera(settings, prepare=lambda image: image)
    stop = threading.Event()
    started = time.monotonic()
    frames = camera.frames(stop)
    try:
        frame = next(frames, None)
    finally:
        stop.set()
        frames.close()
    if frame is None:
        raise SourceLost("it ended before its first picture")
    return f"{frame.width} x {frame.height}, first picture after {time.monotonic() - started:.1f} s"


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "fault": "[red]fault[/]"}
    for finding in findings:
        table.add_row(marks[finding.verdict], escape(finding.what), escape(finding.detail))
    Console(soft_wrap=False).print(table)
