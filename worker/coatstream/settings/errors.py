"""The one error that settings raise. It holds lines for a person; whoever raises it leaves credentials out."""

from collections.abc import Iterable

_MOST_LINES = 50


class SettingsError(Exception):
    """Wrong settings: everything that was found wrong in one load, a line each. `str()` joins the lines."""

    lines: tuple[str, ...]

    def __init__(self, lines: Iterable[str]) -> None:
        every = [_one_line(line) for line in lines]
        more = len(every) - _MOST_LINES
        self.lines = (*every[:_MOST_LINES], f"and {more} more") if more > 0 else tuple(every)
        super().__init__("\n".join(self.lines))


def _one_line(text: str) -> str:
    """`text` with line ends, terminal controls and lone surrogates escaped: it may quote what a stranger wrote."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
