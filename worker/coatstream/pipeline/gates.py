"""The change gates of one camera: one for its picture, or one for each region that has one.

A region is compared with itself, in the pixels that the model would see of it, and judged by its own tags: a street
that moves beside a still gate does not keep the gate's labels from being reused. What the gates of some regions answer
is kept in the frame (`Frame.known`), and only the others are classified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from coatstream.frames.frame import THUMBNAIL, Frame, Pixels, Prediction, ScoredLabel
from coatstream.frames.opencv import cv2
from coatstream.pipeline.reuse import ChangeGate, ReuseStats

WHOLE: Final = ""  # the name of the gate of a picture without regions


class CameraGates:
    """Called from every engine thread. `gates`: by the name of a region, or `WHOLE`."""

    def __init__(self, gates: Mapping[str, ChangeGate]) -> None:
        self._gates = dict(gates)

    def consider(self, frame: Frame) -> Frame | Prediction:
        """What to publish of this frame, or what to classify of it: then call `classified`."""
        if not frame.regions:
            gate = self._gates.get(WHOLE)
            answer = None if gate is None else gate.consider(frame)
            return frame if answer is None else answer
        own = self._alone(frame)
        known = {name: answer for name, one in own.items() if (answer := self._gates[name].consider(one)) is not None}
        if not known:
            return frame
        if len(known) == len(frame.regions):
            return together(frame, known)
        left = [place for place, name in enumerate(frame.regions) if name not in known]
        return replace(frame, pixels=frame.views[left], known=known)

    def classified(self, frame: Frame, predictions: Mapping[str, Prediction]) -> bool:
        """What the model says of a frame to classify: of each region that is not known, or of `WHOLE`.

        True: one of them contradicts the labels that would have been reused.
        """
        own = self._alone(frame) if frame.regions else {name: frame for name in self._gates if name == WHOLE}
        surprises = [self._gates[name].classified(one, predictions[name]) for name, one in own.items()]
        return any(surprises)

    def stats(self) -> dict[str, ReuseStats]:
        """Of each gate."""
        return {name: gate.stats() for name, gate in self._gates.items()}

    @property
    def why(self) -> str:
        """Why it saves next to nothing, for people; empty where each gate saves, or has seen too little."""
        reasons = {name: stats.why for name, stats in self.stats().items()}
        return "; ".join(f"{name}: {why}" if name else why for name, why in reasons.items() if why)

    def _alone(self, frame: Frame) -> dict[str, Frame]:
        """Each region that has a gate and is to be classified, as if it were a picture."""
        views = zip(frame.unknown, frame.views, strict=True)
        return {name: _alone(frame, view) for name, view in views if name in self._gates}


def _alone(frame: Frame, view: Pixels) -> Frame:
    """One region, with the thumbnail of its own pixels."""
    if frame.vitals is None:
        return replace(frame, pixels=view, regions=(), known={})
    small = cv2.resize(view, THUMBNAIL[::-1], interpolation=cv2.INTER_AREA)
    planes = np.ascontiguousarray(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb).transpose(2, 0, 1), np.uint8)
    vitals = replace(frame.vitals, thumbnail=planes[0], colours=planes[1:])
    return replace(frame, pixels=view, regions=(), known={}, vitals=vitals)


def together(frame: Frame, own: Mapping[str, Prediction]) -> Prediction:
    """One prediction of a frame, of what is said of each of its regions: class by class the best, as of any views.

    The embedding is that of the region with the best class. It is `reused` where all regions are.
    """
    parts = [own[name] for name in frame.regions]
    lead = max(parts, key=lambda part: part.labels[0].score if part.labels else 0.0)
    shown, most = len(lead.labels), len(lead.labels) + len(lead.further)
    labels = _best(parts, most)
    return replace(
        lead,
        labels=labels[:shown],
        further=labels[shown:],
        reused=all(part.reused for part in parts),
        regions={name: (*own[name].labels, *own[name].further) for name in frame.regions},
    )


def _best(parts: Sequence[Prediction], most: int) -> tuple[ScoredLabel, ...]:
    best: dict[int, ScoredLabel] = {}
    for part in parts:
        for scored in (*part.labels, *part.further):
            kept = best.get(scored.label.index)
            if kept is None or kept.score < scored.score:
                best[scored.label.index] = scored
    return tuple(sorted(best.values(), key=lambda scored: -scored.score)[:most])
