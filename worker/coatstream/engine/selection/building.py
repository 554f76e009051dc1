"""Building: makes the engine of a plan and checks it against eager float32. What several engines need is made once."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from coatstream.engine import self_check
from coatstream.engine.backends import openvino
from coatstream.engine.backends.pytorch import DTYPES, TorchEngine, device_of, load_eager_engine
from coatstream.engine.cache import Cache
from coatstream.engine.protocol import Engine
from coatstream.errors import EngineError, first_line
from coatstream.settings.model import BatchSettings, ModelSettings

if TYPE_CHECKING:  # they import timm, and a start from the cache does without
    from torch import nn

    from coatstream.engine.model.classifier import TimmClassifier


class Plan(BaseModel):
    """One way to run the model; 0 streams or threads: the engine's own choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    precision: str
    streams: int
    threads: int

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


class Disagrees(EngineError):
    """An engine that gives other results than the reference."""


class Builder:
    """Builds and checks engines for one model. What it makes for one engine it keeps for the next."""

    def __init__(self, model: ModelSettings, batch: BatchSettings, cache: Cache) -> None:
        self.model = model
        self.batch = batch
        self.device = device_of(model.device)
        self._cache = cache
        self._source: tuple[Any, openvino.Facts, self_check.ReferenceScores] | None = None  # of OpenVINO's engines

    def load(self) -> "TimmClassifier":
        """The model itself. Raises EngineError."""
        return self._classifier

    def checked(self, plan: Plan) -> Engine:
        """Raises EngineError where it cannot be had here, Disagrees where it disagrees with the reference."""
        engine = self.built(plan)
        if (plan.engine, plan.precision) == ("eager", "fp32"):  # the reference itself
            return engine
        wanted = engine.reference if isinstance(engine, openvino.OpenVinoEngine) else self._reference
        try:
            off = self_check.disagreement(engine, self_check.check_pictures(engine.spec), wanted)
        except (RuntimeError, MemoryError) as error:  # a kernel that is missing in this precision, no room on a device
            raise EngineError(f"{plan} cannot run {self.model.name} on {self.device}: {first_line(error)}") from None
        if why := off.beyond(self_check.allowed(plan.precision, self.model.tolerance)):
            raise Disagrees(f"{plan} disagrees with eager fp32 on the check pictures: {why} (model.tolerance)")
        return engine

    def built(self, plan: Plan) -> Engine:
        """The engine, not compared with the reference. Raises EngineError."""
        model = self.model.model_copy(update=plan.model_dump())
        match plan.engine:
            case "openvino":
                return self._openvino(model)
            case "fused":
                return self._fused(model, plan.precision)
            case "compile":
                from coatstream.engine.backends.compiled import load_compiled_engine

                return load_compiled_engine(self._classifier, model, self.batch, precision=plan.precision)

        return load_eager_engine(self._classifier, model, self.batch, precision=plan.precision)

    @cached_property
    def _classifier(self) -> "TimmClassifier":
        from coatstream.engine.model.classifier import load_classifier

        return load_classifier(self.model)

    @cached_property
    def _reference(self) -> self_check.ReferenceScores:
        return self_check.reference(self._classifier, self_check.check_pictures(self._classifier.spec))

    def _fused(self, model: ModelSettings, precision: str) -> Engine:
        from coatstream.engine.model.coat import fused_network

        packed, dtype = self.device.type == "cpu", DTYPES[precision]
        network = fused_network(self._classifier, dtype=dtype, packed=packed, embeddings=model.embeddings)
        return TorchEngine(
            self._classifier, network, engine="fused", precision=precision, model=model, batch=self.batch
        )

    def _openvino(self, model: ModelSettings) -> Engine:
        """Read or converted once, whatever the precision and the layout."""
        if self._source is not None:
            return openvino.OpenVinoEngine(*self._source, model=model, batch=self.batch)
        engine = openvino.load_cached(model, self.batch, self._cache) or self._converted(model)
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
            self._classifier, network, self._reference, model=model, batch=self.batch, cache=self._cache
        )
