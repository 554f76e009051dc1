"""From labels that flicker to tags that start and end. One camera's; pure over its clocks, knows no Redis.

A tag is on from the first frame at which its smoothed score reaches `start_at` to the last one before it falls below
`end_below`. Its start is published when it has been on for `min_duration`, and it ends when it has been off for
`min_gap`: so no tag is shorter than the one, and no pause shorter than the other.
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

Why = Literal["gone", "camera_lost", "removed", "no_worker", "model"]


@dataclass(frozen=True, slots=True)
class PresentTag:
    """A tag that is present now, as clients read it.

    score            when its start was published
    started_at       Unix seconds, of the first frame
    first_frame_id   None where it is not known any more
    model            that saw it; empty where that is not known
    seen_at          Unix seconds, of the last frame, to some seconds; 0 where that is not known
    """

    score: float
    started_at: float
    first_frame_id: str | None = None
    model: str = ""
    seen_at: float = 0.0


@dataclass(slots=True)
class _TagRun:
    """A tag from its first frame on.

    published   whether its start was
    on          whether its score holds now
    last_on     Unix seconds of the last frame at which it held
    off_since   Unix seconds of the first frame at which it did not
    """

    start: PresentTag
    peak: float
    published: bool
    last_on: float
    last_frame_id: str | None
    on: bool = True
    off_since: float = 0.0


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

    Only a frame's own tags are touched: the others decay alike, and are worked out when they are asked for.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._now: float | None = None
        self._scores: dict[str, tuple[float, float]] = {}  # tag -> score, and when it had it

    def add(self, scores: Mapping[str, float], elapsed: float) -> None:
        # The first frame is all that is known, and counts whole.
        weight = 1.0 if self._now is None else 1 - math.exp(-elapsed / self._memory)
        self._now = 0.0 if self._now is None else self._now + elapsed
        for tag, score in scores.items():
            self._scores[tag] = (self.score(tag) + weight * score, self._now)
        if len(self._scores) > MOST_TRACKED:
            best = sorted(self._scores, key=self.score, reverse=True)[: MOST_TRACKED // 2]
            self._scores = {tag: self._scores[tag] for tag in best}

    def score(self, tag: str) -> float:
        known = self._scores.get(tag)
        if known is None or self._now is None:
            return 0.0
        return min(1.0, known[0] * math.exp((known[1] - self._now) / self._memory))

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

    def seen(self, prediction: Prediction) -> tuple[Event, ...]:
        """What one more frame changes. A sick picture starts and ends no tag."""
        self._under(prediction.fence)
        lost = self.tick()
        passed = self._monotonic() - self._arrived
        self._arrived += passed
        self._unsmoothed += self._line.advance(prediction.captured_at, passed=passed, loose=not self._runs)
        if prediction.faults:
            return lost
        scores = self._classes.scores(prediction)
        self._smoothing.add(scores, self._unsmoothed)
        self._unsmoothed = 0.0
        changes = (self._judge(tag, prediction) for tag in sorted({*scores, *self._runs}))
        return (*lost, *(event for event in changes if event is not None))

    def _judge(self, tag: str, prediction: Prediction) -> Event | None:
        run = self._runs.get(tag)
        thresholds = self._settings.thresholds.get(tag, self._settings)
        if self._smoothing.reaches(tag, thresholds.end_below if run and run.on else thresholds.start_at):
            return self._on(tag, run, prediction)
        return self._off(tag, run, prediction) if run else None

    def _on(self, tag: str, run: _TagRun | None, prediction: Prediction) -> Event | None:
        now, score = self._now(prediction), self._smoothing.score(tag)
        if run is None:
            run = _TagRun(
                PresentTag(score, now, prediction.frame_id), score, published=False, last_on=now, last_frame_id=None
            )
            self._runs[tag] = run
        run.on, run.last_on, run.last_frame_id, run.peak = True, now, prediction.frame_id, max(run.peak, score)
        if run.published or now - run.start.started_at < self._settings.min_duration:
            return None
        run.published, run.start = True, replace(run.start, score=round(score, 6))
        return self._started(tag, run, prediction)

    def _off(self, tag: str, run: _TagRun, prediction: Prediction) -> Event | None:
        now = self._now(prediction)
        if run.on:
            run.on, run.off_since, run.last_on = False, now, min(run.last_on, now)
        if run.published and now - run.off_since < self._settings.min_gap:
            return None
        del self._runs[tag]
        return self._ended(tag, run, "gone", at=prediction.captured_at) if run.published else None

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
                self._runs[tag] = _TagRun(
                    start, start.score, published=True, last_on=max(now, at_least), last_frame_id=None
                )
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
