"""The command line: parse, call, exit code. Heavy imports wait until a command needs them.

Exit codes: 0 done; 1 a fault found, or a bug; 2 wrong usage or settings; 3 the model cannot be loaded; 4 Redis cannot
be reached at start. Errors for a person are one line each on stderr, without traceback and without credentials.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from coatstream.errors import CoatstreamError, ConfigError, EngineError, RedisUnavailable, redact
from coatstream.settings.errors import SettingsError
from coatstream.settings.model import SettingsTree


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    FAULT = 1
    USAGE = 2
    MODEL = 3
    REDIS = 4


# typer carries its own copy of click, whose names it does not export; both copies have this class in this place.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_INTERRUPTED = 130  # what typer makes of Ctrl-C, without a word

app = typer.Typer(
    name="coatstream",
    help="Streaming video classification: cameras or a Redis queue in, labels out, every frame accounted for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
dead_app = typer.Typer(help="Dead letters: frames that could not be labelled.", no_args_is_help=True)
bench_app = typer.Typer(help="Benchmarks of this machine, one JSON line each.", no_args_is_help=True)
cameras_app = typer.Typer(help="Cameras that all workers share, changed while they run.", no_args_is_help=True)
app.add_typer(dead_app, name="dead")
app.add_typer(cameras_app, name="cameras")
app.add_typer(bench_app, name="bench")

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with settings.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One setting, e.g. batch.max_size=4. Repeatable.", show_default=False
    ),
]
RedisUrl = Annotated[str | None, typer.Option("--redis", metavar="URL", help="redis.url", show_default=False)]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="model.name: any timm classifier.", show_default=False)
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights", help="model.weights: hub, random, a file, or package:NAME of a pip package.", show_default=False
    ),
]
Engine = Annotated[str | None, typer.Option("--engine", help="model.engine", show_default=False)]
Device = Annotated[str | None, typer.Option("--device", help="model.device", show_default=False)]
TopK = Annotated[int | None, typer.Option("--top-k", help="model.top_k: labels a frame.", show_default=False)]
Embeddings = Annotated[
    bool | None, typer.Option("--embeddings", help="model.embeddings: add the pooled embedding.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document a line.")]


def main() -> None:
    """The console script."""
    code = _run(sys.argv[1:])
    if _threads_are_stuck():  # in a dead call of a camera or the engine; a normal exit would wait for them for ever
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _threads_are_stuck() -> bool:
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    for thread in others:
        thread.join(0.5)
    return any(thread.is_alive() for thread in others)


def _run(arguments: list[str]) -> int:
    return _exit_code(lambda: app(args=arguments, standalone_mode=False))


def _exit_code(call: Callable[[], int | None]) -> int:
    """Call something, a command or a worker in its own process, and say in one line what went wrong."""
    try:
        code = int(call() or ExitCode.DONE)
        return _say("interrupted", ExitCode.FAULT) if code == _INTERRUPTED else code
    except (SettingsError, ConfigError) as error:
        return _say(error, ExitCode.USAGE)
    except EngineError as error:
        return _say(error, ExitCode.MODEL)
    except RedisUnavailable as error:
        return _say(error, ExitCode.REDIS)
    except CoatstreamError as error:
        return _say(error, ExitCode.FAULT)
    except _UsageError as error:
        return _say(error, ExitCode.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", ExitCode.FAULT)
    except SystemExit as end:  # typer's own answer to a closed pipe: `coatstream classify clip.mp4 | head`
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except Exception as error:
        if os.environ.get("COATSTREAM_LOG__LEVEL") == "debug":
            print(redact(traceback.format_exc()), file=sys.stderr)
        return _say(
            f"a bug in coatstream: {type(error).__name__}: {error} (COATSTREAM_LOG__LEVEL=debug shows where)",
            ExitCode.FAULT,
        )


def _say(error: object, code: ExitCode) -> int:
    if isinstance(error, _UsageError):  # its str() is less than what it has to say
        error = getattr(error, "format_message", error.__str__)()
    for line in str(error).splitlines() or [type(error).__name__]:
        print(f"coatstream: {redact(line)}", file=sys.stderr)
    return code


def _settings(config: Path | None, set_: list[str] | None, **named: Any) -> SettingsTree:
    """The settings, with the command line's own on top; `named` are dotted keys with `__` for the dot."""
    from coatstream.settings.loading import load, parse_override

    overrides = dict(parse_override(text) for text in set_ or [])
    overrides |= {key.replace("__", "."): value for key, value in named.items() if value is not None}
    return load(config=config, overrides=overrides)


@app.command()
def run(
    config: Config = None,
    set_: Set = None,
    redis: RedisUrl = None,
    model: Model = None,
    weights: Weights = None,
    engine: Engine = None,
    device: Device = None,
    top_k: TopK = None,
    embeddings: Embeddings = None,
) -> int:
    """The worker: classify frames from the queue and the cameras until SIGTERM or Ctrl-C."""
    settings = _settings(
        config,
        set_,
        redis__url=redis,
        model__name=model,
        model__weights=weights,
        model__engine=engine,
        model__device=device,
        model__top_k=top_k,
        model__embeddings=embeddings,
    )
    from coatstream.commands.run import run_worker

    return run_worker(settings, _exit_code)


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="End after so many seconds; 0 = run until Ctrl-C.", min=0)] = 0,
    config: Config = None,
    set_: Set = None,
) -> int:
    """The main job on this machine: an embedded server, a real clip as a camera, real photos through the queue."""
    from coatstream.commands.demo import run_demo

    return run_demo(_settings(config, set_), seconds=seconds)


@app.command()
def check(
    config: Config = None,
    set_: Set = None,
    redis: RedisUrl = None,
    model: Model = None,
    weights: Weights = None,
    engine: Engine = None,
    device: Device = None,
    json: Json = False,
) -> int:
    """Test settings, Redis, the model and every camera; exit 0 if all are well, 1 if not."""
    from coatstream.commands.check import run_check

    return run_check(
        lambda: _settings(
            config,
            set_,
            redis__url=redis,
            model__name=model,
            model__weights=weights,
            model__engine=engine,
            model__device=device,
        ),
        as_json=json,
    )


@app.command()
def classify(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Pictures, clips or folders of them.")],
    top_k: TopK = None,
    embeddings: Embeddings = None,
    json: Json = False,
    fps: Annotated[float, typer.Option(help="Frames a second of a clip; 0 = every one.", min=0)] = 0,
    config: Config = None,
    set_: Set = None,
    model: Model = None,
    weights: Weights = None,
    engine: Engine = None,
    device: Device = None,
) -> int:
    """Label pictures or clips here and now, without Redis."""
    settings = _settings(
        config,
        set_,
        model__name=model,
        model__weights=weights,
        model__engine=engine,
        model__device=device,
        model__top_k=top_k,
        model__embeddings=embeddings,
    )
    from coatstream.commands.classify import run_classify

    return run_classify(settings, paths, fps=fps, as_json=json)


@app.command()
def enqueue(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Pictures, folders, clips or camera URLs.")],
    source: Annotated[
        str | None, typer.Option(help="Who saw the frames; default: the path's name.", show_default=False)
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames a second of a clip or camera; 0 = every one.", min=0)] = 0,
    stream: Annotated[
        str | None, typer.Option(help="queue.stream, or one of queues; default: the first.", show_default=False)
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Drop and count what finds the queue full, instead of waiting.")
    ] = False,
    confirm: Annotated[
        Literal["none", "replicas", "disk"],
        typer.Option(help="Count a frame only when a replica has it too, or the disk."),
    ] = "none",
    config: Config = None,
    set_: Set = None,
    redis: RedisUrl = None,
) -> int:
    """Put pictures, folders, clips or a camera's frames into the frames stream. Files wait while it is full; a camera
    drops what finds no room.
    """
    settings = _settings(config, set_, redis__url=redis, queue__stream=stream)
    from coatstream.commands.enqueue import run_enqueue

    return run_enqueue(settings, paths, source=source, fps=fps, stream=stream, drop=drop, confirm=confirm)


@app.command()
def watch(
    source: Annotated[str | None, typer.Option(help="Only this source.", show_default=False)] = None,
    events: Annotated[
        bool, typer.Option("--events", help="Tags, camera states and sick pictures, instead of labels.")
    ] = False,
    json: Json = False,
    count: Annotated[int, typer.Option(help="End after so many lines; 0 = run until Ctrl-C.", min=0)] = 0,
    config: Config = None,
    set_: Set = None,
    redis: RedisUrl = None,
) -> int:
    """Print labels, or events, as they are published."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.watch import run_watch

    return run_watch(settings, source=source, count=count, as_json=json, events=events)


DeadStream = Annotated[
    str | None,
    typer.Option("--stream", metavar="NAME", help="Only this queue; default: all of them.", show_default=False),
]


@dead_app.command("list")
def dead_list(
    entries: Annotated[
        list[str] | None, typer.Argument(metavar="[ENTRY]...", help="Only these.", show_default=False)
    ] = None,
    stream: DeadStream = None,
    json: Json = False,
    config: Config = None,
    set_: Set = None,
    redis: RedisUrl = None,
) -> int:
    """Show dead letters: why each frame died, newest last."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.dead import list_dead

    return list_dead(settings, entries or [], as_json=json, stream=stream)


@dead_app.command("show")
def dead_show(
    entry: Annotated[str, typer.Argument(metavar="ENTRY")],
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write its picture to this file.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
    stream: DeadStream = None,
    json: Json = False,
    config: Config = None,
    set_: Set = None,
    redis: RedisUrl = None,
) -> int:
    """Show everything about one dead letter."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.dead import show_dead

    return show_dead(settings, entry, as_json=json, save=save, force=force, stream=stream)


All = Annotated[bool, typer.Option("--all", help="Every dead letter.")]


@dead_app.command("replay")
def dead_replay(
    entries: Annotated[list[str] | None, typer.Argument(metavar="[ENTRY]...", show_default=False)] = None,
    every: All = False,
    stream: DeadStream = None,
    config: Config = None,
    set_: Set = None,
    redis: RedisUrl = None,
) -> int:
    """Put dead letters back into the frames stream, each once."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.dead import replay_dead

    return replay_dead(settings, entries or [], every=every, stream=stream)


@dead_app.command("drop")
def dead_drop(
    entries: Annotated[list[str] | None, typer.Argument(metavar="[ENTRY]...", show_default=False)] = None,
    every: All = False,
    stream: DeadStream = None,
    config: Config = None,
    set_: Set = None,
    redis: RedisUrl = None,
) -> int:
    """Delete dead letters."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.dead import drop_dead

    return drop_dead(settings, entries or [], every=every, stream=stream)


CameraName = Annotated[str, typer.Argument(metavar="NAME", help="The camera's name.")]


@cameras_app.command("list")
def cameras_list(json: Json = False, config: Config = None, set_: Set = None, redis: RedisUrl = None) -> int:
    """Show all cameras: where each comes from, how it is, who reads it. Exit 1 if an entry in Redis is of no use."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.cameras import list_cameras

    return list_cameras(settings, as_json=json)


@cameras_app.command("add")
def cameras_add(
    name: CameraName,
    url: Annotated[str, typer.Argument(metavar="URL", help="rtsp(s)://, http(s)://, udp://, tcp://")],
    fps: Annotated[
        float | None, typer.Option(help="Frames sampled a second; 0 = every one.", show_default=False)
    ] = None,
    priority: Annotated[
        float | None, typer.Option(help="Its share of the engine when not all frames can be had.", show_default=False)
    ] = None,
    username: Annotated[str | None, typer.Option(help="Where it is not in the URL.", show_default=False)] = None,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the password from this file, now.", show_default=False)
    ] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    transport: Annotated[
        Literal["tcp", "udp"] | None, typer.Option(help="How RTSP sends its pictures.", show_default=False)
    ] = None,
    keyframes_only: Annotated[
        bool, typer.Option("--keyframes-only", help="Decode only pictures that stand alone.")
    ] = False,
    realtime: Annotated[
        bool | None,
        typer.Option("--realtime/--lossless", help="Only the newest frame waits, or none is lost.", show_default=False),
    ] = None,
    max_age: Annotated[
        float | None, typer.Option(help="Seconds after which a frame is dropped as stale.", show_default=False)
    ] = None,
    open_timeout: Annotated[
        float | None, typer.Option(help="Longest wait for the first picture, in seconds.", show_default=False)
    ] = None,
    read_timeout: Annotated[
        float | None, typer.Option(help="Longest wait for a picture, in seconds.", show_default=False)
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change the camera of this name.")] = False,
    config: Config = None,
    set_: Set = None,
    redis: RedisUrl = None,
) -> int:
    """Let the workers read another camera from now on; what is not given is as by default."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.cameras import add_camera

    return add_camera(
        settings,
        name,
        url,
        replace=replace,
        password_file=password_file,
        password_stdin=password_stdin,
        fps=fps,
        priority=priority,
        username=username,
        transport=transport,
        keyframes_only=keyframes_only or None,
        realtime=realtime,
        max_age=max_age,
        open_timeout=open_timeout,
        read_timeout=read_timeout,
    )


@cameras_app.command("remove")
def cameras_remove(name: CameraName, config: Config = None, set_: Set = None, redis: RedisUrl = None) -> int:
    """Forget a camera that was added."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.cameras import remove_camera

    return remove_camera(settings, name)


@cameras_app.command("pause")
def cameras_pause(name: CameraName, config: Config = None, set_: Set = None, redis: RedisUrl = None) -> int:
    """Let nobody read a camera for now, one of the settings file too."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.cameras import pause_camera

    return pause_camera(settings, name)


@cameras_app.command("resume")
def cameras_resume(name: CameraName, config: Config = None, set_: Set = None, redis: RedisUrl = None) -> int:
    """Let a paused camera be read again."""
    settings = _settings(config, set_, redis__url=redis)
    from coatstream.commands.cameras import resume_camera

    return resume_camera(settings, name)


BenchSeconds = Annotated[float, typer.Option(help="Seconds for each figure.", min=0.2)]


@bench_app.command("host")
def bench_host(seconds: BenchSeconds = 3.0, config: Config = None, set_: Set = None) -> int:
    """The pipeline without a model, against a bare loop that only decodes and resizes."""
    from bench.host import run_bench_host

    return run_bench_host(_settings(config, set_), seconds=seconds)


@bench_app.command("engine")
def bench_engine(
    seconds: BenchSeconds = 3.0,
    engines: Annotated[
        str, typer.Option(metavar="LIST", help="Beside eager: fused, openvino, compile (slow), with :bf16 or without.")
    ] = "fused,openvino",
    sizes: Annotated[str, typer.Option(metavar="LIST", help="Batch sizes.")] = "1,2,4,8,16,32",
    busy: Annotated[bool, typer.Option("--busy", help="Also while another process takes a core.")] = False,
    config: Config = None,
    set_: Set = None,
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
) -> int:
    """The model alone: frames a second by engine and batch size, beside the machine's limit."""
    settings = _settings(config, set_, model__name=model, model__weights=weights, model__device=device)
    from coatstream.commands.bench.engine import run_bench_engine

    chosen = [word.strip() for word in engines.split(",") if word.strip()]
    return run_bench_engine(settings, seconds=seconds, engines=chosen, sizes=_sizes(sizes), busy=busy)


def _sizes(text: str) -> tuple[int, ...]:
    """Batch sizes of a list such as 1,4,8. Raises BadParameter."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= 1024 for word in words):
        raise typer.BadParameter(f"{text!r} is no list of batch sizes such as 1,4,8", param_hint="--sizes")
    return tuple(map(int, words))


@bench_app.command("pipeline")
def bench_pipeline(
    seconds: BenchSeconds = 3.0,
    config: Config = None,
    set_: Set = None,
    model: Model = None,
    weights: Weights = None,
    engine: Engine = None,
    device: Device = None,
) -> int:
    """Redis to Redis with the model: throughput against the bare work, latency against offered load, time by stage."""
    settings = _settings(
        config, set_, model__name=model, model__weights=weights, model__engine=engine, model__device=device
    )
    from bench.pipeline import run_bench_pipeline

    return run_bench_pipeline(settings, seconds=seconds)


@bench_app.command("queue")
def bench_queue(
    seconds: BenchSeconds = 3.0,
    server: Annotated[
        str | None, typer.Option(metavar="PATH", help="A redis-server instead of the own Valkey.", show_default=False)
    ] = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """The settling script against a plain pipeline of XACK, XDEL and XADD; the latency of an idle queue."""
    from bench.queue import run_bench_queue

    return run_bench_queue(_settings(config, set_), seconds=seconds, server=server)


@bench_app.command("cameras")
def bench_cameras(
    seconds: BenchSeconds = 3.0,
    json: Json = False,
    config: Config = None,
    set_: Set = None,
    model: Model = None,
    engine: Engine = None,
    device: Device = None,
) -> int:
    """How many cameras fit on this machine, by size and rate, and what limits them."""
    settings = _settings(config, set_, model__name=model, model__engine=engine, model__device=device)
    from coatstream.commands.bench.cameras import run_bench_cameras

    return run_bench_cameras(settings, seconds=seconds, as_json=json)


@bench_app.command("peers")
def bench_peers(
    rounds: Annotated[int, typer.Option(help="Rounds of all systems; 0 = only find the peers' settings.", min=0)] = 5,
    seconds: Annotated[float, typer.Option(help="Of each run at full load.", min=0.1, max=60)] = 4.0,
    systems: Annotated[
        str | None, typer.Option(help="Some of coatstream,naive,mosec,ray,litserve.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Kept for the next run: packages, settings. Default: a temporary one.", show_default=False),
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Find the peers' settings anew.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One round of coatstream and the naive loop.")] = False,
    model: Annotated[str, typer.Option(metavar="NAME", help="Any timm classifier.")] = "coat_lite_mini.in1k",
    peer_env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the peers only.", show_default=False)
    ] = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """The same work through coatstream, mosec, Ray Serve, LitServe and a naive loop: 15 minutes, 0.6 GB for a while.

    --config and --set are for coatstream's worker alone, which else runs as it comes.
    """
    _settings(config, set_)  # what is wrong is said now, not by each worker
    from bench.peers_command import run_bench_peers

    arguments = [f"--rounds={rounds}", f"--seconds={seconds}", f"--model={model}"]
    arguments += [f"--systems={systems}"] if systems else []
    arguments += [f"--folder={folder}"] if folder else []
    arguments += ["--tune"] * tune + ["--quick"] * quick
    arguments += [f"--peer-env={pair}" for pair in peer_env or []]
    arguments += [f"--worker=--config={config.resolve()}"] if config else []
    arguments += [f"--worker=--set={pair}" for pair in set_ or []]
    return run_bench_peers(arguments)


def _version(value: bool) -> None:
    if value:
        from coatstream import __version__

        typer.echo(f"coatstream {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Streaming video classification: cameras or a Redis queue in, labels out, every frame accounted for."""
