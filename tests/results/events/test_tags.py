"""Tags: which start and end, when, and what is said of them. Scores as a model gives them, clocks as they may be."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from coatstream.frames.frame import Label, PictureFault, Prediction, ScoredLabel
from coatstream.results.events.event import Event
from coatstream.results.events.tag_classes import tag_classes
from coatstream.results.events.tags import MOST_TRACKED, Mean, PresentTag, Tagger
from coatstream.settings.model import TagSettings
from hypothesis import given
from hypothesis import strategies as st

from tests.support.doubles import SettableClock

NAMES = ("cat", "dog", "bird", "cup")
LABELS = tuple(Label(index, None, name) for index, name in enumerate(NAMES))
NOW = 1_700_000_000.0


class Watched:
    """A tagger whose camera gives a frame whenever a test says so."""

    def __init__(self, *, fps: float = 0.0, resumed: "Watched | None" = None, **settings: object) -> None:
        self.settings = TagSettings.model_validate({"memory": 0.001, "min_duration": 1, "min_gap": 1, **settings})
        self.wall, self.monotonic = SettableClock(NOW), SettableClock(5.0)
        self.tagger = Tagger(
            "door",
            self.settings,
            tag_classes(self.settings, LABELS),
            fps=fps,
            clock=self.wall,
            monotonic=self.monotonic,
        )
        self.events: list[Event] = []
        self.frames = 0

    def wait(self, seconds: float) -> None:
        self.wall.now += seconds
        self.monotonic.now += seconds

    def frame(
        self,
        scores: Mapping[str, float],
        *,
        faults: Sequence[PictureFault] = (),
        suspect: bool = False,
        fence: int = 0,
    ) -> list[Event]:
        self.frames += 1
        labels = tuple(ScoredLabel(LABELS[NAMES.index(name)], score) for name, score in scores.items())
        prediction = Prediction(
            "door",
            f"f{self.frames}",
            self.wall.now,
            labels[:1],
            64,
            36,
            further=labels[1:],
            faults=tuple(faults),
            suspect=suspect,
            fence=fence,
        )
        return self._note(self.tagger.seen(prediction))

    def play(self, seconds: float, scores: Mapping[str, float], *, fps: float = 8.0) -> list[Event]:
        """So many seconds of the same."""
        events: list[Event] = []
        for _ in range(round(seconds * fps)):
            events += self.frame(scores)
            self.wait(1 / fps)
        return events

    def tick(self) -> list[Event]:
        return self._note(self.tagger.tick())

    def _note(self, events: Iterable[Event]) -> list[Event]:
        new = list(events)
        self.events += new
        return new


def words(events: Iterable[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.detail["tag"]) for event in events]


def test_a_tag_starts_when_it_has_held_for_min_duration_and_says_its_first_frame() -> None:
    camera = Watched()

    assert camera.play(1.0, {"cat": 0.9}) == []
    (event,) = camera.play(0.125, {"cat": 0.9})

    assert (str(event.kind), event.camera, event.at) == ("tag.started", "door", NOW + 1)
    score = event.detail["score"]
    assert score == pytest.approx(0.9, abs=0.01)
    assert event.detail == {"tag": "cat", "score": score, "started_at": NOW, "frame_id": "f1", "peak": score}
    assert camera.tagger.present == {"cat": PresentTag(score, NOW, "f1", peak=score)}


def test_a_tag_ends_when_it_has_been_gone_for_min_gap_and_tells_its_whole_story() -> None:
    camera = Watched()
    camera.play(2.0, {"cat": 0.9})
    camera.play(0.5, {"cat": 0.6})

    assert camera.play(0.875, {"dog": 0.2}) == []
    (event,) = camera.play(0.125, {})

    assert event.kind == "tag.ended"
    assert event.detail == {
        "tag": "cat",
        "started_at": NOW,
        "ended_at": NOW + 2.375,
        "duration": 2.375,
        "peak": pytest.approx(0.9, abs=0.001),
        "first_frame_id": "f1",
        "last_frame_id": "f20",
        "why": "gone",
    }
    assert camera.tagger.present == {}


def test_flicker_neither_starts_nor_ends_anything() -> None:
    camera = Watched()

    for _ in range(20):
        camera.play(0.5, {"cat": 0.9})
        camera.play(0.5, {"dog": 0.9})
    assert camera.events == []

    camera.play(2, {"cat": 0.9})
    for _ in range(20):
        camera.play(0.5, {"cat": 0.9})
        camera.play(0.5, {"dog": 0.9})

    assert words(camera.events) == [("tag.started", "cat")]


def test_between_the_thresholds_everything_stays_as_it_was() -> None:
    camera = Watched(start_at=0.5, end_below=0.3)

    assert camera.play(5, {"cat": 0.4}) == []
    camera.play(2, {"cat": 0.55})
    assert words(camera.events) == [("tag.started", "cat")]
    assert camera.play(5, {"cat": 0.3}) == []
    assert words(camera.play(2, {"cat": 0.29})) == [("tag.ended", "cat")]


def test_a_tag_may_have_thresholds_of_its_own() -> None:
    camera = Watched(thresholds={"dog": {"start_at": 0.1, "end_below": 0.05}})

    camera.play(2, {"cat": 0.2, "dog": 0.2})

    assert words(camera.events) == [("tag.started", "dog")]


def test_labels_behind_the_published_ones_count_too() -> None:
    camera = Watched(start_at=0.4)

    camera.play(2, {"cat": 0.5, "dog": 0.45})

    assert words(camera.events) == [("tag.started", "cat"), ("tag.started", "dog")]


@pytest.mark.parametrize("fps", [2, 5, 30])
def test_the_mean_does_not_depend_on_the_frame_rate(fps: int) -> None:
    mean = Mean(memory=2.0)
    mean.add({"cat": 0.0}, 0.0)

    for _ in range(3 * fps):
        mean.add({"cat": 0.8}, 1 / fps)
    risen = mean.score("cat")
    for _ in range(2 * fps):
        mean.add({}, 1 / fps)

    assert risen == pytest.approx(0.8 * (1 - math.exp(-1.5)))
    assert mean.score("cat") == pytest.approx(risen * math.exp(-1))


def test_scores_of_many_tags_are_forgotten_the_weakest_first() -> None:
    mean = Mean(memory=1e6)
    for number in range(10_000):
        mean.add({"strong": 0.9, f"weak {number}": 0.1}, 1.0)

    assert mean.score("strong") >= 0.45
    assert sum(mean.score(f"weak {number}") > 0 for number in range(10_000)) <= MOST_TRACKED


def test_votes_are_n_of_the_last_m_frames() -> None:
    camera = Watched(smoothing="votes", votes=3, window=5, min_duration=0, min_gap=0)
    yes, no = {"cat": 0.9}, {"dog": 0.2}

    assert [words(camera.frame(scores)) for scores in (yes, no, yes, no, yes)][-1] == [("tag.started", "cat")]
    assert [words(camera.frame(scores)) for scores in (yes, no, yes, no)] == [[]] * 4
    assert words(camera.frame(no)) == [("tag.ended", "cat")]


def test_a_group_is_one_tag_with_the_sum_of_its_classes_and_they_are_none() -> None:
    camera = Watched(groups={"animal": ["cat", "1"]})

    camera.play(2, {"cat": 0.3, "dog": 0.25, "cup": 0.6})

    assert words(camera.events) == [("tag.started", "animal"), ("tag.started", "cup")]
    assert camera.events[0].detail["score"] == pytest.approx(0.55, abs=0.01)


def test_sick_pictures_say_nothing_of_what_is_there() -> None:
    camera = Watched(lost_after=30)
    camera.play(2, {"cat": 0.9})

    for _ in range(30):
        assert camera.frame({"dog": 0.9}, faults=[PictureFault.COVERED]) == []
        camera.wait(1)

    assert camera.play(2, {"cat": 0.9}) == []
    assert words(camera.play(3, {})) == [("tag.ended", "cat")]


def test_what_only_looks_sick_is_kept_from_the_tags_too() -> None:
    camera = Watched()
    camera.play(2, {"cat": 0.9})

    for _ in range(300):
        assert camera.frame({"dog": 0.9}, suspect=True) == []
        camera.wait(1)


@pytest.mark.parametrize(("sick", "seconds"), [("hold", 20), ("end", 0)])
def test_under_a_lasting_fault_tags_are_held_for_so_long_or_ended(sick: str, seconds: int) -> None:
    camera = Watched(sick=sick, sick_at_most=20)
    camera.play(2, {"cat": 0.9})

    held = 0
    while not (events := camera.frame({}, faults=[PictureFault.BLACK])):
        camera.wait(1)
        held += 1

    (event,) = events
    assert held == seconds
    assert (event.kind, event.detail["why"], event.detail["ended_at"]) == ("tag.ended", "sick", NOW + 1.875)


@pytest.mark.parametrize("fps", [0.2, 1.0, 10.0, 60.0])
@pytest.mark.parametrize("before", ["nothing", "a gap", "another worker", "a sick spell", "empty pictures"])
def test_no_single_frame_makes_a_tag_at_any_rate(fps: float, before: str) -> None:
    camera = Watched(fps=fps, memory=0.5, min_duration=0, min_gap=0)
    if before != "nothing":
        camera.play(3 / fps + 2, {"dog": 0.1}, fps=fps)
    if before == "a gap":
        camera.wait(20)
    if before == "another worker":
        camera.tagger.resume({}, fence=0)
    if before == "a sick spell":
        for _ in range(30):
            camera.frame({"cat": 1.0}, suspect=True)
            camera.wait(1 / fps)

    camera.frame({"cat": 1.0})
    camera.wait(1 / fps)
    camera.play(10 / fps, {"dog": 0.1}, fps=fps)

    assert camera.events == []


def test_a_tag_begins_and_ends_with_the_frames_that_show_it_not_when_the_mean_has_followed() -> None:
    camera = Watched(memory=1.0)
    camera.play(5, {"dog": 0.1})
    camera.play(3, {"cat": 0.6})
    camera.play(5, {"dog": 0.1})

    started, ended = camera.events
    assert (started.detail["started_at"], ended.detail["ended_at"]) == (NOW + 5, NOW + 7.875)
    assert started.at == pytest.approx(NOW + 6.1, abs=0.15)  # when the mean has reached .4
    assert ended.at == pytest.approx(NOW + 9.0, abs=0.15)  # when it is below .2


def test_a_score_that_hovers_below_the_threshold_for_long_begins_no_tag_in_the_past() -> None:
    camera = Watched(memory=0.5, min_duration=0)
    for _ in range(40):
        camera.frame({"cat": 0.41})
        camera.wait(0.125)
        camera.play(0.25, {"cat": 0.37})
    began = camera.wall.now
    camera.play(2, {"cat": 0.5})

    (started,) = camera.events
    assert began - 2 <= started.detail["started_at"] <= began


def test_without_a_frame_for_lost_after_all_tags_end_with_the_last_frame_that_had_them() -> None:
    camera = Watched(lost_after=30, min_duration=1)
    camera.play(2, {"cat": 0.9, "dog": 0.8})

    camera.wait(29)
    assert camera.tick() == []
    camera.wait(1)
    events = camera.tick()

    assert [(event.detail["tag"], event.detail["why"]) for event in events] == [
        ("cat", "camera_lost"),
        ("dog", "camera_lost"),
    ]
    assert {event.detail["last_frame_id"] for event in events} == {"f16"}
    assert camera.tick() == []


def test_a_frame_after_a_long_silence_ends_them_first_and_then_counts_as_the_first() -> None:
    camera = Watched(lost_after=30, min_duration=0)
    camera.play(1, {"cat": 0.9})
    camera.wait(60)

    assert words(camera.play(0.5, {"cat": 0.9})) == [("tag.ended", "cat"), ("tag.started", "cat")]
    assert camera.events[-1].detail["started_at"] == NOW + 61


def test_a_slow_camera_is_not_lost_between_two_frames() -> None:
    camera = Watched(fps=0.01, lost_after=30, memory=0.001)

    for _ in range(5):
        camera.frame({"cat": 0.9})
        camera.wait(100)
        assert camera.tick() == []

    assert words(camera.events) == [("tag.started", "cat")]


@pytest.mark.parametrize("jump", [-7200.0, -0.5, 0.5, 7200.0])
def test_a_clock_that_is_set_neither_ends_a_tag_nor_stretches_it_by_much(jump: float) -> None:
    camera = Watched(lost_after=30)
    camera.play(2, {"cat": 0.9})
    camera.wall.now += jump
    camera.play(2, {"cat": 0.9})
    camera.play(2, {})

    started, ended = camera.events
    assert ended.detail["started_at"] == started.detail["started_at"]
    assert ended.detail["duration"] == pytest.approx(3.9, abs=0.6)


def test_a_removed_cameras_tags_end() -> None:
    camera = Watched()
    camera.play(2, {"cat": 0.9})
    camera.frame({"cat": 0.9, "dog": 0.9})

    (event,) = camera.tagger.end("removed")

    assert (event.detail["tag"], event.detail["why"]) == ("cat", "removed")
    assert camera.tagger.present == {}


def test_a_successor_goes_on_with_the_tags_that_it_finds() -> None:
    camera = Watched()
    camera.tagger.resume({"cat": PresentTag(0.7, NOW - 100, "f0"), "dog": PresentTag(0.6, NOW - 50)}, fence=4)

    for _ in range(30):
        camera.frame({"cat": 0.9}, fence=4)
        camera.wait(0.125)

    (event,) = camera.events
    assert (event.kind, event.fence) == ("tag.ended", 4)
    assert event.detail == {
        "tag": "dog",
        "started_at": NOW - 50,
        "ended_at": NOW,
        "duration": 50.0,
        "peak": 0.6,
        "first_frame_id": None,
        "last_frame_id": None,
        "why": "gone",
    }
    assert camera.tagger.present == {"cat": PresentTag(0.7, NOW - 100, "f0")}


def test_what_was_said_under_the_same_lease_outlives_an_older_picture_of_it() -> None:
    camera = Watched(min_duration=0, min_gap=0)
    for name in ("cat", "dog"):
        for _ in range(4):
            camera.frame({name: 0.9}, fence=4)
            camera.wait(1)

    camera.tagger.resume({"cat": PresentTag(0.9, NOW, "f1")}, fence=4)
    assert set(camera.tagger.present) == {"dog"}

    camera.tagger.resume({"cat": PresentTag(0.9, NOW, "f1")}, fence=5)
    assert set(camera.tagger.present) == {"cat"}


def test_resumed_tags_wait_for_frames_as_long_as_others() -> None:
    camera = Watched(lost_after=30)
    camera.wait(1000)
    camera.tagger.resume({"cat": PresentTag(0.7, NOW, "f0")})

    assert camera.tick() == []
    camera.wait(30)
    assert words(camera.tick()) == [("tag.ended", "cat")]


scores = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.05, 0.35, 0.6, 0.95]), max_size=3)
settings = st.fixed_dictionaries(
    {
        "memory": st.sampled_from([0.01, 0.5, 2.0]),
        "smoothing": st.sampled_from(["mean", "votes"]),
        "min_duration": st.sampled_from([0.0, 0.5, 1.5]),
        "min_gap": st.sampled_from([0.0, 0.5, 1.5]),
        "lost_after": st.sampled_from([2.0, 30.0]),
        "groups": st.sampled_from([{}, {"pet": ["cat", "1"]}]),
    }
)


@dataclass(frozen=True, slots=True)
class Step:
    scores: dict[str, float]
    pause: float  # seconds before it
    jump: float  # by which the clock is set
    sick: bool
    restart: bool


steps = st.builds(
    Step,
    scores=scores,
    pause=st.sampled_from([0.1, 0.2, 0.5, 1.0, 5.0]),
    jump=st.sampled_from([0.0] * 8 + [-3600.0, 0.3]),
    sick=st.sampled_from([False] * 5 + [True]),
    restart=st.sampled_from([False] * 9 + [True]),
)


@given(options=settings, played=st.lists(steps, max_size=60), jumps=st.booleans())
def test_whatever_is_seen_tags_start_and_end_in_turn_and_are_neither_too_short_nor_too_close(
    options: dict[str, Any], played: list[Step], jumps: bool
) -> None:
    camera = Watched(**options)
    there: dict[str, PresentTag] = {}  # as Redis has it
    runs: dict[str, list[Mapping[str, Any]]] = defaultdict(list)

    for step in played:
        camera.wait(step.pause)
        camera.wall.now += step.jump if jumps else 0
        if step.restart:
            wall, monotonic, frames = camera.wall, camera.monotonic, camera.frames
            camera = Watched(**options)
            camera.wall.now, camera.monotonic.now, camera.frames = wall.now, monotonic.now, frames
            camera.tagger.resume(there)
            assert camera.tagger.present == there
        for event in camera.frame(step.scores, faults=[PictureFault.BLACK] if step.sick else []):
            tag = event.detail["tag"]
            if event.kind == "tag.started":
                assert tag not in there
                started = event.detail
                there[tag] = PresentTag(
                    started["score"], started["started_at"], started["frame_id"], peak=started["peak"]
                )
            else:
                assert there.pop(tag).started_at == event.detail["started_at"]
                runs[tag].append(event.detail)
        assert camera.tagger.present == there

    slack = 1e-6
    for ended in (run for tag_runs in runs.values() for run in tag_runs):
        assert ended["duration"] >= options["min_duration"] - slack
        assert ended["ended_at"] - ended["started_at"] == pytest.approx(ended["duration"], abs=1e-5)
    if not jumps:
        for tag_runs in runs.values():
            for before, after in pairwise(tag_runs):
                gap = 0 if before["why"] in ("camera_lost", "sick") else options["min_gap"]
                assert after["started_at"] - before["ended_at"] >= gap - slack


def test_an_outage_of_ours_ends_no_tag_and_is_part_of_its_duration() -> None:
    camera = Watched(lost_after=10, min_gap=1)
    camera.play(3, {"cat": 0.9})
    waiting = camera.wall.now  # a frame that was taken just before nothing could be published any more

    for _ in range(60):
        camera.wait(1)
        camera.tagger.excuse()
        assert camera.tick() == []
    camera.wall.now, now = waiting, camera.wall.now
    camera.frame({"cat": 0.9})
    camera.wall.now = now
    camera.play(2, {"cat": 0.9})
    camera.play(2, {})

    assert words(camera.events) == [("tag.started", "cat"), ("tag.ended", "cat")]
    assert camera.events[-1].detail["duration"] == pytest.approx(65, abs=0.5)
