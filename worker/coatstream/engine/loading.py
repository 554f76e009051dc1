"""Loads the engine that the settings ask for. Imports only what is chosen."""

from coatstream.engine.protocol import Engine
from coatstream.settings.model import BatchSettings, ModelSettings


def load_engine(model: ModelSettings, batch: BatchSettings) -> Engine:
    """The engine that the settings ask for, loaded, not yet warm. Raises EngineError."""
    if model.engine == "noop":
        from coatstream.engine.backends.noop import NoopEngine

        return NoopEngine.from_settings(model, batch)
    if model.engine == "eager" and model.precision in ("auto", "fp32"):  # the reference itself: nothing to choose
        from coatstream.engine.backends.pytorch import load_eager_engine
        from coatstream.engine.model.classifier import load_classifier

        return load_eager_engine(load_classifier(model), model, batch)
    from coatstream.engine.selection.selection import select

    return select(model, batch)


def exact(model: ModelSettings) -> ModelSettings:
    """The reference itself, unless another engine or precision is asked for: a few pictures are not worth a choice."""
    plain = {"engine": "eager", "precision": "fp32"}
    asked = {name: value for name in plain if (value := getattr(model, name)) != "auto"}
    return model if model.engine != "auto" else model.model_copy(update=plain | asked)
