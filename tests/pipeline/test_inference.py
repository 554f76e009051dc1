"""Inside the engine's slot: too old is dropped, poison takes no innocent frame with it."""

import threading

import numpy as np
import pytest
from coatstream.engine.backends.noop import NoopEngine
from coatstream.errors import DeadReason, EngineBroken
from coatstream.frames.frame import Frame, Pixels, Scores
from coatstream.pipeline.batching import Batch, LeftBecause
from coatstream.pipeline.inference import FramePolicy, Inference, prediction_of
from coatstream.pipeline.mailbox import QueuedFrame
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.results.outcomes import Buried, Dropped, Outcome, Published
from coatstream.telemetry.ledger import DropReason
from coatstream.telemetry.status import Status
from prometheus_client import CollectorRegistry

from tests.support.doubles import FixedEngine, SettableClock, make_frame


def run(
    frames: list[Frame], engine: FixedEngine | None = None, *, now: float = 1_000.0, max_age: float | None = None
) -> list[Outcome]:
    inference = Inference(
        engine or FixedEngine(),
        policies={"cam": FramePolicy(max_age)},
        metrics=PipelineMetrics(CollectorRegistry()),
        status=Status(stall_after=60),
        clock=SettableClock(now),
        monotonic=SettableClock(),
    )
    return inference.run(Batch([QueuedFrame(frame, "cam", 1_000.0) for frame in frames], LeftBecause.FULL))


def test_each_frame_gets_the_labels_of_its_own_pixels() -> None:
    outcomes = run([make_frame(str(red), red=red) for red in (3, 200, 3, 77)])

    found = [
        (outcome.prediction.frame_id, outcome.prediction.labels[0].label.index)
        for outcome in outcomes
        if isinstance(outcome, Published)
    ]
    assert found == [("3", 3), ("200", 200), ("3", 3), ("77", 77)]


def test_a_frame_that_expired_while_it_waited_is_dropped_with_its_receipt() -> None:
    outcomes = run([make_frame("late", entry_id="1-0", expires_at=999.0), make_frame("good", expires_at=1_001.0)])

    dropped, published = outcomes
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.receipt is not None) == (DropReason.EXPIRED, True)
    assert isinstance(published, Published)


def test_a_frame_older_than_its_cameras_max_age_is_stale() -> None:
    old, fresh = run([make_frame(captured_at=998.9), make_frame(captured_at=999.5)], max_age=1.0)

    assert isinstance(old, Dropped)
    assert old.reason is DropReason.STALE
    assert isinstance(fresh, Published)


def test_a_frame_that_makes_the_model_raise_is_buried_alone() -> None:
    frames = [make_frame(str(number), red=66 if number == 5 else number, entry_id=f"{number}-0") for number in range(8)]

    outcomes = run(frames, FixedEngine(poison=66))

    buried = [outcome for outcome in outcomes if isinstance(outcome, Buried)]
    assert [(outcome.reason, outcome.receipt and outcome.receipt.entry_id) for outcome in buried] == [
        (DeadReason.MODEL_ERROR, "5-0")
    ]
    assert "poison" in buried[0].error
    assert sum(isinstance(outcome, Published) for outcome in outcomes) == 7


def test_a_batch_of_which_nothing_is_left_does_not_go_to_the_engine() -> None:
    engine = FixedEngine()

    outcomes = run([make_frame(expires_at=1.0), make_frame(expires_at=1.0)], engine)

    assert all(isinstance(outcome, Dropped) for outcome in outcomes)
    assert engine.batches == []


def test_labels_behind_those_that_are_published_are_for_cameras_only() -> None:
    engine = NoopEngine("noop", (1,), top_k=50)
    scores = engine.classify(np.zeros((1, 224, 224, 3), np.uint8))

    of_queue = prediction_of(make_frame(entry_id="1-0"), scores, 0, engine, shown=5)
    of_camera = prediction_of(make_frame(), scores, 0, engine, shown=5)

    assert of_queue.labels == of_camera.labels
    assert (len(of_queue.labels), len(of_queue.further), len(of_camera.further)) == (5, 0, 45)


def test_embeddings_travel_as_float16_with_the_prediction() -> None:
    (outcome,) = run([make_frame()])

    assert isinstance(outcome, Published)
    assert outcome.prediction.embedding is not None
    assert outcome.prediction.embedding.dtype == "float16"


def test_an_engine_that_fails_on_every_picture_is_broken_and_no_frame_is_blamed() -> None:
    engine = FixedEngine()
    engine.broken = True

    with pytest.raises(EngineBroken, match="fails on every picture: RuntimeError: no device"):
        run([make_frame(entry_id="1-0"), make_frame(entry_id="2-0")], engine)


class FlakyEngine(FixedEngine):
    """Raises `error` on batches of `from_size` frames or more, `times` often."""

    def __init__(self, error: Exception, *, times: int, from_size: int = 1) -> None:
        super().__init__()
        self.error, self.times, self.from_size = error, times, from_size

    def classify(self, pixels: Pixels) -> Scores:
        if self.times and len(pixels) >= self.from_size and pixels.any():
            self.times -= 1
            self.batches.append(len(pixels))
            raise self.error
        return super().classify(pixels)


class OverflowingEngine(FixedEngine):
    """Its scores of pictures with the red value `red` are NaN; of all pictures where `red` is None."""

    def __init__(self, red: int | None) -> None:
        super().__init__()
        self.red = red

    def classify(self, pixels: Pixels) -> Scores:
        scores = super().classify(pixels)
        scores.values[(pixels[:, 0, 0, 0] == self.red) | (self.red is None)] = np.nan
        return scores


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize("error", [RuntimeError("a transient fault"), MemoryError(), OutOfMemoryError("CUDA")])
def test_a_fault_of_the_machine_that_passes_buries_no_frame(error: Exception) -> None:
    for times in range(1, 5):
        outcomes = run([make_frame(str(red), red=red) for red in range(1, 9)], FlakyEngine(error, times=times))

        assert all(isinstance(outcome, Published) for outcome in outcomes), times


def test_a_lone_frame_is_tried_once_more_before_it_is_blamed() -> None:
    (outcome,) = run([make_frame(red=1)], FlakyEngine(RuntimeError("once"), times=1))
    (blamed,) = run([make_frame(red=1)], FlakyEngine(RuntimeError("twice"), times=2))

    assert isinstance(outcome, Published)
    assert isinstance(blamed, Buried)


def test_no_memory_for_a_single_picture_is_the_machines_doing_and_no_frame_is_blamed() -> None:
    with pytest.raises(EngineBroken, match="no memory for one picture"):
        run([make_frame(red=1, entry_id="1-0")], FlakyEngine(OutOfMemoryError("CUDA"), times=99))


def test_a_size_that_found_no_memory_is_not_tried_again_for_a_while_and_then_it_is() -> None:
    engine, clock = FlakyEngine(OutOfMemoryError("CUDA"), times=99, from_size=5), SettableClock()
    registry = CollectorRegistry()
    inference = Inference(
        engine, policies={}, metrics=PipelineMetrics(registry), status=Status(stall_after=60), monotonic=clock
    )
    frames = [QueuedFrame(make_frame(str(red), red=red), "queue", 1_000.0) for red in range(1, 9)]

    def sizes() -> list[int]:
        engine.batches.clear()
        inference.run(Batch(frames, LeftBecause.FULL))
        return [size for size in engine.batches if size > 1]

    first, second = sizes(), sizes()
    limit = registry.get_sample_value("coatstream_batch_memory_limit_frames")
    clock.now += 61
    later = sizes()

    assert (first, second, later) == ([8, 4, 4], [4, 4], [8, 4, 4])
    assert limit == 4


def test_scores_that_are_not_finite_bury_their_own_frame_and_no_other() -> None:
    frames = [make_frame(str(red), red=red, entry_id=f"{red}-0") for red in (1, 66, 3)]

    first, second, third = run(frames, OverflowingEngine(red=66))

    assert isinstance(first, Published)
    assert isinstance(third, Published)
    assert isinstance(second, Buried)
    assert second.reason is DeadReason.MODEL_ERROR
    assert "not finite" in second.error


def test_an_engine_whose_scores_are_never_finite_is_broken() -> None:
    with pytest.raises(EngineBroken, match="not finite"):
        run([make_frame(red=1, entry_id="1-0")], OverflowingEngine(red=None))


def test_an_engine_that_hangs_makes_the_worker_unhealthy_until_it_comes_back() -> None:
    engine, clock = FixedEngine(), SettableClock()
    engine.gate.clear()
    status = Status(stall_after=60, monotonic=clock)
    inference = Inference(engine, policies={}, metrics=PipelineMetrics(CollectorRegistry()), status=status)
    batch = Batch([QueuedFrame(make_frame(), "cam", 1_000.0)], LeftBecause.FULL)
    thread = threading.Thread(target=inference.run, args=(batch,))

    thread.start()
    assert engine.entered.acquire(timeout=10)
    clock.now += 61
    unhealthy = status.unhealthy_because()
    engine.gate.set()
    thread.join(10)

    assert unhealthy == ["a batch has been in hand for 61 s"]
    assert status.unhealthy_because() == []


def test_a_large_batch_with_room_for_one_frame_at_a_time_is_classified_whole() -> None:
    engine = FlakyEngine(OutOfMemoryError("CUDA"), times=99, from_size=2)

    outcomes = run([make_frame(str(number), red=1) for number in range(1500)], engine)

    assert sum(isinstance(outcome, Published) for outcome in outcomes) == 1500
