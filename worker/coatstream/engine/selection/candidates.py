"""Candidates: which engines are tried for a model on this machine, each in the first precision that agrees, and which
of them is the fastest.
"""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from pydantic import BaseModel, ConfigDict

from coatstream.engine import capabilities, timing
from coatstream.engine.cores import usable_cores
from coatstream.engine.protocol import Engine, NotHere
from coatstream.engine.selection.building import Builder, Disagrees, Plan
from coatstream.errors import EngineError

# What `auto` tries. Compiling takes minutes a start, so it runs only where the settings name it.
_ON_CPU: Final = ("openvino", "fused", "eager")
_ON_GPU: Final = ("fused", "eager")
# Times as fast as the first choice, in all turns but one. Six workers that start at once on a few cores disturb each
# other's turns: by the best turn alone, one or two in six chose an engine that was a quarter slower.
_CLEARLY: Final = 1.1

Candidate = tuple[Plan, Engine]


class LeftOut(BaseModel):
    """An engine that was wanted and does not run; without a precision: in none. `disagrees`: it gave other results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    precision: str | None
    why: str
    disagrees: bool = False

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}" if self.precision else self.engine


class Candidates:
    """Tries engines and compares them.

    left_out  the engines that were tried and do not run
    compared  of each comparison: frames/s by engine and streams
    risky     another process died while it tried the same engines: OpenVINO is left out, which converts the model
    """

    def __init__(self, builder: Builder, *, risky: bool) -> None:
        self.left_out: list[LeftOut] = []
        self.compared: list[dict[str, float]] = []
        self._builder = builder
        self._model = builder.model
        self._on_cpu = builder.device.type == "cpu"
        self._risky = risky

    def best(self) -> Candidate:
        """The fastest engine that runs, with the cores shared out as it likes best. Raises EngineError."""
        self._builder.load()  # an error of the model itself is no fault of a candidate
        asked = wanted(self._model.engine, on_cpu=self._on_cpu)
        fallbacks = [name for name in _known(self._on_cpu) if name not in asked]
        found = self._working(asked) or self._working(fallbacks, most=1)
        if not found:
            raise EngineError(f"no engine runs {self._model.name} on {self._builder.device}: {self.left_out[-1].why}")
        plan, engine = self._fastest(found)
        return self._fastest([(plan, engine), *self._other_layouts(plan, engine)])

    def _working(self, names: Iterable[str], *, most: int = len(_ON_CPU)) -> list[Candidate]:
        """Up to `most` of these engines, each in the first precision in which it agrees with the reference."""
        found: list[Candidate] = []
        for name in names:
            if name == "openvino" and self._risky:
                continue
            if len(found) < most and (candidate := self._first_that_agrees(name)) is not None:
                found.append(candidate)
        return found

    def _first_that_agrees(self, name: str) -> Candidate | None:
        for precision in self._precisions():
            plan = Plan(engine=name, precision=precision, streams=self._model.streams, threads=self._model.threads)
            try:
                return plan, self._builder.checked(plan)
            except NotHere as error:
                self.left_out.append(LeftOut(engine=name, precision=None, why=str(error)))
                return None
            except EngineError as error:
                disagrees = isinstance(error, Disagrees)
                self.left_out.append(LeftOut(engine=name, precision=precision, why=str(error), disagrees=disagrees))
        return None

    def _precisions(self) -> tuple[str, ...]:
        """float32 is the last resort, whatever the settings ask for."""
        asked = self._model.precision
        if asked == "auto":
            return capabilities.precisions(str(self._builder.device))
        return tuple(dict.fromkeys((asked, "fp32")))

    def _other_layouts(self, plan: Plan, engine: Engine) -> list[Candidate]:
        """The same engine with the cores shared out in other ways, where the settings leave that open."""
        if not self._on_cpu or self._model.streams or self._model.threads or plan.engine == "compile":
            return []  # each layout would compile all over again
        cores = usable_cores()
        counts = [streams for streams in (1, 2, 4, 8) if streams <= cores and streams != engine.streams]
        plans = [plan.model_copy(update={"streams": count, "threads": cores // count}) for count in counts]
        return [(other, self._builder.built(other)) for other in plans]

    def _fastest(self, candidates: list[Candidate]) -> Candidate:
        """By a short measurement; the first one where no other is clearly faster."""
        if len(candidates) == 1:
            return candidates[0]
        for _, engine in candidates:
            engine.warm_up()
        largest = 1 if self._on_cpu else self._builder.batch.max_size  # a core is as fast with one as with many
        turns = timing.compare([engine for _, engine in candidates], largest=largest)
        rates = [median(each) for each in turns]
        names = [f"{plan}, {engine.streams} at once" for plan, engine in candidates]
        self.compared.append({name: round(rate, 1) for name, rate in zip(names, rates, strict=True)})
        best = max(range(len(rates)), key=rates.__getitem__)
        return candidates[best if clearly_faster(turns[best], turns[0]) else 0]


def clearly_faster(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` had more frames/s than `other`, by more than a neighbour's doing, in all their turns but one."""
    return sum(mine > _CLEARLY * its for mine, its in zip(one, other, strict=True)) >= len(one) - 1


def wanted(engine: str, *, on_cpu: bool) -> list[str]:
    """The engines that `model.engine` asks for, in the order in which they are tried."""
    return [engine] if engine != "auto" else [name for name in _known(on_cpu) if name != "eager"]


def _known(on_cpu: bool) -> tuple[str, ...]:
    return _ON_CPU if on_cpu else _ON_GPU
