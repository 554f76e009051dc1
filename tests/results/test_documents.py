"""The document of a label: its fast encoder says byte for byte what the model of the document would say."""

import json
import math

import jsonschema
import numpy as np
import pytest
from coatstream.frames.frame import Label, Prediction, Receipt, ScoredLabel
from coatstream.frames.model import ModelInfo
from coatstream.results.documents import LabelDocument, decode_embedding, document, encode
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.paths import DOCS

SCHEMA = json.loads((DOCS / "label.schema.json").read_text("utf-8"))

moments = st.floats(0, 10_000_000_000)
scored_labels = st.builds(
    ScoredLabel,
    st.builds(Label, st.integers(0, 100_000), st.none() | st.text(), st.text()),
    st.floats(0, 1, width=32) | st.floats(0, 0.0001),  # the smallest have an exponent
)
embeddings = st.lists(st.floats(-100, 100, width=16)).map(lambda values: np.array(values, np.float16))
objects = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans()), max_size=3)
predictions = st.builds(
    Prediction,
    source=st.text(),
    frame_id=st.text(),
    captured_at=moments,
    labels=st.lists(scored_labels, max_size=5).map(tuple),
    width=st.integers(1, 100_000),
    height=st.integers(1, 100_000),
    receipt=st.none() | st.builds(Receipt, st.text(), st.text()),
    embedding=st.none() | embeddings,
    meta=st.none() | objects.map(json.dumps),
)
models = st.builds(ModelInfo, st.text(), st.text(), st.text(), st.text(), st.integers(0, 2048))


def one(score: float, name: str = "tabby", captured_at: float = 1.5, meta: str | None = None) -> Prediction:
    return Prediction("door", "f", captured_at, (ScoredLabel(Label(281, None, name), score),), 640, 360, meta=meta)


MODEL = ModelInfo("m", "none", "noop", "none", "none", 0)


@given(prediction=predictions, model=models, worker=st.text(), published_at=moments)
@example(prediction=one(1e-6), model=MODEL, worker="w", published_at=1e-7)
@example(prediction=one(0.000012), model=MODEL, worker="w", published_at=1e10)
@example(prediction=one(0.5, '"\\\x00\x1f\x7f\u2028\U0001f600'), model=MODEL, worker="w", published_at=0.0)
@example(prediction=one(math.nan), model=MODEL, worker="w", published_at=0.0)
@example(prediction=one(0.9999999), model=MODEL, worker="w", published_at=math.inf)
@example(prediction=one(0.5, meta="{}"), model=MODEL, worker="w", published_at=0.0)
def test_the_encoder_writes_byte_for_byte_what_the_model_of_the_document_would(
    prediction: Prediction, model: ModelInfo, worker: str, published_at: float
) -> None:
    by_model = document(prediction, model=model, worker=worker, published_at=published_at)
    expected = by_model.model_dump_json(by_alias=True).encode()
    if prediction.meta is not None:  # its producer's own text, which the model does not know
        expected = expected.removesuffix(b"null}") + prediction.meta.encode() + b"}"

    assert encode(prediction, model=model, worker=worker, published_at=published_at) == expected


@given(prediction=predictions, model=models, worker=st.text(), published_at=moments)
def test_what_is_encoded_fits_the_published_schema_and_can_be_read_back(
    prediction: Prediction, model: ModelInfo, worker: str, published_at: float
) -> None:
    text = encode(prediction, model=model, worker=worker, published_at=published_at)

    jsonschema.validate(json.loads(text), SCHEMA)
    read = LabelDocument.model_validate_json(text)
    assert (read.source, read.frame_id, read.captured_at) == (
        prediction.source,
        prediction.frame_id,
        prediction.captured_at,
    )
    assert [label.score for label in read.labels] == [round(scored.score, 6) for scored in prediction.labels]
    assert read.meta == (None if prediction.meta is None else json.loads(prediction.meta))
    if prediction.embedding is not None and read.embedding is not None:
        assert decode_embedding(read.embedding).tolist() == prediction.embedding.tolist()


@pytest.mark.parametrize("meta", ['{"a": 1.10}', "{ }", '{"é":"\\u00e9"}', '{"b":1,"b":2}'])
def test_meta_is_handed_through_to_the_letter(meta: str) -> None:
    text = encode(one(0.5, meta=meta), model=MODEL, worker="w", published_at=1.0)

    assert text.endswith(b',"meta":' + meta.encode() + b"}")
