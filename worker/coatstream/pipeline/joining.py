"""A frame of several views has the scores of all of them, class by class the best. Arithmetic only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from coatstream.frames.frame import Scores


@dataclass(frozen=True, slots=True, eq=False)
class JoinedScores:
    """Of a batch.

    frames  a row for each frame
    views   a row for each input; those of frame n begin at row `starts[n]`
    """

    frames: Scores
    views: Scores
    starts: tuple[int, ...]


def joined(pieces: Sequence[Scores], counts: Sequence[int]) -> JoinedScores:
    """The scores of some batches of inputs, one after the other, for frames that have so many inputs each.

    The embedding is that of the view with the best class. A view without finite scores spoils its frame's.
    """
    views = _together(pieces)
    starts = tuple(accumulate(counts, initial=0))[:-1]
    if len(counts) == len(views.values):
        return JoinedScores(views, views, starts)
    rows = [_best(views, start, start + count) for start, count in zip(starts, counts, strict=True)]
    embeddings = None if views.embeddings is None else views.embeddings[[row.leads for row in rows]]
    frames = Scores(np.stack([row.indices for row in rows]), np.stack([row.values for row in rows]), embeddings)
    return JoinedScores(frames, views, starts)


def _together(pieces: Sequence[Scores]) -> Scores:
    if len(pieces) == 1:
        return pieces[0]
    embeddings = [piece.embeddings for piece in pieces if piece.embeddings is not None]
    return Scores(
        np.concatenate([piece.indices for piece in pieces]),
        np.concatenate([piece.values for piece in pieces]),
        np.concatenate(embeddings) if embeddings else None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _JoinedRow:
    """As in Scores. `leads`: the row of the view whose class is the best."""

    indices: np.ndarray[tuple[int], np.dtype[np.int64]]
    values: np.ndarray[tuple[int], np.dtype[np.float32]]
    leads: int


def _best(views: Scores, start: int, end: int) -> _JoinedRow:
    known = views.values.shape[1]
    indices, values = views.indices[start:end].ravel(), views.values[start:end].ravel()
    if not np.isfinite(values).all():
        return _JoinedRow(indices[:known], np.full(known, np.nan, np.float32), start)
    order = np.argsort(-values, kind="stable")
    _, first = np.unique(indices[order], return_index=True)
    best = order[np.sort(first)[:known]]
    return _JoinedRow(indices[best], values[best], start + int(best[0]) // known)
