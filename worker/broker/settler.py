"""Gives frames their outcome on the server: publish, drop or bury, a whole batch in one round trip.

Knows nothing of threads, retries or metrics; a call that failed may be made again as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from config.settings import QueueSettings, ResultsSettings
from worker.broker.connection import Client, calls, latest_key
from worker.broker.documents import encode
from worker.broker.scripts import Script
from worker.engine import ModelInfo
from worker.frames import Prediction, Receipt
from worker.outcomes import Buried, Dropped, Outcome, Published

MEMO_LIFE = 3600.0  # seconds that the server remembers a worker's last call; far longer than any retry

_SETTLE = Script("settle")


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the server said.

    done              per outcome: False where somebody else had settled that entry before
    sources_left_out  labels that found the hash of newest labels full
    """

    done: tuple[bool, ...]
    sources_left_out: int


class Settler:
    """One caller's way to settle frames; used from one thread. Two callers of one process need two names."""

    def __init__(
        self,
        client: Client,
        queue: QueueSettings,
        results: ResultsSettings,
        *,
        model: ModelInfo,
        worker: str,
        name: str,
    ) -> None:
        self._client = client
        self._queue = queue
        self._results = results
        self._model = model
        self._worker = worker
        self._memo = f"{results.stream}:settled:{worker}:{name}"
        self._number = 0
        self._last: Sequence[Outcome] | None = None  # what the present number stands for

    def settle(self, outcomes: Sequence[Outcome], *, now: float) -> Settlement:
        """All of them, atomically. Raises RedisUnavailable: then nobody knows, and calling again with the same object
        is safe: it has its effect once. `now` (Unix seconds) becomes `published_at` and `died_at`.
        """
        if outcomes is not self._last:
            self._number, self._last = self._number + 1, outcomes
        told = [isinstance(outcome, Published) or outcome.receipt is not None for outcome in outcomes]
        if not any(told):
            return Settlement((True,) * len(outcomes), 0)
        arguments = self._arguments([outcome for outcome, tell in zip(outcomes, told, strict=True) if tell], now)
        with calls("labels could not be published"):
            digits, left_out = _SETTLE(self._client, keys=self._keys(), args=arguments)
        replies = iter(digits)
        return Settlement(tuple(next(replies) == ord("1") if tell else True for tell in told), int(left_out))

    def _keys(self) -> list[str]:
        queue, results = self._queue, self._results
        return [queue.stream, results.stream, latest_key(results), queue.dead_stream, self._memo]

    def _arguments(self, outcomes: Sequence[Outcome], now: float) -> list[str | bytes | int | float]:
        arguments: list[str | bytes | int | float] = [
            self._queue.group,
            self._results.max_length,
            self._results.latest_max_sources,
            self._queue.dead_max_length,
            f"{self._results.stream}:",
            self._number,
            int(MEMO_LIFE * 1000),
        ]
        for outcome in outcomes:
            arguments += self._block(outcome, now)
        return arguments

    def _block(self, outcome: Outcome, now: float) -> list[str | bytes | int | float]:
        match outcome:
            case Published(prediction=prediction):
                return ["publish", *self._label(prediction, now)]
            case Dropped(receipt=Receipt(entry_id=entry_id)):
                return ["drop", entry_id]
            case Buried(receipt=Receipt(entry_id=entry_id), reason=reason, error=error):
                return ["bury", entry_id, reason, error, unix_seconds(now), self._worker]
        raise AssertionError(outcome)  # a receipt was asked for before

    def _label(self, prediction: Prediction, now: float) -> list[str]:
        best = prediction.labels[0]
        text = encode(prediction, model=self._model, worker=self._worker, published_at=now)
        return [
            prediction.receipt.entry_id if prediction.receipt else "",
            prediction.frame_id,
            prediction.source,
            unix_seconds(prediction.captured_at),
            unix_seconds(now),
            best.label.name,
            f"{best.score:.6f}",
            text,
        ]


def unix_seconds(moment: float) -> str:
    """A moment as a decimal number to the microsecond, never in exponent form."""
    return f"{moment:.6f}"
