"""A frame of several views is known by the best of them."""

import numpy as np
import pytest
from coatstream.frames.frame import Scores
from coatstream.pipeline.joining import joined


def scores(*rows: dict[int, float], embeddings: bool = False) -> Scores:
    """Three classes a row, best first."""
    indices = np.array([list(row) for row in rows], np.int64)
    values = np.array([list(row.values()) for row in rows], np.float32)
    return Scores(indices, values, np.arange(len(rows), dtype=np.float32)[:, None] if embeddings else None)


def test_frames_of_one_view_are_left_as_they_are() -> None:
    own = scores({1: 0.6, 2: 0.3, 3: 0.1}, {4: 0.5, 5: 0.2, 6: 0.1})

    assert joined([own], [1, 1]).frames is own


def test_each_class_has_the_best_of_its_scores_and_stands_once() -> None:
    pieces = [scores({1: 0.6, 2: 0.3, 3: 0.1}, {2: 0.5, 1: 0.4, 7: 0.05}), scores({9: 0.9, 8: 0.05, 7: 0.01})]

    made = joined(pieces, [2, 1])

    assert made.frames.indices.tolist() == [[1, 2, 3], [9, 8, 7]]
    assert made.frames.values[0].tolist() == pytest.approx([0.6, 0.5, 0.1])
    assert made.starts == (0, 2)
    assert made.views.indices[made.starts[0] + 1].tolist() == [2, 1, 7]


def test_the_embedding_is_that_of_the_view_with_the_best_class() -> None:
    made = joined([scores({1: 0.2, 2: 0.1, 3: 0.1}, {4: 0.9, 1: 0.05, 2: 0.01}, embeddings=True)], [2])

    assert made.frames.embeddings is not None
    assert made.frames.embeddings.tolist() == [[1.0]]


def test_a_view_without_finite_scores_spoils_its_own_frame_only() -> None:
    pieces = [scores({1: 0.6, 2: 0.3, 3: 0.1}, {2: float("nan"), 1: 0.4, 7: 0.1}, {9: 0.9, 8: 0.1, 7: 0.1})]

    made = joined(pieces, [2, 1])

    assert np.isfinite(made.frames.values).all(axis=1).tolist() == [False, True]
