"""Classifier: the model card's three uses, whatever a picture is given as, and one clear line for what goes wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import timm
import torch
from coatstream.classifier import Classifier, ModelOptions
from coatstream.errors import BadFrame, ConfigError, EngineError
from coatstream.settings.model import ModelSettings
from PIL import Image

from tests.support.paths import ASSETS

PHOTO = ASSETS / "chelsea.png"


@pytest.fixture(scope="module")
def model() -> Classifier:
    return Classifier.load("coat_lite_tiny", weights="random", top_k=3)


def array() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(PHOTO).convert("RGB"))


@pytest.mark.parametrize(
    "given", [lambda: PHOTO, lambda: str(PHOTO), PHOTO.read_bytes, lambda: Image.open(PHOTO), array]
)
def test_a_picture_may_be_a_path_bytes_a_pil_image_or_an_array(model: Classifier, given: Callable[[], Any]) -> None:
    expected, found = model.classify(PHOTO), model.classify(given())

    assert found.labels == expected.labels
    np.testing.assert_array_equal(found.embedding, expected.embedding)


def test_the_three_uses_give_what_the_model_card_gives(model: Classifier) -> None:
    result = model.classify(PHOTO)

    card = timm.create_model("coat_lite_tiny", pretrained=False).eval()
    card.load_state_dict(model._engine._network.module.state_dict())  # type: ignore[attr-defined]
    config = timm.data.resolve_model_data_config(card)
    planes = timm.data.create_transform(**config, is_training=False)(Image.open(PHOTO).convert("RGB")).unsqueeze(0)
    with torch.inference_mode():
        scores = card(planes).softmax(dim=1)[0]
        unpooled = card.forward_features(planes)
        pooled = card.forward_head(unpooled, pre_logits=True)[0]
    assert [label.index for label in result.labels] == scores.topk(3).indices.tolist()
    assert result.embedding.shape == (model.info.num_features,)
    assert result.embedding.dtype == result.features.dtype == np.float32
    np.testing.assert_allclose(result.embedding, pooled, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(result.features, unpooled[0], rtol=1e-3, atol=1e-3)


def test_many_pictures_are_classified_in_batches_and_come_in_order(model: Classifier) -> None:
    photos = [PHOTO, ASSETS / "coffee.png", ASSETS / "camera.png"] * 4

    found = list(model.classify_all(iter(photos)))

    assert len(found) == 12
    for photo, result in zip(photos, found, strict=True):
        assert result.labels[0].index == model.classify(photo).labels[0].index


@pytest.mark.parametrize(
    ("wrong", "error", "line"),
    [
        ("missing.jpg", FileNotFoundError, "missing.jpg"),
        (__file__, BadFrame, r"test_classifier.py: \d+ bytes are no picture that can be read"),
        (b"GIF89a", BadFrame, "neither JPEG, PNG, WebP, BMP nor TIFF"),
        (7, BadFrame, "int is no path, bytes, PIL image or array"),
        (np.zeros((8, 8), np.uint8), BadFrame, r"uint8 \[height, width, 3\] RGB; this is uint8 \[8, 8\]"),
        (np.zeros((8, 8, 3), np.float32), BadFrame, r"this is float32 \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), BadFrame, r"this is uint8 \[0, 8, 3\]"),
    ],
)
def test_what_is_no_picture_is_told_in_one_line(
    model: Classifier, wrong: Any, error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line) as caught:
        model.classify(wrong)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "error", "line"),
    [
        ("coat_lite_minii", {}, EngineError, "did you mean coat_lite_mini"),
        ("coat_lite_mini.in1k", {"weights": "/no/such/file.safetensors"}, EngineError, "/no/such/file.safetensors"),
        ("coat_lite_tiny", {"engin": "eager"}, ConfigError, "did you mean model.engine"),
        ("coat_lite_tiny", {"top_k": 0}, ConfigError, "model.top_k = 0"),
        ("coat_lite_tiny", {"weights": "random", "device": "cuda:9"}, EngineError, "there is no device cuda:9"),
    ],
)
def test_a_model_that_cannot_be_had_is_told_in_one_line(
    name: str, options: Any, error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line) as caught:
        Classifier.load(name, **options)

    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(EngineError, match=r"not in the local cache, and .*weights") as caught:
        Classifier.load("coat_lite_mini.in1k")

    assert "\n" not in str(caught.value)


def test_what_was_not_asked_for_is_said_when_it_is_read() -> None:
    plain = Classifier.load("noop", engine="noop", embeddings=False).classify(PHOTO)

    with pytest.raises(EngineError, match="embeddings=False"):
        _ = plain.embedding
    with pytest.raises(EngineError, match="need engine='eager', and this is noop"):
        _ = plain.features


def test_its_options_are_the_settings_of_the_model() -> None:
    assert set(get_type_hints(ModelOptions)) == set(ModelSettings.model_fields) - {"name"}
