from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from coatstream.engine.backends.pytorch import TorchEngine, load_eager_engine
from coatstream.engine.model.classifier import TimmClassifier, load_classifier
from coatstream.engine.self_check import (
    FP32_TOLERANCE,
    Disagreement,
    Floats,
    ReferenceScores,
    allowed,
    check_pictures,
    disagreement,
    reference,
)
from coatstream.frames.frame import Pixels, Scores
from coatstream.settings.model import BatchSettings, ModelSettings

COAT = "coat_lite_mini.in1k"
VIT = "test_vit.r160_in1k"
TOLERANCE = ModelSettings().tolerance


@pytest.fixture(autouse=True)
def _cores_as_they_were() -> Any:
    """The main thread classifies here, which sets its share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(name: str, **values: Any) -> ModelSettings:
    return ModelSettings(**{"name": name, "weights": "random", "device": "cpu", **values})


@cache
def classifier(name: str = COAT) -> TimmClassifier:
    return load_classifier(settings(name))


@cache
def pictures(name: str = COAT) -> Pixels:
    return check_pictures(classifier(name).spec)


@cache
def wanted(name: str = COAT) -> ReferenceScores:
    return reference(classifier(name), pictures(name))


def eager(name: str = COAT, precision: str = "fp32", **values: Any) -> TorchEngine:
    return load_eager_engine(classifier(name), settings(name, **values), BatchSettings(), precision=precision)


class Wrong:
    """An eager engine with one fault."""

    def __init__(self) -> None:
        self._right = eager(embeddings=True)
        self.info, self.spec, self.labels = self._right.info, self._right.spec, self._right.labels
        self.prepared, self.streams = self._right.prepared, self._right.streams
        self.recompilations = 0

    def warm_up(self) -> None:
        """It is warm enough."""

    def classify(self, pixels: Pixels) -> Scores:
        return self._right.classify(pixels)

    def with_embeddings(self, pixels: Pixels, change: Callable[[Floats], Floats]) -> Scores:
        scores = self._right.classify(pixels)
        assert scores.embeddings is not None
        return replace(scores, embeddings=change(scores.embeddings))


class SwappedChannels(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        return super().classify(np.ascontiguousarray(pixels[..., ::-1]))


class TenGreyLevelsMore(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        return super().classify(np.minimum(pixels, 245) + np.uint8(10))


class NoNumbers(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        scores = super().classify(pixels)
        return replace(scores, values=np.full_like(scores.values, np.nan))


class LeavesTheBestOut(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        scores = super().classify(pixels)
        return replace(scores, indices=scores.indices[:, 1:], values=scores.values[:, 1:])


class ShuffledRows(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        scores = super().classify(pixels)
        return replace(scores, indices=scores.indices[::-1], values=scores.values[::-1])


class NeighbouringClasses(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        scores = super().classify(pixels)
        return replace(scores, indices=(scores.indices + 1) % len(self.labels))


class ShuffledEmbeddings(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        return self.with_embeddings(pixels, lambda pooled: np.roll(pooled, 1, axis=1))


class LongEmbeddings(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        return self.with_embeddings(pixels, lambda pooled: 1.2 * pooled)


class CutEmbeddings(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        return self.with_embeddings(pixels, lambda pooled: pooled[:, :-1])


class EmbeddingsOfTheMeanToken(Wrong):
    """What an engine gives that pools tokens which this model does not pool."""

    def classify(self, pixels: Pixels) -> Scores:
        return self.with_embeddings(pixels, lambda _: self._right.features(pixels).mean(axis=1))


class EmbeddingsOfNoNumbers(Wrong):
    def classify(self, pixels: Pixels) -> Scores:
        return self.with_embeddings(pixels, lambda pooled: pooled * np.float32(np.nan))


# ---- the pictures


def test_the_pictures_are_six_different_real_ones_at_the_models_size() -> None:
    assert pictures().shape == (6, 224, 224, 3)
    assert pictures().dtype == np.uint8
    assert pictures(VIT).shape == (6, 160, 160, 3)
    assert len({picture.tobytes() for picture in pictures()}) == 6
    assert all(picture.std() > 20 for picture in pictures())
    coloured = [np.ptp(picture.astype(int), axis=2).mean() > 5 for picture in pictures()]
    assert sum(coloured) >= 4  # else swapped channels would not be seen


def test_the_reference_is_eager_float32s_probabilities() -> None:
    scores = eager(top_k=100).classify(pictures())

    probabilities = wanted().probabilities
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(np.take_along_axis(probabilities, scores.indices, axis=1), scores.values, atol=1e-6)
    assert probabilities.argmax(axis=1).tolist() == scores.indices[:, 0].tolist()


# ---- engines that are right


@pytest.mark.slow
@pytest.mark.parametrize("name", [COAT, VIT])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_right_engine_passes(name: str, precision: str) -> None:
    off = disagreement(eager(name, precision, embeddings=True), pictures(name), wanted(name))

    assert off.beyond(allowed(precision, TOLERANCE)) is None
    assert (off.probability > 0 and off.embedding > 0) or precision == "fp32"


@pytest.mark.parametrize("top_k", [1, 5, 100])
def test_how_many_classes_are_shown_does_not_matter(top_k: int) -> None:
    assert disagreement(eager(top_k=top_k), pictures(), wanted()).beyond(FP32_TOLERANCE) is None


def test_an_engine_for_one_picture_at_a_time_is_checked_too() -> None:
    lone = load_eager_engine(classifier(), settings(COAT), BatchSettings(max_size=1))

    assert disagreement(lone, pictures(), wanted()).beyond(FP32_TOLERANCE) is None


# ---- engines that are wrong


@pytest.mark.parametrize(
    "wrong", [SwappedChannels, TenGreyLevelsMore, LeavesTheBestOut, ShuffledRows, NeighbouringClasses, NoNumbers]
)
def test_a_wrong_engine_is_seen_in_any_precision(wrong: type[Wrong]) -> None:
    off = disagreement(wrong(), pictures(), wanted())

    assert "a probability is off by" in (off.beyond(allowed("bf16", TOLERANCE)) or "")
    assert "a probability is off by" in (off.beyond(allowed("fp32", TOLERANCE)) or "")


@pytest.mark.parametrize(
    "wrong",
    [ShuffledEmbeddings, LongEmbeddings, CutEmbeddings, EmbeddingsOfTheMeanToken, EmbeddingsOfNoNumbers],
)
def test_a_wrong_embedding_is_seen_though_the_probabilities_are_right(wrong: type[Wrong]) -> None:
    off = disagreement(wrong(), pictures(), wanted())

    assert off.probability <= FP32_TOLERANCE
    assert "an embedding is off by" in (off.beyond(allowed("bf16", TOLERANCE)) or "")


def test_embeddings_that_nobody_asked_for_are_not_compared() -> None:
    assert disagreement(eager(), pictures(), wanted()).embedding == 0


def test_what_is_no_number_is_infinitely_wrong() -> None:
    assert disagreement(NoNumbers(), pictures(), wanted()).probability == float("inf")
    assert disagreement(EmbeddingsOfNoNumbers(), pictures(), wanted()).embedding == float("inf")
    assert Disagreement(float("nan"), 0.0).beyond(1.0)
    assert Disagreement(0.0, float("nan")).beyond(1.0)


@pytest.mark.parametrize(
    ("precision", "tolerance", "bound"),
    [("bf16", 0.05, 0.05), ("fp16", 0.2, 0.2), ("fp32", 0.05, 0.001), ("fp32", 0.0001, 0.0001)],
)
def test_the_bound_is_the_settings_and_for_float32_no_more_than_a_thousandth(
    precision: str, tolerance: float, bound: float
) -> None:
    assert allowed(precision, tolerance) == bound
