"""The change gate of one camera: a frame like the last classified one reuses its labels, and some are checked.

Decides from thumbnails; never sees a picture and never runs a model. A gate saves only as much as it can prove: labels
of which the model was in doubt are not reused; of the like frames a random share is classified all the same, and where
the labels differ too often the gate tightens itself, step by step, until it lets nothing through.
"""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coatstream.frames.frame import Frame, Prediction
from coatstream.settings.model import ReuseSettings

_SCALES: Final = (1.0, 0.5, 0.25, 0.125, 0.0)  # of the difference that the settings allow; the last is: nothing
_PRIOR: Final = 50  # checks that are taken for granted, half of the budget of them disagreeing
_MEMORY: Final = 200  # checks: older ones count less and less
_UNSURE: Final = 50  # checks at a step until it is trusted, and
_EAGER: Final = 5  # so many times the share is checked before
_CLEAN: Final = 100  # clean comparisons at the next wider step until it is tried
_CLEAN_MOST: Final = 3200  # each time that widening was a mistake, the next takes twice as many
_TRUSTED: Final = 150  # remembered checks at the widest step until earlier failures are forgotten
_LEAD: Final = 0.1  # that the first label's score must have over the second's: python -m bench gate
_PENDING: Final = 64  # checks on their way through the engine; a frame that never comes back must not pile up

_Thumbnail = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class ReuseStats:
    """What metrics show of one gate.

    considered     frames that were looked at
    reused         of them, those that took over an earlier frame's labels
    doubtful       of them, those that came after a frame of which the model was in doubt, and were classified
    checks         like frames that were classified all the same
    disagreements  of them, those whose first label was another
    rate           share of the newest checks (about 200) that disagreed, at the present step
    difference     grey levels that any part of the picture may differ by now; 0: the gate has closed itself
    """

    considered: int
    reused: int
    doubtful: int
    checks: int
    disagreements: int
    rate: float
    difference: float


class ChangeGate:
    """One camera's. Called from every engine thread.

    Two predictions disagree when their first labels are of different classes: that is what a consumer takes for another
    label, so a near tie that fell the other way counts. In a near tie noise alone changes the first label; therefore
    such labels are not reused in the first place, and `doubtful` counts the frames. (On two scenes of nine in the bench
    5 to 35 % of the reused labels were wrong without that, and at most 1 % with it.) Where sure labels flip all the
    same, the gate closes, and `difference` is 0.

    How fast: a step is left at the first disagreement within 75 checks, or at once that many more are more than the
    budget (1 %). Until 50 checks have been clean, one in ten like frames is checked rather than one in fifty. A gate
    that is wrong in 10 % of its frames is found out after some 100 like frames, at 2 % after some 500.
    """

    def __init__(
        self,
        settings: ReuseSettings,
        *,
        rng: random.Random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._monotonic = monotonic
        self._lock = threading.Lock()  # guards all below
        self._reference: _Baseline | None = None
        self._pending: OrderedDict[str, Prediction] = OrderedDict()  # by frame id: what would have been reused
        self._tightness = _Tightness(settings)
        self._considered = self._reused = self._doubtful = self._checks = self._disagreements = 0

    def consider(self, frame: Frame) -> Prediction | None:
        """What to publish of this frame without classifying it, or None: classify it, then call `classified`."""
        with self._lock:
            self._considered += 1
            reference = self._reference
            self._doubtful += reference is not None and not reference.is_sure
            if reference is None or not self._is_like(frame, reference):
                return None
            if self._rng.random() < self._tightness.check_share:
                self._remember(frame.frame_id, reference.prediction)
                return None
            self._reused += 1
        return _as_of(frame, reference.prediction)

    def classified(self, frame: Frame, prediction: Prediction) -> bool:
        """The model's prediction of a frame to classify. From now on frames are compared with this one.

        True: it contradicts the labels that would have been reused.
        """
        surprising = False
        with self._lock:
            expected = self._pending.pop(frame.frame_id, None)
            reference = _reference_of(frame, prediction, self._monotonic())
            if expected is not None:
                agrees = _agree(expected, prediction)
                surprising = not agrees
                self._checks += 1
                self._disagreements += not agrees
                self._tightness.checked(agrees=agrees)
            self._tightness.tried(reference)
            self._reference = reference
        return surprising

    def stats(self) -> ReuseStats:
        with self._lock:
            return ReuseStats(
                considered=self._considered,
                reused=self._reused,
                doubtful=self._doubtful,
                checks=self._checks,
                disagreements=self._disagreements,
                rate=self._tightness.rate,
                difference=self._tightness.difference,
            )

    def _is_like(self, frame: Frame, reference: "_Baseline") -> bool:
        if frame.vitals is None or frame.faults or not reference.is_sure or _place(frame) != reference.place:
            return False
        if self._monotonic() - reference.at >= self._settings.heartbeat:
            return False
        thumbnail = frame.vitals.thumbnail.astype(np.int16)
        limit = self._tightness.difference
        return limit > 0 and difference(thumbnail, reference.thumbnail) <= limit

    def _remember(self, frame_id: str, expected: Prediction) -> None:
        self._pending[frame_id] = expected
        while len(self._pending) > _PENDING:
            self._pending.popitem(last=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Baseline:
    """The last classified frame. Always compared with this one, never with a reused one: slow drift adds up.

    place    whatever must stay the same: the picture's size, and the lease under which it was read
    is_sure  the first label leads clearly, or there is only one
    """

    thumbnail: _Thumbnail
    prediction: Prediction
    place: tuple[int, int, int]
    is_sure: bool
    at: float


def _reference_of(frame: Frame, prediction: Prediction, at: float) -> _Baseline | None:
    """None where nothing may be reused: the picture was sick, or not measured."""
    if frame.vitals is None or frame.faults:
        return None
    thumbnail = frame.vitals.thumbnail.astype(np.int16)
    return _Baseline(thumbnail, prediction, _place(frame), _is_sure(prediction), at)


def _is_sure(prediction: Prediction) -> bool:
    scores = [scored.score for scored in (*prediction.labels[:2], *prediction.further[:1])]
    return len(scores) < 2 or scores[0] - scores[1] >= _LEAD


def _place(frame: Frame) -> tuple[int, int, int]:
    return frame.width, frame.height, frame.fence


def _agree(one: Prediction, other: Prediction) -> bool:
    return [scored.label.index for scored in one.labels[:1]] == [scored.label.index for scored in other.labels[:1]]


def _as_of(frame: Frame, earlier: Prediction) -> Prediction:
    """The labels and the embedding of the earlier frame, everything else of this one."""
    return replace(
        earlier,
        source=frame.source,
        frame_id=frame.frame_id,
        captured_at=frame.captured_at,
        width=frame.width,
        height=frame.height,
        receipt=frame.receipt,
        meta=frame.meta,
        reused=True,
        faults=frame.faults,
        fence=frame.fence,
    )


def difference(one: _Thumbnail, other: _Thumbnail) -> float:
    """Grey levels by which the most different part of two thumbnails differs. A part is 2 x 2 of their cells."""
    change = one - other
    parts = change[0::2, 0::2] + change[0::2, 1::2] + change[1::2, 0::2] + change[1::2, 1::2]
    return float(np.abs(parts).max()) / 4


# ---- how much may differ


class _Tightness:
    """The present step of `_SCALES`: tightened by disagreeing checks, widened by clean trials of the wider step."""

    def __init__(self, settings: ReuseSettings) -> None:
        self._settings = settings
        self._step = 0
        self._evidence = _Evidence(settings.budget)
        self._trial = _Trial(settings)
        self._clean = _CLEAN
        self._has_widened = False

    @property
    def difference(self) -> float:
        return self._settings.difference * _SCALES[self._step]

    @property
    def rate(self) -> float:
        return self._evidence.rate

    @property
    def check_share(self) -> float:
        """More while there is doubt: too few checks at this step, or too many of them disagreed."""
        doubt = self._evidence.checks < _UNSURE or self._evidence.rate > self._settings.budget
        return min(1.0, self._settings.check * (_EAGER if doubt else 1))

    def checked(self, *, agrees: bool) -> None:
        self._evidence.add(agrees=agrees)
        if self._evidence.is_over and self._step < len(_SCALES) - 1:
            if self._has_widened:
                self._clean = min(2 * self._clean, _CLEAN_MOST)
            self._move(1)
        elif self._step == 0 and self._evidence.checks > _TRUSTED:
            self._clean = _CLEAN

    def tried(self, reference: _Baseline | None) -> None:
        """A frame was classified, for whatever reason: would the next wider step have been right about it?"""
        if self._step == 0:
            return
        self._trial.compare(reference, self._settings.difference * _SCALES[self._step - 1])
        if self._trial.evidence.checks >= self._clean and self._trial.evidence.rate <= self._settings.budget / 2:
            self._move(-1)

    def _move(self, steps: int) -> None:
        self._step += steps
        self._has_widened = steps < 0
        self._evidence = _Evidence(self._settings.budget)
        self._trial = _Trial(self._settings)


class _Evidence:
    """Checks and how many disagreed, older ones fading."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self.checks = 0.0
        self._wrong = 0.0

    def add(self, *, agrees: bool) -> None:
        fading = 1.0 - 1.0 / _MEMORY
        self.checks = self.checks * fading + 1.0
        self._wrong = self._wrong * fading + (not agrees)

    @property
    def rate(self) -> float:
        return self._wrong / self.checks if self.checks else 0.0

    @property
    def is_over(self) -> bool:
        """The mean of a Beta distribution: a few checks alone do not swing it."""
        return (self._wrong + _PRIOR * self._budget / 2) / (self.checks + _PRIOR) > self._budget


class _Trial:
    """What the wider step would have reused, with its own reference and heartbeat; it lets nothing through."""

    def __init__(self, settings: ReuseSettings) -> None:
        self._heartbeat = settings.heartbeat
        self._reference: _Baseline | None = None
        self.evidence = _Evidence(settings.budget)

    def compare(self, new: _Baseline | None, limit: float) -> None:
        kept = self._reference
        if new is None or kept is None or not self._is_like(new, kept, limit):
            self._reference = new
        else:
            self.evidence.add(agrees=_agree(kept.prediction, new.prediction))

    def _is_like(self, new: _Baseline, kept: _Baseline, limit: float) -> bool:
        if not kept.is_sure or new.place != kept.place or new.at - kept.at >= self._heartbeat:
            return False
        return difference(new.thumbnail, kept.thumbnail) <= limit
