"""What happens to a batch inside the engine's slot: drop what is too old, reuse labels where the camera's gate allows,
classify the rest, name the outcomes.

Knows the engine, but neither Redis nor sources. A picture that makes the model raise is found by halving its batch, so
that it takes no innocent frame with it. It is blamed only if it fails alone, twice, while the engine still classifies
something else. Scores that are not finite are an error like one that is raised.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog

from coatstream.engine.protocol import Engine, prepared_size
from coatstream.errors import DeadReason, EngineBroken, redact
from coatstream.frames.frame import Frame, Pixels, Prediction, ScoredLabel, Scores
from coatstream.pipeline.batching import Batch
from coatstream.pipeline.gates import WHOLE, CameraGates, together
from coatstream.pipeline.joining import JoinedScores, joined
from coatstream.pipeline.mailbox import QueuedFrame
from coatstream.pipeline.memory_room import MemoryRoom, is_out_of_memory
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.results.outcomes import Buried, Dropped, Outcome, Published
from coatstream.telemetry.ledger import DropReason
from coatstream.telemetry.status import Status


class NotFiniteError(ArithmeticError):
    """Scores with NaN or infinity in them: half precision overflows on some pictures."""

    def __init__(self) -> None:
        super().__init__("the model's scores are not finite numbers")


@dataclass(frozen=True, slots=True)
class FramePolicy:
    """How one camera's frames are treated; a policy without any is treated like the queue.

    max_age  seconds after which a frame is stale
    """

    max_age: float | None = None
    gates: CameraGates | None = None


_PLAIN = FramePolicy()
Keep = Callable[[Frame, Prediction, bool], None]


class Inference:
    """Batches to outcomes. `run` is called from at most `engine.streams` threads at a time.

    `policies` is looked at for each frame, so cameras may come and go. Of the engine's labels the first `shown` are for
    publishing (0 = all), the others for tags. `keep` is told of each frame that was classified, with its
    prediction (without regions whose labels are reused) and whether that contradicts what would have been reused.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        policies: Mapping[str, FramePolicy],
        shown: int = 0,
        keep: Keep | None = None,
        metrics: PipelineMetrics,
        status: Status,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._policies = policies
        self._shown = shown or None
        self._keep = keep
        self._metrics = metrics
        self._status = status
        self._clock = clock
        self._monotonic = monotonic
        self._room = MemoryRoom(engine.prepared, monotonic)
        self._log = structlog.get_logger("engine")
        metrics.memory_limit(self._room.limit)

    def run(self, batch: Batch) -> list[Outcome]:
        """One outcome per frame, in their order. Raises EngineBroken."""
        self._metrics.left(batch.left_because)
        considered = [self._without_model(queued) for queued in batch.queued]
        classified = iter(self._classify([one for one in considered if isinstance(one, Frame)]))
        return [next(classified) if isinstance(one, Frame) else one for one in considered]

    def _without_model(self, queued: QueuedFrame) -> Outcome | Frame:
        """The outcome of a frame that needs no model, or what of it is to be classified."""
        self._metrics.observe("wait", max(0.0, self._monotonic() - queued.put_at))
        policy = self._policies.get(queued.reader, _PLAIN)
        reason = self._too_late(queued.frame, policy)
        if reason is not None:
            return Dropped(queued.frame.source, reason, queued.frame.receipt, queued.frame.frame_id)
        answer = policy.gates.consider(queued.frame) if policy.gates else queued.frame
        return answer if isinstance(answer, Frame) else Published(answer)

    def _too_late(self, frame: Frame, policy: FramePolicy) -> DropReason | None:
        now = self._clock()
        if frame.expires_at is not None and frame.expires_at < now:
            return DropReason.EXPIRED
        if policy.max_age is not None and now - frame.captured_at > policy.max_age:
            return DropReason.STALE
        return None

    def _classify(self, frames: Sequence[Frame]) -> list[Outcome]:
        if not frames:
            return []
        if len(frames) > (most := self._room.most()):
            pieces = (frames[first : first + most] for first in range(0, len(frames), most))
            return [outcome for piece in pieces for outcome in self._classify(piece)]
        try:
            scores = self._timed(frames)
        except Exception as error:  # whatever the model raises
            self._metrics.model_errors.inc()
            self._check_engine(error)
            self._room.failed(min(self._piece(), sum(len(frame.views) for frame in frames)), error)
            if len(frames) > 1:
                half = len(frames) // 2
                return self._classify(frames[:half]) + self._classify(frames[half:])
            return [self._second_try(frames[0])]
        if np.isfinite(scores.frames.values).all():
            return [self._published(frame, scores, row) for row, frame in enumerate(frames)]
        return self._finite_ones(frames, scores)

    def _finite_ones(self, frames: Sequence[Frame], scores: JoinedScores) -> list[Outcome]:
        """Each frame whose scores are not finite is tried again, alone."""
        self._metrics.model_errors.inc()
        self._check_engine(NotFiniteError())
        finite = [bool(np.isfinite(values).all()) for values in scores.frames.values]
        return [
            self._published(frame, scores, row) if finite[row] else self._second_try(frame)
            for row, frame in enumerate(frames)
        ]

    def _second_try(self, frame: Frame) -> Outcome:
        """Alone: what was the machine's doing does not come twice. Raises EngineBroken."""
        try:
            scores = self._timed([frame])
            if not np.isfinite(scores.frames.values).all():
                raise NotFiniteError
        except Exception as error:
            self._metrics.model_errors.inc()
            self._check_engine(error)  # a device that died between the two tries is no fault of the frame
            if is_out_of_memory(error):  # all pictures have one size here, so this one needs no more than another
                raise EngineBroken(f"there is no memory for one picture: {_summary(error)}") from error
            return self._buried(frame, error)
        return self._published(frame, scores, 0)

    def _published(self, frame: Frame, scores: JoinedScores, row: int) -> Outcome:
        if frame.regions:
            own = {
                name: prediction_of(frame, scores.views, scores.starts[row] + place, self._engine, shown=self._shown)
                for place, name in enumerate(frame.unknown)
            }
            prediction = together(frame, {**frame.known, **own})
            classified = together(replace(frame, regions=frame.unknown), own) if frame.known else prediction
        else:
            classified = prediction = prediction_of(frame, scores.frames, row, self._engine, shown=self._shown)
            own = {WHOLE: prediction}
        policy = self._policies.get(frame.source) if frame.receipt is None else None  # a camera's policy has its name
        surprising = policy is not None and policy.gates is not None and policy.gates.classified(frame, own)
        if self._keep is not None:
            self._keep(frame, classified, surprising)
        return Published(prediction)

    def _check_engine(self, error: Exception) -> None:
        """After an error: does the engine still classify a black picture? If not, the frames are not to blame."""
        black = np.zeros((1, self._engine.spec.height, self._engine.spec.width, 3), np.uint8)
        try:
            with self._status.at_work("a batch"):  # a device that fails may hang next
                scores = self._engine.classify(black)
            if not np.isfinite(scores.values).all():
                raise NotFiniteError
        except Exception:
            raise EngineBroken(f"the model fails on every picture: {_summary(error)}") from error

    def _timed(self, frames: Sequence[Frame]) -> JoinedScores:
        """Frames of several views may be more than the engine takes at once."""
        pixels = np.concatenate([frame.views for frame in frames])
        piece, pieces = self._piece(), list[Scores]()
        started = self._monotonic()
        try:
            with self._status.at_work("a batch"):
                for first in range(0, len(pixels), piece):
                    pieces.append(self._classified(pixels[first : first + piece]))
        finally:
            self._metrics.observe("infer", self._monotonic() - started)
        return joined(pieces, [len(frame.views) for frame in frames])

    def _classified(self, pixels: Pixels) -> Scores:
        self._metrics.batch_size.observe(len(pixels))
        self._metrics.fill_ratio.observe(len(pixels) / prepared_size(len(pixels), self._engine.prepared))
        return self._engine.classify(pixels)

    def _piece(self) -> int:
        """Inputs that the engine takes at once."""
        return min(self._room.most(), max(self._engine.prepared))

    def _buried(self, frame: Frame, error: Exception) -> Outcome:
        message = _summary(error)
        self._log.error("the model raised on a frame", source=frame.source, frame_id=frame.frame_id, error=message)
        return Buried(frame.source, DeadReason.MODEL_ERROR, message, frame.receipt, frame.frame_id)


def _summary(error: Exception) -> str:
    return redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


def labels_of(scores: Scores, row: int, engine: Engine, *, most: int | None = None) -> tuple[ScoredLabel, ...]:
    """Those of row `row` of an engine's scores, best first."""
    indices, values = scores.indices[row, :most].tolist(), scores.values[row, :most].tolist()
    return tuple(ScoredLabel(engine.labels[index], value) for index, value in zip(indices, values, strict=True))


def prediction_of(frame: Frame, scores: Scores, row: int, engine: Engine, *, shown: int | None = None) -> Prediction:
    """The prediction of `frame`, from row `row` of an engine's scores; labels behind the first `shown` are `further`.

    A queue's frame has no further labels: only tags need them, and 50 labels take 10 times as long as 5.
    """
    labels = labels_of(scores, row, engine, most=shown if frame.receipt is not None else None)
    return Prediction(
        source=frame.source,
        frame_id=frame.frame_id,
        captured_at=frame.captured_at,
        labels=labels[:shown],
        further=labels[shown:] if shown else (),
        width=frame.width,
        height=frame.height,
        receipt=frame.receipt,
        embedding=None if scores.embeddings is None else scores.embeddings[row].astype(np.float16),
        meta=frame.meta,
        faults=frame.faults,
        suspect=frame.suspect,
        fence=frame.fence,
    )
