"""Which engine runs: candidates for this model and machine, each checked against eager float32, the fastest measured.

The choice is remembered, so that only the first start measures. An engine that cannot be had, or that disagrees, gives
way to the next with one line in the log.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from coatstream.engine import capabilities, self_check, timing
from coatstream.engine.backends import openvino
from coatstream.engine.backends.pytorch import DTYPES, TorchEngine, device_of, load_eager_engine
from coatstream.engine.cache import Cache, Key
from coatstream.engine.cores import usable_cores
from coatstream.engine.model.fingerprint import code_digest, origin
from coatstream.engine.protocol import Engine, NotHere
from coatstream.engine.selection.chooser import ChooserDied, choose_elsewhere
from coatstream.errors import EngineError, first_line
from coatstream.settings.model import BatchSettings, ModelSettings

if TYPE_CHECKING:
    from torch import nn

    from coatstream.engine.model.classifier import (
        TimmClassifier,  # it imports timm, and a start from the cache does without
    )

# What `auto` looks at. Compiling takes minutes a start, so it runs only where it is asked for.
_ON_CPU: Final = ("openvino", "fused", "eager")
_ON_GPU: Final = ("fused", "eager")
_CHOICE: Final = "choice"  # of documents in the cache
_CLEARLY: Final = 1.1  # times as fast as the first choice: below that it may be a neighbour who took turns


class Plan(BaseModel):
    """One way to run the model; 0 streams or threads: the engine's own choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    precision: str
    streams: int
    threads: int

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


class LeftOut(BaseModel):
    """An engine that was wanted; without a precision: in none. `disagrees`: it runs, and gives other results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    precision: str | None
    why: str
    disagrees: bool = False

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}" if self.precision else self.engine


class Choice(BaseModel):
    """What was chosen, and why.

    compared  of each comparison: frames/s by engine and streams. First engines, then the winner's layouts
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    left_out: tuple[LeftOut, ...]
    compared: tuple[dict[str, float], ...]


Candidate = tuple[Plan, Engine]


def select(model: ModelSettings, batch: BatchSettings) -> Engine:
    """The engine that the settings ask for, checked. Raises EngineError where none runs this model."""
    workshop = _Workshop(model, batch)
    engine = workshop.remembered()
    if engine is None and workshop.chosen_elsewhere():
        engine = workshop.remembered(new=True)
    return engine or workshop.chosen()


def choose(model: ModelSettings, batch: BatchSettings) -> None:
    """Leave in the cache what `select` would take, and say nothing. Raises EngineError."""
    _Workshop(model, batch).choose()


class _Workshop:
    """Builds and checks engines for one model; what several of them need is made once, and only if one does."""

    def __init__(self, model: ModelSettings, batch: BatchSettings) -> None:
        self._model = model
        self._batch = batch
        self._cache = Cache(model.cache)
        self._device = device_of(model.device)
        self._left_out: list[LeftOut] = []
        self._compared: list[dict[str, float]] = []
        self._source: tuple[Any, openvino.Facts, self_check.Reference] | None = None  # of OpenVINO's engines
        self._risky = False  # the process that tried what this one is about to try died of it
        self._log = structlog.get_logger("engine")

    def remembered(self, *, new: bool = False) -> Engine | None:
        """The engine of the last start with these settings on this machine, checked again; None: there is none.

        `new`: it has just been chosen, and nobody has been told why.
        """
        key = self._key(origin(self._model))
        kept = self._cache.read_json(_CHOICE, key) if key is not None else None
        if kept is None:
            return None
        try:
            choice = Choice.model_validate(kept)
            self._tell(choice, new=new)
            return self._checked(choice.plan)
        except (EngineError, ValidationError) as error:
            self._log.warning("the engine of the last start is not used", why=first_line(error))
            return None

    def chosen_elsewhere(self) -> bool:
        """Whether another process has chosen. It does where that pays: where the choice may be OpenVINO, which can do
        without the model that it was made from.
        """
        if origin(self._model) is None or "openvino" not in self._wanted() or not self._cache.usable():
            return False
        self._log.info(
            "the first start with these settings: engines are measured, half a minute or so",
            kept_in=str(self._model.cache),
        )
        try:
            return choose_elsewhere(self._model, self._batch)
        except ChooserDied as trouble:
            self._log.warning("engines that need a conversion are not tried", why=str(trouble))
            self._risky = True
            return False

    def chosen(self) -> Engine:
        """The fastest of those that run. Remembered, for the next start."""
        choice, engine = self.choose()
        self._tell(choice, new=True)
        return engine

    def choose(self) -> tuple[Choice, Engine]:
        """Choose and remember, and say nothing."""
        _ = self._classifier  # what it raises is no fault of a candidate
        found = self._working(self._wanted()) or self._working(self._fallbacks(), most=1)
        if not found:
            raise EngineError(f"no engine runs {self._model.name} on {self._device}: {self._left_out[-1].why}")
        plan, engine = self._fastest(found)
        plan, engine = self._fastest([(plan, engine), *self._other_layouts(plan, engine)])
        choice = Choice(plan=plan, left_out=tuple(self._left_out), compared=tuple(self._compared))
        if (key := self._key(self._classifier.origin)) is not None and not self._risky:  # it may be well next time
            self._cache.write_json(_CHOICE, key, choice.model_dump(mode="json"))
        return choice, engine

    def _tell(self, choice: Choice, *, new: bool) -> None:
        """All of it once; at each later start what was asked for in so many words, and is not what runs."""
        model, plan = self._model, choice.plan
        missed = model.engine not in ("auto", plan.engine) or model.precision not in ("auto", plan.precision)
        for one in choice.left_out:
            if missed and (one.engine == model.engine or one.precision == model.precision):
                self._log.warning("an engine is left out", engine=str(one), why=one.why)
            elif new:
                # That a model does not bear bf16 is no fault; in float32 it is one.
                say = self._log.warning if one.disagrees and one.precision == "fp32" else self._log.info
                say("an engine is left out", engine=str(one), why=one.why)
        for rates in choice.compared if new else ():
            self._log.info("engines compared", frames_per_s=rates)

    def _key(self, made_of: Mapping[str, str] | None) -> Key | None:
        """All that the choice depends on; None where the weights are not known without loading them."""
        if made_of is None:
            return None
        asked = self._model.model_dump(
            include={"name", "engine", "precision", "tolerance", "threads", "streams", "embeddings"}
        )
        return {
            **asked,
            **made_of,
            "code": code_digest(),
            "versions": openvino.versions(),
            "device": str(self._device),
            "processor": capabilities.processor(str(self._device)),
            "cores": usable_cores(),
            "compiler": _compiler() if self._model.engine == "compile" else None,
        }

    # ---- candidates

    def _wanted(self) -> list[str]:
        if self._model.engine != "auto":
            return [] if self._risky else [self._model.engine]
        return [name for name in self._all() if name != "eager"]

    def _fallbacks(self) -> list[str]:
        return [name for name in self._all() if name not in self._wanted()]

    def _all(self) -> tuple[str, ...]:
        known = _ON_CPU if self._device.type == "cpu" else _ON_GPU
        return tuple(name for name in known if not (self._risky and name == "openvino"))

    def _working(self, names: Iterable[str], *, most: int = len(_ON_CPU)) -> list[Candidate]:
        """Up to `most` of these engines, each in the first precision in which it agrees with the reference."""
        found: list[Candidate] = []
        for name in names:
            if len(found) < most and (candidate := self._first_that_agrees(name)) is not None:
                found.append(candidate)
        return found

    def _first_that_agrees(self, name: str) -> Candidate | None:
        for precision in self._precisions():
            plan = Plan(engine=name, precision=precision, streams=self._model.streams, threads=self._model.threads)
            try:
                return plan, self._checked(plan)
            except NotHere as error:
                self._left_out.append(LeftOut(engine=name, precision=None, why=str(error)))
                return None
            except EngineError as error:
                disagrees = isinstance(error, _DisagreesError)
                self._left_out.append(LeftOut(engine=name, precision=precision, why=str(error), disagrees=disagrees))
        return None

    def _precisions(self) -> tuple[str, ...]:
        """float32 is the last resort, whatever was asked for."""
        asked = self._model.precision
        return capabilities.precisions(str(self._device)) if asked == "auto" else tuple(dict.fromkeys((asked, "fp32")))

    def _other_layouts(self, plan: Plan, engine: Engine) -> list[Candidate]:
        """The same engine with the cores shared out in other ways, where the settings leave that open."""
        if self._device.type != "cpu" or self._model.streams or self._model.threads or plan.engine == "compile":
            return []  # each layout would compile all over again
        cores = usable_cores()
        layouts = [streams for streams in (1, 2, 4, 8) if streams <= cores and streams != engine.streams]
        plans = [plan.model_copy(update={"streams": count, "threads": cores // count}) for count in layouts]
        return [(other, self._built(other)) for other in plans]

    def _fastest(self, candidates: list[Candidate]) -> Candidate:
        """By a short measurement; the first one where no other is clearly faster."""
        if len(candidates) == 1:
            return candidates[0]
        for _, engine in candidates:
            engine.warm_up()
        largest = 1 if self._device.type == "cpu" else self._batch.max_size  # a core is as fast with one as with many
        rates = timing.compare([engine for _, engine in candidates], largest=largest)
        names = [f"{plan}, {engine.streams} at once" for plan, engine in candidates]
        self._compared.append({name: round(rate, 1) for name, rate in zip(names, rates, strict=True)})
        best = max(range(len(rates)), key=rates.__getitem__)
        return candidates[best if rates[best] > _CLEARLY * rates[0] else 0]

    # ---- building and checking

    @cached_property
    def _classifier(self) -> "TimmClassifier":
        from coatstream.engine.model.classifier import load_classifier

        return load_classifier(self._model)

    @cached_property
    def _reference(self) -> self_check.Reference:
        return self_check.reference(self._classifier, self_check.check_pictures(self._classifier.spec))

    def _checked(self, plan: Plan) -> Engine:
        """Raises EngineError where it cannot be had here, or disagrees with the reference: which never does."""
        engine = self._built(plan)
        if (plan.engine, plan.precision) == ("eager", "fp32"):
            return engine
        wanted = engine.reference if isinstance(engine, openvino.OpenVinoEngine) else self._reference
        try:
            off = self_check.disagreement(engine, self_check.check_pictures(engine.spec), wanted)
        except (RuntimeError, MemoryError) as error:  # a kernel that is missing in this precision, no room on a device
            raise EngineError(f"{plan} cannot run {self._model.name} on {self._device}: {first_line(error)}") from None
        if why := off.beyond(self_check.allowed(plan.precision, self._model.tolerance)):
            raise _DisagreesError(f"{plan} disagrees with eager fp32 on the check pictures: {why} (model.tolerance)")
        return engine

    def _built(self, plan: Plan) -> Engine:
        """Raises EngineError."""
        model = self._model.model_copy(update=plan.model_dump())
        match plan.engine:
            case "openvino":
                return self._openvino(model)
            case "fused":
                from coatstream.engine.model.coat import fused_network

                packed, dtype = self._device.type == "cpu", DTYPES[plan.precision]
                network = fused_network(self._classifier, dtype=dtype, packed=packed, embeddings=model.embeddings)
                return TorchEngine(
                    self._classifier, network, engine="fused", precision=plan.precision, model=model, batch=self._batch
                )
            case "compile":
                from coatstream.engine.backends.compiled import load_compiled_engine

                return load_compiled_engine(self._classifier, model, self._batch, precision=plan.precision)

        return load_eager_engine(self._classifier, model, self._batch, precision=plan.precision)

    def _openvino(self, model: ModelSettings) -> Engine:
        """Read or converted once, whatever the precision and the layout."""
        if self._source is not None:
            return openvino.OpenVinoEngine(*self._source, model=model, batch=self._batch)
        engine = openvino.load_cached(model, self._batch, self._cache) or self._converted(model)
        self._source = engine.source
        return engine

    def _converted(self, model: ModelSettings) -> openvino.OpenVinoEngine:
        """OpenVINO, from the fused graph where there is one. Weights are converted in fp32, and rounded by OpenVINO."""
        from coatstream.engine.model import coat
        from coatstream.engine.model.network import EagerNetwork

        network: nn.Module
        if coat.is_coat(self._classifier.module):
            network = coat.fused_network(
                self._classifier, dtype=DTYPES["fp32"], packed=False, embeddings=model.embeddings
            )
        else:
            network = EagerNetwork(self._classifier, embeddings=model.embeddings)
        return openvino.convert(
            self._classifier, network, self._reference, model=model, batch=self._batch, cache=self._cache
        )


class _DisagreesError(EngineError):
    """An engine that gives other results than the reference."""


def _compiler() -> str | None:
    """Whether torch.compile finds one may change from one start to the next."""
    return shutil.which(os.environ.get("CXX") or "g++")
