"""What a fault test is to the table and to pytest: a name, what must hold, how to play it, and two sizes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from redis.exceptions import RedisError

from tests.faults.controls import Protocol
from tests.faults.findings import SLACK, Findings
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
    command  what plays it again
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
    quick_limit: float = 150.0  # seconds
    full_limit: float = 300.0
    command: str = "python -m tests.faults"


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one run."""

    case: Case
    size: str
    kind: str
    seed: int
    seconds: float
    stats: Mapping[str, str]
    measured: frozenset[str]
    failures: tuple[str, ...]
    protocol: Protocol | None = field(default=None)

    @property
    def ok(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        stats = ", ".join(f"{name} {value}" for name, value in self.stats.items())
        verdict = "; ".join(self.failures) or "ok"
        if self.protocol:
            return f"{self.case.name} with the control {self.protocol}, seed {self.seed}: {verdict} ({stats})"
        again = f"{self.case.command} {self.case.name} --server {self.kind} --seed {self.seed} --size {self.size}"
        return f"{self.case.name} {self.case.title}, {self.kind}, seed {self.seed}: {verdict} ({stats}); again: {again}"


def run_quick(case: Case, kind: str, seed: int) -> Row:
    """Once, at the size of the test suite."""
    assert case.quick is not None
    return run_case(case, kind, seed, case.quick, limit=case.quick_limit, size="quick")


def run_full(case: Case, kind: str, seed: int) -> Row:
    """Once, at full size."""
    return run_case(case, kind, seed, case.full, limit=case.full_limit, size="full")


def run_case(
    case: Case,
    kind: str,
    seed: int,
    sizes: Mapping[str, Any],
    *,
    limit: float,
    size: str = "full",
    protocol: Protocol | None = None,
) -> Row:
    """Play a case once. What the product does wrong is in the row; only a broken harness raises."""
    findings = Findings(SLACK if size == "quick" else 1.0)
    began = time.monotonic()
    try:
        with on_stage(kind, seed, findings, limit=limit, protocol=protocol) as stage:
            case.play(stage, **sizes)
    except (
        AssertionError,
        RedisError,
        OSError,
        httpx.HTTPError,
    ) as trouble:  # a worker that is no more, a wait that was too long
        findings.broken(" ".join(str(trouble).split())[:2000] or type(trouble).__name__)
    seconds = time.monotonic() - began
    return Row(
        case,
        size,
        kind,
        seed,
        seconds,
        findings.stats,
        frozenset(findings.measured),
        tuple(findings.failures),
        protocol,
    )
