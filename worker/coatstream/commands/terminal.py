"""What commands print: text from strangers made harmless, tables, times, JSON lines, one line on stderr."""

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from coatstream.commands.encoding import json_escape

_SHOWN: Final = 5  # names of files
_WIDE: Final = 1000  # characters: without a terminal a row is one line, for grep and awk


def shown(text: str) -> str:
    """`text` with an escape for each character that is not plain to see: control characters (they steer a terminal),
    line breaks, and the marks that reverse the direction of writing; and for each that stdout's encoding lacks, so that
    a table knows how wide its cells are.
    """
    if not text.isprintable():
        text = "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
        )
    return text if text.isascii() or _has_all(text) else "".join(map(_written, text))


def shown_json(text: str) -> str:
    """The same JSON on one line, with such characters as JSON escapes.

    Valid JSON has them only in strings and as white space between tokens.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else json_escape(character) for character in text)


def print_json(document: object) -> None:
    """One line of JSON, at once."""
    print(json.dumps(document), flush=True)


def complain(text: str) -> None:
    """One line on stderr."""
    print(f"coatstream: {text}", file=sys.stderr, flush=True)


def _has_all(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _written(character: str) -> str:
    return character if _has_all(character) else json_escape(character)


def a_console() -> Console:
    """The terminal, at its true width: rich takes 80 columns where TERM is dumb."""
    console = Console(highlight=False)
    if console.is_dumb_terminal:
        size = shutil.get_terminal_size()
        console.size = ConsoleDimensions(size.columns, size.lines)
    return console


def wide_console() -> Console:
    """The terminal; without one as wide as any row."""
    console = a_console()
    if not console.is_terminal:
        console.width = _WIDE
    return console


def table(*columns: str, right: Sequence[str] = (), header: bool = True) -> Table:
    """A table without lines; the columns named in `right` hold numbers."""
    made = Table(box=None, pad_edge=False, show_header=header)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def print_rows(made: Table, rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Fill the table and print it; `empty` is printed where there are no rows. The cells may be from strangers."""
    for row in rows:
        made.add_row(*(Text(shown(cell)) for cell in row))
    wide_console().print(made if made.row_count else empty)


def date_and_time(moment: float) -> str:
    """Local time of a Unix time: `2026-11-29 14:05:09`."""
    return f"{_local(moment):%Y-%m-%d %H:%M:%S}"


def time_of_day(moment: float) -> str:
    """Local time of a Unix time, to the millisecond: `14:05:09.123`."""
    return f"{_local(moment):%H:%M:%S.%f}"[:-3]


def _local(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC).astimezone()


def passed_over(names: Sequence[str]) -> str:
    """A line about files of folders that are neither pictures nor clips."""
    some = ", ".join(sorted(names)[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
    return f"passed over {len(names)} {'file' if len(names) == 1 else 'files'}, neither pictures nor clips: {some}"
