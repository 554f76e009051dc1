"""What the benchmarks share: the worker's settings, interleaved rounds, medians with spread, the machine in words, JSON
lines and a table.

Knows nothing of what is measured, and judges no figure.
"""

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Final, Literal, TypeVar

from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from coatstream.engine.cores import usable_cores
from coatstream.settings.model import LogSettings, RedisSettings, SettingsTree

ROUNDS: Final = 5  # of every figure; its seconds are shared out among them

T = TypeVar("T")
Run = Callable[[float], float]  # seconds that it may take -> what it reached, in units a second
Track = Callable[[Sequence[str]], AbstractContextManager[Iterable[str]]]  # see Report.track

_PACKAGES: Final = {
    "coatstream": "coatstream",
    "torch": "torch",
    "timm": "timm",
    "openvino": "openvino",
    "opencv": "opencv-python-headless",
    "numpy": "numpy",
    "redis_py": "redis",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, measured several times."""

    median: float
    least: float
    most: float


def figure(samples: Sequence[float]) -> Figure:
    """The median of some samples and how far they spread. Raises statistics.StatisticsError where there are none."""
    return Figure(median(samples), min(samples), max(samples))


def percentile(samples: Sequence[float], percent: int) -> float:
    """By linear interpolation, within what was measured."""
    return quantiles(samples, n=100, method="inclusive")[percent - 1] if len(samples) > 1 else samples[0]


def ratio(samples: Sequence[float], others: Sequence[float]) -> Figure:
    """Samples over others, round by round: what disturbs a round disturbs both sides of it."""
    return figure([sample / other for sample, other in zip(samples, others, strict=True)])


def interleave(
    runs: Mapping[str, Run], seconds: float, *, rounds: int = ROUNDS, track: Track = nullcontext
) -> dict[str, list[float]]:
    """Run each of them once a round, forwards and backwards in turn, so that drift falls on all alike.

    Each gets `seconds` in all. Returns the samples of each, one a round.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    turns = [name for number in range(rounds) for name in (runs if number % 2 == 0 else reversed(list(runs)))]
    with track(turns) as tracked:
        for name in tracked:
            samples[name].append(runs[name](seconds / rounds))
    return samples


def machine(**more: object) -> dict[str, object]:
    """Where a figure was taken; a high `load_1min` means that other programs were busy, too."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(package) for name, package in _PACKAGES.items()},
        **more,
        "load_1min": round(os.getloadavg()[0], 2),
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model, as Linux names it; elsewhere what Python knows."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def rounded(value: float) -> float:
    """Four significant digits: more than a benchmark can promise, few enough to read."""
    return float(f"{value:.4g}")


Value = str | int | float | None | Figure


class Report:
    """One JSON line per case on stdout, at once. On stderr what is being done: on a terminal with a bar, and a table at
    the end; elsewhere, as in the log of a CI job, a plain line a step.
    """

    def __init__(self, bench: str, machine: Mapping[str, object]) -> None:
        self._bench = bench
        self._machine = machine
        self._rows: list[dict[str, Value]] = []
        self._console = Console(stderr=True)

    def note(self, text: str) -> None:
        """A line on stderr for the user, who waits."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def track(self, what: str, turns: Sequence[T]) -> Iterator[Iterable[T]]:
        """The same turns, to be taken one after the other while stderr shows which one runs.

        It draws only between two turns, so that the measured code has the cores to itself. The caller must not print.
        """
        if not self._console.is_terminal:
            self.note(what)
            yield turns
            return
        columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.description}"
        with Progress(
            *columns, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
        ) as bar:
            yield _drawn(bar, what, turns)

    def add(self, **values: Value) -> None:
        """One case; a figure `x` becomes `x`, `x_min` and `x_max`."""
        self._rows.append(values)
        flat = dict(pair for name, value in values.items() for pair in _flat(name, value))
        print(json.dumps({"bench": self._bench, **flat, "machine": self._machine}), flush=True)

    def show(self) -> None:
        """The table, where stderr is a terminal."""
        if not self._console.is_terminal:
            return
        table = Table(title=f"bench {self._bench}", title_justify="left", box=None, pad_edge=False)
        shared = self._shared()
        columns = [name for name in dict.fromkeys(name for row in self._rows for name in row) if name not in shared]
        for name in columns:
            justify: Literal["left", "right"] = "left" if name == "case" else "right"
            table.add_column(name.replace("_", " "), justify=justify, overflow="fold")
        for row in self._rows:
            table.add_row(*(_cell(row.get(name)) for name in columns))
        self._console.print(table)
        self.note(f"{self._machine['cpu']}, {self._machine['cores']} usable cores; medians, in brackets least and most")
        if shared:
            self.note(", ".join(f"{name.replace('_', ' ')} {_cell(value)}" for name, value in shared.items()))

    def _shared(self) -> dict[str, Value]:
        """What is the same in every case that has it: it is printed once, below the table."""
        found: dict[str, set[Value]] = {}
        for row in self._rows:
            for name, value in row.items():
                found.setdefault(name, set()).add(value)
        alike = {name: next(iter(values)) for name, values in found.items() if len(values) == 1}
        return {name: value for name, value in alike.items() if name != "case" and isinstance(value, str | int | float)}


def _drawn(bar: Progress, what: str, turns: Sequence[T]) -> Iterator[T]:
    task = bar.add_task(what, total=len(turns))
    for done, turn in enumerate(turns):
        bar.update(task, completed=done, description=f"{what}: {turn}", refresh=True)
        yield turn


def _flat(name: str, value: Value) -> list[tuple[str, str | int | float | None]]:
    match value:
        case Figure(median, least, most):
            return [(name, rounded(median)), (f"{name}_min", rounded(least)), (f"{name}_max", rounded(most))]
        case float():
            return [(name, rounded(value))]
    return [(name, value)]


def _cell(value: Value) -> str:
    match value:
        case None:
            return ""
        case Figure(median, least, most):
            # the backslash keeps rich from reading a style
            return f"{rounded(median):g} \\[{rounded(least):g}..{rounded(most):g}]"
        case float():
            return f"{rounded(value):g}"
    return str(value)


def for_bench(settings: SettingsTree, url: str) -> SettingsTree:
    """The operator's batch, decode and stream settings; a server of our own, no cameras, no model, a quiet log."""
    return settings.model_copy(
        update={
            "redis": RedisSettings(url=SecretStr(url)),
            "queue": settings.queue.model_copy(update={"enabled": True}),
            "model": settings.model.model_copy(update={"engine": "noop", "noop_delay": 0.0}),
            "cameras": (),
            "http": settings.http.model_copy(update={"host": "127.0.0.1", "port": 0}),
            "log": LogSettings(level="error"),
        }
    )
