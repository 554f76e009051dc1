"""Dead letters on a terminal, or as JSON: a table of many, everything about one. Asks no server.

What strangers wrote goes through `shown`: a letter is hostile by nature.
"""

import sys
from collections.abc import Iterable, Sequence

from rich.text import Text

from coatstream.commands.audit_view import losses_of, room_of
from coatstream.commands.terminal import date_and_time, print_rows, shown, table, wide_console
from coatstream.queue.audit import Audit
from coatstream.queue.dead.letters import DeadLetter
from coatstream.queue.entry import DEFAULT_SOURCE
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


def print_letters(letters: Iterable[DeadLetter], *, with_queue: bool) -> None:
    """A line per letter without a terminal, else a table that fits it."""
    made = table(*(("queue",) * with_queue), *COLUMNS, right=("deliveries", "image"))
    made.columns[int(with_queue)].no_wrap = True  # an entry is what the other commands take
    rows = (((letter.stream,) * with_queue) + _cells(letter) for letter in letters)
    print_rows(made, rows, empty="no dead letters")


def print_letter(letter: DeadLetter) -> None:
    """Everything about one letter; of its picture, the size."""
    made = table("", "", header=False)
    made.columns[0].max_width = 32
    for name, value in _facts(letter):
        made.add_row(Text(name), Text(shown(value)))
    own = [*letter.texts.items(), *((name, f"({in_bytes(size)})") for name, size in letter.sizes.items())]
    for name, value in own[:FIELDS_SHOWN]:
        made.add_row(Text(f"field {shown(name)}"), Text(shown(value)))
    if len(own) > FIELDS_SHOWN:
        made.add_row("", f"and {len(own) - FIELDS_SHOWN:,} more fields (--json has them all)")
    wide_console().print(made)


def print_sums(audits: Sequence[Audit], limits: QueueSettings) -> None:
    """A line per queue that has or had any, for the person and not for the pipe."""
    for queue in audits:
        if queue.letters or queue.dead_dropped:
            lost = f"; {losses_of(queue)}" if queue.dead_dropped else ""
            print(f"{shown(queue.stream)}: {room_of(queue, limits)}{lost}", file=sys.stderr)


def source_of(letter: DeadLetter) -> str:
    """Who saw the frame, as its label would have named it."""
    return letter.texts.get("source") or DEFAULT_SOURCE


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
        "died at": "" if letter.died_at is None else date_and_time(letter.died_at),
        "frame's entry": letter.entry_id,
    }
    return [(name, value) for name, value in facts.items() if value]


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    size = letter.sizes.get("image", letter.sizes.get("pixels"))
    return (
        letter.letter,
        source_of(letter),
        letter.reason,
        letter.error,
        letter.deliveries,
        "" if letter.died_at is None else date_and_time(letter.died_at),
        "" if size is None else in_bytes(size),
    )
