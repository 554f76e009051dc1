"""What happens to a batch inside the engine's slot: drop what is too old, classify the rest, name the outcomes.

Knows the engine, but neither Redis nor sources. A picture that makes the model raise is found by halving its batch, so
that it takes no innocent frame with it; and it is blamed only while the engine still classifies something else.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import structlog

from worker.batching import Batch
from worker.engine import Engine, prepared_size
from worker.errors import DeadReason, EngineBroken
from worker.frames import Frame, Prediction, ScoredLabel, Scores
from worker.ledger import DropReason
from worker.mailbox import Letter
from worker.metrics import Metrics
from worker.outcomes import Buried, Dropped, Outcome, Published
from worker.redaction import redact
from worker.status import Status


class Inference:
    """Batches to outcomes. `run` is called from at most `engine.streams` threads at a time.

    `max_age` holds, for the lanes that have one, the seconds after which a frame is stale.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_age: Mapping[str, float],
        metrics: Metrics,
        status: Status,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._max_age = max_age
        self._metrics = metrics
        self._status = status
        self._clock = clock
        self._monotonic = monotonic
        self._log = structlog.get_logger("engine")

    def run(self, batch: Batch) -> list[Outcome]:
        """One outcome per frame: those that come too late, then the others in order. Raises EngineBroken."""
        self._metrics.batches[batch.left_because].inc()
        outcomes: list[Outcome] = []
        current: list[Frame] = []
        for letter in batch.letters:
            self._metrics.observe("wait", max(0.0, self._monotonic() - letter.put_at))
            reason = self._too_late(letter)
            if reason is None:
                current.append(letter.frame)
            else:
                outcomes.append(Dropped(letter.frame.source, reason, letter.frame.receipt))
        return outcomes + self._classify(current)

    def _too_late(self, letter: Letter) -> DropReason | None:
        now = self._clock()
        if letter.frame.expires_at is not None and letter.frame.expires_at < now:
            return DropReason.EXPIRED
        max_age = self._max_age.get(letter.lane)
        if max_age is not None and now - letter.frame.captured_at > max_age:
            return DropReason.STALE
        return None

    def _classify(self, frames: Sequence[Frame]) -> list[Outcome]:
        if not frames:
            return []
        try:
            scores = self._timed(frames)
        except Exception as error:  # whatever the model raises
            self._metrics.model_errors.inc()
            self._check_engine(error)
            if len(frames) > 1:
                half = len(frames) // 2
                return self._classify(frames[:half]) + self._classify(frames[half:])
            return [self._buried(frames[0], error)]
        return [Published(prediction_of(frame, scores, row, self._engine)) for row, frame in enumerate(frames)]

    def _check_engine(self, error: Exception) -> None:
        """After an error: does the engine still classify a black picture? If not, the frames are not to blame."""
        black = np.zeros((1, self._engine.spec.height, self._engine.spec.width, 3), np.uint8)
        try:
            with self._status.at_work("a batch"):  # a device that fails may hang next
                self._engine.classify(black)
        except Exception:
            raise EngineBroken(f"the model fails on every picture: {_one_line(error)}") from error

    def _timed(self, frames: Sequence[Frame]) -> Scores:
        pixels = np.stack([frame.pixels for frame in frames])
        self._metrics.batch_size.observe(len(frames))
        self._metrics.fill_ratio.observe(len(frames) / prepared_size(len(frames), self._engine.prepared))
        started = self._monotonic()
        try:
            with self._status.at_work("a batch"):
                return self._engine.classify(pixels)
        finally:
            self._metrics.observe("infer", self._monotonic() - started)

    def _buried(self, frame: Frame, error: Exception) -> Outcome:
        message = _one_line(error)
        self._log.error("the model raised on a frame", source=frame.source, frame_id=frame.frame_id, error=message)
        return Buried(frame.source, DeadReason.MODEL_ERROR, message, frame.receipt)


def _one_line(error: Exception) -> str:
    return redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


def prediction_of(frame: Frame, scores: Scores, row: int, engine: Engine) -> Prediction:
    """What row `row` of an engine's scores says of `frame`."""
    labels = tuple(
        ScoredLabel(engine.labels[index], value)
        for index, value in zip(scores.indices[row].tolist(), scores.values[row].tolist(), strict=True)
    )
    return Prediction(
        source=frame.source,
        frame_id=frame.frame_id,
        captured_at=frame.captured_at,
        labels=labels,
        width=frame.width,
        height=frame.height,
        receipt=frame.receipt,
        embedding=None if scores.embeddings is None else scores.embeddings[row].astype(np.float16),
        meta=frame.meta,
    )
