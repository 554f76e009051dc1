"""Gives frames their outcome on the server: publish, drop or bury, a whole batch in one round trip per queue.

Knows nothing of threads, retries or metrics; a call that failed may be made again as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script, unix_seconds
from coatstream.frames.frame import Prediction, Receipt
from coatstream.frames.model import ModelInfo
from coatstream.results.documents import Encode, encode
from coatstream.results.outcomes import Buried, Dropped, Outcome, Published
from coatstream.settings.model import QueueSettings, ResultsSettings

MEMO_LIFE = 3600.0  # seconds that the server remembers a worker's last call; far longer than any retry

_SETTLE = Script("results/settle", after=("broker/keys", "broker/accounts"))

_KINDS: Final[Mapping[type[Outcome], str]] = {Published: "p", Dropped: "d", Buried: "b"}
_OF_CAMERA: Final = "c"  # published, and it came from no queue

_Arguments = list[str | bytes | int | float]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the server did.

    done              per outcome: False where another worker had settled that entry before
    sources_left_out  labels that found the hash of newest labels full
    letters_dropped   dead letters that had to go for newer ones
    """

    done: tuple[bool, ...]
    sources_left_out: int = 0
    letters_dropped: int = 0


@dataclass(frozen=True, slots=True)
class SettlingTerms:
    """What all settlers of one worker have in common.

    limits  of the dead letters
    fences  the key of the newest lease numbers of cameras
    """

    queues: Sequence[Queue]
    limits: QueueSettings
    results: ResultsSettings
    worker: str
    fences: str


class QueueSettler:
    """One caller's way to settle frames of one queue; used from one thread.

    fenced  whether labels of cameras go to this queue's labels too; then the lease of each is checked
    """

    def __init__(
        self,
        client: Client,
        queue: Queue,
        terms: SettlingTerms,
        *,
        model: ModelInfo,
        name: str,
        fenced: bool = False,
        encode: Encode = encode,
    ) -> None:
        self._client = client
        self._queue = queue
        self._fences = terms.fences if fenced else None
        self._limits = terms.limits
        self._results = terms.results
        self._model = model
        self._worker = terms.worker
        self._encode = encode
        self._memo = queue.memo(terms.worker, name)
        self._number = 0

    def begin(self) -> None:
        """What is settled from now on is another batch, and no repetition of the last one."""
        self._number += 1

    def settle(self, outcomes: Sequence[Outcome], *, now: float) -> Settlement:
        """All of them, atomically. Raises RedisUnavailable: it may be settled or not, and a repetition is safe."""
        arguments = self._header(outcomes, now)
        for outcome in outcomes:
            arguments += self._block(outcome, now)
        with calls("labels could not be published", self._client):
            digits, left_out, letters = _SETTLE(self._client, keys=self._keys(outcomes), args=arguments)
        return Settlement(tuple(digit == ord("1") for digit in digits), int(left_out), int(letters))

    def _keys(self, outcomes: Sequence[Outcome]) -> list[str]:
        """That of the fences only where it is needed: a worker without cameras may have no right to it."""
        queue = self._queue
        keys = [queue.stream, queue.labels, queue.latest, queue.dead, self._memo, queue.books, queue.sources]
        return [*keys, self._fences] if self._fences is not None and any(map(_is_fenced, outcomes)) else keys

    def _header(self, outcomes: Sequence[Outcome], now: float) -> _Arguments:
        return [
            self._queue.group,
            self._results.max_length,
            self._results.latest_max_sources,
            self._limits.dead_max_length,
            self._limits.dead_max_bytes,
            self._queue.channel(""),
            self._number,
            int(MEMO_LIFE * 1000),
            unix_seconds(now),
            self._worker,
            "".join([_kind(outcome) for outcome in outcomes]),
            _sizes(outcomes),
            self._queue.failure_channel(""),
            self._model.name,
        ]

    def _block(self, outcome: Outcome, now: float) -> _Arguments:
        match outcome:
            case Published():
                return self._label(outcome.prediction, now)
            case Dropped(source=source, receipt=Receipt(entry_id=entry_id)):
                return [entry_id, source, outcome.reason, outcome.frame_id]
            case Buried(source=source, receipt=Receipt(entry_id=entry_id)):
                return [entry_id, source, outcome.reason, outcome.error, outcome.frame_id]
        raise AssertionError(outcome)  # a receipt was asked for before

    def _label(self, prediction: Prediction, now: float) -> _Arguments:
        best, receipt = prediction.labels[0], prediction.receipt
        own: _Arguments = [] if receipt else [",".join(prediction.faults) or "ok"]
        return [
            receipt.entry_id if receipt else prediction.fence,
            prediction.source,
            prediction.frame_id,
            unix_seconds(prediction.captured_at),
            best.label.name,
            f"{best.score:.6f}",
            self._encode(prediction, model=self._model, worker=self._worker, published_at=now),
            *own,
        ]


class Settler:
    """One caller's way to settle frames of all queues; used from one thread. Two callers of one process need two names.

    Labels of frames that came from no queue go to the first queue's labels, where `fences` says that this worker still
    may speak for their camera.
    """

    def __init__(
        self, client: Client, terms: SettlingTerms, *, model: ModelInfo, name: str, encode: Encode = encode
    ) -> None:
        first = self._first = terms.queues[0].stream
        self._queues = {
            queue.stream: QueueSettler(
                client, queue, terms, model=model, name=name, fenced=queue.stream == first, encode=encode
            )
            for queue in terms.queues
        }
        self._last: Sequence[Outcome] | None = None  # what the present numbers stand for

    def settle(self, outcomes: Sequence[Outcome], *, now: float) -> Settlement:
        """All of them, each queue's atomically. Raises RedisUnavailable: it may be settled or not, and calling again
        with the same object is safe: it has its effect once. `now` (Unix seconds) becomes `published_at` and `died_at`.
        """
        if outcomes is not self._last:
            self._last = outcomes
            for settler in self._queues.values():
                settler.begin()
        done = [True] * len(outcomes)  # what needs no settling, only counting
        left_out = letters = 0
        for stream, places in self._by_queue(outcomes).items():
            settlement = self._queues[stream].settle([outcomes[place] for place in places], now=now)
            for place, settled in zip(places, settlement.done, strict=True):
                done[place] = settled
            left_out += settlement.sources_left_out
            letters += settlement.letters_dropped
        return Settlement(tuple(done), left_out, letters)

    def _by_queue(self, outcomes: Sequence[Outcome]) -> dict[str, list[int]]:
        """Places of those outcomes that the server settles."""
        places: dict[str, list[int]] = {}
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, Published) or outcome.receipt is not None:
                stream = outcome.receipt.stream if outcome.receipt else self._first
                places.setdefault(stream, []).append(place)
        return places


def _kind(outcome: Outcome) -> str:
    return _OF_CAMERA if isinstance(outcome, Published) and outcome.receipt is None else _KINDS[type(outcome)]


def _is_fenced(outcome: Outcome) -> bool:
    return isinstance(outcome, Published) and outcome.prediction.fence > 0


def _sizes(outcomes: Sequence[Outcome]) -> str:
    """Bytes that admission counted; empty where it counted none, so that plain producers' frames cost nothing here."""
    sizes = [outcome.receipt.admitted if outcome.receipt else 0 for outcome in outcomes]
    return " ".join(map(str, sizes)) if any(sizes) else ""
