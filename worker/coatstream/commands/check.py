"""`coatstream check`: tests settings, Redis, the model and every camera. Each fault comes with what to do about it."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Literal

from rich.markup import escape

from coatstream.broker.connection import address, connect
from coatstream.broker.keys import queues_of
from coatstream.broker.picture_keys import picture_keys
from coatstream.broker.preflight import check, check_rights, dangers, full_servers, server_infos
from coatstream.cameras.address import Kind, parse
from coatstream.cameras.capture.opening import read_timeout
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.cameras.process.source import CameraProcess
from coatstream.commands.audit_view import fullness, losses_of, room_of, sum_of
from coatstream.commands.terminal import a_console, print_json, table
from coatstream.engine.loading import load_engine
from coatstream.engine.protocol import Engine
from coatstream.errors import CoatstreamError, ConfigError, SourceLost, redact
from coatstream.frames.frame import InputSpec
from coatstream.frames.model import ModelInfo
from coatstream.queue.audit import Audit, audit
from coatstream.queue.monitor import measure
from coatstream.queue.stranded import count_stranded
from coatstream.results.events.tag_classes import tag_classes
from coatstream.results.pictures import EventPictures
from coatstream.settings.errors import SettingsError
from coatstream.settings.model import CameraSettings, ModelSettings, QueueSettings, SettingsTree
from coatstream.telemetry import logs
from coatstream.web.access import Access

AT_ONCE = 8  # cameras that are opened side by side
LOOK_INTO_FOLDER = 3.0  # seconds
LOOK_LONGER = 5.0  # seconds beyond a camera's own time-outs: broken pictures keep within those
_SMALL = InputSpec(64, 64, 1.0, "squash", "area", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # what a look at a camera needs
CLOCKS_AGREE = 2.0  # seconds between two clocks of which nothing need be said
NEARLY_FULL = 0.9  # of the room for dead letters: then the oldest will soon have to go

Verdict = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `figures` are for --json."""

    what: str
    verdict: Verdict
    detail: str
    figures: Mapping[str, int | float | str | None] | None = None


def run_check(load: Callable[[], SettingsTree], *, as_json: bool) -> int:
    """0 if nothing is at fault, else 1. `load` reads the settings, and may raise SettingsError."""
    findings = list(_findings(load))
    if as_json:
        for finding in findings:
            print_json({name: value for name, value in asdict(finding).items() if value is not None})
    else:
        _show(findings)
    return int(any(finding.verdict == "fault" for finding in findings))


def _findings(load: Callable[[], SettingsTree]) -> Iterator[Finding]:
    try:
        settings = load()
    except SettingsError as error:
        yield from (Finding("settings", "fault", redact(line)) for line in error.lines)
        return
    logs.configure(logs.quiet(settings.log))
    yield Finding(
        "settings", "ok", f"{len(settings.cameras)} cameras, queue {'on' if settings.queue.enabled else 'off'}"
    )
    yield from (Finding("settings", "ok", line) for line in settings.overridden)
    try:
        if shut := Access.of(settings.http).shut:
            yield Finding("page", "fault", f"shut to everybody: {shut}")
    except ConfigError as fault:
        yield Finding("page", "fault", redact(str(fault)))
    redis = list(_redis(settings))
    yield from redis
    if all(finding.verdict != "fault" for finding in redis):
        yield from _pictures(settings)
        if settings.queue.enabled:
            yield from _books(settings)
    yield from _classifying(settings)
    yield from check_cameras(settings.cameras)


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except CoatstreamError as error:
        return Finding(what, "fault", redact(str(error)))


def _redis(settings: SettingsTree) -> Iterator[Finding]:
    """The server, our keys and rights, and what would lose frames one day."""
    try:
        with connect(settings.redis) as client:
            server, silent = check(client, settings)
            infos = server_infos(client)
    except CoatstreamError as error:
        yield Finding("redis", "fault", redact(str(error)))
        return
    yield Finding("redis", "ok", f"{server} at {address(settings.redis)}")
    if silent:
        yield Finding(
            "redis",
            "warning",
            "the Redis user may not publish to the channels of labels and failures: only the streams are written",
        )
    yield from (Finding("redis", "warning", danger) for danger in (*dangers(infos), *full_servers(infos)))


def _pictures(settings: SettingsTree) -> Iterator[Finding]:
    """May they be stored and published? Labels and events need neither."""
    keys, wanted = picture_keys(settings), settings.pictures.enabled and bool(settings.cameras)
    in_redis = wanted and settings.pictures.store == "redis"
    rights = {key: commands for key, commands in keys.rights.items() if in_redis or key.startswith(keys.preview)}
    try:
        with connect(settings.redis) as client:
            silent = check_rights(client, rights, channels=[keys.previews("source")], keyless=())
            if wanted:
                EventPictures.of(settings, client).get("0-000000000000")
    except (CoatstreamError, OSError) as error:
        yield Finding("pictures", "warning", f"no previews, or no pictures with events: {redact(str(error))}")
        return
    if silent:
        yield Finding("pictures", "warning", f"no previews: the Redis user may not publish to {silent[0]}")


def _books(settings: SettingsTree) -> Iterator[Finding]:
    """Of each queue: has an entry vanished, and is there room for dead letters?"""
    try:
        with connect(settings.redis) as client:
            queues = queues_of(settings)
            audits = [audit(client, queue) for queue in queues]
            ahead = time.time() - measure(client, queues[0]).server_time
            stranded = {queue.stream: count_stranded(client, queue) for queue in queues}
    except CoatstreamError as error:
        yield Finding("queue", "fault", redact(str(error)))
        return
    for books in audits:
        yield from _account(books, settings.queue)
        yield from _clocks(books, settings.queue, ahead)
        if found := stranded[books.stream]:
            detail = f"{found:,} or more entries are neither new nor in work: a worker that runs hands them out again"
            yield Finding(f"queue {books.stream}", "warning", detail)


def _clocks(books: Audit, limits: QueueSettings, ahead: float) -> Iterator[Finding]:
    """Times that cannot be right. `ahead`: seconds by which this machine's clock is ahead of the server's."""
    if abs(ahead) > CLOCKS_AGREE:
        where = "ahead of" if ahead > 0 else "behind"
        yield Finding("clock", "warning", f"this machine's clock is {abs(ahead):,.0f} s {where} the Redis server's")
    future = books.newest_at + ahead - time.time()
    if future > limits.max_skew:
        yield Finding(
            f"queue {books.stream}",
            "warning",
            f"its newest id lies {future / 86400:,.1f} days in the future, and Redis continues from there: frames "
            "without captured_at take the time of reading. To mend it, delete the stream while it is empty",
        )


def _account(books: Audit, limits: QueueSettings) -> Iterator[Finding]:
    figures = {**asdict(books), "added": books.added, "unaccounted": books.unaccounted, "gone": books.gone}
    verdict: Verdict = "ok" if books.balanced and not books.gone else "warning"
    refused = f"; {books.refused:,} frames refused for want of room" if books.refused else ""
    yield Finding(f"queue {books.stream}", verdict, f"{sum_of(books)}{refused}", figures)
    what, room = f"dead letters of {books.stream}", room_of(books, limits)
    if books.dead_dropped:
        yield Finding(what, "warning", f"{room}; {losses_of(books)}")
    elif fullness(books, limits) >= NEARLY_FULL:
        yield Finding(what, "warning", f"{room}; then the oldest have to go: `coatstream dead list`")
    else:
        yield Finding(what, "ok", room)


def _classifying(settings: SettingsTree) -> Iterator[Finding]:
    """The model, and the tags that are made of its classes."""
    try:
        engine = load_engine(settings.model, settings.batch)
    except CoatstreamError as error:
        yield Finding("model", "fault", redact(str(error)))
        return
    yield as_asked(_tried("model", lambda: _model(engine)), settings.model, engine.info)
    if settings.cameras:
        yield _tried("tags", lambda: _tags(settings, engine))


def as_asked(finding: Finding, asked: ModelSettings, got: ModelInfo) -> Finding:
    """A warning where another engine or precision runs than the settings name."""
    wishes = {"model.engine": (asked.engine, got.engine), "model.precision": (asked.precision, got.precision)}
    missed = [f"{name} = {wish}" for name, (wish, have) in wishes.items() if wish not in ("auto", have)]
    if finding.verdict != "ok" or not missed or got.engine == "noop":
        return finding
    return replace(finding, verdict="warning", detail=f"{finding.detail}; asked for was {' and '.join(missed)}")


def _tags(settings: SettingsTree, engine: Engine) -> str:
    known = tag_classes(settings.tags, engine.labels).tags
    own = [camera for camera in settings.cameras if camera.tags is not None]
    for camera in own:
        tag_classes(camera.tags or settings.tags, engine.labels, where=f"tags of camera {camera.name}")
    return f"{len(known)} possible" + (f", and {len(own)} cameras have their own" if own else "")


def _model(engine: Engine) -> str:
    started = time.monotonic()
    engine.warm_up()
    info = engine.info
    note = "; RANDOM WEIGHTS: the labels mean nothing" if info.weights == "random" else ""
    return (
        f"{info.name}, weights {info.weights}, engine {info.engine} {info.precision} on {info.device}, "
        f"{engine.streams} batches at once, "
        f"{len(engine.labels)} classes, warm in {time.monotonic() - started:.1f} s{note}"
    )


def check_cameras(cameras: Sequence[CameraSettings]) -> Iterator[Finding]:
    """Some at once, each in a process of its own, so that one that hangs costs its time-outs and no more."""
    if not cameras:
        return
    with ForkServer(_SMALL) as fork_server, ThreadPoolExecutor(AT_ONCE, "check") as pool:
        looks = [(camera.name, pool.submit(_camera, camera, fork_server)) for camera in cameras]
        for name, look in looks:
            yield _tried(f"camera {name}", look.result)


def _camera(settings: CameraSettings, fork_server: ForkServer) -> str:
    """Open it and wait for one picture, for a little longer than the camera's own time-outs."""
    settings = settings.model_copy(update={"backlog": True})  # a folder's new pictures may be a day away
    camera, address = (
        CameraProcess(settings, _SMALL, fork_server=fork_server, lease=CameraLease.unshared()),
        parse(settings),
    )
    within = settings.open_timeout + read_timeout(settings, address) + LOOK_LONGER
    stop, started = threading.Event(), time.monotonic()
    enough = threading.Timer(LOOK_INTO_FOLDER if address.kind is Kind.FOLDER else within, stop.set)
    enough.start()
    frames = camera.frames(stop)
    try:
        frame = next(frames, None)
    finally:
        enough.cancel()
        too_late = stop.is_set()
        stop.set()
        frames.close()
    if frame is not None:
        return f"{frame.width} x {frame.height}, first picture after {time.monotonic() - started:.1f} s"
    if os.path.isdir(address.location):  # noqa: PTH112 (raises nothing)
        return "a folder without a picture so far"
    raise SourceLost(
        f"no picture that can be used within {within:g} s" if too_late else "it ended before its first picture"
    )


def _show(findings: list[Finding]) -> None:
    made = table("", "what", "found")
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "fault": "[red]fault[/]"}
    for finding in findings:
        made.add_row(marks[finding.verdict], escape(finding.what), escape(finding.detail))
    a_console().print(made)
