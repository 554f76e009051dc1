"""What a fault test found: figures for the table, and each promise that was not kept. Raises nothing."""

from dataclasses import dataclass, field

SECONDS = " s"  # the unit of what a slow machine makes longer
SLACK = 5.0  # for quick runs: other tests, or another program, may have taken both cores


@dataclass(slots=True)
class Findings:
    """Filled in by one run of one test. `slack`: how many times its bound a duration may take."""

    slack: float = 1.0
    stats: dict[str, str] = field(default_factory=dict)
    measured: set[str] = field(default_factory=set)  # figures that could have come out otherwise and still be right
    failures: list[str] = field(default_factory=list)

    def note(self, name: str, value: object) -> None:
        """A figure that promises nothing."""
        self.stats[name] = _text(value)
        self.measured.add(name)

    def exactly(self, name: str, found: object, wanted: object) -> None:
        self._keep(name, found, holds=found == wanted, promise=f"must be {_text(wanted)}")

    def at_most(self, name: str, found: float, limit: float, unit: str = "") -> None:
        limit *= self.slack if unit == SECONDS else 1
        self.measured.add(name)
        self._keep(name, found, holds=found <= limit, promise=f"must be at most {_text(limit)}{unit}", unit=unit)

    def at_least(self, name: str, found: float, limit: float, unit: str = "") -> None:
        self.measured.add(name)
        self._keep(name, found, holds=found >= limit, promise=f"must be at least {_text(limit)}{unit}", unit=unit)

    def broken(self, what: str) -> None:
        """A promise that has no figure."""
        self.failures.append(what)

    def _keep(self, name: str, found: object, *, holds: bool, promise: str, unit: str = "") -> None:
        self.stats[name] = f"{_text(found)}{unit}"
        if not holds:
            self.failures.append(f"{name} is {_text(found)}{unit} and {promise}")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
