"""The change gate of one camera: a frame like the last classified one reuses its labels, and some are checked.

Decides from thumbnails; never sees a picture and never runs a model. It is judged by what is consumed: the scores of
tags, and whether a tag is on or off (`pipeline.consumed`). What is reused is the mean of the last classifications of
the same picture, never one sample, and not while a score is near a threshold. Of the like frames a random share is
classified all the same, and where that says something else too often the gate tightens itself, step by step, until it
lets nothing through.
"""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coatstream.frames.frame import Frame, Prediction, Vitals
from coatstream.pipeline.consumed import Consumed, Scores, averaged, interval
from coatstream.settings.model import ReuseSettings

_SCALES: Final = (1.0, 0.5, 0.25, 0.125, 0.0)  # of the difference that the settings allow; the last is: nothing
_PRIOR: Final = 50  # checks that are taken for granted, half of the budget of them disagreeing
_MEMORY: Final = 200  # checks: older ones count less and less
_UNSURE: Final = 50  # checks at a step until it is trusted, and
_EAGER: Final = 5  # so many times the share is checked before
_CLEAN: Final = 100  # clean comparisons at the next wider step until it is tried
_CLEAN_MOST: Final = 3200  # each time that widening was a mistake, the next takes twice as many
_TRUSTED: Final = 150  # remembered checks at the widest step until earlier failures are forgotten
_SAMPLES: Final = 5  # classifications of the same picture of which the mean is reused, and
_LEAST_SAMPLES: Final = 3  # how many there must be
_PENDING: Final = 64  # checks on their way through the engine; a frame that never comes back must not pile up

_FEW: Final = 100  # frames
_LITTLE: Final = 0.05  # of them

_Thumbnail = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class ReuseStats:
    """What metrics show of one gate.

    considered     frames that were looked at
    reused         of them, those that took over an earlier frame's labels
    doubtful       of them, those that were classified since the score of a tag was near a threshold
    checks         like frames that were classified all the same
    disagreements  of them, those that said something else to a consumer
    interval       between which shares of reused frames that would have, in 95 % of all cases
    near           the tag whose score is near a threshold, if any
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
    interval: tuple[float, float] = (0.0, 1.0)
    near: str | None = None

    @property
    def why(self) -> str:
        """Why it saves next to nothing, for people; empty where it saves, or has seen too little."""
        if self.considered < _FEW or self.reused >= _LITTLE * self.considered:
            return ""
        if self.difference == 0:
            return "reused labels were wrong too often, so that it has closed itself"
        if self.doubtful >= self.considered / 2:
            return f"the score of {self.near or 'a tag'} is near a threshold, so that each frame counts"
        return "the picture changes"


class ChangeGate:
    """One camera's. Called from every engine thread.

    How fast: a step is left at the first disagreement within 75 checks, or at once that many more are more than the
    budget (1 %). Until 50 checks have been clean, one in ten like frames is checked rather than one in fifty. A gate
    that is wrong in 10 % of its frames is found out after some 100 like frames, at 2 % after some 500.
    """

    def __init__(
        self,
        settings: ReuseSettings,
        *,
        rng: random.Random,
        consumed: Consumed | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._consumed = consumed or Consumed()
        self._rng = rng
        self._monotonic = monotonic
        self._lock = threading.Lock()  # guards all below
        self._samples: tuple[_Classified, ...] = ()  # of the same picture, the newest last
        self._reused_now: Prediction | None = None  # their mean
        self._near: str | None = None
        self._on: frozenset[str] = frozenset()  # tags
        self._pending: OrderedDict[str, Scores] = OrderedDict()  # by frame id: what would have been reused
        self._tightness = _Tightness(settings, self._consumed)
        self._considered = self._reused = self._doubtful = self._checks = self._disagreements = 0

    def consider(self, frame: Frame) -> Prediction | None:
        """What to publish of this frame without classifying it, or None: classify it, then call `classified`."""
        with self._lock:
            self._considered += 1
            if not self._is_like(frame):
                return None
            if self._near is not None:
                self._doubtful += 1
                return None
            if self._reused_now is None:
                return None
            if self._rng.random() < self._tightness.check_share:
                self._remember(frame.frame_id, self._consumed.scores(self._reused_now))
                return None
            self._reused += 1
            prediction = self._reused_now
        return _as_of(frame, prediction)

    def classified(self, frame: Frame, prediction: Prediction) -> bool:
        """The model's prediction of a frame to classify. From now on frames are compared with this one.

        True: it contradicts the labels that would have been reused.
        """
        surprising = False
        with self._lock:
            expected = self._pending.pop(frame.frame_id, None)
            sample = _sample_of(frame, prediction, self._consumed, self._monotonic())
            if expected is not None:
                agrees = self._consumed.agree(expected, self._consumed.scores(prediction), self._on)
                surprising = not agrees
                self._checks += 1
                self._disagreements += not agrees
                self._tightness.checked(agrees=agrees)
            self._take(sample)
            self._tightness.tried(sample, self._on)
        return surprising

    def _take(self, sample: "_Classified | None") -> None:
        """The samples that show the same as the newest one make the mean."""
        limit = self._tightness.difference
        kept = [] if sample is None else [one for one in self._samples if one.is_like(sample, limit)]
        self._samples = () if sample is None else (*kept, sample)[-_SAMPLES:]
        if not self._samples:
            self._reused_now = self._near = None
            return
        self._reused_now = self._near = None
        self._on = self._consumed.on(self._on, self._consumed.mean([one.scores for one in self._samples]))
        if len(self._samples) >= _LEAST_SAMPLES:
            self._near = self._consumed.near([one.scores for one in self._samples], self._on)
            self._reused_now = averaged([one.prediction for one in self._samples])

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
                interval=interval(self._disagreements, self._checks),
                near=self._near,
            )

    def _is_like(self, frame: Frame) -> bool:
        if frame.vitals is None or frame.faults or not self._samples:
            return False
        newest, limit = self._samples[-1], self._tightness.difference
        if _place(frame) != newest.place or self._monotonic() - newest.at >= self._settings.heartbeat:
            return False
        return limit > 0 and difference(thumbnail_of(frame.vitals), newest.thumbnail) <= limit

    def _remember(self, frame_id: str, expected: Scores) -> None:
        self._pending[frame_id] = expected
        while len(self._pending) > _PENDING:
            self._pending.popitem(last=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Classified:
    """A classified frame. Frames are compared with the newest one, never with a reused one: slow drift adds up.

    thumbnail  of `thumbnail_of`
    place      whatever must stay the same: the picture's size, and the lease under which it was read
    """

    thumbnail: _Thumbnail
    prediction: Prediction
    scores: Scores
    place: tuple[int, int, int]
    at: float

    def is_like(self, other: "_Classified", limit: float) -> bool:
        return self.place == other.place and difference(self.thumbnail, other.thumbnail) <= limit


def _sample_of(frame: Frame, prediction: Prediction, consumed: Consumed, at: float) -> _Classified | None:
    """None where nothing may be reused: the picture was sick, or not measured."""
    if frame.vitals is None or frame.faults:
        return None
    return _Classified(thumbnail_of(frame.vitals), prediction, consumed.scores(prediction), _place(frame), at)


def thumbnail_of(vitals: Vitals) -> _Thumbnail:
    """int16 [3, 18, 32]: grey and two of colour, the sum of 2 x 2 cells each."""
    planes = np.concatenate([vitals.thumbnail[np.newaxis], vitals.colours])
    parts: _Thumbnail = planes.reshape(3, 18, 2, 32, 2).sum(axis=(2, 4), dtype=np.int16)
    return parts


def _place(frame: Frame) -> tuple[int, int, int]:
    return frame.width, frame.height, frame.fence


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
        suspect=frame.suspect,
        fence=frame.fence,
    )


def difference(one: _Thumbnail, other: _Thumbnail) -> float:
    """Levels by which the most different part of two thumbnails differs (`thumbnail_of`)."""
    return float(np.abs(one - other).max()) / 4


# ---- how much may differ


class _Tightness:
    """The present step of `_SCALES`: tightened by disagreeing checks, widened by clean trials of the wider step."""

    def __init__(self, settings: ReuseSettings, consumed: Consumed) -> None:
        self._settings = settings
        self._consumed = consumed
        self._step = 0
        self._evidence = _Evidence(settings.budget)
        self._trial = _Trial(settings, consumed)
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

    def tried(self, sample: _Classified | None, on: Collection[str]) -> None:
        """A frame was classified, for whatever reason: would the next wider step have been right about it?"""
        if self._step == 0:
            return
        self._trial.compare(sample, self._settings.difference * _SCALES[self._step - 1], on)
        if self._trial.evidence.checks >= self._clean and self._trial.evidence.rate <= self._settings.budget / 2:
            self._move(-1)

    def _move(self, steps: int) -> None:
        self._step += steps
        self._has_widened = steps < 0
        self._evidence = _Evidence(self._settings.budget)
        self._trial = _Trial(self._settings, self._consumed)


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
    """What the wider step would have reused, with its own samples and heartbeat; it lets nothing through."""

    def __init__(self, settings: ReuseSettings, consumed: Consumed) -> None:
        self._heartbeat = settings.heartbeat
        self._consumed = consumed
        self._kept: tuple[_Classified, ...] = ()
        self.evidence = _Evidence(settings.budget)

    def compare(self, new: _Classified | None, limit: float, on: Collection[str]) -> None:
        """`limit`: of the wider step."""
        kept = [] if new is None else [one for one in self._kept if one.is_like(new, limit)]
        if new is not None and len(kept) >= _LEAST_SAMPLES and new.at - kept[-1].at < self._heartbeat:
            scores = [one.scores for one in kept]
            if self._consumed.near(scores, on) is None:
                self.evidence.add(agrees=self._consumed.agree(self._consumed.mean(scores), new.scores, on))
        self._kept = () if new is None else (*kept, new)[-_SAMPLES:]
