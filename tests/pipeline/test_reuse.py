"""The change gate: like frames reuse labels, nothing else does, and the gate closes itself when it is wrong."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from coatstream.frames.frame import Frame, Label, PictureFault, Prediction, ScoredLabel, Vitals
from coatstream.pipeline.consumed import Consumed
from coatstream.pipeline.reuse import ChangeGate, difference, thumbnail_of
from coatstream.settings.model import ReuseSettings
from numpy.typing import NDArray

NEVER_CHECK = ReuseSettings(enabled=True, check=0)
ALWAYS_CHECK = ReuseSettings(enabled=True, check=1)
SCENE = np.random.default_rng(0).integers(20, 230, (36, 64), np.uint8)
NO_PIXELS = np.zeros((1, 1, 3), np.uint8)

Thumbnail = NDArray[np.uint8]


@dataclass
class Camera:
    """Makes frames 0.2 s apart, and says of each class `label` what the model says."""

    gate: ChangeGate
    now: float = 100.0
    number: int = 0
    reused: list[Prediction] = field(default_factory=list)

    def frame(self, thumbnail: Thumbnail = SCENE, **changes: Any) -> Frame:
        self.number += 1
        self.now += 0.2
        vitals = Vitals(120, 50, 500, 0, self.number, thumbnail)
        frame = Frame("door", f"f{self.number}", self.now, NO_PIXELS, width=640, height=360, vitals=vitals)
        return replace(frame, **changes)

    def see(self, thumbnail: Thumbnail = SCENE, *, label: int = 7, **changes: Any) -> Prediction | None:
        """What the gate says of the next frame; what it does not answer is classified as `label`."""
        frame = self.frame(thumbnail, **changes)
        answer = self.gate.consider(frame)
        if answer is None:
            self.gate.classified(frame, said(frame, label))
        else:
            self.reused.append(answer)
        return answer

    def known(self, label: int = 7, **changes: Any) -> None:
        """The scene is seen as often as it takes until it is reused."""
        for _ in range(3):
            assert self.see(label=label, **changes) is None


def said(frame: Frame, label: int, *, second: float = 0.1) -> Prediction:
    best = ScoredLabel(Label(label, None, f"class {label}"), 0.6)
    return Prediction(
        source=frame.source,
        frame_id=frame.frame_id,
        captured_at=frame.captured_at,
        labels=(best,),
        further=(ScoredLabel(Label(0, None, "class 0"), second),),
        width=frame.width,
        height=frame.height,
        embedding=np.full(4, label, np.float16),
        faults=frame.faults,
        fence=frame.fence,
    )


def camera(settings: ReuseSettings = NEVER_CHECK, *, seed: int = 0, consumed: Consumed | None = None) -> Camera:
    made: list[Camera] = []
    gate = ChangeGate(settings, rng=random.Random(seed), consumed=consumed, monotonic=lambda: made[0].now)
    made.append(Camera(gate))
    return made[0]


def brighter(levels: int, rows: slice = slice(None), columns: slice = slice(None)) -> Thumbnail:
    changed = SCENE.copy()
    changed[rows, columns] += np.uint8(levels)
    return changed


# ---- what is reused


def test_the_first_three_frames_are_classified_and_a_like_one_takes_over_their_labels() -> None:
    door = camera()

    door.known(label=7)
    answer = door.see(label=9)

    assert answer is not None
    assert answer.labels[0].label.index == 7
    assert answer.further[0].label.index == 0
    assert answer.reused


def test_a_reused_prediction_is_this_frames_own_in_everything_but_its_labels() -> None:
    door = camera()
    door.known(label=7, fence=4)

    frame = door.frame(fence=4, meta='{"a":1}')
    answer = door.gate.consider(frame)

    assert answer is not None
    assert (answer.frame_id, answer.captured_at, answer.meta) == (frame.frame_id, frame.captured_at, frame.meta)
    assert (answer.width, answer.height, answer.fence, answer.faults) == (640, 360, 4, ())
    assert answer.receipt is None
    assert answer.embedding is not None
    assert answer.embedding.tolist() == [7, 7, 7, 7]


def test_a_reference_that_was_itself_reused_is_never_compared_with() -> None:
    door = camera()
    door.known()

    answers = [door.see(brighter(step)) for step in range(1, 7)]

    assert [answer is not None for answer in answers] == [True, True, True, True, False, False]


def test_a_small_thing_that_moves_is_noticed() -> None:
    door = camera()
    door.known()

    assert door.see(brighter(20, slice(10, 12), slice(30, 32))) is None


def test_flicker_within_the_allowed_difference_is_none() -> None:
    door = camera()
    door.known()

    assert all(door.see(brighter(levels)) for levels in (1, 2, 1, 3, 0))


def test_the_difference_is_that_of_the_most_different_part() -> None:
    one, other = (
        thumbnail_of(Vitals(120, 50, 500, 0, 1, plane)) for plane in (SCENE, brighter(10, slice(4, 6), slice(8, 10)))
    )

    assert difference(one, one) == 0
    assert difference(one, other) == difference(other, one) == 10


def test_a_heartbeat_is_classified_however_still_the_scene_is() -> None:
    door = camera(ReuseSettings(enabled=True, check=0, heartbeat=2.0))

    answers = [door.see() for _ in range(31)]

    assert [number for number, answer in enumerate(answers) if answer is None] == [0, 1, 2, 12, 22]


def test_another_colour_of_the_same_brightness_is_noticed() -> None:
    door = camera()
    door.known()
    frame = door.frame()
    assert frame.vitals is not None

    red = replace(frame.vitals, colours=np.full((2, 36, 64), 140, np.uint8))

    assert door.gate.consider(replace(frame, vitals=red)) is None


def test_what_is_reused_is_the_mean_of_the_last_classifications() -> None:
    door = camera()
    for score in (0.6, 0.3, 0.45):
        frame = door.frame()
        door.gate.consider(frame)
        door.gate.classified(frame, scored(frame, score))

    answer = door.gate.consider(door.frame())

    assert answer is not None
    assert answer.labels[0].score == pytest.approx(0.45)


def scored(frame: Frame, score: float) -> Prediction:
    return replace(said(frame, 7), labels=(ScoredLabel(Label(7, None, "class 7"), score),))


TAGGED = Consumed(thresholds=lambda tag: (0.2, 0.4))


@pytest.mark.parametrize(
    ("scores", "reuses"),
    [
        ((0.6, 0.6, 0.6), True),
        ((0.42, 0.42, 0.42), True),  # it is on, and far from its end
        ((0.1, 0.1, 0.1), True),
        ((0.2, 0.2, 0.2), True),  # it is off, and far from its start
        ((0.38, 0.38, 0.38), False),
        ((0.33, 0.24, 0.42), False),  # it may be on at any time
        ((0.6, 0.23, 0.21, 0.22, 0.2), False),  # it may end
    ],
)
def test_a_frame_near_the_threshold_that_matters_is_classified(scores: tuple[float, ...], reuses: bool) -> None:
    door = camera(consumed=TAGGED)
    for score in scores:
        frame = door.frame()
        door.gate.consider(frame)
        door.gate.classified(frame, scored(frame, score))

    assert (door.gate.consider(door.frame()) is not None) is reuses
    assert door.gate.stats().doubtful == (0 if reuses else door.gate.stats().doubtful)


def test_a_gate_that_saves_nothing_says_why() -> None:
    moving, near, still = camera(consumed=TAGGED), camera(consumed=TAGGED), camera()
    for number in range(200):
        moving.see(brighter(number % 2 * 20))
        still.see()
        frame = near.frame()
        if near.gate.consider(frame) is None:
            near.gate.classified(frame, scored(frame, 0.38 + 0.01 * (number % 3)))

    assert moving.gate.stats().why == "the picture changes"
    assert near.gate.stats().why.startswith("the score of class 7 is near a threshold")
    assert still.gate.stats().why == ""


def test_the_interval_of_its_own_checks_contains_the_truth() -> None:
    inside = 0
    for seed in range(40):
        flips = random.Random(seed)
        door = camera(ReuseSettings(enabled=True, check=0.2, budget=1.0), seed=seed)
        wrong = 0
        for _ in range(400):
            label = 8 if flips.random() < 0.05 else 7
            answer = door.see(label=label)
            wrong += answer is not None and not Consumed().agree(
                {one.label.name: one.score for one in answer.labels}, {f"class {label}": 0.6}, ()
            )
        low, high = door.gate.stats().interval
        stats = door.gate.stats()
        inside += low <= (wrong + stats.disagreements) / (stats.reused + stats.checks) <= high
    assert inside >= 36


@pytest.mark.parametrize("change", [{"width": 1280}, {"height": 720}, {"fence": 9}, {"vitals": None}])
def test_another_size_another_lease_or_an_unmeasured_picture_is_classified(change: dict[str, Any]) -> None:
    door = camera()
    door.known()

    assert door.see(**change) is None


def test_a_sick_picture_neither_reuses_labels_nor_lends_its_own() -> None:
    door = camera()
    door.known()

    assert door.see(faults=(PictureFault.COVERED,)) is None

    door.known()
    assert door.see() is not None


def test_a_frame_that_never_comes_back_from_the_engine_leaves_the_reference_alone() -> None:
    door = camera()
    door.known(label=7)
    door.gate.consider(door.frame(brighter(20)))

    answer = door.see()

    assert answer is not None
    assert answer.labels[0].label.index == 7


# ---- honesty


def test_every_checked_frame_is_classified_and_counted() -> None:
    door = camera(ALWAYS_CHECK)

    answers = [door.see(label=7) for _ in range(20)]

    stats = door.gate.stats()
    assert answers == [None] * 20
    assert (stats.considered, stats.reused, stats.checks, stats.disagreements) == (20, 0, 17, 0)


def test_checks_are_about_the_share_that_was_asked_for_once_the_gate_is_trusted() -> None:
    door = camera(ReuseSettings(enabled=True, check=0.02))
    for _ in range(1500):
        door.see()
    before = door.gate.stats()

    for _ in range(10_000):
        door.see()

    after = door.gate.stats()
    assert 0.013 < (after.checks - before.checks) / 10_000 < 0.027
    assert after.reused > 0.9 * after.considered


def test_in_the_beginning_five_times_as_many_are_checked() -> None:
    counts = [checks_of(camera(ReuseSettings(enabled=True, check=0.02), seed=seed), frames=300) for seed in range(20)]

    assert 20 < sum(counts) / 20 < 40


def checks_of(door: Camera, *, frames: int) -> int:
    for _ in range(frames):
        door.see()
    return door.gate.stats().checks


def test_the_labels_of_a_stable_scene_leave_the_gate_as_it_was_set() -> None:
    door = camera(ReuseSettings(enabled=True))

    for _ in range(5000):
        door.see()

    stats = door.gate.stats()
    assert (stats.disagreements, stats.rate, stats.difference) == (0, 0, 4)


def test_on_near_ties_the_gate_ends_by_reusing_little_and_says_so() -> None:
    flips = random.Random(1)
    door = camera(ReuseSettings(enabled=True))

    for _ in range(6000):
        door.see(noisy(flips), label=flips.choice((7, 8)))

    stats = door.gate.stats()
    assert stats.disagreements > 0
    assert stats.difference < 4
    assert stats.reused < 0.1 * stats.considered


def noisy(rng: random.Random) -> Thumbnail:
    """The scene with noise that stays within a difference of 4, but not of half a level."""
    levels: Thumbnail = np.random.default_rng(rng.getrandbits(32)).integers(0, 4, SCENE.shape, np.uint8)
    levels += SCENE
    return levels


def test_even_a_scene_without_noise_is_given_up_when_its_labels_flip() -> None:
    flips = random.Random(1)
    door = camera(ReuseSettings(enabled=True))

    for _ in range(6000):
        door.see(label=flips.choice((7, 8)))

    stats = door.gate.stats()
    assert stats.difference == 0
    assert stats.reused < 0.1 * stats.considered


def test_a_gate_that_has_closed_opens_again_when_the_labels_are_stable_for_long() -> None:
    flips = random.Random(1)
    door = camera(ReuseSettings(enabled=True))
    for _ in range(600):
        door.see(label=flips.choice((7, 8)))
    closed = door.gate.stats()

    for _ in range(30_000):
        door.see(label=7)

    opened = door.gate.stats()
    assert closed.difference < 1
    assert opened.difference == 4
    assert opened.reused > closed.reused + 15_000


def test_the_difference_is_never_above_the_setting() -> None:
    door = camera(ReuseSettings(enabled=True, check=1, difference=2.5))
    seen = set()

    for number in range(4000):
        door.see(label=7 if number > 1000 or number % 9 else 8)
        seen.add(door.gate.stats().difference)

    assert max(seen) == 2.5
    assert min(seen) < 2.5


def test_a_budget_that_allows_everything_never_tightens() -> None:
    flips = random.Random(1)
    door = camera(ReuseSettings(enabled=True, check=0.5, budget=1.0))

    for _ in range(2000):
        door.see(label=flips.choice((7, 8)))

    stats = door.gate.stats()
    assert stats.difference == 4
    assert stats.rate > 0.3


def test_a_frame_that_is_checked_becomes_the_reference() -> None:
    door = camera(ALWAYS_CHECK)
    door.known(label=7)
    door.see(brighter(3), label=7)

    door.see(brighter(6), label=7)

    assert door.gate.stats().checks == 2


def test_lost_checks_do_not_pile_up() -> None:
    door = camera(ALWAYS_CHECK.model_copy(update={"heartbeat": 3600.0}))
    door.known()
    first = door.frame()
    door.gate.consider(first)

    for _ in range(64):  # as many as may be on their way through the engine
        door.gate.consider(last := door.frame())

    door.gate.classified(first, said(first, 7))
    assert door.gate.stats().checks == 0
    door.gate.classified(last, said(last, 7))
    assert door.gate.stats().checks == 1


def test_many_engine_threads_may_ask_at_once() -> None:
    door = camera(ReuseSettings(enabled=True, check=0.2))
    frames = [door.frame() for _ in range(4000)]

    def work(part: int) -> int:
        return sum(_asked(door.gate, frame) for frame in frames[part::4])

    with ThreadPoolExecutor(4) as threads:
        reused = sum(threads.map(work, range(4)))

    stats = door.gate.stats()
    assert stats.considered == 4000
    assert stats.reused == reused > 2000


def _asked(gate: ChangeGate, frame: Frame) -> bool:
    answer = gate.consider(frame)
    if answer is None:
        gate.classified(frame, said(frame, 7))
    return answer is not None


def test_the_same_seed_checks_the_same_frames() -> None:
    def checked(seed: int) -> list[bool]:
        door = camera(ReuseSettings(enabled=True), seed=seed)
        return [door.see() is None for _ in range(500)]

    run: Callable[[int], list[bool]] = checked
    assert run(3) == run(3)
    assert run(3) != run(4)
