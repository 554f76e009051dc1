from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from coatstream.engine.model import weights
from coatstream.engine.model.classifier import TimmClassifier, input_spec, load_classifier
from coatstream.engine.model.fingerprint import origin
from coatstream.errors import EngineError
from coatstream.settings.model import ModelSettings

COAT = "coat_lite_mini.in1k"
COATS = ["tiny", "mini", "small", "lite_tiny", "lite_mini", "lite_small", "lite_medium", "lite_medium_384"]
SMALL = "test_resnet.r160_in1k"


def classifier(name: str = SMALL, **settings: Any) -> TimmClassifier:
    return load_classifier(ModelSettings(**{"name": name, "weights": "random", **settings}))


def timm_makes(monkeypatch: pytest.MonkeyPatch, changed: Any) -> None:
    """timm's models, changed."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: changed(create(*args, **kwargs)))


def test_coat_lite_mini_is_what_its_card_says() -> None:
    coat = classifier(COAT)

    assert round(sum(parameter.numel() for parameter in coat.module.parameters()) / 1e6, 1) == 11.0
    spec = coat.spec
    assert (spec.height, spec.width, spec.crop_pct, spec.crop_mode) == (224, 224, 0.9, "center")
    assert (spec.interpolation, spec.mean, spec.std) == ("bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert len(coat.labels) == 1000


@pytest.mark.parametrize("variant", COATS)
def test_all_eight_coats_take_the_size_of_their_data_config(variant: str) -> None:
    name = f"coat_{variant}.in1k"
    config = timm.get_pretrained_cfg(name)
    with torch.device("meta"):
        spec = input_spec(timm.create_model(name), name)

    assert (3, spec.height, spec.width) == config.input_size
    assert (spec.crop_pct, spec.crop_mode) == ((1.0, "squash") if variant.endswith("384") else (0.9, "center"))


def test_it_is_loaded_in_float32_for_inference_on_the_cpu() -> None:
    small = classifier()

    assert not small.module.training
    assert {(p.dtype, p.device.type, p.requires_grad) for p in small.module.parameters()} == {
        (torch.float32, "cpu", False)
    }
    assert (small.name, small.weights, small.split, small.num_features) == (SMALL, "random", True, 96)


def test_a_fine_tuned_model_has_its_own_labels(tmp_path: Path) -> None:
    torch.save(timm.create_model(SMALL, num_classes=3).state_dict(), tmp_path / "tuned.pth")
    (tmp_path / "names.txt").write_text("empty\nperson\nvehicle\n")

    tuned = classifier(weights=str(tmp_path / "tuned.pth"), labels=tmp_path / "names.txt")

    assert [label.name for label in tuned.labels] == ["empty", "person", "vehicle"]


def test_files_that_change_while_they_are_read_have_no_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model(SMALL).state_dict(), file)
    load = weights.load_model

    def load_and_replace(model: ModelSettings) -> Any:
        loaded = load(model)
        file.write_bytes(b"the next version")
        return loaded

    read = origin(ModelSettings(name=SMALL, weights=str(file)))
    assert classifier(weights=str(file)).origin == read is not None
    monkeypatch.setattr("coatstream.engine.model.classifier.load_model", load_and_replace)

    assert classifier(weights=str(file)).origin is None


class OnePiece(torch.nn.Module):
    """A classifier whose features and head, taken apart, are not the whole: it scales in between."""

    num_classes = 1000

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.pretrained_cfg = inner.pretrained_cfg

    def forward_features(self, batch: torch.Tensor) -> Any:
        return self.inner.forward_features(batch)

    def forward_head(self, unpooled: Any, pre_logits: bool = False) -> Any:
        return self.inner.forward_head(unpooled, pre_logits=pre_logits)

    def forward(self, batch: torch.Tensor) -> Any:
        return self.inner.forward_head(3 * self.inner.forward_features(batch))


def test_a_model_that_cannot_be_taken_apart_has_no_features_and_refuses_embeddings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timm_makes(monkeypatch, OnePiece)

    whole = classifier()

    assert (whole.split, whole.num_features) == (False, 0)
    with pytest.raises(EngineError, match=r"gives no pooled features: switch model\.embeddings off"):
        classifier(embeddings=True)


class Shapeless(OnePiece):
    def forward(self, batch: torch.Tensor) -> Any:
        return self.inner.forward_features(batch)


class Broken(OnePiece):
    def forward(self, batch: torch.Tensor) -> Any:
        raise ValueError("needs a second picture\nand a second line")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (Shapeless, f"{SMALL} is no classifier of pictures: it does not give one row of logits for each"),
        (Broken, f"{SMALL} does not run on a 160 x 160 picture: needs a second picture"),
    ],
)
def test_a_model_that_is_no_classifier_is_one_line(
    monkeypatch: pytest.MonkeyPatch, changed: type[OnePiece], words: str
) -> None:
    timm_makes(monkeypatch, changed)

    with pytest.raises(EngineError) as caught:
        classifier()

    assert str(caught.value) == words


def test_pictures_that_cannot_be_prepared_are_refused() -> None:
    module: Any = torch.nn.Linear(1, 1)
    module.pretrained_cfg = {"input_size": (1, 28, 28), "interpolation": "bicubic"}

    with pytest.raises(EngineError, match="digits wants pictures with 1 channels, bicubic interpolation"):
        input_spec(module, "digits")
