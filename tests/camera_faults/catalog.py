"""Every camera case with its two sizes: the quick one for the test suite, the full one for `python -m ...`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import httpx
from redis.exceptions import RedisError

from tests.camera_faults import rough, runtime, shares, tagging
from tests.camera_faults.bars import Bars, Figure
from tests.camera_faults.stage import on_stage
from tests.faults.findings import SLACK


@dataclass(frozen=True, slots=True)
class Case:
    """`play` gets a stage and one of the two sizes. Limits are seconds."""

    name: str
    title: str
    play: Callable[..., None]
    quick: Mapping[str, Any]
    full: Mapping[str, Any]
    quick_limit: float = 150.0
    full_limit: float = 180.0


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one run."""

    name: str
    title: str
    size: str
    kind: str
    seed: int
    seconds: float
    stats: tuple[Figure, ...]

    @property
    def failures(self) -> list[str]:
        return [str(figure) for figure in self.stats if not figure.ok]

    @property
    def ok(self) -> bool:
        return not self.failures

    def document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        head = f"{self.name} {self.title}, {self.size}, {self.kind}, seed {self.seed}, {self.seconds:.0f} s"
        lines = [f"  {'ok    ' if f.ok and f.bar else 'FAILED' if f.bar else '      '} {f}" for f in self.stats]
        return "\n".join([f"{head}: {'ok' if self.ok else 'FAILED'}", *lines])


CASES: Final = (
    Case(
        "C1",
        "cameras in one worker, a fault every few seconds",
        rough.rough,
        quick={
            "cameras": 4,
            "seconds": 12.0,
            "every": 1.4,
            "lengths": (0.5, 2.0),
            "warm_up": 1.0,
            "patience": 15.0,
        },
        full={
            "cameras": 12,
            "seconds": 300.0,
            "every": 3.0,
            "lengths": (0.5, 8.0),
            "warm_up": 20.0,
            "patience": 120.0,
        },
        full_limit=600.0,
    ),
    Case(
        "C3",
        "one of three workers is killed, one is stopped",
        shares.takeover,
        quick={"cameras": 6, "replicas": 3, "lease": 2.0},
        full={"cameras": 30, "replicas": 3, "lease": 3.0},
    ),
    Case(
        "C4",
        "workers join and leave: 1, 4, 2",
        shares.scaled,
        quick={"cameras": 8, "lease": 2.0, "most": 3, "least": 2},
        full={"cameras": 30, "lease": 3.0, "most": 4, "least": 2},
    ),
    Case(
        "C5",
        "one worker is cut off from the server for two leases",
        shares.cut_off,
        quick={"cameras": 4, "replicas": 2, "lease": 2.0, "troubles": ("link frozen", "process stopped")},
        full={"cameras": 12, "replicas": 3, "lease": 3.0, "troubles": ("link frozen", "link cut", "process stopped")},
        full_limit=300.0,
    ),
    Case(
        "C6",
        "tags over kills of the worker and restarts of the server",
        tagging.tagged,
        quick={"cameras": 2, "kills": 1, "restarts": 1},
        full={"cameras": 6, "kills": 8, "restarts": 6},
        full_limit=400.0,
    ),
    Case(
        "C7",
        "cameras added, paused, resumed and removed at run time",
        runtime.changed,
        quick={"replicas": 1, "rounds": 1},
        full={"replicas": 3, "rounds": 5},
    ),
)


def run_case(case: Case, size: str, kind: str, seed: int) -> Row:
    """Play it once. What the product does wrong is in the row; only a broken harness raises."""
    quick = size == "quick"
    bars, began = Bars(SLACK if quick else 1.0), time.monotonic()
    try:
        with on_stage(kind, seed, bars, limit=case.quick_limit if quick else case.full_limit) as stage:
            case.play(stage, **(case.quick if quick else case.full))
    except (AssertionError, RedisError, OSError, httpx.HTTPError) as trouble:
        bars.broken(" ".join(str(trouble).split())[:1500] or type(trouble).__name__)
    seconds = time.monotonic() - began
    return Row(case.name, case.title, size, kind, seed, seconds, tuple(bars.stats))


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
