"""What a fault test is to the table and to pytest: a name, what must hold, how to play it, and two sizes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from tests.faults.controls import Protocol
from tests.faults.findings import Findings
from tests.faults.servers import KINDS
from tests.faults.stage import on_stage

Play = Callable[..., None]  # (stage, **size)


@dataclass(frozen=True, slots=True)
class Case:
    """One fault test.

    passes   what must hold, in the table's words
    quick    its size inside the test suite; None: only at full size
    full     its size for `python -m tests.faults`
    kinds    servers that it can run on
    seeds    how often it runs at full size, each time with the next seed
    """

    name: str
    title: str
    passes: str
    play: Play
    quick: Mapping[str, Any] | None
    full: Mapping[str, Any]
    kinds: tuple[str, ...] = KINDS
    quick_kinds: tuple[str, ...] = KINDS[:1]
    seeds: int = 1
    quick_limit: float = 45.0  # seconds
    full_limit: float = 300.0


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one run."""

    case: Case
    kind: str
    seed: int
    seconds: float
    figures: Mapping[str, str]
    failures: tuple[str, ...]
    protocol: Protocol | None = field(default=None)

    @property
    def ok(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value}" for name, value in self.figures.items())
        verdict = "; ".join(self.failures) or "ok"
        again = f"python -m tests.faults {self.case.name} --server {self.kind} --seed {self.seed}"
        return (
            f"{self.case.name} {self.case.title}, {self.kind}, seed {self.seed}: {verdict} ({figures}); again: {again}"
        )


def run_case(
    case: Case, kind: str, seed: int, size: Mapping[str, Any], *, limit: float, protocol: Protocol | None = None
) -> Row:
    """Play a case once. What the product does wrong is in the row; only a broken harness raises."""
    findings = Findings()
    began = time.monotonic()
    try:
        with on_stage(kind, seed, findings, limit=limit, protocol=protocol) as stage:
            case.play(stage, **size)
    except (AssertionError, RedisError, OSError) as trouble:  # a worker that is no more, a wait that was too long
        findings.broken(" ".join(str(trouble).split())[:2000] or type(trouble).__name__)
    seconds = time.monotonic() - began
    return Row(case, kind, seed, seconds, findings.figures, tuple(findings.failures), protocol)
