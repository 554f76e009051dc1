"""`coatstream dead list|replay|drop`: look at dead letters, put them back, delete them."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.settings import SettingsTree
from worker.broker.connection import connect
from worker.broker.dead_letters import DeadLetter, DeadLetters, Replayed
from worker.broker.preflight import check_keys, check_server
from worker.commands.terminal import shown
from worker.errors import ConfigError

AT_ONCE = 256  # letters that are put back or deleted between two looks at the stream
COLUMNS = ("entry", "source", "reason", "error", "deliveries", "died at", "image")


def list_dead(settings: SettingsTree, entries: Sequence[str], *, as_json: bool) -> int:
    """A table, or one JSON object a line. 1 if one of `entries` is not there, else 0."""
    with _opened(settings) as letters:
        absent: list[str] = []
        found = _some(letters, entries, absent) if entries else letters.all()
        if as_json:
            for letter in found:
                print(json.dumps(_document(letter)), flush=True)
        else:
            _show(found)
    return _complain(dict.fromkeys(absent, "there is no such dead letter"))


def replay_dead(settings: SettingsTree, entries: Sequence[str], *, every: bool) -> int:
    """Back into the frames stream, each once. 1 if one of `entries` was not, else 0."""
    faults = {
        Replayed.ABSENT: "there is no such dead letter",
        Replayed.IMPOSSIBLE: "it cannot be put back: it holds nothing of its frame, or thousands of fields",
    }
    _check_usage(entries, every=every)
    with _opened(settings) as letters:

        def replay(page: Sequence[str]) -> list[str | None]:
            return [faults.get(one) for one in letters.replay(page)]

        return _act("replayed", replay, letters, entries)


def drop_dead(settings: SettingsTree, entries: Sequence[str], *, every: bool) -> int:
    """Delete. 1 if one of `entries` was not there, else 0."""
    _check_usage(entries, every=every)
    with _opened(settings) as letters:

        def drop(page: Sequence[str]) -> list[str | None]:
            return [None if dropped else "there is no such dead letter" for dropped in letters.drop(page)]

        return _act("dropped", drop, letters, entries)


@contextmanager
def _opened(settings: SettingsTree) -> Iterator[DeadLetters]:
    with connect(settings.redis) as client:
        check_server(client, settings.redis)
        check_keys(client, settings.queue, settings.results)
        yield DeadLetters(client, settings.queue)


def _check_usage(entries: Sequence[str], *, every: bool) -> None:
    if bool(entries) == every:
        raise ConfigError("name the entries (`coatstream dead list` shows them), or give --all; not both")


def _act(
    done: str, act: Callable[[Sequence[str]], list[str | None]], letters: DeadLetters, entries: Sequence[str]
) -> int:
    """Do it to the entries, or to every letter if there are none; `act` says of each why it was not done, or None."""
    ids = iter(dict.fromkeys(entries)) if entries else (letter.letter for letter in letters.all())
    count, faults = 0, dict[str, str]()
    try:
        while page := list(islice(ids, AT_ONCE)):
            answers = dict(zip(page, act(page), strict=True))
            faults |= {entry: answer for entry, answer in answers.items() if answer is not None}
            count += sum(answer is None for answer in answers.values())
    finally:  # also where Redis went away half-way
        print(f"{done} {count}", flush=True)
    return _complain(faults)


def _complain(faults: dict[str, str]) -> int:
    for entry, fault in faults.items():
        print(f"coatstream: {shown(entry)}: {fault}", file=sys.stderr)
    return int(bool(faults))


def _some(letters: DeadLetters, entries: Iterable[str], absent: list[str]) -> Iterator[DeadLetter]:
    for entry in dict.fromkeys(entries):
        letter = letters.get(entry)
        if letter is None:
            absent.append(entry)
        else:
            yield letter


def _document(letter: DeadLetter) -> dict[str, object]:
    return {
        "entry": letter.letter,
        "reason": letter.reason,
        "error": letter.error,
        "deliveries": int(letter.deliveries) if letter.deliveries.isdecimal() else None,
        "entry_id": letter.entry_id,
        "died_at": letter.died_at,
        "worker": letter.worker,
        "fields": dict(letter.texts),
        "sizes": dict(letter.sizes),
    }


def _show(letters: Iterable[DeadLetter]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a line per letter, for grep and awk
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        right = column in ("deliveries", "image")
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=column == "entry")
    for letter in letters:
        table.add_row(*(Text(shown(cell)) for cell in _cells(letter)))
    if table.row_count:
        console.print(table)
    else:
        console.print("no dead letters")


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    size = letter.sizes.get("image", letter.sizes.get("pixels"))
    return (
        letter.letter,
        letter.texts.get("source") or "queue",
        letter.reason,
        letter.error,
        letter.deliveries,
        "" if letter.died_at is None else _local(letter.died_at),
        "" if size is None else f"{size:,} B",
    )


def _local(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
