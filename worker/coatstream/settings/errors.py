"""The one error that the settings raise. Its lines are for a person and hold no credentials."""

from collections.abc import Iterable

_MOST_LINES = 50


class SettingsError(Exception):
    """Wrong settings: one line for each mistake of one load. `str()` joins the lines."""

    lines: tuple[str, ...]

    def __init__(self, lines: Iterable[str]) -> None:
        every = [_one_line(line) for line in lines]
        more = len(every) - _MOST_LINES
        self.lines = (*every[:_MOST_LINES], f"and {more} more") if more > 0 else tuple(every)
        super().__init__("\n".join(self.lines))


def _one_line(text: str) -> str:
    """`text` with line ends, terminal controls and lone surrogates escaped: it may quote a stranger's input."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
