"""What is made of a camera's predictions, by which reusing them is judged: scores of tags, and their thresholds.

Pure. Knows neither pictures nor time.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from coatstream.frames.frame import Prediction, ScoredLabel

Scores = Mapping[str, float]

_NEAR: Final = 0.04  # of a score to a threshold, at least
_SPREADS: Final = 2.0  # standard deviations of the samples likewise


def _label_scores(prediction: Prediction) -> Scores:
    return {scored.label.name: scored.score for scored in (*prediction.labels, *prediction.further)}


def _no_thresholds(tag: str) -> tuple[float, float] | None:
    return None


@dataclass(frozen=True, slots=True)
class Consumed:
    """Where there are no tags, the labels' own scores are what is consumed.

    scores      of each tag in a prediction, 0..1
    thresholds  of a tag: that below which it ends, and that at which it starts
    tolerance   by which a score may be off
    """

    scores: Callable[[Prediction], Scores] = _label_scores
    thresholds: Callable[[str], tuple[float, float] | None] = _no_thresholds
    tolerance: float = 0.15

    def agree(self, expected: Scores, found: Scores, on: Collection[str]) -> bool:
        """Whether a consumer of the one is told what a consumer of the other is, while these tags are on."""
        return all(self._agrees(tag, expected.get(tag, 0.0), found.get(tag, 0.0), on) for tag in {*expected, *found})

    def _agrees(self, tag: str, expected: float, found: float, on: Collection[str]) -> bool:
        threshold = self._threshold(tag, on)
        return abs(expected - found) <= self.tolerance and (expected >= threshold) == (found >= threshold)

    def _threshold(self, tag: str, on: Collection[str]) -> float:
        """The one that would change something: its end's where it is on, else its start's."""
        both = self.thresholds(tag)
        return math.inf if both is None else both[0] if tag in on else both[1]

    def on(self, before: Collection[str], scores: Scores) -> frozenset[str]:
        """The tags that are on with these scores, where these were before."""
        return frozenset(tag for tag, score in scores.items() if score >= self._threshold(tag, before))

    def near(self, samples: Sequence[Scores], on: Collection[str]) -> str | None:
        """A tag whose mean is so near a threshold that the next frame may be on its other side, or None."""
        for tag in {tag for sample in samples for tag in sample}:
            values = [sample.get(tag, 0.0) for sample in samples]
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
            if abs(mean - self._threshold(tag, on)) < max(_NEAR, _SPREADS * spread):
                return tag
        return None

    def mean(self, samples: Sequence[Scores]) -> Scores:
        tags = {tag for one in samples for tag in one}
        return {tag: sum(sample.get(tag, 0.0) for sample in samples) / len(samples) for tag in tags}


def averaged(predictions: Sequence[Prediction]) -> Prediction:
    """The newest prediction (the last) with the mean scores of all of them, by class."""
    newest = predictions[-1]
    best = _averaged([(*one.labels, *one.further) for one in predictions])
    shown = len(newest.labels)
    regions = {name: _averaged([one.regions.get(name, ()) for one in predictions]) for name in newest.regions}
    return replace(newest, labels=best[:shown], further=best[shown:], regions=regions)


def _averaged(lists: Sequence[Iterable[ScoredLabel]]) -> tuple[ScoredLabel, ...]:
    """As many as the last list has."""
    sums: defaultdict[int, float] = defaultdict(float)
    labels, last = {}, 0
    for scored_labels in lists:
        own = tuple(scored_labels)
        last = len(own)
        for scored in own:
            sums[scored.label.index] += scored.score
            labels[scored.label.index] = scored.label
    best = sorted(sums, key=lambda index: (-sums[index], index))[:last]
    return tuple(ScoredLabel(labels[index], sums[index] / len(lists)) for index in best)


def interval(wrong: int, checks: int) -> tuple[float, float]:
    """Between which shares the true one lies, in 95 % of all cases (Wilson); (0, 1) without a check."""
    if not checks:
        return 0.0, 1.0
    z, share = 1.96, wrong / checks
    centre = (share + z * z / (2 * checks)) / (1 + z * z / checks)
    half = z * math.sqrt(share * (1 - share) / checks + z * z / (4 * checks * checks)) / (1 + z * z / checks)
    return max(0.0, centre - half), min(1.0, centre + half)
