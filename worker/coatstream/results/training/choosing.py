"""Which frames are worth a person's look: doubtful ones and a random few, no two of which look alike."""

import random
from collections import OrderedDict, deque
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coatstream.frames.frame import Frame, Pixels, Prediction
from coatstream.frames.still import thumbnail_of
from coatstream.settings.model import TrainingSettings

REMEMBERED: Final = 64  # thumbnails of each source that new ones are compared with
MOST_SOURCES: Final = 256
LEAST: Final = 1.0  # seconds between two frames of one source


class WhyKept(StrEnum):
    """Why a frame is kept."""

    SCORE = "score"  # the best label's is low
    LEAD = "lead"  # two labels are about as likely
    GATE = "gate"  # the model says something else than the labels that would have been reused
    SHARE = "share"  # by chance


def seen_of(frame: Frame) -> Pixels:
    """What the model saw, uint8 [height, width, 3]: several views side by side, since any may have the label."""
    return np.concatenate(list(frame.views), axis=1)


class FrameChooser:
    """Called from one thread at a time."""

    def __init__(self, settings: TrainingSettings, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._rng = rng or random.Random()
        self._kept: OrderedDict[str, tuple[float, deque[NDArray[np.int16]]]] = OrderedDict()  # by source

    def why(self, prediction: Prediction, *, surprising: bool) -> WhyKept | None:
        """Whether the model is unsure of this one. Costs nothing where it is not."""
        settings = self._settings
        scores = [scored.score for scored in (*prediction.labels[:2], *prediction.further[:1])]
        if surprising:
            return WhyKept.GATE
        if scores and scores[0] < settings.max_score:
            return WhyKept.SCORE
        if len(scores) > 1 and scores[0] - scores[1] < settings.max_lead:
            return WhyKept.LEAD
        return WhyKept.SHARE if self._rng.random() < settings.share else None

    def is_new(self, frame: Frame) -> bool:
        """Whether no frame that was kept looks like this one. It counts as kept from here on."""
        at, kept = self._kept.setdefault(frame.source, (-np.inf, deque(maxlen=REMEMBERED)))
        self._kept.move_to_end(frame.source)
        if len(self._kept) > MOST_SOURCES:
            self._kept.popitem(last=False)
        if abs(frame.captured_at - at) < LEAST:
            return False
        found = thumbnail_of(seen_of(frame)) if frame.vitals is None else frame.vitals.thumbnail
        thumbnail = found.astype(np.int16)
        if any(float(np.abs(thumbnail - other).mean()) < self._settings.difference for other in kept):
            return False
        kept.append(thumbnail)
        self._kept[frame.source] = frame.captured_at, kept
        return True
