"""`python -m bench NAME`: measures coatstream, in the root of its source tree; one JSON line a case where it can.

What each figure means, and where it ends, is in bench/README.md. `coatstream bench engine` and `bench cameras`, which
users of the package need too, are part of it.
"""

import sys
from importlib import import_module
from typing import Annotated, Final

import typer
from coatstream.commands.exit_codes import exit_code
from coatstream.commands.options import MODEL, Load, Measuring, command, group

app = group("Measure coatstream, in the root of its source tree.")

# Command -> the module whose `main` it calls, and what it measures.
SCRIPTS: Final = {
    "peers": ("peers.comparison", "The same work through coatstream, mosec, Ray Serve, LitServe and a loop."),
    "preparation": ("preparation", "From the bytes of a picture to pixels at the model's size."),
    "footprint": ("footprint", "A worker's time to start, and its memory under full load."),
    "overload": ("overload", "Ages and shares when cameras ask three times what the engine can do."),
    "scale": ("scale", "A million waiting frames; four workers against one."),
    "tags": ("tags", "What tags make of labels that flicker."),
    "gate": ("gate", "What the change gate saves, and how often its labels are wrong."),
    "health": ("health", "What clear and spoilt pictures measure."),
    "self-check": ("self_check", "How far engines are off on the self-check's pictures."),
    "allocator": ("allocator", "What glibc's settings are worth."),
    "camera-process": ("camera_process", "What a process for each camera costs."),
    "previews": ("previews", "What previews and the pictures of events cost a worker."),
    "read-size": ("read_size", "How many bytes one read of a socket should take."),
    "acceptance": ("acceptance", "The promises at full size, on a real worker and server."),
    "page": ("page", "What the page costs with 100 cameras: server, browser's memory, long tasks."),
    "clips": ("clips", "Make the clips that `coatstream bench cameras` decodes."),
    "report": ("report", "Write docs/performance.md from the lines of `make bench`."),
}


def _script(name: str, module: str, text: str) -> None:
    """Its module is imported once it is called: some need much, and one the tests' helpers."""

    def call(context: typer.Context) -> int:
        found = import_module(f"bench.{module}")
        own = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        own.command(help=found.__doc__)(found.main)
        return int(own(args=context.args, prog_name=f"python -m bench {name}", standalone_mode=False) or 0)

    passed_on = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(name, help=text, context_settings=passed_on)(call)


@command(app)
def host(load: Load, *, seconds: Measuring = 3.0) -> int:
    """The pipeline without a model, against a bare loop that decodes and resizes."""
    from bench.host import run_bench_host

    return run_bench_host(load(), seconds=seconds)


@command(app, *MODEL)
def pipeline(load: Load, *, seconds: Measuring = 3.0) -> int:
    """Redis to Redis with the model: throughput, latency by load, time by stage."""
    from bench.pipeline import run_bench_pipeline

    return run_bench_pipeline(load(), seconds=seconds)


@command(app)
def queue(
    load: Load,
    *,
    seconds: Measuring = 3.0,
    server: Annotated[str | None, typer.Option(metavar="PATH", help="Another server binary.")] = None,
) -> int:
    """Settling in one atomic step against a plain pipeline; an idle queue's latency."""
    from bench.queue import run_bench_queue

    return run_bench_queue(load(), seconds=seconds, server=server)


for _name, (_module, _text) in SCRIPTS.items():
    _script(_name, _module, _text)


def run(arguments: list[str]) -> int:
    """Run one benchmark and return its exit code; faults are lines on stderr."""
    return exit_code(lambda: app(args=arguments, prog_name="python -m bench", standalone_mode=False))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
