"""The self-check: does an engine say of a few real pictures what eager float32 says? Chooses no engine.

The pictures are the package's own photos, whole and cut out, prepared as the worker prepares frames.
"""

from collections.abc import Iterator
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from worker.decoding import decode
from worker.engine import Engine
from worker.engine.network import EagerNetwork
from worker.frames import InputSpec, Pixels, Scores
from worker.resizing import prepare

if TYPE_CHECKING:  # it imports timm, and a start from the cache does without
    from worker.engine.classifier import Classifier

Probabilities = NDArray[np.float32]

_PHOTOS: Final = ("camera.png", "chelsea.png", "coffee.png")
_LIMIT: Final = 4_000_000  # bytes and pixels of a photo of ours
FP32_TOLERANCE: Final = 0.001  # summing in another order moves them by some 0.00001


def check_pictures(spec: InputSpec) -> Pixels:
    """uint8 [6, height, width, 3] RGB: each photo, and its lower right part."""
    return np.stack([prepare(picture, spec) for photo in _photos() for picture in (photo, _part(photo))])


def _photos() -> Iterator[Pixels]:
    with as_file(files("worker") / "assets") as assets:
        for name in _PHOTOS:
            yield decode((assets / name).read_bytes(), max_bytes=_LIMIT, max_pixels=_LIMIT)


def _part(photo: Pixels) -> Pixels:
    height, width = photo.shape[:2]
    return np.ascontiguousarray(photo[height // 3 :, width // 3 :])


@torch.inference_mode()
def reference(classifier: "Classifier", pictures: Pixels) -> Probabilities:
    """float32 [n, classes]: the probabilities of eager float32 on the CPU."""
    network = EagerNetwork(classifier)
    rows = [network(torch.from_numpy(pictures[row : row + 1]))[0].softmax(dim=1) for row in range(len(pictures))]
    return torch.cat(rows).numpy()


def disagreement(engine: Engine, pictures: Pixels, wanted: Probabilities) -> float:
    """By how much a probability is off, as a share of the picture's largest; infinite where one is no number.

    A share, because random weights give no class more than 0.005, and an absolute bound would let anything pass.
    Seen with coat_lite_mini (random) and with Lite0 (real): bf16 0.010 and 0.016, ten grey levels more 0.18 and 0.05,
    red and blue swapped 0.72 and 0.36. Pictures go through one by one and, as far as the engine takes them, together.
    """
    size = min(len(pictures), engine.prepared[-1])
    alone = [engine.classify(pictures[row : row + 1]) for row in range(len(pictures))]
    off = [_off(scores, wanted[row : row + 1]) for row, scores in enumerate(alone)]
    return max(*off, _off(engine.classify(pictures[:size]), wanted[:size]))


def _off(scores: Scores, wanted: Probabilities) -> float:
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


def allowed(precision: str, tolerance: float) -> float:
    """The bound of `disagreement` in this precision, where `model.tolerance` says so much."""
    return min(tolerance, FP32_TOLERANCE) if precision == "fp32" else tolerance
