"""From labels that flicker to tags that start and end. One camera's; pure over its clocks, knows no Redis.

A tag is on from when its smoothed score reaches `start_at` until that falls below `end_below`. The smoothing decides
whether; the frames' own scores tell when, since a mean is late: a tag started with the first frame of the rise that
reached `start_at` itself, and ended with the last one that reached `end_below` itself. The start is published after
`min_duration`, the end after `min_gap`: so no tag is shorter than the one, and no pause shorter than the other.
No single frame makes a tag, at any rate of frames: two must reach `start_at`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from coatstream.frames.frame import Prediction
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.tag_classes import TagClasses
from coatstream.settings.model import TagSettings

MOST_TRACKED: Final = 256  # tags with a score; beyond that the weakest half is forgotten
FRAMES_MISSED: Final = 3  # a slow camera is not lost before so many frames are missing
MOST_WEIGHT: Final = 0.5  # of one frame in the mean: the first one, or one after a pause, would count (nearly) whole
FRAMES_THAT_HOLD: Final = 2  # it takes to make a tag
_LONGEST_RISE: Final = 3.0  # memories, and
_RISE_FRAMES: Final = 8  # frames, within which a score must have risen; else the tag starts later

Why = Literal["gone", "camera_lost", "removed", "no_worker", "model", "sick", "ended"]


@dataclass(frozen=True, slots=True)
class PresentTag:
    """A tag that is present now, as clients read it.

    score            when its start was published
    started_at       Unix seconds, of the first frame
    first_frame_id   None where it is not known any more
    model            that saw it; empty where that is not known
    seen_at          Unix seconds, of the last frame, to some seconds; 0 where that is not known
    peak             the highest smoothed score until then; 0: it was published by a worker that did not tell
    """

    score: float
    started_at: float
    first_frame_id: str | None = None
    model: str = ""
    seen_at: float = 0.0
    peak: float = 0.0


@dataclass(slots=True)
class _TagRun:
    """A tag from its first frame on.

    published   whether its start was
    last_on     Unix seconds of the last frame that held by itself while it was on
    on          whether its smoothed score holds now
    strong      frames that reached `start_at` by themselves
    frames      since the first one
    """

    start: PresentTag
    peak: float
    published: bool
    last_on: float
    last_frame_id: str | None
    on: bool = False
    strong: int = 1
    frames: int = 0


class Smoothing(Protocol):
    """What makes one score of many frames' scores."""

    def add(self, scores: Mapping[str, float], elapsed: float) -> None:
        """One more frame, so many seconds after the last one."""

    def score(self, tag: str) -> float:
        """0..1."""

    def reaches(self, tag: str, threshold: float) -> bool:
        """Whether the tag is at or above it. A frame without a tag never brings it there."""


class Mean:
    """Exponential moving average by elapsed time: it does not depend on how many frames come in a second.

    It begins at nothing, and no frame weighs more than half. Only a frame's own tags are touched: the others fade
    alike, and are worked out when they are asked for.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._begun = False
        self._faded = 0.0  # the logarithm of what all frames so far have left of a score
        self._scores: dict[str, tuple[float, float]] = {}  # tag -> score, and `_faded` when it had it

    def add(self, scores: Mapping[str, float], elapsed: float) -> None:
        weight = min(MOST_WEIGHT, 1 - math.exp(-elapsed / self._memory)) if self._begun else MOST_WEIGHT
        self._begun = True
        self._faded += math.log1p(-weight)
        for tag, score in scores.items():
            self._scores[tag] = (self.score(tag) + weight * score, self._faded)
        if len(self._scores) > MOST_TRACKED:
            best = sorted(self._scores, key=self.score, reverse=True)[: MOST_TRACKED // 2]
            self._scores = {tag: self._scores[tag] for tag in best}

    def score(self, tag: str) -> float:
        known = self._scores.get(tag)
        return 0.0 if known is None else min(1.0, known[0] * math.exp(self._faded - known[1]))

    def reaches(self, tag: str, threshold: float) -> bool:
        return self.score(tag) >= threshold


class Votes:
    """N of the last M frames: a tag is as good as the N-th best of its last M scores."""

    def __init__(self, votes: int, window: int) -> None:
        self._votes = votes
        self._frames: deque[Mapping[str, float]] = deque(maxlen=window)

    def add(self, scores: Mapping[str, float], elapsed: float) -> None:
        self._frames.append(dict(scores))

    def score(self, tag: str) -> float:
        """The mean over the window, for people: `reaches` counts."""
        return sum(frame.get(tag, 0.0) for frame in self._frames) / max(1, len(self._frames))

    def reaches(self, tag: str, threshold: float) -> bool:
        return sum(frame.get(tag, 0.0) >= threshold for frame in self._frames) >= self._votes


class _Timeline:
    """A camera's frame times, made to rise: neither a clock that is set back nor one that leaps ahead is a pause.

    While `loose` its times are the frames' own again.

    longest  seconds that two frames may be apart
    """

    def __init__(self, *, longest: float) -> None:
        self._longest = longest
        self._floor = 0.0
        self._shift = 0.0
        self._late = 0.0  # seconds that frames come after their time: those behind an outage follow in no time
        self.now: float | None = None

    def advance(self, captured_at: float, *, passed: float, loose: bool) -> float:
        """Seconds since the last frame; `passed` are those by a clock that is never set."""
        if self.now is None:
            self.now = max(captured_at, self._floor)
            self._shift = self.now - captured_at
            return 0.0
        elapsed = captured_at + self._shift - self.now
        if not 0 <= elapsed <= max(self._longest, self._late + passed + 1):
            elapsed = passed
        self._late = max(0.0, self._late + passed - elapsed)
        self._shift = 0.0 if loose else self.now + elapsed - captured_at
        self.now = captured_at + self._shift
        return elapsed

    def rise_to(self, floor: float) -> None:
        """No frame from now on is before this moment."""
        self._floor = floor
        if self.now is not None:
            self.now = max(self.now, floor)


class Tagger:
    """One camera's tags. Used from one thread at a time.

    fps        the camera's rate, where it is known: a slow one is not lost between two frames
    clock      Unix seconds, for what happens without a frame
    monotonic  distinguishes a pause from a clock that was set
    """

    def __init__(
        self,
        camera: str,
        settings: TagSettings,
        classes: TagClasses,
        *,
        fps: float = 0.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._camera = camera
        self._settings = settings
        self._classes = classes
        self._lost_after = max(settings.lost_after, FRAMES_MISSED / fps if fps else 0.0)
        self._clock = clock
        self._monotonic = monotonic
        self._runs: dict[str, _TagRun] = {}
        self._fence = 0
        self._ended_here: set[str] = set()  # tags, under this fence
        self._begin()

    def _begin(self) -> None:
        """Without a memory of frames."""
        settings = self._settings
        by_votes = settings.smoothing == "votes"
        self._smoothing: Smoothing = Votes(settings.votes, settings.window) if by_votes else Mean(settings.memory)
        self._line = _Timeline(longest=self._lost_after)
        self._arrived = self._excused = self._monotonic()
        self._unsmoothed = 0.0  # seconds since the last well picture
        self._sick_since: float | None = None  # Unix seconds of the first picture of a lasting fault

    def seen(self, prediction: Prediction) -> tuple[Event, ...]:
        """What one more frame changes. A picture that is or looks sick tells nothing of what is there."""
        self._under(prediction.fence)
        lost = self.tick()
        passed = self._monotonic() - self._arrived
        self._arrived += passed
        self._unsmoothed += self._line.advance(prediction.captured_at, passed=passed, loose=not self._runs)
        if prediction.faults or prediction.suspect:
            return (*lost, *self._unseen(prediction))
        self._sick_since = None
        scores = self._classes.scores(prediction)
        self._smoothing.add(scores, self._unsmoothed)
        self._unsmoothed = 0.0
        changes = (self._judge(tag, scores.get(tag, 0.0), prediction) for tag in sorted({*scores, *self._runs}))
        return (*lost, *(event for event in changes if event is not None))

    def _unseen(self, prediction: Prediction) -> tuple[Event, ...]:
        """Under a lasting fault tags are held, at most for so long, or ended."""
        if not prediction.faults:
            return ()
        now = self._now(prediction)
        self._sick_since = now if self._sick_since is None else self._sick_since
        if self._settings.sick == "hold" and now - self._sick_since < self._settings.sick_at_most:
            return ()
        return self.end("sick")

    def _judge(self, tag: str, score: float, prediction: Prediction) -> Event | None:
        """`score`: the frame's own."""
        thresholds = self._classes.thresholds(tag, self._settings)
        is_strong, holds = score >= thresholds.start_at, score >= thresholds.end_below
        run = self._run_of(tag, prediction, is_strong=is_strong)
        if run is None:
            return None
        threshold = thresholds.end_below if run.on else thresholds.start_at
        if self._smoothing.reaches(tag, threshold) or (run.on and holds):  # a successor's mean is still to rise
            return self._on(tag, run, prediction, holds=holds)
        rises = is_strong or self._smoothing.score(tag) >= thresholds.end_below
        return self._off(tag, run, prediction, rises=rises)

    def _run_of(self, tag: str, prediction: Prediction, *, is_strong: bool) -> _TagRun | None:
        """The tag's run; it begins with a strong frame, and anew where its score has not risen for a while."""
        run, now = self._runs.get(tag), self._now(prediction)
        if run is not None:
            run.frames += 1
            run.strong += is_strong
            is_rising = not run.published and not run.on
            late = now - run.start.started_at > _LONGEST_RISE * self._settings.memory and run.frames > _RISE_FRAMES
            if not (is_rising and late):
                return run
            del self._runs[tag]
        if not is_strong:
            return None
        run = _TagRun(PresentTag(0.0, now, prediction.frame_id), 0.0, False, now, prediction.frame_id)
        self._runs[tag] = run
        return run

    def _on(self, tag: str, run: _TagRun, prediction: Prediction, *, holds: bool) -> Event | None:
        now, score = self._now(prediction), self._smoothing.score(tag)
        run.on, run.peak = True, max(run.peak, score)
        if not holds:
            return None
        run.last_on, run.last_frame_id = now, prediction.frame_id
        too_early = run.strong < FRAMES_THAT_HOLD or now - run.start.started_at < self._settings.min_duration
        if run.published or too_early:
            return None
        run.published, run.start = True, replace(run.start, score=round(score, 6), peak=round(run.peak, 6))
        return self._started(tag, run, prediction)

    def _off(self, tag: str, run: _TagRun, prediction: Prediction, *, rises: bool) -> Event | None:
        now = self._now(prediction)
        if not run.published:
            if run.on or not rises:
                del self._runs[tag]
            return None
        if run.on:
            run.on, run.last_on = False, min(run.last_on, now)
        if now - run.last_on < self._settings.min_gap:
            return None
        del self._runs[tag]
        return self._ended(tag, run, "gone", at=prediction.captured_at)

    def _now(self, prediction: Prediction) -> float:
        return prediction.captured_at if self._line.now is None else self._line.now

    def tick(self) -> tuple[Event, ...]:
        """What time alone changes: without any frame for `lost_after` all tags end. To be called every second or so."""
        if self._monotonic() - max(self._arrived, self._excused) < self._lost_after:
            return ()
        events = self.end("camera_lost")
        self._begin()
        return events

    def excuse(self) -> None:
        """No frame can be published now, which is not the camera's fault."""
        self._excused = self._monotonic()

    def end(self, why: Why) -> tuple[Event, ...]:
        """All tags are over: the camera is lost, or was removed."""
        at = self._clock()
        events = tuple(self._ended(tag, run, why, at=at) for tag, run in sorted(self._runs.items()) if run.published)
        self._runs.clear()
        return events

    def resume(self, present: Mapping[str, PresentTag], *, fence: int = 0) -> None:
        """Go on from the tags that others have left. They end as all tags do.

        Tags that started here under the same fence are kept: `present` may lack them, as their starts are on their way.
        """
        if fence != self._fence:
            self._under(fence)
            self._runs.clear()
            self._begin()
        now = self._clock()
        self._arrived = self._monotonic()
        for tag, start in present.items():
            if tag not in self._ended_here and not ((known := self._runs.get(tag)) and known.published):
                at_least = start.started_at + self._settings.min_duration
                peak = max(start.score, start.peak)
                self._runs[tag] = _TagRun(start, peak, True, max(now, at_least), last_frame_id=None, on=True)
                self._line.rise_to(at_least)

    def _under(self, fence: int) -> None:
        if fence != self._fence:
            self._fence = fence
            self._ended_here.clear()

    @property
    def present(self) -> dict[str, PresentTag]:
        """The tags whose start was published and whose end was not. For any thread."""
        return {tag: run.start for tag, run in list(self._runs.items()) if run.published}

    def _started(self, tag: str, run: _TagRun, prediction: Prediction) -> Event:
        self._ended_here.discard(tag)
        start = run.start
        detail = {"tag": tag, "score": start.score, "started_at": start.started_at, "frame_id": start.first_frame_id}
        detail["peak"] = start.peak
        return Event(EventKind.TAG_STARTED, self._camera, prediction.captured_at, detail, self._fence)

    def _ended(self, tag: str, run: _TagRun, why: Why, *, at: float) -> Event:
        self._ended_here.add(tag)
        detail = {
            "tag": tag,
            "started_at": run.start.started_at,
            "ended_at": run.last_on,
            "duration": round(run.last_on - run.start.started_at, 6),
            "peak": round(run.peak, 6),
            "first_frame_id": run.start.first_frame_id,
            "last_frame_id": run.last_frame_id,
            "why": why,
        }
        return Event(EventKind.TAG_ENDED, self._camera, at, detail, self._fence)
