"""A camera with regions has a gate for each: what stands still is reused, and only what moved goes to the model."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from coatstream.frames.frame import Frame, Label, PictureFault, Prediction, ScoredLabel, Vitals
from coatstream.pipeline.batching import Batch, LeftBecause
from coatstream.pipeline.consumed import Consumed
from coatstream.pipeline.gates import WHOLE, CameraGates, together
from coatstream.pipeline.inference import FramePolicy, Inference
from coatstream.pipeline.mailbox import QueuedFrame
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.reuse import ChangeGate
from coatstream.results.outcomes import Published
from coatstream.settings.model import ReuseSettings
from coatstream.telemetry.status import Status
from prometheus_client import CollectorRegistry

from tests.support.doubles import FixedEngine, SettableClock

REGIONS = ("gate", "till 3")
REUSE = ReuseSettings(enabled=True, check=0)


def gate_of(clock: SettableClock, settings: ReuseSettings = REUSE, *, consumed: Consumed | None = None) -> ChangeGate:
    return ChangeGate(settings, rng=random.Random(0), consumed=consumed, monotonic=clock)


@dataclass
class Yard:
    """A camera of two regions, each of one colour, whose red names its class; frames come 0.2 s apart."""

    gates: CameraGates
    clock: SettableClock
    engine: FixedEngine = field(default_factory=FixedEngine)
    number: int = 0
    kept: list[Prediction] = field(default_factory=list)

    def frame(self, *reds: int, regions: tuple[str, ...] = REGIONS, faults: tuple[PictureFault, ...] = ()) -> Frame:
        self.number += 1
        self.clock.now += 0.2
        pixels = np.zeros((len(reds), 8, 8, 3), np.uint8)
        pixels[..., 0] = np.array(reds)[:, None, None]
        vitals = Vitals(120, 50, 500, 0, self.number, np.full((36, 64), 90, np.uint8))
        return Frame(
            "yard", f"f{self.number}", self.clock.now, pixels, 640, 360, vitals=vitals, regions=regions, faults=faults
        )

    def see(self, *frames: Frame) -> list[Prediction]:
        inference = Inference(
            self.engine,
            policies={"yard": FramePolicy(gates=self.gates)},
            keep=lambda frame, prediction, surprising: self.kept.append(prediction),
            metrics=PipelineMetrics(CollectorRegistry()),
            status=Status(stall_after=60),
            clock=self.clock,
            monotonic=self.clock,
        )
        outcomes = inference.run(Batch([QueuedFrame(one, "yard", self.clock.now) for one in frames], LeftBecause.FULL))
        assert all(isinstance(outcome, Published) for outcome in outcomes)
        return [outcome.prediction for outcome in outcomes if isinstance(outcome, Published)]


def yard(**own: ReuseSettings) -> Yard:
    """`till_3=None` and the like: settings of one region."""
    clock = SettableClock(100.0)
    settings = {name: own.get(name.replace(" ", "_"), REUSE) for name in REGIONS}
    gates = {name: gate_of(clock, one) for name, one in settings.items() if one.enabled}
    return Yard(CameraGates(gates), clock)


def said(prediction: Prediction) -> dict[str, int]:
    return {name: labels[0].label.index for name, labels in prediction.regions.items()}


def test_a_region_that_moves_is_classified_and_one_that_stands_still_is_not() -> None:
    scene = yard()
    for _ in range(3):
        scene.see(scene.frame(10, 20))
    scene.engine.batches.clear()

    moved = scene.see(scene.frame(10, 200))[0]

    assert scene.engine.batches == [1]
    assert said(moved) == {"gate": 10, "till 3": 200}
    assert list(moved.regions) == list(REGIONS)
    assert not moved.reused
    assert {label.label.index for label in moved.labels} <= {10, 200}


def test_a_frame_of_which_all_regions_stand_still_needs_no_model_and_is_reused() -> None:
    scene = yard()
    for _ in range(3):
        scene.see(scene.frame(10, 20))
    scene.engine.batches.clear()

    frame = scene.frame(10, 20)
    answer = scene.see(frame)[0]

    assert scene.engine.batches == []
    assert (answer.reused, answer.frame_id, answer.captured_at) == (True, frame.frame_id, frame.captured_at)
    assert said(answer) == {"gate": 10, "till 3": 20}


def test_what_is_kept_for_training_has_no_label_of_a_region_that_was_not_classified() -> None:
    scene = yard()
    for _ in range(3):
        scene.see(scene.frame(10, 20))
    scene.kept.clear()

    scene.see(scene.frame(10, 200))

    [kept] = scene.kept
    assert said(kept) == {"till 3": 200}
    assert kept.labels[0].label.index == 200


def test_what_moves_beside_the_regions_changes_nothing() -> None:
    scene = yard()
    for number in range(3):
        scene.see(scene.frame(10, 20))
        assert number or scene.gates.stats()["gate"].considered == 1
    frame = scene.frame(10, 20)
    assert frame.vitals is not None
    frame.vitals.thumbnail[:] = 255  # of the whole picture

    assert scene.see(frame)[0].reused


def test_a_region_may_have_settings_of_its_own_and_no_gate_at_all() -> None:
    scene = yard(till_3=ReuseSettings(enabled=False))
    for _ in range(3):
        scene.see(scene.frame(10, 20))
    scene.engine.batches.clear()

    answer = scene.see(scene.frame(10, 20))[0]

    assert scene.engine.batches == [1]
    assert said(answer) == {"gate": 10, "till 3": 20}
    assert set(scene.gates.stats()) == {"gate"}


def test_frames_of_one_batch_that_are_known_in_part_keep_their_own_labels() -> None:
    scene = yard()
    for _ in range(3):
        scene.see(scene.frame(10, 20))
    scene.engine.batches.clear()

    answers = scene.see(scene.frame(10, 60), scene.frame(70, 20), scene.frame(10, 20), scene.frame(80, 90))

    assert [said(one) for one in answers] == [
        {"gate": 10, "till 3": 60},
        {"gate": 70, "till 3": 20},
        {"gate": 10, "till 3": 20},
        {"gate": 80, "till 3": 90},
    ]
    assert [one.reused for one in answers] == [False, False, True, False]
    assert scene.engine.batches == [4]


def test_of_a_sick_picture_no_region_is_reused() -> None:
    scene = yard()
    for _ in range(3):
        scene.see(scene.frame(10, 20))
    scene.engine.batches.clear()

    scene.see(scene.frame(10, 20, faults=(PictureFault.FROZEN,)))

    assert scene.engine.batches == [2]


def test_each_region_is_checked_by_itself() -> None:
    scene = yard(till_3=ReuseSettings(enabled=True, check=1))
    for _ in range(3):
        scene.see(scene.frame(10, 20))
    scene.engine.batches.clear()

    answer = scene.see(scene.frame(10, 22))[0]  # nearly the same picture, and another class

    stats = scene.gates.stats()
    assert scene.engine.batches == [1]
    assert said(answer) == {"gate": 10, "till 3": 22}
    assert (stats["till 3"].checks, stats["till 3"].disagreements) == (1, 1)
    assert (stats["gate"].checks, stats["gate"].reused) == (0, 1)


def test_a_check_that_disagrees_in_one_region_makes_the_frame_surprising() -> None:
    scene = yard(gate=ReuseSettings(enabled=True, check=1), till_3=ReuseSettings(enabled=False))
    for _ in range(3):
        scene.see(scene.frame(10, 20))
    kept: list[bool] = []
    inference = Inference(
        scene.engine,
        policies={"yard": FramePolicy(gates=scene.gates)},
        keep=lambda frame, prediction, surprising: kept.append(surprising),
        metrics=PipelineMetrics(CollectorRegistry()),
        status=Status(stall_after=60),
        clock=scene.clock,
        monotonic=scene.clock,
    )

    for gate in (10, 12):
        inference.run(Batch([QueuedFrame(scene.frame(gate, 20), "yard", scene.clock.now)], LeftBecause.FULL))

    assert kept == [False, True]


def test_why_it_saves_nothing_names_the_region() -> None:
    scene = yard()
    for number in range(120):
        scene.see(scene.frame(10, 20 + number % 2 * 60))

    assert scene.gates.why == "till 3: the picture changes"


def test_a_camera_without_regions_has_one_gate_for_its_picture() -> None:
    clock = SettableClock(100.0)
    scene = Yard(CameraGates({WHOLE: gate_of(clock)}), clock)
    for _ in range(3):
        scene.see(scene.frame(10, 20, regions=()))
    scene.engine.batches.clear()

    assert scene.see(scene.frame(10, 20, regions=()))[0].reused
    assert scene.engine.batches == []
    assert scene.gates.why == ""


def one_of(name: str, *scores: float, reused: bool = False) -> Prediction:
    labels = tuple(
        ScoredLabel(Label(index, None, f"class {index}"), score) for index, score in enumerate(scores, start=len(name))
    )
    return Prediction("yard", "f", 0.0, labels[:1], 640, 360, further=labels[1:], reused=reused)


def test_of_all_regions_each_class_has_the_best_of_its_scores() -> None:
    scene = yard()
    frame = scene.frame(1, 2, regions=("a", "bc"))

    made = together(frame, {"bc": one_of("bc", 0.7, 0.1), "a": one_of("a", 0.5, 0.4, reused=True)})

    assert [(scored.label.index, scored.score) for scored in (*made.labels, *made.further)] == [(2, 0.7), (1, 0.5)]
    assert len(made.labels) == 1
    assert [scored.score for scored in made.regions["a"]] == pytest.approx([0.5, 0.4])
    assert not made.reused
