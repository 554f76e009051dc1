"""What came of all runs: as a table on the terminal, and as Markdown with the day and the machine. Judges nothing."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby

from coatstream.commands.bench.report import machine
from rich.console import Console
from rich.table import Table

from tests.faults import servers
from tests.faults.cases import Case, Row

ALWAYS_SHOWN = ("lost", "doubled", "dead letters", "innocent dead letters")  # what the tests are about
_NUMBER = re.compile(r"-?[\d,]+(\.\d+)?(e[+-]?\d+)?")


def print_table(rows: Sequence[Row], controls: Sequence[Row]) -> None:
    """On the terminal."""
    table = Table(title="Faults", show_lines=True)
    for heading in ("", "fault", "must hold", "server", "found", "s"):
        table.add_column(heading, justify="right" if heading == "s" else "left")
    for (case, kind), runs in _grouped(rows):
        verdict = "ok" if all(run.ok for run in runs) else "FAILED"
        seconds = f"{sum(run.seconds for run in runs):.0f}"
        table.add_row(case.name, case.title, case.passes, kind, f"[bold]{verdict}[/] {_found(runs)}", seconds)
    for run in controls:
        seen = "seen" if not run.ok else "NOT SEEN"
        table.add_row(
            run.case.name, f"control: {run.protocol}", "must fail", run.kind, f"[bold]{seen}[/] {_failed(run)}"
        )
    Console().print(table)


def markdown(rows: Sequence[Row], controls: Sequence[Row]) -> str:
    """The tables of docs/faults.md."""
    kinds = [kind for kind in servers.KINDS if any(row.kind == kind for row in rows)]
    lines = [
        f"{_moment()}; {_where(kinds)}. `make faults` makes this table again.",
        "",
        f"| | fault | must hold | {' | '.join(kind.capitalize() for kind in kinds)} |",
        f"|{' --- |' * (3 + len(kinds))}",
    ]
    found = {(case.name, kind): runs for (case, kind), runs in _grouped(rows)}
    cases = {row.case.name: row.case for row in rows}
    for name, case in cases.items():
        cells = (_cell(found.get((name, kind), [])) for kind in kinds)
        lines.append(f"| {name} | {case.title} | {case.passes} | {' | '.join(cells)} |")
    if controls:
        lines += ["", "| a bad protocol | under | what the same harness finds |", "| --- | --- | --- |"]
        lines += [f"| {run.protocol} | {run.case.name} | {_failed(run)} |" for run in controls]
    return "\n".join(lines) + "\n"


def _grouped(rows: Iterable[Row]) -> list[tuple[tuple[Case, str], list[Row]]]:
    """All seeds of one test on one server together."""
    return [
        ((runs[0].case, runs[0].kind), runs)
        for runs in (list(group) for _, group in groupby(rows, key=lambda row: (row.case.name, row.kind)))
    ]


def _cell(runs: Sequence[Row]) -> str:
    if not runs:
        return ""
    failed = sum(not run.ok for run in runs)
    return f"**{failed} of {len(runs)} failed** {_found(runs)}" if failed else _found(runs) or "it holds"


def _found(runs: Sequence[Row]) -> str:
    """The figures worth a reader's time; where runs differ, from the smallest to the largest."""
    some = [f"{len(runs)} seeds"] if len(runs) > 1 else []
    for name in dict.fromkeys(name for run in runs for name in run.stats):
        values = [run.stats[name] for run in runs if name in run.stats]
        if name in ALWAYS_SHOWN or any(name in run.measured for run in runs):
            some.append(f"{name} {_range(values)}")
    failures = [failure for run in runs for failure in run.failures]
    return ", ".join(some) + (f" ({'; '.join(failures[:3])})" if failures else "")


def _range(values: Sequence[str]) -> str:
    ordered = sorted(set(values), key=_leading)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _leading(value: str) -> float:
    found = _NUMBER.match(value)
    return float(found[0].replace(",", "")) if found else 0.0


def _failed(run: Row) -> str:
    """What a control has done wrong."""
    words = [
        f"{value} {name}"
        for name, value in run.stats.items()
        if any(failure.startswith(f"{name} is ") for failure in run.failures) and _leading(value) > 0
    ]
    return f"{', '.join(words) or '; '.join(run.failures) or 'nothing'} (of {run.stats.get('frames', '?')} frames)"


def _moment() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _where(kinds: Sequence[str]) -> str:
    about = machine()
    versions = ", ".join(_version(kind) for kind in kinds)
    return f"{about['cpu']}, {about['cores']} cores, {about['os']}, Python {about['python']}; {versions}"


def _version(kind: str) -> str:
    printed = subprocess.run([servers.binary(kind), "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r"v=(\S+)", printed)
    return f"{kind.capitalize()} {number[1] if number else ''}".strip()
