"""Is a camera's picture worth looking at: frozen, black, covered, blurred or corrupt, and since when.

Judges vitals (`cameras.capture.vitals`) and publishes each change once. Never sees a picture, and does not know whether
the camera can be reached: no pictures at all is a fault of the link.

The thresholds come from 184 pictures: photos of scikit-image and OpenCV and six clips, each also darkened to 15, 8 and
4 % with noise, fogged to 40, 20 and 10 % of its contrast and blurred; and a wall, a hand and a lens cap, each with
noise and with the date written over. python -m bench health PATH... prints these figures again, and without paths the
bars that are held.

    frozen   Nothing new: the very same pixels between the margins, in which a clock may run, or a loop of up to eight
             pictures. A live sensor's noise changes them with each picture, unless the camera compresses so hard that
             nothing is left of it: then a dark, still scene repeats until the next keyframe (a GOP of 25 s at CRF 38
             did). So it counts once a keyframe has come meanwhile, or after 40 s. The other way round, a still that is
             encoded anew comes out different: each keyframe rounds it otherwise. So what is found is what repeats
             pictures: a stuck grabber, an MJPEG camera, a recorder that sends its last picture.
    black    Neither light nor structure between the margins: one grey level, or two and hardly a step between
             neighbours. Of 43 photos at 4 % of their light three have no more than two levels, and steps enough.
    covered  One plain surface: in the middle of the thumbnail hardly any cell differs from its neighbour. The margins,
             where the date is written, do not count. Fog leaves edges (3 levels and more in every clip at 10 % of its
             contrast), a clock on a white wall leaves 36. A wall without anything on it is a covered lens for us. In
             the dark scenes have small steps too (at 4 % of the light 1 step in 20 is above one level), so a dim
             surface must have fewer than 1 in 200, or be lit unevenly, have one colour and none above two. Of 43
             photos at 4, 5, 6 and 8 % of their light none is taken for covered then.
    blurred  Sharpness for its contrast, which light and fog take away alike, so that their quotient stays: clear
             pictures have .24 (98 % of them more than .010), blurred by 1 % of the width .002. Some scenes are soft by
             nature (the close-up of a bird: .005), so it must also be an eighth of what is usual for this camera. A
             camera that has been out of focus from the beginning is therefore not found.
    corrupt  The decoder's own count. One damaged picture is everyday life; a fifth of them within ten seconds is not.
"""

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coatstream.frames.frame import PictureFault, Vitals
from coatstream.results.events.event import Event, EventKind, Publish
from coatstream.settings.model import HealthSettings

_DARK: Final = 30.0  # grey levels; below it a plain picture is black, above it covered
_BLACK_SPREAD: Final = 2.0  # grey levels between the 2nd and the 98th percentile of the thumbnail
_PLAIN_STEP: Final = 2.0  # grey levels between neighbours of the thumbnail
_PLAIN_SHARE: Final = 0.02  # of the steps
_DIM_SHARE: Final = 0.005  # of them, in the dark
_LIT_SPREAD: Final = 6  # grey levels over a dim surface that is lit from one side
_ONE_COLOUR: Final = 6  # levels of Cr and of Cb over such a surface: a hand in dim light has 3
_MARGIN: Final = 6  # rows of the thumbnail at the top and at the bottom where a date may be written

_SOFT: Final = 0.006  # sharpness for its contrast
_UNSHARP: Final = 20.0  # sharpness itself
_SOFTER: Final = 1 / 8  # than usual for the camera
_USUAL_OVER: Final = 1800.0  # seconds: the time constant of what is usual
_USUAL_AFTER: Final = 60.0  # seconds of good pictures until it is known

_DAMAGED_SHARE: Final = 0.2
_DAMAGED_LEAST: Final = 3  # pictures, within the window
_WINDOW: Final = 10.0  # seconds, or as many pictures where they come more slowly
_WINDOW_MOST: Final = 300  # pictures

_LOOP: Final = 8  # pictures
_KEY_INTERVAL: Final = 40.0  # seconds between two keyframes of a camera at most

_TELL_NOTHING: Final = frozenset({PictureFault.BLACK, PictureFault.COVERED, PictureFault.FROZEN})

_GAP: Final = 5.0  # seconds without a picture after which runs begin anew, or four usual intervals


@dataclass(frozen=True, slots=True)
class HealthStats:
    """What metrics show of one camera.

    sick    the present faults and since when, Unix seconds
    alarms  how often each was published
    usual   the usual sharpness for its contrast; None: not known yet
    """

    sick: Mapping[PictureFault, float]
    alarms: Mapping[PictureFault, int]
    usual: float | None


class PictureHealth:
    """One camera's. `look` is called for each picture, in their order; the others from any thread.

    suspect  whether the newest picture looks black, covered or frozen, for however short a time
    """

    def __init__(self, settings: HealthSettings, camera: str, *, publish: Publish) -> None:
        self._camera = camera
        self._publish = publish
        self._lock = threading.Lock()  # guards all below
        self._trackers = {
            fault: _FaultTracker(after, settings.well_after) for fault, after in _patience(settings).items()
        }
        self._rhythm = _Rhythm()
        self._stillness = _Stillness()
        self._focus = _Focus()
        self._damages = _Damages()
        self.suspect = False

    def look(self, vitals: Vitals, at: float, *, fence: int = 0) -> tuple[PictureFault, ...]:
        """What is wrong by now with the picture that was taken `at` (Unix seconds)."""
        with self._lock:
            if self._rhythm.broken(at):
                self._begin_anew(at)
            began = self._symptoms(vitals, at)
            self.suspect = any(fault in self._trackers for fault in _TELL_NOTHING & began.keys())
            changes = [
                (fault, change)
                for fault, tracker in self._trackers.items()
                if (change := tracker.look(began.get(fault), at)) is not None
            ]
            faults = tuple(fault for fault, tracker in self._trackers.items() if tracker.sick_since is not None)
        for fault, change in changes:
            self._publish(self._event(fault, change, at, fence))
        return faults

    def stats(self) -> HealthStats:
        with self._lock:
            return HealthStats(
                sick={
                    fault: tracker.sick_since
                    for fault, tracker in self._trackers.items()
                    if tracker.sick_since is not None
                },
                alarms={fault: tracker.alarms for fault, tracker in self._trackers.items()},
                usual=self._focus.usual,
            )

    def _begin_anew(self, at: float) -> None:
        """After a silence or a jump of the clock: forget symptoms, keep the faults that were published."""
        self._stillness = _Stillness()
        self._damages = _Damages()
        for tracker in self._trackers.values():
            tracker.begin_anew(at)

    def _symptoms(self, vitals: Vitals, at: float) -> dict[PictureFault, float]:
        """What this picture looks like, and since when. Something plain may well repeat exactly, and is not sharp."""
        found: dict[PictureFault, float] = {}
        still_since, damaged_since = self._stillness.look(vitals, at), self._damages.look(vitals.damage, at)
        if damaged_since is not None:
            found[PictureFault.CORRUPT] = damaged_since
        if is_black(vitals):
            return found | {PictureFault.BLACK: at}
        if is_covered(vitals):
            return found | {PictureFault.COVERED: at}
        if still_since is not None and self._stillness.is_told(at):
            found[PictureFault.FROZEN] = still_since
        if damaged_since is None and self._focus.is_lost(vitals, at):
            found[PictureFault.BLURRED] = at
        return found

    def _event(self, fault: PictureFault, change: "_Change", at: float, fence: int) -> Event:
        detail: dict[str, object] = {"fault": fault.value, "since": change.since}
        if change.well:
            detail["duration"] = round(max(0.0, at - change.since), 3)
        kind = EventKind.PICTURE_WELL if change.well else EventKind.PICTURE_SICK
        return Event(kind, self._camera, at, detail, fence)


def _patience(settings: HealthSettings) -> dict[PictureFault, float]:
    """Seconds after which each fault is published; without those that are switched off."""
    after = {
        PictureFault.FROZEN: settings.frozen_after,
        PictureFault.BLACK: settings.black_after,
        PictureFault.COVERED: settings.covered_after,
        PictureFault.BLURRED: settings.blurred_after,
        PictureFault.CORRUPT: settings.corrupt_after,
    }
    return {fault: seconds for fault, seconds in after.items() if seconds > 0}


# ---- from symptom to fault


@dataclass(frozen=True, slots=True)
class _Change:
    since: float
    well: bool


class _FaultTracker:
    """One fault: it begins after `after` seconds of the symptom, and ends after `well_after` seconds without it."""

    def __init__(self, after: float, well_after: float) -> None:
        self._after = after
        self._well_after = well_after
        self._began: float | None = None
        self._gone: float | None = None
        self.sick_since: float | None = None
        self.alarms = 0

    def look(self, symptom_since: float | None, at: float) -> _Change | None:
        return self._without(at) if symptom_since is None else self._with(symptom_since, at)

    def begin_anew(self, at: float) -> None:
        self._began = self._gone = None
        if self.sick_since is not None:
            self.sick_since = min(self.sick_since, at)  # the clock was set back

    def _with(self, since: float, at: float) -> _Change | None:
        self._gone = None
        self._began = since if self._began is None else self._began
        if self.sick_since is not None or at - self._began < self._after:
            return None
        self.sick_since = self._began
        self.alarms += 1
        return _Change(self.sick_since, well=False)

    def _without(self, at: float) -> _Change | None:
        self._began = None
        if self.sick_since is None:
            return None
        self._gone = at if self._gone is None else self._gone
        if at - self._gone < self._well_after:
            return None
        change, self.sick_since, self._gone = _Change(self.sick_since, well=True), None, None
        return change


class _Rhythm:
    """How often pictures come, to distinguish a silence from a low rate."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._usual: float | None = None

    def broken(self, at: float) -> bool:
        """Whether more time went by than between two pictures, or the clock went back."""
        passed, self._last = (0.0 if self._last is None else at - self._last), at
        usual = self._usual
        if passed > 0:
            self._usual = passed if usual is None else usual + (passed - usual) / 8
        return passed < 0 or (usual is not None and passed > max(_GAP, 4 * usual))


# ---- symptoms


def is_black(vitals: Vitals) -> bool:
    """Neither light nor structure."""
    low, high = spread(vitals)
    if high >= _DARK or high - low > _BLACK_SPREAD:
        return False
    return high - low < _BLACK_SPREAD or float(np.mean(_steps(vitals) > 1)) < _DIM_SHARE


def spread(vitals: Vitals) -> tuple[int, int]:
    """The 2nd and the 98th percentile of the thumbnail between its margins, in which the date is written."""
    cells = np.sort(vitals.thumbnail[_MARGIN:-_MARGIN], axis=None)
    return int(cells[len(cells) // 50]), int(cells[len(cells) - 1 - len(cells) // 50])


def is_covered(vitals: Vitals) -> bool:
    """One plain surface. In the dark, where a scene has small steps too, it must be all the plainer."""
    steps = _steps(vitals)
    large = float(np.mean(steps > _PLAIN_STEP))
    if vitals.brightness >= _DARK:
        return large < _PLAIN_SHARE
    low, high = spread(vitals)
    is_lit = high - low >= _LIT_SPREAD and large < _DIM_SHARE and _colours(vitals) <= _ONE_COLOUR
    return not is_black(vitals) and (is_lit or float(np.mean(steps > 1)) < _DIM_SHARE)


def _steps(vitals: Vitals) -> NDArray[np.int16]:
    """Between each cell of the thumbnail and its neighbours, without the margins; the larger one. Grey levels."""
    middle = vitals.thumbnail[_MARGIN:-_MARGIN].astype(np.int16)
    across, down = np.abs(np.diff(middle, axis=1))[:-1], np.abs(np.diff(middle, axis=0))[:, :-1]
    return np.maximum(across, down)


def _colours(vitals: Vitals) -> float:
    """Levels from the 2nd to the 98th percentile of Cr or Cb without the margins, whichever has more."""
    low, high = np.percentile(vitals.colours[:, _MARGIN:-_MARGIN].reshape(2, -1), (2, 98), axis=1)
    return float((high - low).max())


class _Stillness:
    """Since when there has been no new picture: the last one again, or a loop of a few.

    An encoder that has nothing to add repeats its picture until the next keyframe, which a live sensor's noise makes
    another one. So repeating counts once a keyframe has come meanwhile, or after the longest interval of keyframes.
    """

    def __init__(self) -> None:
        self._known: deque[int] = deque(maxlen=_LOOP)
        self._since = 0.0
        self._keyframes = 0

    def look(self, vitals: Vitals, at: float) -> float | None:
        if vitals.fingerprint in self._known:
            self._keyframes += vitals.keyframes
            return self._since
        self._known.append(vitals.fingerprint)
        self._since, self._keyframes = at, 0
        return None

    def is_told(self, at: float) -> bool:
        return self._keyframes > 0 or at - self._since > _KEY_INTERVAL


class _Focus:
    """Sharpness for its contrast, and what of it is usual for this camera."""

    def __init__(self) -> None:
        self._level = 0.0  # logarithm; a few odd pictures do not move its mean much
        self._known = 0.0  # seconds of pictures that made it
        self._last: float | None = None

    @property
    def usual(self) -> float | None:
        return math.exp(self._level) if self._known >= _USUAL_AFTER else None

    def is_lost(self, vitals: Vitals, at: float) -> bool:
        """Learns from pictures that are not blurred only, or a lasting blur would become the usual."""
        sharpness = (vitals.sharpness + 0.01) / (vitals.contrast + 1.0) ** 2
        soft = vitals.sharpness < _UNSHARP and sharpness < _SOFT
        passed = 0.0 if self._last is None else min(max(at - self._last, 0.0), _USUAL_AFTER / 4)
        self._last = at
        if soft and self.usual is not None and sharpness < self.usual * _SOFTER:
            return True
        self._learn(math.log(sharpness), passed)
        return False

    def _learn(self, level: float, passed: float) -> None:
        """The plain mean at first, then one that forgets."""
        self._known = min(self._known + passed, _USUAL_OVER)
        weight = passed / self._known if self._known else 1.0
        self._level += (level - self._level) * min(1.0, weight)


class _Damages:
    """Which of the newest pictures the decoder complained of."""

    def __init__(self) -> None:
        self._pictures: deque[tuple[float, bool]] = deque(maxlen=_WINDOW_MOST)

    def look(self, damage: int, at: float) -> float | None:
        """The moment of the first damaged picture in the window, when there are too many of them."""
        self._pictures.append((at, damage > 0))
        while len(self._pictures) > _WINDOW and at - self._pictures[0][0] > _WINDOW:
            self._pictures.popleft()
        damaged = [moment for moment, is_damaged in self._pictures if is_damaged]
        if len(damaged) < max(_DAMAGED_LEAST, _DAMAGED_SHARE * len(self._pictures)):
            return None
        return damaged[0]
