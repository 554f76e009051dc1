"""What a run measured: each figure with the bar beside it, whether it was held or not. Raises nothing."""

from dataclasses import dataclass, field

from tests.faults.findings import SECONDS


@dataclass(frozen=True, slots=True)
class Figure:
    """`bar` is empty where nothing is promised; then `ok` means nothing."""

    name: str
    value: str
    bar: str = ""
    ok: bool = True

    def __str__(self) -> str:
        return f"{self.name} {self.value}" + (f" (bar: {self.bar})" if self.bar else "")


@dataclass(slots=True)
class Bars:
    """Filled in by one run of one case. `slack`: how many times its bar a duration may take."""

    slack: float = 1.0
    stats: list[Figure] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        return [str(figure) for figure in self.stats if not figure.ok]

    def note(self, name: str, value: object, unit: str = "") -> None:
        """A figure that promises nothing."""
        self.stats.append(Figure(name, _text(value) + unit))

    def exactly(self, name: str, found: object, wanted: object) -> None:
        self.stats.append(Figure(name, _text(found), _text(wanted), found == wanted))

    def at_most(self, name: str, found: float | None, limit: float, unit: str = "") -> None:
        """None: it never came."""
        limit *= self.slack if unit == SECONDS else 1
        ok = found is not None and found <= limit
        self.stats.append(Figure(name, _amount(found, unit), f"at most {_text(limit)}{unit}", ok))

    def at_least(self, name: str, found: float | None, limit: float, unit: str = "") -> None:
        ok = found is not None and found >= limit
        self.stats.append(Figure(name, _amount(found, unit), f"at least {_text(limit)}{unit}", ok))

    def broken(self, what: str) -> None:
        """It did not come to the end."""
        self.stats.append(Figure("broken off", what, "comes to its end", ok=False))


def _amount(found: float | None, unit: str) -> str:
    return "never" if found is None else _text(found) + unit


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
