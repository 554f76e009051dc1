"""A classifier and all that is known of it: the timm module, how it wants its pictures, its labels, its features.

Loaded once, in float32 on the CPU; which way it is run is the engines' business. Where weights come from is `weights`'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from coatstream.engine.model.fingerprint import origin
from coatstream.engine.model.labels import imagenet_labels, labels_from_file
from coatstream.engine.model.weights import load_model
from coatstream.errors import EngineError, first_line
from coatstream.frames.frame import InputSpec, Label
from coatstream.frames.resizing import INTERPOLATIONS
from coatstream.settings.model import ModelSettings


@dataclass(frozen=True, slots=True, eq=False)
class TimmClassifier:
    """A timm classifier: float32, on the CPU, in eval mode, never changed by who runs it.

    weights       where they are from, in the words of `ModelInfo.weights`
    split         forward_features and forward_head together are the model, so that pooled features can be had
    num_features  width of the pooled embedding; 0 where there is none
    origin        fingerprints of the weights and labels that were read; None where they are not known
    """

    module: nn.Module
    name: str
    weights: str
    spec: InputSpec
    labels: tuple[Label, ...]
    split: bool
    num_features: int
    origin: Mapping[str, str] | None = None


def load_classifier(model: ModelSettings) -> TimmClassifier:
    """The classifier that the settings name. Raises EngineError."""
    before = origin(model)
    loaded = load_model(model)
    spec = input_spec(loaded.module, model.name)
    count = int(loaded.module.num_classes)  # type: ignore[arg-type]  # nn.Module's attributes are untyped
    labels = labels_from_file(model.labels, count) if model.labels else imagenet_labels(count)
    num_features = _num_features(loaded.module, spec, model)
    after = origin(model)
    return TimmClassifier(
        module=loaded.module,
        name=model.name,
        weights=loaded.weights,
        spec=spec,
        labels=labels,
        split=num_features > 0,
        num_features=num_features,
        # Files that changed meanwhile: it is unknown which were read. The hub's may have come just now.
        origin=after if before in (None, after) else None,
    )


def input_spec(module: nn.Module, name: str) -> InputSpec:
    """How the model wants its pictures, from its own data config. Raises EngineError for what `prepare` cannot do."""
    config = resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    if channels != 3 or config["interpolation"] not in INTERPOLATIONS:
        what = f"{channels} channels, {config['interpolation']} interpolation"
        raise EngineError(f"{name} wants pictures with {what}: only 3 channels, bicubic or bilinear are supported")
    return InputSpec(
        height=height,
        width=width,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


@torch.inference_mode()
def _num_features(module: Any, spec: InputSpec, model: ModelSettings) -> int:
    """Width of the pooled features; 0 where features and head, called apart, do not give the model's own logits.

    Tried on one picture. They do in nearly all of timm. Where not, the model still classifies; only embeddings are
    refused. Raises EngineError.
    """
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 3, spec.height, spec.width, generator=generator)
    try:
        logits = module(picture)
    except Exception as error:
        what = f"{model.name} does not run on a {spec.width} x {spec.height} picture"
        raise EngineError(f"{what}: {first_line(error)}") from None
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise EngineError(f"{model.name} is no classifier of pictures: it does not give one row of logits for each")
    try:
        unpooled = module.forward_features(picture)
        same = torch.allclose(module.forward_head(unpooled), logits, rtol=1e-4, atol=1e-4)
        num_features = module.forward_head(unpooled, pre_logits=True).flatten(1).shape[1] if same else 0
    except Exception:  # no such methods, or others than timm's: then the model runs in one piece
        num_features = 0
    if model.embeddings and not num_features:
        raise EngineError(f"{model.name} gives no pooled features: switch model.embeddings off")
    return int(num_features)
