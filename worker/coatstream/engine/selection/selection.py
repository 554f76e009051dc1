"""Which engine runs: the fastest of the candidates, remembered, so that only the first start measures.

An engine that cannot be had, or that disagrees with eager float32, gives way to the next with one line in the log.
"""

import os
import shutil
from collections.abc import Mapping
from typing import Final

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from coatstream.engine import capabilities
from coatstream.engine.backends import openvino
from coatstream.engine.backends.pytorch import device_of
from coatstream.engine.cache import Cache, Key
from coatstream.engine.cores import usable_cores
from coatstream.engine.model.fingerprint import code_digest, origin
from coatstream.engine.protocol import Engine
from coatstream.engine.selection.building import Builder, Plan
from coatstream.engine.selection.candidates import Candidates, LeftOut, wanted
from coatstream.engine.selection.chooser import ChooserDied, choose_elsewhere
from coatstream.errors import EngineError, first_line
from coatstream.settings.model import BatchSettings, ModelSettings

_CHOICE: Final = "choice"  # of documents in the cache
_KEYS: Final = {"name", "engine", "precision", "tolerance", "embeddings"}  # of the settings
_LAYOUT: Final = {"streams", "threads"}


class Choice(BaseModel):
    """What was chosen, and why. `compared`: see Candidates; first engines, then the winner's layouts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    left_out: tuple[LeftOut, ...]
    compared: tuple[dict[str, float], ...]


def select(model: ModelSettings, batch: BatchSettings) -> Engine:
    """The engine that the settings ask for, checked. Raises EngineError where none runs this model."""
    selection = Selection(model, batch)
    return selection.remembered() or selection.chosen_elsewhere() or selection.chosen_here()


def choose(model: ModelSettings, batch: BatchSettings) -> None:
    """Leave in the cache what `select` would take, and log nothing. Raises EngineError."""
    Selection(model, batch).choose()


def choice_key(model: ModelSettings, made_of: Mapping[str, str] | None) -> Key | None:
    """All that a choice depends on; None where the weights are not known without loading them."""
    if made_of is None:
        return None
    device = str(device_of(model.device))
    return {
        **model.model_dump(include=_KEYS),
        **made_of,
        **_measured_on(model, device),
        "code": code_digest(),
        "versions": openvino.versions(),
        "device": device,
        "compiler": _compiler() if model.engine == "compile" else None,
    }


def _measured_on(model: ModelSettings, device: str) -> Key:
    """What the speed of an engine depends on.

    Where the settings name the engine and how cores are shared out, nothing is measured. Such a choice holds on every
    processor with the same kinds of arithmetic, so an image can bring it along.
    """
    if model.engine == "auto" or not (model.streams and model.threads):
        layout = model.model_dump(include=_LAYOUT)
        return {**layout, "processor": capabilities.processor(device), "cores": usable_cores()}
    return {"precisions": list(capabilities.precisions(device)) if model.precision == "auto" else []}


class Selection:
    """The engine of one model: from the last start, or chosen in another process, or chosen here."""

    def __init__(self, model: ModelSettings, batch: BatchSettings) -> None:
        self._model = model
        self._batch = batch
        self._cache = Cache(model.cache, baked=model.baked_cache)
        self._builder = Builder(model, batch, self._cache)
        self._risky = False  # the process that tried what this one is about to try died of it
        self._log = structlog.get_logger("engine")

    def remembered(self, *, new: bool = False) -> Engine | None:
        """The engine of the last start with these settings on this machine, checked again; None: there is none.

        `new`: another process has just chosen it, and the reasons are not in the log yet.
        """
        key = choice_key(self._model, origin(self._model))
        kept = self._cache.read_json(_CHOICE, key) if key is not None else None
        if kept is None:
            return None
        try:
            choice = Choice.model_validate(kept)
            self._explain(choice, new=new)
            named = {key: count for key in _LAYOUT if (count := getattr(self._model, key))}
            return self._builder.checked(choice.plan.model_copy(update=named))
        except (EngineError, ValidationError) as error:
            self._log.warning("the engine of the last start is not used", why=first_line(error))
            return None

    def chosen_elsewhere(self) -> Engine | None:
        """The engine that another process has chosen; None where it is to be chosen here.

        A process of its own pays where the choice may be OpenVINO, which can do without the model that it was made
        from. Raises EngineError where timm has no such model.
        """
        may_convert = "openvino" in wanted(self._model.engine, on_cpu=self._builder.device.type == "cpu")
        if origin(self._model) is None or not may_convert or not self._cache.usable():
            return None
        from coatstream.engine.model.weights import check_name  # it imports timm, as a start from the cache does not

        check_name(self._model.name)  # a misspelt name is refused before anything is measured
        self._log.info(
            "the first start with these settings: engines are measured, half a minute or so",
            kept_in=str(self._model.cache),
        )
        try:
            return self.remembered(new=True) if choose_elsewhere(self._model, self._batch) else None
        except ChooserDied as trouble:
            self._log.warning("engines that need a conversion are not tried", why=str(trouble))
            self._risky = True
            return None

    def chosen_here(self) -> Engine:
        """The fastest of those that run, remembered for the next start. Raises EngineError."""
        choice, engine = self.choose()
        self._explain(choice, new=True)
        return engine

    def choose(self) -> tuple[Choice, Engine]:
        """Choose and remember, and log nothing. Raises EngineError."""
        candidates = Candidates(self._builder, risky=self._risky)
        plan, engine = candidates.best()
        choice = Choice(plan=plan, left_out=tuple(candidates.left_out), compared=tuple(candidates.compared))
        key = choice_key(self._model, self._builder.load().origin)
        if key is not None and not self._risky:  # the next start may fare better
            self._cache.write_json(_CHOICE, key, choice.model_dump(mode="json"))
        return choice, engine

    def _explain(self, choice: Choice, *, new: bool) -> None:
        """Log all of it once; at each later start only that what the settings name is not what runs."""
        model, plan = self._model, choice.plan
        missed = model.engine not in ("auto", plan.engine) or model.precision not in ("auto", plan.precision)
        for one in choice.left_out:
            if missed and (one.engine == model.engine or one.precision == model.precision):
                self._log.warning("an engine is left out", engine=str(one), why=one.why)
            elif new:
                # That a model does not bear bf16 is no fault; in float32 it is one.
                log = self._log.warning if one.disagrees and one.precision == "fp32" else self._log.info
                log("an engine is left out", engine=str(one), why=one.why)
        for rates in choice.compared if new else ():
            self._log.info("engines compared", frames_per_s=rates)


def _compiler() -> str | None:
    """Whether torch.compile finds one may change from one start to the next."""
    return shutil.which(os.environ.get("CXX") or "g++")
