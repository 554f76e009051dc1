"""The self-check: does an engine agree with eager float32 on a few real pictures, in probabilities and, where the
settings ask for them, in embeddings? Chooses no engine.

The pictures are the package's own photos, whole and cut out, prepared as the worker prepares frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from coatstream.engine.protocol import Engine
from coatstream.frames.decoding import decode
from coatstream.frames.frame import InputSpec, Pixels, Scores
from coatstream.frames.resizing import prepare

if TYPE_CHECKING:  # it imports torch and timm, and a start from the cache does without
    from coatstream.engine.model.classifier import TimmClassifier

Floats = NDArray[np.float32]

_PHOTOS: Final = ("camera.png", "chelsea.png", "coffee.png")
_LIMIT: Final = 4_000_000  # bytes and pixels of a photo of ours
FP32_TOLERANCE: Final = 0.001  # summing in another order moves them by some 0.00001
# An embedding may be off by this many times what a probability may: no softmax evens its errors out. In bf16, models
# with random weights are 0.005 to 0.012 of its length off, and Lite0's real ones 0.06 (0.016 in probabilities), as
# bench/self_check.py shows. At 0.1, five times the default tolerance, its cosine with the right one is still 0.995.
EMBEDDINGS: Final = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceScores:
    """Eager float32's results for the check pictures: float32 [n, classes] and [n, features], of which some models have
    none.
    """

    probabilities: Floats
    embeddings: Floats


@dataclass(frozen=True, slots=True)
class Disagreement:
    """By how much an engine is off; infinite where something is no number.

    probability  as a share of the picture's largest
    embedding    the error's length as a share of the right one's; 0 where the engine gives none
    """

    probability: float
    embedding: float

    def beyond(self, bound: float) -> str | None:
        """What is off by more than a probability, or five times a share of an embedding, may be; None: nothing."""
        if not self.probability <= bound:
            return f"a probability is off by {self.probability:.3g} of the picture's largest, more than {bound:g}"
        if not self.embedding <= EMBEDDINGS * bound:
            return f"an embedding is off by {self.embedding:.3g} of its length, more than {EMBEDDINGS * bound:g}"
        return None


def check_pictures(spec: InputSpec) -> Pixels:
    """uint8 [6, height, width, 3] RGB: each photo, and its lower right part."""
    return np.stack([prepare(picture, spec) for photo in _photos() for picture in (photo, _part(photo))])


def _photos() -> Iterator[Pixels]:
    with as_file(files("coatstream") / "assets") as assets:
        for name in _PHOTOS:
            yield decode((assets / name).read_bytes(), max_bytes=_LIMIT, max_pixels=_LIMIT)


def _part(photo: Pixels) -> Pixels:
    height, width = photo.shape[:2]
    return np.ascontiguousarray(photo[height // 3 :, width // 3 :])


def reference(classifier: "TimmClassifier", pictures: Pixels) -> ReferenceScores:
    """Eager float32's results, on the CPU. `pictures`: uint8 [n, height, width, 3] RGB."""
    import torch

    from coatstream.engine.model.network import EagerNetwork

    network = EagerNetwork(classifier, embeddings=classifier.split)
    with torch.inference_mode():
        rows = [network(torch.from_numpy(pictures[row : row + 1])) for row in range(len(pictures))]
    probabilities = torch.cat([logits.softmax(dim=1) for logits, *_ in rows])
    embeddings = [pooled for _, *others in rows for pooled in others] or [torch.empty(len(pictures), 0)]
    return ReferenceScores(probabilities.numpy(), torch.cat(embeddings).numpy())


def disagreement(engine: Engine, pictures: Pixels, wanted: ReferenceScores) -> Disagreement:
    """By how much an engine is off. Pictures go through one by one and, as far as it takes them, together.

    Shares, because random weights give no class more than 0.005, and an absolute bound would let anything pass.
    Seen with coat_lite_mini (random) and with Lite0 (real): bf16 0.010 and 0.016, ten grey levels more 0.18 and 0.05,
    red and blue swapped 0.72 and 0.36.
    """
    size = min(len(pictures), engine.prepared[-1])
    parts = [*(slice(row, row + 1) for row in range(len(pictures))), slice(0, size)]
    scores = [(engine.classify(pictures[part]), part) for part in parts]
    return Disagreement(
        max(_off(given, wanted.probabilities[part]) for given, part in scores),
        max(_embeddings_off(given, wanted.embeddings[part]) for given, part in scores),
    )


def _off(scores: Scores, wanted: Floats) -> float:
    """Of the classes that the engine gives, and of those that it leaves out: they are off by what they have more than
    the last one that was given.
    """
    if not np.isfinite(scores.values).all():
        return float("inf")
    given = np.abs(scores.values - np.take_along_axis(wanted, scores.indices, axis=1)).max(axis=1)
    others = wanted.copy()
    np.put_along_axis(others, scores.indices, 0.0, axis=1)
    left_out = others.max(axis=1) - scores.values[:, -1]
    return float((np.maximum(given, left_out) / wanted.max(axis=1)).max())


def _embeddings_off(scores: Scores, wanted: Floats) -> float:
    given = scores.embeddings
    if given is None:
        return 0.0
    if given.shape != wanted.shape or not np.isfinite(given).all():
        return float("inf")
    return float((np.linalg.norm(given - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


def allowed(precision: str, tolerance: float) -> float:
    """The bound of a disagreement in this precision, for this `model.tolerance`."""
    return min(tolerance, FP32_TOLERANCE) if precision == "fp32" else tolerance
