"""The JSON documents of a frame's end, a label or a failure: what consumers read. Their JSON Schemas are in docs/."""

import base64
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from coatstream.frames.frame import PictureFault, Prediction, ScoredLabel
from coatstream.frames.model import ModelInfo


class _Part(BaseModel):
    """Further fields may come with later versions; a reader of today passes them over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class LabelScore(_Part):
    """A class and its probability."""

    index: int = Field(description="class index in the model's head", ge=0)
    wnid: str | None = Field(description="WordNet id, null where the classes are not ImageNet's")
    label: str
    score: float = Field(ge=0, le=1)


class LabelDocument(_Part):
    """The label of one frame."""

    version: Literal[1] = Field(1, alias="schema")
    frame_id: str
    entry_id: str | None = Field(description="id in the frames stream; null for a camera's frame")
    source: str
    captured_at: float = Field(description="Unix seconds")
    published_at: float = Field(description="Unix seconds")
    labels: tuple[LabelScore, ...] = Field(description="best first")
    model: str
    weights: str = Field(description="hub, file:<first 12 of sha256>, package:<name>, random, or none (noop engine)")
    worker: str
    width: int = Field(description="of the original picture, pixels")
    height: int = Field(description="of the original picture, pixels")
    reused: bool = Field(description="true: the labels are those of an earlier, like frame")
    embedding: str | None = Field(description="base64 of little-endian float16[num_features]")
    regions: dict[str, tuple[LabelScore, ...]] | None = Field(
        None, description="of a camera with regions: the labels of each, best first"
    )
    picture: tuple[PictureFault, ...] = Field((), description="what was wrong with the camera's picture; [] = nothing")
    fence: int | None = Field(None, description="number of the lease under which a shared camera was read, else null")
    meta: dict[str, Any] | None = Field(description="the producer's own object, untouched")

    def vector(self) -> NDArray[np.float32] | None:
        """The pooled embedding, float32 [num_features], to the precision of float16; None without model.embeddings."""
        return None if self.embedding is None else decode_embedding(self.embedding).astype(np.float32)


class FailureDocument(_Part):
    """Why a frame of a queue ended without a label."""

    version: Literal[1] = Field(1, alias="schema")
    frame_id: str = Field(description="the producer's own id; where it gave none, the entry's")
    entry_id: str = Field(description="id in the frames stream")
    source: str = Field(description="`queue` where the entry named none, or is no longer there to ask")
    status: Literal["dead", "dropped"] = Field(description="dead: the frame is kept as a dead letter")
    reason: str = Field(description="as in the fields `reason` of dead letters and of the metric of dropped frames")
    error: str | None = Field(description="one line for a person")
    at: float = Field(description="Unix seconds")


class Encode(Protocol):
    """`encode`, or what takes its place in a benchmark."""

    def __call__(self, prediction: Prediction, *, model: ModelInfo, worker: str, published_at: float) -> bytes: ...


def encode(prediction: Prediction, *, model: ModelInfo, worker: str, published_at: float) -> bytes:
    """The document of one prediction as JSON, with the producer's meta in it as it was written.

    By the serializer behind pydantic's models, from plain dictionaries: 4 times faster than by way of a model, which
    would be the greater part of publishing. The bytes are those of `LabelDocument`, as a test holds.
    """
    receipt = prediction.receipt
    text = to_json(
        {
            "schema": 1,
            "frame_id": prediction.frame_id,
            "entry_id": receipt.entry_id if receipt else None,
            "source": prediction.source,
            "captured_at": prediction.captured_at,
            "published_at": published_at,
            "labels": [_plain(scored) for scored in prediction.labels],
            "model": model.name,
            "weights": model.weights,
            "worker": worker,
            "width": prediction.width,
            "height": prediction.height,
            "reused": prediction.reused,
            "embedding": None if prediction.embedding is None else encode_embedding(prediction.embedding),
            "regions": {name: [_plain(scored) for scored in labels] for name, labels in _regions(prediction).items()}
            or None,
            "picture": prediction.faults,
            "fence": prediction.fence or None,
            "meta": None,
        },
        inf_nan_mode="null",
    )
    if prediction.meta is None:
        return text
    return b"%b%b}" % (text.removesuffix(b"null}"), prediction.meta.encode())  # meta is the document's last field


def document(prediction: Prediction, *, model: ModelInfo, worker: str, published_at: float) -> LabelDocument:
    """The document of one prediction, without its meta. For many, `encode` is faster."""
    receipt = prediction.receipt
    return (
        LabelDocument.model_construct(  # our own values, checked where they were made: 5 times faster than validating
            version=1,
            frame_id=prediction.frame_id,
            entry_id=receipt.entry_id if receipt else None,
            source=prediction.source,
            captured_at=prediction.captured_at,
            published_at=published_at,
            labels=_scores(prediction.labels),
            model=model.name,
            weights=model.weights,
            worker=worker,
            width=prediction.width,
            height=prediction.height,
            reused=prediction.reused,
            embedding=None if prediction.embedding is None else encode_embedding(prediction.embedding),
            regions={name: _scores(labels) for name, labels in _regions(prediction).items()} or None,
            picture=prediction.faults,
            fence=prediction.fence or None,
            meta=None,
        )
    )


def _regions(prediction: Prediction) -> Mapping[str, tuple[ScoredLabel, ...]]:
    """As many labels of each region as the frame shows."""
    return {name: labels[: len(prediction.labels)] for name, labels in prediction.regions.items()}


def _plain(scored: ScoredLabel) -> dict[str, Any]:
    label = scored.label
    return {"index": label.index, "wnid": label.wnid, "label": label.name, "score": round(scored.score, 6)}


def _scores(labels: Iterable[ScoredLabel]) -> tuple[LabelScore, ...]:
    return tuple(LabelScore.model_construct(**_plain(scored)) for scored in labels)


def encode_embedding(embedding: NDArray[np.float16]) -> str:
    """base64 of the little-endian bytes of float16 [features]."""
    return base64.b64encode(embedding.astype("<f2").tobytes()).decode()


def decode_embedding(text: str) -> NDArray[np.float16]:
    """float16 [features], the inverse of `encode_embedding`."""
    return np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float16)


def schema(of: type[BaseModel] = LabelDocument) -> dict[str, Any]:
    """The JSON Schema of a document, as published in docs/label.schema.json and docs/failure.schema.json."""
    return of.model_json_schema(by_alias=True, mode="serialization")
