"""The command line: parses arguments and calls `commands`. What is heavy is imported once a command needs it."""

import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from coatstream.commands.encoding import survive_any_encoding
from coatstream.commands.exit_codes import exit_code
from coatstream.commands.options import (
    CAMERA,
    MODEL,
    CameraName,
    DeadStream,
    EndAfter,
    Entries,
    Every,
    Fps,
    Json,
    Load,
    Measuring,
    Source,
    command,
    group,
    help_when_bare,
    number,
    optional,
)
from coatstream.telemetry.log_writer import drain_log, keep_standard_descriptors

app = group(
    "Classify video streams: cameras or a Redis queue in, labels out, every frame accounted for.", completion=True
)
dead_app = group("Show, replay or delete frames that could not be labelled.")
cameras_app = group("List and change the cameras that all workers share.")
tags_app = group("Show ready groups of tags, and find thresholds for a camera.")
bench_app = group("Measure the engines of this machine, or how many cameras fit.")
app.add_typer(dead_app, name="dead")
app.add_typer(cameras_app, name="cameras")
app.add_typer(tags_app, name="tags")
app.add_typer(bench_app, name="bench")


def main() -> None:
    """The console script."""
    keep_standard_descriptors()
    survive_any_encoding()
    _announce(sys.argv[1:2])
    code = run(sys.argv[1:])
    drain_log()
    if _threads_are_stuck():  # in a dead call of a camera or the engine; a normal exit would wait for them for ever
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


_SLOW: Final = {  # commands whose libraries and model take seconds to load
    "run": "starting the worker",
    "demo": "starting a server, and a worker whose model takes some seconds to load",
    "check": "testing settings, Redis, model and cameras",
    "classify": "loading the model",
    "prepare": "choosing an engine: half a minute or so",
    "bench": "loading models",
}


def _announce(command: list[str]) -> None:
    """At a terminal a long start says at once what it does."""
    if command and command[0] in _SLOW and sys.stderr.isatty():
        print(f"coatstream: {_SLOW[command[0]]}", file=sys.stderr, flush=True)


def run(arguments: list[str]) -> int:
    """Run one command in this process and return its exit code; faults are lines on stderr."""
    return exit_code(lambda: app(args=arguments, prog_name="coatstream", standalone_mode=False))


def _threads_are_stuck() -> bool:
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    for thread in others:
        thread.join(0.5)
    return any(thread.is_alive() for thread in others)


# ---- the worker


@command(
    app,
    "redis",
    *MODEL,
    "top_k",
    "embeddings",
    name="run",
    examples=["coatstream run --redis redis://localhost:6379/0", "coatstream run --config coatstream.yaml"],
)
def worker(load: Load) -> int:
    """Run the worker until SIGTERM or Ctrl-C."""
    from coatstream.commands.run import run_worker

    return run_worker(load(), exit_code)


@command(app, examples=["coatstream demo", "coatstream demo --seconds 20 --redis redis://localhost:6379/0"])
def demo(
    load: Load,
    *,
    seconds: EndAfter = 0,
    redis: Annotated[
        str | None, optional("--redis", metavar="URL", text="Use this server, not an embedded one.")
    ] = None,
) -> int:
    """Show a worker at work, with nothing else installed."""
    from coatstream.commands.demo import run_demo

    return run_demo(load({"redis.url": redis}), seconds=seconds, embedded=redis is None)


@command(app, "redis", examples=["coatstream page --redis redis://localhost:6379/0"])
def page(load: Load) -> int:
    """Serve the page and its API for all workers, without being one."""
    from coatstream.commands.page import run_page

    return run_page(load())


@command(app, "redis", *MODEL, examples=["coatstream check --config coatstream.yaml", "coatstream check --json"])
def check(load: Load, *, json: Json = False) -> int:
    """Test the settings, Redis, the model and every camera."""
    from coatstream.commands.check import run_check

    return run_check(load, as_json=json)


@command(
    app, *MODEL, examples=["coatstream prepare --config coatstream.yaml", "coatstream prepare --set model.cache=/cache"]
)
def prepare(load: Load) -> int:
    """Choose, convert and cache the engine before a worker starts."""
    from coatstream.commands.prepare import run_prepare

    return run_prepare(load())


# ---- frames in, labels out


@command(
    app,
    "top_k",
    "embeddings",
    *MODEL,
    examples=["coatstream classify photo.jpg", "coatstream classify clip.mp4 --fps 1 --json"],
)
def classify(
    load: Load,
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Pictures, clips or folders of them.")],
    *,
    json: Json = False,
    fps: Fps = 0,
) -> int:
    """Label pictures and clips here and now, without Redis."""
    from coatstream.commands.classify import run_classify

    return run_classify(load(), paths, fps=fps, as_json=json)


@command(
    app, "redis", examples=["coatstream enqueue photos/ --source door-1", "coatstream enqueue rtsp://camera/1 --fps 2"]
)
def enqueue(
    load: Load,
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Pictures, folders, clips or camera URLs.")],
    *,
    source: Annotated[
        str | None, optional("--source", metavar="NAME", text="Name the frames' source; default: the path's name.")
    ] = None,
    fps: Fps = 0,
    stream: Annotated[
        str | None, optional("--stream", metavar="NAME", text="The queue's frames stream; default: the first queue's.")
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Drop and count frames while the queue is full, instead of waiting.")
    ] = False,
    confirm: Annotated[
        Literal["none", "replicas", "disk"],
        typer.Option(help="Count a frame only once a replica has it too, or the disk."),
    ] = "none",
) -> int:
    """Put pictures, clips or a camera's frames into the queue."""
    from coatstream.commands.enqueue import run_enqueue

    settings = load({"queue.stream": stream})
    return run_enqueue(settings, paths, source=source, fps=fps, stream=stream, drop=drop, confirm=confirm)


@command(app, "redis", examples=["coatstream watch --source door-1", "coatstream watch --events --since 10m --json"])
def watch(
    load: Load,
    *,
    source: Source = None,
    events: Annotated[
        bool, typer.Option("--events", help="Print tags, camera states and sick pictures, not labels.")
    ] = False,
    since: Annotated[
        str | None,
        optional(
            "--since",
            metavar="TIME",
            text="Begin there: 90s, 10m, 2h or 1d ago, a date and time (2026-11-29T14:00), or an entry's id.",
        ),
    ] = None,
    json: Json = False,
    count: Annotated[
        int,
        number("--count", metavar="COUNT", text="End after as many lines; 0 means at Ctrl-C.", least=0, convert=int),
    ] = 0,
) -> int:
    """Print labels, or events, as they are published."""
    from coatstream.commands.watch import run_watch

    return run_watch(load(), source=source, count=count, as_json=json, events=events, since=since)


@command(app, "redis", name="queue", examples=["coatstream queue --watch", "coatstream queue --metrics 9108"])
def queue_(
    load: Load,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds.")] = False,
    json: Json = False,
    metrics: Annotated[
        int,
        number(
            "--metrics",
            metavar="PORT",
            text="Serve the queues' metrics on this port, until stopped.",
            least=0,
            convert=int,
            default=False,
        ),
    ] = 0,
) -> int:
    """Show what waits in the queues, and which workers are at it."""
    from coatstream.commands.queue import serve_queue_metrics, show_queue

    return serve_queue_metrics(load(), metrics) if metrics else show_queue(load(), watch=watch, as_json=json)


@command(app, "redis", examples=["coatstream top", "coatstream top --once | grep down"])
def top(load: Load, *, once: Annotated[bool, typer.Option("--once", help="Print one screen and end.")] = False) -> int:
    """Show replicas, cameras, queues and events on one screen."""
    from coatstream.commands.top import run_top

    return run_top(load(), once=once)


# ---- dead letters


@command(dead_app, "redis", name="list", examples=["coatstream dead list --source door-1 --reason undecodable"])
def dead_list(
    load: Load,
    entries: Entries = None,
    *,
    stream: DeadStream = None,
    source: Source = None,
    reason: Annotated[
        str | None, optional("--reason", metavar="REASON", text="Only this reason, e.g. undecodable.")
    ] = None,
    json: Json = False,
) -> int:
    """List dead letters: why each frame died, newest last."""
    from coatstream.commands.dead import list_dead

    return list_dead(load(), entries or [], as_json=json, stream=stream, source=source, reason=reason)


@command(dead_app, "redis", name="show", examples=["coatstream dead show 1764000000000-0 --save frame.jpg"])
def dead_show(
    load: Load,
    entry: Annotated[str, typer.Argument(metavar="ENTRY", help="An entry, as `dead list` shows it.")],
    *,
    save: Annotated[Path | None, optional("--save", metavar="FILE", text="Write its picture to this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
    stream: DeadStream = None,
    json: Json = False,
) -> int:
    """Show everything about one dead letter."""
    from coatstream.commands.dead import show_dead

    return show_dead(load(), entry, as_json=json, save=save, force=force, stream=stream)


@command(
    dead_app,
    "redis",
    name="replay",
    examples=["coatstream dead replay 1764000000000-0", "coatstream dead replay --all"],
)
def dead_replay(load: Load, entries: Entries = None, *, every: Every = False, stream: DeadStream = None) -> int:
    """Put dead letters back into the frames stream, each once."""
    from coatstream.commands.dead import replay_dead

    return replay_dead(load(), entries or [], every=every, stream=stream)


@command(
    dead_app, "redis", name="drop", examples=["coatstream dead drop 1764000000000-0", "coatstream dead drop --all"]
)
def dead_drop(load: Load, entries: Entries = None, *, every: Every = False, stream: DeadStream = None) -> int:
    """Delete dead letters."""
    from coatstream.commands.dead import drop_dead

    return drop_dead(load(), entries or [], every=every, stream=stream)


# ---- cameras


@command(cameras_app, "redis", name="list", examples=["coatstream cameras list --json"])
def cameras_list(load: Load, *, json: Json = False) -> int:
    """List all cameras: their address, state and worker."""
    from coatstream.commands.cameras import list_cameras

    return list_cameras(load(), as_json=json)


@command(
    cameras_app,
    "redis",
    name="add",
    more=CAMERA,
    examples=["coatstream cameras add door-1 rtsp://10.0.0.7/main --username look --password-file secret"],
)
def cameras_add(
    load: Load,
    name: CameraName,
    url: Annotated[str, typer.Argument(metavar="URL", help="rtsp(s)://, http(s)://, udp:// or tcp://")],
    *,
    password_file: Annotated[
        Path | None, optional("--password-file", metavar="FILE", text="Read the password from this file, now.")
    ] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Change the camera of this name.")] = False,
    **options: Any,
) -> int:
    """Let the workers read another camera from now on."""
    from coatstream.commands.cameras import add_camera

    return add_camera(
        load(), name, url, replace=replace, password_file=password_file, password_stdin=password_stdin, **options
    )


@command(cameras_app, "redis", name="remove", examples=["coatstream cameras remove door-1"])
def cameras_remove(load: Load, name: CameraName) -> int:
    """Remove a camera that was added."""
    from coatstream.commands.cameras import remove_camera

    return remove_camera(load(), name)


@command(cameras_app, "redis", name="pause", examples=["coatstream cameras pause door-1"])
def cameras_pause(load: Load, name: CameraName) -> int:
    """Let no worker read this camera until it is resumed."""
    from coatstream.commands.cameras import pause_camera

    return pause_camera(load(), name)


@command(cameras_app, "redis", name="resume", examples=["coatstream cameras resume door-1"])
def cameras_resume(load: Load, name: CameraName) -> int:
    """Let the workers read a paused camera again."""
    from coatstream.commands.cameras import resume_camera

    return resume_camera(load(), name)


@command(cameras_app, "redis", name="snapshot", examples=["coatstream cameras snapshot door-1 --file door.jpg"])
def cameras_snapshot(
    load: Load,
    name: CameraName,
    *,
    file: Annotated[
        Path | None, optional("--file", metavar="FILE", text="Write to this file; default: NAME.jpg.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
) -> int:
    """Save the newest picture of a camera or of a queue's source."""
    from coatstream.commands.snapshot import take_snapshot

    return take_snapshot(load(), name, file=file, force=force)


@command(cameras_app, *MODEL, name="view", examples=["coatstream cameras view door-1 --save view.jpg --config FILE"])
def cameras_view(
    load: Load,
    name: CameraName,
    *,
    save: Annotated[Path, typer.Option("--save", metavar="FILE", help="Write the picture to this file.")],
) -> int:
    """Draw what the model sees onto a picture of a camera."""
    from coatstream.commands.view import view_camera

    return view_camera(load(), name, save=save)


# ---- tags


@command(tags_app, name="groups", examples=["coatstream tags groups --json"])
def tags_groups(load: Load, *, json: Json = False) -> int:
    """List the groups that `tags.include` can name."""
    from coatstream.commands.tags import print_groups

    return print_groups(as_json=json)


@command(tags_app, *MODEL, name="tune", examples=["coatstream tags tune clip.mp4 --save scores.png"])
def tags_tune(
    load: Load,
    what: Annotated[str, typer.Argument(metavar="CAMERA|CLIP", help="A camera of the settings, or a clip.")],
    *,
    seconds: Annotated[
        float, number("--seconds", metavar="SECONDS", text="So much of it; 0 means a clip's end.", least=0)
    ] = 30.0,
    save: Annotated[Path | None, optional("--save", metavar="FILE", text="Draw the scores into this file.")] = None,
    json: Json = False,
) -> int:
    """Show the scores of a camera or clip, and thresholds for them."""
    from coatstream.commands.tags import tune

    return tune(load(), what, seconds=seconds, save=save, as_json=json)


# ---- benchmarks


@command(
    bench_app, "model", "weights", "device", name="engine", examples=["coatstream bench engine --sizes 1,4,8 --busy"]
)
def bench_engine(
    load: Load,
    *,
    seconds: Measuring = 3.0,
    engines: Annotated[
        str,
        typer.Option(metavar="LIST", help="Beside eager: fused, openvino, compile (slow); with :bf16 or without."),
    ] = "fused,openvino",
    sizes: Annotated[str, typer.Option(metavar="LIST", help="Batch sizes.")] = "1,2,4,8,16,32",
    busy: Annotated[bool, typer.Option("--busy", help="Also while another process takes a core.")] = False,
) -> int:
    """Measure the model alone, by engine and batch size."""
    from coatstream.commands.bench.engine import run_bench_engine, sizes_of

    chosen = [word.strip() for word in engines.split(",") if word.strip()]
    return run_bench_engine(load(), seconds=seconds, engines=chosen, sizes=sizes_of(sizes), busy=busy)


@command(
    bench_app,
    "model",
    "engine",
    "device",
    name="cameras",
    examples=["coatstream bench cameras", "coatstream bench cameras --config FILE --json"],
)
def bench_cameras(load: Load, *, seconds: Measuring = 3.0, json: Json = False) -> int:
    """Estimate how many cameras fit on this machine."""
    from coatstream.commands.bench.cameras import run_bench_cameras

    return run_bench_cameras(load(), seconds=seconds, as_json=json)


def _version(value: bool) -> None:
    if value:
        from coatstream import __version__

        typer.echo(f"coatstream {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    help_when_bare(context)
