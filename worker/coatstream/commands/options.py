"""Options that several commands share, each written once, and the settings that are made of them.

`command` gives a function --config, --set and some shortcuts for single settings. The function reads them with `load`.
Imports nothing heavy: `coatstream --help` runs through here.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from coatstream.settings.model import SettingsTree

Load = Callable[..., "SettingsTree"]  # (overrides: {dotted key: value, None = not given}) -> the settings


def _number(convert: type, least: float | None, text: Any) -> Any:
    try:
        value = convert(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a{'n integer' if convert is int else ' number'}") from None
    if least is not None and not least <= value < float("inf"):
        raise typer.BadParameter(f"{text!r} is not {least:g} or more")
    return value


def number(
    *names: str, metavar: str, text: str, least: float | None = None, convert: type = float, default: bool = True
) -> Any:
    """An option that takes a number (`least` or more); its help names what it counts, not a Python type."""
    parser = partial(_number, convert, least)
    return typer.Option(*names, metavar=metavar, help=text, parser=parser, show_default=default)


def camera_number(name: str, metavar: str, text: str) -> Any:
    """A number whose bounds the camera's settings know."""
    return number(name, metavar=metavar, text=text, default=False)


def optional(*names: str, metavar: str, text: str) -> Any:
    """An option without a default that would be worth a word in the help."""
    return typer.Option(*names, metavar=metavar, help=text, show_default=False)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")]
Fps = Annotated[
    float, number("--fps", metavar="RATE", text="Frames a second of a clip or camera; 0 means all.", least=0)
]
EndAfter = Annotated[
    float,
    number(
        "--seconds",
        metavar="SECONDS",
        text="End after this time; 0 means at Ctrl-C, and without a terminal after 20 s.",
        least=0,
    ),
]
Measuring = Annotated[float, number("--seconds", metavar="SECONDS", text="Time to measure each figure.", least=0.2)]
Source = Annotated[str | None, optional("--source", metavar="NAME", text="Only this source.")]
DeadStream = Annotated[str | None, optional("--stream", metavar="NAME", text="Only this queue; default: all of them.")]
Entries = Annotated[
    list[str] | None, typer.Argument(metavar="ENTRY", help="Entries, as `dead list` shows them.", show_default=False)
]
Every = Annotated[bool, typer.Option("--all", help="Every dead letter.")]
CameraName = Annotated[str, typer.Argument(metavar="NAME", help="The camera's name.")]

_CONFIG: Final = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Read settings from this YAML file.", show_default=False),
]
_SET: Final = Annotated[
    list[str] | None,
    optional("--set", metavar="KEY=VALUE", text="Change one setting, e.g. batch.max_size=4. Repeatable."),
]
# Parameter -> the setting that it stands for, and the option.
_SHORTCUTS: Final[dict[str, tuple[str, Any]]] = {
    "redis": ("redis.url", Annotated[str | None, optional("--redis", metavar="URL", text="Use this Redis server.")]),
    "model": (
        "model.name",
        Annotated[str | None, optional("--model", metavar="NAME", text="Use this timm classifier.")],
    ),
    "weights": (
        "model.weights",
        Annotated[
            str | None,
            optional("--weights", metavar="WEIGHTS", text="hub, random, a file, or package:NAME of a pip package."),
        ],
    ),
    "engine": (
        "model.engine",
        Annotated[
            str | None,
            optional("--engine", metavar="ENGINE", text="auto, eager, fused, openvino, compile or noop."),
        ],
    ),
    "device": (
        "model.device",
        Annotated[str | None, optional("--device", metavar="DEVICE", text="auto, cpu, cuda or cuda:N.")],
    ),
    "top_k": (
        "model.top_k",
        Annotated[
            int | None, number("--top-k", metavar="COUNT", text="Labels a frame.", least=1, convert=int, default=False)
        ],
    ),
    "embeddings": (
        "model.embeddings",
        Annotated[bool | None, typer.Option("--embeddings", help="Add the pooled embedding.", show_default=False)],
    ),
}
# Settings of a camera: options of `cameras add`, None where they are not given.
CAMERA: Final[dict[str, Any]] = {
    "fps": Annotated[float | None, camera_number("--fps", "RATE", "Frames sampled a second; 0 means all.")],
    "priority": Annotated[float | None, camera_number("--priority", "WEIGHT", "Its share of a busy engine.")],
    "username": Annotated[str | None, optional("--username", metavar="NAME", text="Where it is not in the URL.")],
    "transport": Annotated[
        Literal["tcp", "udp"] | None,
        typer.Option("--transport", help="How RTSP sends its pictures.", show_default=False),
    ],
    "keyframes_only": Annotated[bool | None, typer.Option("--keyframes-only", help="Decode only key frames.")],
    "realtime": Annotated[
        bool | None,
        typer.Option("--realtime/--lossless", help="Keep only the newest frame, or all.", show_default=False),
    ],
    "max_age": Annotated[float | None, camera_number("--max-age", "SECONDS", "Drop older frames as stale.")],
    "open_timeout": Annotated[
        float | None, camera_number("--open-timeout", "SECONDS", "Longest wait for the first picture.")
    ],
    "read_timeout": Annotated[float | None, camera_number("--read-timeout", "SECONDS", "Longest wait for a picture.")],
}
MODEL: Final = ("model", "weights", "engine", "device")


class Command(TyperCommand):
    """A command whose help shows no Python types of its arguments."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        found: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                kind = param.param_type_name
                found[kind].append((record[0].partition(" <")[0] if kind == "argument" else record[0], record[1]))
        for kind, records in found.items():
            if records:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(records)


def command(
    app: typer.Typer,
    *shortcuts: str,
    name: str | None = None,
    examples: Sequence[str] = (),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a function a command of `app` with --config, --set and these shortcuts, and examples in its help.

    Its first parameter, `load`, reads the settings: it takes further overrides by dotted key, None for what was not
    given, and raises SettingsError. The options in `more` are passed on as `**options`.
    """

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        own = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in list(inspect.signature(function).parameters.values())[1:]
            if each.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        shared = dict(more) | {each: _SHORTCUTS[each][1] for each in shortcuts} | {"config": _CONFIG, "set_": _SET}
        options = [
            inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for each, annotation in shared.items()
        ]

        def call(**given: Any) -> int:
            config, set_ = given.pop("config"), given.pop("set_")
            named = {_SHORTCUTS[each][0]: given.pop(each) for each in shortcuts}
            return function(partial(settings_of, config, set_, named), **given)

        parameters = [*own, *options]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        end = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples) if examples else None
        app.command(name or function.__name__, help=inspect.getdoc(function), epilog=end, cls=Command)(call)
        return function

    return decorate


def settings_of(
    config: Path | None, set_: list[str] | None, named: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> "SettingsTree":
    """The settings, with the command line's own on top. Raises SettingsError."""
    from coatstream.settings.loading import load, parse_override

    overrides = dict(parse_override(text) for text in set_ or [])
    overrides |= {key: value for key, value in {**named, **(more or {})}.items() if value is not None}
    return load(config=config, overrides=overrides)


def group(text: str, *, completion: bool = False) -> typer.Typer:
    """A command of commands. Called bare it prints its help and nothing else, and its exit code is 2."""
    made = typer.Typer(
        help=text,
        add_completion=completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        invoke_without_command=True,
    )
    made.callback()(help_when_bare)
    return made


def help_when_bare(context: typer.Context) -> None:
    """Print the help where no command was named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
