"""An engine without a model, for benchmarks and fault tests: scores made from the pixels, after a delay or at once.

Never imports torch or timm.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from coatstream.engine.model.labels import numbered_labels
from coatstream.engine.protocol import power_sizes
from coatstream.frames.frame import InputSpec, Label, Pixels, Scores
from coatstream.frames.model import ModelInfo
from coatstream.frames.opencv import cv2
from coatstream.settings.model import BatchSettings, ModelSettings

CLASSES = 1000
_SPEC = InputSpec(224, 224, 0.9, "center", "area", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_FEATURES = 48  # the mean colours of a 4 x 4 grid


class NoopEngine:
    """The Engine protocol over mean colours. `delay` seconds stand for a device that computes a batch."""

    def __init__(
        self,
        name: str,
        prepared: tuple[int, ...],
        *,
        streams: int = 1,
        top_k: int = 5,
        delay: float = 0.0,
        embeddings: bool = False,
        spec: InputSpec = _SPEC,
    ) -> None:
        self.info = ModelInfo(name, "none", "noop", "none", "none", _FEATURES if embeddings else 0)
        self.spec = spec
        self.labels: tuple[Label, ...] = numbered_labels(CLASSES)
        self.prepared = prepared
        self.streams = streams
        self.recompilations = 0
        self._top_k = min(top_k, CLASSES)
        self._delay = delay
        self._embeddings = embeddings

    @classmethod
    def from_settings(cls, model: ModelSettings, batch: BatchSettings, spec: InputSpec = _SPEC) -> "NoopEngine":
        """`spec`: a real model's, where a benchmark wants the real preparation of pictures."""
        return cls(
            model.name,
            batch.prepared or power_sizes(batch.max_size),
            streams=model.streams or 1,
            top_k=model.top_k,
            delay=model.noop_delay,
            embeddings=model.embeddings,
            spec=spec,
        )

    def warm_up(self) -> None:
        """Nothing to warm."""

    def classify(self, pixels: Pixels) -> Scores:
        """uint8 [n, height, width, 3] -> scores: the same for the same picture, whatever it is batched with.

        Class round(999 * mean / 255) comes first and the next ones follow, with probabilities 1/2, 1/4, 1/8, ...
        """
        if self._delay:
            threading.Event().wait(self._delay)
        means = (
            np.array([sum(cv2.sumElems(picture)) for picture in pixels]) / pixels[0].size
        )  # far faster than numpy's mean
        first = np.rint(means * ((CLASSES - 1) / 255)).astype(np.int64)
        steps = np.arange(self._top_k)
        values = np.broadcast_to(np.exp2(-(steps + 1.0)).astype(np.float32), (len(pixels), self._top_k))
        embeddings = _grid_colours(pixels) if self._embeddings else None
        return Scores((first[:, None] + steps) % CLASSES, values.copy(), embeddings)


def _grid_colours(pixels: Pixels) -> NDArray[np.float32]:
    """float32 [n, 48], 0..1: mean RGB of each cell of a 4 x 4 grid."""
    height, width = (side // 4 * 4 for side in pixels.shape[1:3])
    cells = pixels[:, :height, :width].reshape(len(pixels), 4, height // 4, 4, width // 4, 3)
    means: NDArray[np.float32] = cells.mean(axis=(2, 4), dtype=np.float32) / 255
    return means.reshape(len(pixels), _FEATURES)
