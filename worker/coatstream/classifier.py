"""A classifier for Python programs: pictures in, labels and embeddings out. No Redis, no threads of its own."""

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from coatstream.engine.loading import exact, load_engine
from coatstream.engine.protocol import Engine
from coatstream.errors import BadFrame, DeadReason, EngineError
from coatstream.frames.decoding import decode
from coatstream.frames.frame import Pixels
from coatstream.frames.model import ModelInfo
from coatstream.frames.resizing import prepare
from coatstream.results.documents import LabelScore
from coatstream.settings.direct import settings_of

if TYPE_CHECKING:
    from PIL.Image import Image

AnyPicture: TypeAlias = "str | os.PathLike[str] | bytes | Image | NDArray[np.uint8]"


class ModelOptions(TypedDict, total=False):
    """The section `model` of the settings, as docs/settings.md describes it."""

    weights: str
    labels: Path | str | None
    engine: Literal["auto", "eager", "fused", "compile", "openvino", "noop"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    tolerance: float
    cache: Path | str | None
    baked_cache: Path | str | None
    device: str
    threads: int
    streams: int
    top_k: int
    embeddings: bool
    noop_delay: float


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """What the model says of one picture. Holds the picture at the model's size, 150 kB mostly, for `features`.

    labels  best first, `top_k` of them, each with index, wnid, label and score (softmax over all classes, 0..1)
    """

    labels: tuple[LabelScore, ...]
    _pooled: NDArray[np.float32] | None = field(repr=False)
    _pixels: Pixels = field(repr=False)
    _engine: Engine = field(repr=False)

    @property
    def embedding(self) -> NDArray[np.float32]:
        """The pooled features before the head, float32 [num_features], of the same run as the labels.

        Raises EngineError where the classifier was loaded with `embeddings=False`.
        """
        if self._pooled is None:
            raise EngineError("this classifier was loaded with embeddings=False: load it without")
        return self._pooled

    @property
    def features(self) -> NDArray[np.float32]:
        """The unpooled features: float32 [tokens, features] for CoaT (50 x 512 for coat_lite_mini, the class token
        first), [features, rows, columns] for a convolutional network.

        What timm's `model.forward_features` gives. The model runs once more for them, at each access. Raises
        EngineError where another engine than `eager` runs, or the model has no single map of features.
        """
        unpooled = getattr(self._engine, "features", None)
        if unpooled is None:
            raise EngineError(f"unpooled features need engine='eager', and this is {self._engine.info.engine}")
        features: NDArray[np.float32] = unpooled(self._pixels[np.newaxis])[0]
        return features


class Classifier:
    """One model, loaded and ready.

        model = Classifier.load("coat_lite_mini.in1k")
        result = model.classify("photo.jpg")
        result.labels[0].label, result.embedding, result.features

    A picture is a path, the bytes of a JPEG, PNG, WebP, BMP or TIFF, a PIL image, or uint8 [height, width, 3] RGB.
    May be used from several threads.
    """

    def __init__(self, engine: Engine, *, max_bytes: int, max_pixels: int) -> None:
        """`max_bytes` of an encoded picture, `max_pixels` of a decoded one: more is refused."""
        self._engine = engine
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._turns = threading.BoundedSemaphore(engine.streams)

    @classmethod
    def load(cls, name: str = "coat_lite_mini.in1k", *, batch_size: int = 8, **options: Unpack[ModelOptions]) -> Self:
        """Any classifier of timm. `options` are those of the section `model`: weights, device, engine, top_k, ...

        Without `engine` the reference runs, timm's own module in float32. Embeddings are on. Raises ConfigError for a
        wrong option, and EngineError where the model cannot be had: no such name, no weights, no hub in reach.
        """
        model = {"embeddings": True, **options, "name": name}
        settings = settings_of({"model": model, "batch": {"max_size": batch_size}})
        engine = load_engine(exact(settings.model), settings.batch)
        engine.warm_up()
        return cls(engine, max_bytes=settings.queue.max_bytes, max_pixels=settings.queue.max_pixels)

    @property
    def info(self) -> ModelInfo:
        """Name, weights, engine, precision, device, num_features."""
        return self._engine.info

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes, by index."""
        return tuple(label.name for label in self._engine.labels)

    def classify(self, picture: AnyPicture) -> Classification:
        """One picture. Raises BadFrame for what cannot be decoded, and OSError for a file that cannot be read."""
        (result,) = self._classify([self._pixels(picture)])
        return result

    def classify_all(self, pictures: Iterable[AnyPicture]) -> Iterator[Classification]:
        """Each picture in turn, in batches of `batch_size`; one batch at a time is held. Raises as `classify` does."""
        waiting = map(self._pixels, pictures)
        while batch := list(islice(waiting, self._engine.prepared[-1])):
            yield from self._classify(batch)

    def _classify(self, batch: list[Pixels]) -> list[Classification]:
        with self._turns:
            scores = self._engine.classify(np.stack(batch))
        pooled = scores.embeddings if scores.embeddings is not None else [None] * len(batch)
        return [
            Classification(self._labels(indices, values), embedding, pixels, self._engine)
            for indices, values, embedding, pixels in zip(scores.indices, scores.values, pooled, batch, strict=True)
        ]

    def _labels(self, indices: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[LabelScore, ...]:
        found = [(self._engine.labels[index], float(value)) for index, value in zip(indices, values, strict=True)]
        return tuple(
            LabelScore(index=label.index, wnid=label.wnid, label=label.name, score=min(1.0, score))
            for label, score in found
        )

    def _pixels(self, picture: AnyPicture) -> Pixels:
        """uint8 [height, width, 3] RGB at the model's size."""
        return prepare(self._decoded(picture), self._engine.spec)

    def _decoded(self, picture: Any) -> Pixels:
        if isinstance(picture, str | os.PathLike):
            try:
                return self._decode(Path(picture).read_bytes())
            except BadFrame as bad:
                raise BadFrame(bad.reason, f"{os.fspath(picture)}: {bad}") from None
        if isinstance(picture, bytes | bytearray | memoryview):
            return self._decode(bytes(picture))
        if hasattr(picture, "convert"):  # a PIL image, as it stands
            picture = np.asarray(picture.convert("RGB"))
        if not isinstance(picture, np.ndarray):
            raise BadFrame(DeadReason.INVALID, f"{type(picture).__name__} is no path, bytes, PIL image or array")
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            given = f"{picture.dtype} {list(picture.shape)}"
            raise BadFrame(DeadReason.INVALID, f"an array must be uint8 [height, width, 3] RGB; this is {given}")
        return picture

    def _decode(self, data: bytes) -> Pixels:
        return decode(data, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
