"""Dead letters on a terminal, or as JSON: a table of many, everything about one. Asks no server.

What strangers wrote goes through `shown`: a letter is hostile by nature.
"""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coatstream.commands.audit_view import losses_of, room_of
from coatstream.commands.terminal import shown
from coatstream.queue.audit import Audit
from coatstream.queue.dead.letters import DeadLetter
from coatstream.settings.model import QueueSettings

COLUMNS = ("entry", "source", "reason", "error", "deliveries", "died at", "image")
FIELDS_SHOWN = 100  # of one letter: a stranger may have written thousands


def document(letter: DeadLetter) -> dict[str, object]:
    """For JSON: everything but the pictures, of which the sizes."""
    return {
        "entry": letter.letter,
        "stream": letter.stream,
        "reason": letter.reason,
        "error": letter.error,
        "deliveries": int(letter.deliveries) if letter.deliveries.isdecimal() else None,
        "entry_id": letter.entry_id,
        "died_at": letter.died_at,
        "worker": letter.worker,
        "fields": dict(letter.texts),
        "sizes": dict(letter.sizes),
    }


def print_table(letters: Iterable[DeadLetter], *, with_queue: bool) -> None:
    """A line per letter where nobody watches, else a table that fits."""
    console = _console()
    table = Table(box=None, pad_edge=False)
    for column in ("queue", *COLUMNS) if with_queue else COLUMNS:
        right = column in ("deliveries", "image")
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=column == "entry")
    for letter in letters:
        cells = (letter.stream, *_cells(letter)) if with_queue else _cells(letter)
        table.add_row(*(Text(shown(cell)) for cell in cells))
    if table.row_count:
        console.print(table)
    else:
        console.print("no dead letters")


def print_letter(letter: DeadLetter) -> None:
    """Everything about one letter; of its picture, the size."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold", max_width=32)
    table.add_column(overflow="fold")
    for name, value in _facts(letter):
        table.add_row(Text(name), Text(shown(value)))
    own = [*letter.texts.items(), *((name, f"({in_bytes(size)})") for name, size in letter.sizes.items())]
    for name, value in own[:FIELDS_SHOWN]:
        table.add_row(Text(f"field {shown(name)}"), Text(shown(value)))
    if len(own) > FIELDS_SHOWN:
        table.add_row("", f"and {len(own) - FIELDS_SHOWN:,} more fields (--json has them all)")
    _console().print(table)


def print_sums(audits: Sequence[Audit], limits: QueueSettings) -> None:
    """A line per queue that has or had any, for the person and not for the pipe."""
    for queue in audits:
        if queue.letters or queue.dead_dropped:
            lost = f"; {losses_of(queue)}" if queue.dead_dropped else ""
            print(f"{shown(queue.stream)}: {room_of(queue, limits)}{lost}", file=sys.stderr)


def in_bytes(size: int) -> str:
    """Exactly, as a person reads it."""
    return f"{size:,} B"


def _facts(letter: DeadLetter) -> list[tuple[str, str]]:
    facts = {
        "entry": letter.letter,
        "queue": letter.stream,
        "reason": letter.reason,
        "error": letter.error,
        "deliveries": letter.deliveries,
        "worker": letter.worker,
        "died at": "" if letter.died_at is None else _local(letter.died_at),
        "frame's entry": letter.entry_id,
    }
    return [(name, value) for name, value in facts.items() if value]


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a line per letter, for grep and awk
    return console


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    size = letter.sizes.get("image", letter.sizes.get("pixels"))
    return (
        letter.letter,
        letter.texts.get("source") or "queue",
        letter.reason,
        letter.error,
        letter.deliveries,
        "" if letter.died_at is None else _local(letter.died_at),
        "" if size is None else in_bytes(size),
    )


def _local(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
