"""The judge sees what is wrong: made-up streams with one fault each, and one without."""

from dataclasses import replace

import pytest
from coatstream.frames.opencv import cv2

from tests.camera_faults import judge
from tests.camera_faults.bars import Bars
from tests.camera_faults.judge import Fences, Window
from tests.camera_faults.lab import PASSWORD, running_lab
from tests.camera_faults.streams import Label, TagEvent
from tests.camera_faults.troubles import Kind, Trouble

FPS = 5.0


def label(number: int, *, worker: str = "host-1-a", fence: int | None = 1, camera: str = "door") -> Label:
    return Label(camera, worker, fence, 100 + number / FPS, 100.01 + number / FPS)


def handed_over() -> list[Label]:
    return [label(n) for n in range(5)] + [label(n, worker="host-2-b", fence=2) for n in range(5, 10)]


def test_a_camera_that_is_handed_over_once_has_no_doubled_fence() -> None:
    assert judge.fences(handed_over()) == Fences(fell=0, shared=0, missing=0, together=0, mingled=0)


def test_a_label_of_an_older_fence_after_a_newer_one_is_seen() -> None:
    labels = [*handed_over(), label(10)]

    assert judge.fences(labels).fell == 1


def test_one_fence_of_two_workers_is_seen() -> None:
    labels = [label(0), label(1, worker="host-2-b")]

    assert judge.fences(labels) == Fences(fell=0, shared=1, missing=0, together=0, mingled=0)


def test_the_same_fence_of_two_cameras_is_nothing() -> None:
    labels = [label(0), label(0, worker="host-2-b", camera="yard")]

    assert judge.fences(labels) == Fences(fell=0, shared=0, missing=0, together=0, mingled=0)


def test_a_picture_older_than_the_last_one_of_the_worker_before_is_seen() -> None:
    labels = handed_over()
    labels[5] = replace(labels[5], captured_at=labels[2].captured_at)

    assert judge.fences(labels).together == 1


def test_a_label_without_a_fence_is_seen() -> None:
    assert judge.fences([label(0, fence=None)]).missing == 1


def test_two_workers_that_label_in_turn_are_seen_without_any_fence() -> None:
    labels = [label(n, worker=f"host-{n % 2}-a", fence=None) for n in range(10)]

    assert judge.fences(labels).mingled == 8


def test_a_camera_that_comes_back_later_is_not_mingled() -> None:
    labels = [label(n, worker=f"host-{n // 10 % 2}-a") for n in range(30)]

    assert judge.fences(labels).mingled == 0


def test_a_steady_camera_has_its_whole_rate_wherever_the_window_begins() -> None:
    labels = [label(n) for n in range(100)]

    for begin in (100.0, 100.07, 100.19):
        share = judge.rate_share(labels, [Window(begin, begin + 7.3), Window(begin + 8, begin + 11.11)], FPS)
        assert share == pytest.approx(1.0)


def test_each_tenth_label_missing_is_nine_tenths_of_the_rate() -> None:
    labels = [label(n) for n in range(200) if n % 10 != 5]

    assert judge.rate_share(labels, [Window(100, 140)], FPS) == pytest.approx(0.9, abs=0.01)


def test_a_silence_at_the_end_of_a_window_counts() -> None:
    labels = [label(n) for n in range(26)]  # 5 s

    assert judge.rate_share(labels, [Window(100, 110)], FPS) == pytest.approx(0.5)


def test_a_first_picture_that_came_late_is_no_camera_that_runs_too_fast_but_double_the_rate_is() -> None:
    late = [replace(label(0), captured_at=100.15), *(label(n) for n in range(1, 11))]
    double = [replace(label(n), captured_at=100 + n / FPS / 2) for n in range(21)]

    assert (judge.rate_share(late, [Window(100, 102.0)], FPS) or 0) > 1.05
    assert (judge.rate_share(late, [Window(100, 102.0)], FPS, spare=1.0) or 9) <= 1.05
    assert (judge.rate_share(double, [Window(100, 102.0)], FPS, spare=1.0) or 0) > 1.5


def test_a_window_without_a_label_is_a_rate_of_nothing() -> None:
    assert judge.rate_share([], [Window(100, 110)], FPS) == 0


def test_the_longest_gap_reaches_from_the_beginning_and_to_the_end() -> None:
    labels = [label(n) for n in (10, 11, 12)]  # 102.01 to 102.41

    assert judge.longest_gap(labels, 100, 103) == pytest.approx(2.01)
    assert judge.longest_gap(labels, 101.9, 106) == pytest.approx(3.59)
    assert judge.longest_gap([], 100, 103) == 3


def test_a_camera_that_no_worker_takes_over_is_reported_as_never() -> None:
    labels = [label(1, worker="host-2-b"), label(2, camera="yard")]

    times = judge.first_elsewhere(labels, ["door", "yard"], left=1, since=100.0)

    assert times == {"door": pytest.approx(0.21), "yard": None}
    assert judge.slowest(times.values()) is None
    bars = Bars()
    bars.at_most("labelled elsewhere", judge.slowest(times.values()), 4.0, " s")
    assert bars.failures == ["labelled elsewhere never (bar: at most 4.00 s)"]


def test_shares_count_workers_without_any_camera() -> None:
    owned = {"a": 1, "b": 1, "c": 2}

    assert judge.spread(owned, [1, 2]) == 1
    assert judge.spread(owned, [1, 2, 3]) == 2


def event(tag: str, at: float, *, started: bool, started_at: float | None = None) -> TagEvent:
    return TagEvent("door", tag, started, at, {"started_at": at if started_at is None else started_at})


def test_tags_that_alternate_are_well_and_the_last_one_is_open() -> None:
    ended = event("cat", 3, started=False, started_at=1)
    events = [event("cat", 1, started=True), ended, event("cat", 4, started=True)]

    story = judge.tag_story(events)

    assert not story.twice
    assert story.open == frozenset({("door", "cat")})
    assert story.strange == 0


def test_an_end_that_tells_of_another_start_is_seen() -> None:
    story = judge.tag_story([event("cat", 1, started=True), event("cat", 9, started=False, started_at=7)])

    assert story.strange == 1


def test_a_doubled_start_and_a_lost_one_are_seen() -> None:
    doubled = judge.tag_story([event("cat", 1, started=True), event("cat", 2, started=True)])
    lost = judge.tag_story([event("cat", 1, started=False)])

    assert doubled.twice == ("cat on door started twice",)
    assert lost.twice == ("cat on door ended twice",)


def span(tag: str, begin: float, end: float) -> list[TagEvent]:
    detail = {"started_at": begin, "ended_at": end}
    return [TagEvent("door", tag, True, begin, detail), TagEvent("door", tag, False, end, detail)]


def test_scenes_that_had_no_tag_and_tags_that_outlived_their_scene_are_seen() -> None:
    labels = [replace(label(n), top=10 if n < 20 else 90) for n in range(40)]  # 4 s each, from 100 on
    seen = judge.scenes(labels, {"dark": range(50), "light": range(50, 100)})
    dark, light = seen

    assert [(scene.tag, scene.begin) for scene in seen] == [("dark", 100), ("light", 104)]
    assert judge.untold(seen, span("dark", 100, 103.8) + span("light", 104, 107.8)) == ([], [])
    assert judge.untold(seen, span("dark", 100, 103.8)) == ([light], [])
    assert judge.untold(seen, span("dark", 100, 108) + span("light", 104, 107.8)) == ([], [light])
    assert judge.untold(seen, span("light", 104, 107.8)) == ([dark], [])


def test_a_scene_that_no_worker_saw_whole_needs_no_tag() -> None:
    labels = [label(n) for n in (*range(9), *range(20, 29))]  # 1.6 s, a pause, 1.6 s

    assert judge.untold(judge.scenes(labels, {"dark": range(50)}), []) == ([], [])


def test_a_backoff_is_the_last_wait_that_was_logged_before_the_camera_was_back() -> None:
    trouble = Trouble(Kind.KILL, "door", began=100.0, ended=102.0, back=104.5)
    log = [
        (99.0, {"source": "door", "reopen_in": 9.0}),  # of an earlier fault
        (100.1, {"source": "door", "reopen_in": 0.4}),
        (101.0, {"source": "door", "reopen_in": 1.8}),
        (101.5, {"source": "yard", "reopen_in": 7.0}),
        (105.0, {"source": "door", "reopen_in": 8.0}),  # of the next one
    ]

    assert (trouble.allowed(log), trouble.took) == (1.8, 2.5)


def test_a_camera_of_the_lab_does_as_it_is_told() -> None:
    with running_lab(1, each_alone=True) as lab:
        camera = lab.cameras["cam-1"]
        assert opens(camera.url) == (320, 240)
        camera.tell("password", password="other")
        assert not opens(camera.url)
        camera.tell("password", password=PASSWORD)
        camera.tell("kill")
        assert not opens(camera.url)
        camera.tell("start")
        camera.tell("show", clip="cam160")
        assert opens(camera.url) == (160, 128)


def opens(url: str) -> tuple[int, int] | None:
    """The size of the first picture."""
    options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 5000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5000, cv2.CAP_PROP_N_THREADS, 1]
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, options)
    try:
        there, picture = capture.read()
    finally:
        capture.release()
    return (picture.shape[1], picture.shape[0]) if there and picture is not None else None
