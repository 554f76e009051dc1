"""`python -m bench queue`: what settling a batch in one atomic step costs, against a plain pipeline without promises;
and how long one frame takes through an idle queue (`bench.latency`).

On an embedded server of its own, never on a server that somebody uses.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import embedded_server
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.keys import Queue, queues_of
from coatstream.broker.preflight import check_server
from coatstream.broker.script import unix_seconds
from coatstream.commands.bench.report import ROUNDS, Report, figure, machine, ratio
from coatstream.frames.frame import Label, Prediction, Receipt, ScoredLabel
from coatstream.frames.model import ModelInfo
from coatstream.results.documents import Encode, encode
from coatstream.results.outcomes import Published
from coatstream.results.settler import Settler, SettlingTerms
from coatstream.settings.model import RedisSettings, ResultsSettings, SettingsTree
from pydantic import SecretStr

from bench.latency import measure_latency

BATCH: Final = 32  # frames settled in one call
AHEAD: Final = 16  # batches that are put into the stream and read before the clock runs
SOURCES: Final = 8
PICTURE: Final = b"\0" * 10_000  # bytes of an entry; deleting it is part of settling

_MODEL = ModelInfo("coat_lite_mini.in1k", "random", "eager", "fp32", "cpu", 512)
_WORKER = "bench-1-0000"
LABELS = tuple(
    ScoredLabel(Label(index, f"n0212{index:04}", name), score)
    for index, name, score in (
        (281, "tabby, tabby cat", 0.6113),
        (285, "Egyptian cat", 0.2214),
        (282, "tiger cat", 0.0931),
        (287, "lynx, catamount", 0.0122),
        (728, "plastic bag", 0.0031),
    )
)

Batch = Sequence[Published]
Settle = Callable[[Batch], None]


def run_bench_queue(settings: SettingsTree, *, seconds: float, server: str | None = None) -> int:
    """Frames a second that are published and settled, by the script and by a plain pipeline; then the latency.

    `server`: the binary to run instead of the package's Valkey. Raises ConfigError, RedisUnavailable and EngineError.
    """
    with embedded_server(binary=server) as own:
        redis = RedisSettings(url=SecretStr(own.url))
        with connect(redis) as client:
            report = Report("queue", machine(server=check_server(client, redis)))
            report.note(f"about {8 * seconds:.0f} s of measuring, and some of filling the queue")
            _measure_settling(client, settings, report, seconds=seconds)
        measure_latency(settings, own.url, report, seconds=seconds)
    report.show()
    return 0


def _measure_settling(client: Client, settings: SettingsTree, report: Report, *, seconds: float) -> None:
    """Both ways, with their documents built in the measured time and, as a second case, before it."""
    queue = queues_of(settings)[0]
    documents = Documents()
    settler = settler_of(client, settings, documents)
    with calls("the consumer group cannot be created"):
        client.xgroup_create(queue.stream, queue.group, id="0", mkstream=True)

    def script(batch: Batch) -> None:
        settler.settle(batch, now=time.time())

    def plain(batch: Batch) -> None:
        settle_plainly(client, queue, settings.results, batch, documents)

    ways = {"script": script, "plain": plain}
    for case, ahead in ((f"settle_{BATCH}", False), (f"settle_{BATCH}_protocol", True)):
        prepare = documents.prepare if ahead else documents.forget
        samples = _take_turns(ways, partial(pending, client, queue, batches=AHEAD), prepare, seconds)
        report.add(
            case=case,
            frames_per_s=figure(samples["script"]),
            plain_frames_per_s=figure(samples["plain"]),
            ratio=ratio(samples["script"], samples["plain"]),
        )


class Documents:
    """Encodes labels for both ways; those that it was shown before are there already."""

    def __init__(self) -> None:
        self._ready: dict[str, bytes] = {}

    def prepare(self, batches: Sequence[Batch]) -> None:
        """What is left to measure is the protocol."""
        predictions = [outcome.prediction for batch in batches for outcome in batch]
        now = time.time()
        self._ready = {
            each.frame_id: encode(each, model=_MODEL, worker=_WORKER, published_at=now) for each in predictions
        }

    def forget(self, _batches: Sequence[Batch]) -> None:
        self._ready = {}

    def __call__(self, prediction: Prediction, *, model: ModelInfo, worker: str, published_at: float) -> bytes:
        ready = self._ready.get(prediction.frame_id)
        return ready or encode(prediction, model=model, worker=worker, published_at=published_at)


def settler_of(client: Client, settings: SettingsTree, encode: Encode = encode) -> Settler:
    """As a worker has it."""
    keys = fleet_keys(settings)
    terms = SettlingTerms(queues_of(settings), settings.queue, settings.results, _WORKER, keys.fences)
    return Settler(client, terms, model=_MODEL, name="bench", encode=encode)


def _take_turns(
    ways: Mapping[str, Settle],
    fill: Callable[[], list[list[Published]]],
    prepare: Callable[[Sequence[Batch]], None],
    seconds: float,
) -> dict[str, list[float]]:
    """Frames a second of each way, one figure a round; filling the stream and reading from it are not timed.

    Within a round the ways change every few milliseconds, so that a busy neighbour disturbs all of them alike.
    """
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        busy, turns = dict.fromkeys(ways, 0.0), 0
        while not turns or sum(busy.values()) < seconds * len(ways) / ROUNDS:
            for name in list(ways) if turns % 2 == 0 else reversed(list(ways)):
                batches = fill()
                prepare(batches)
                busy[name] += _timed(ways[name], batches)
            turns += 1
        for name, spent in busy.items():
            samples[name].append(turns * AHEAD * BATCH / spent)
    return samples


def _timed(settle: Settle, batches: Sequence[Batch]) -> float:
    started = time.perf_counter()
    for batch in batches:
        settle(batch)
    return time.perf_counter() - started


def pending(client: Client, queue: Queue, *, batches: int) -> list[list[Published]]:
    """Put frames into the stream, read them, and make of each what the engine would have made of it."""
    with calls("frames cannot be put into the queue"):
        pipe = client.pipeline(transaction=False)
        for number in range(batches * BATCH):
            pipe.xadd(queue.stream, {"image": PICTURE, "source": f"door-{number % SOURCES}"})
        pipe.execute()
        reply: Any = client.xreadgroup(queue.group, _WORKER, {queue.stream: ">"}, count=batches * BATCH)
    [(_, entries)] = reply
    outcomes = [_published(queue.stream, entry_id.decode(), fields[b"source"].decode()) for entry_id, fields in entries]
    return [outcomes[first : first + BATCH] for first in range(0, len(outcomes), BATCH)]


def _published(stream: str, entry_id: str, source: str) -> Published:
    return Published(
        Prediction(
            source=source,
            frame_id=entry_id,
            captured_at=int(entry_id.partition("-")[0]) / 1000,
            labels=LABELS,
            width=1920,
            height=1080,
            receipt=Receipt(stream, entry_id),
        )
    )


def settle_plainly(
    client: Client, queue: Queue, results: ResultsSettings, batch: Batch, encode: Encode = encode
) -> None:
    """One round trip too, and the same entries in the labels stream, but neither atomic nor safe to repeat: a label
    goes out whoever owned the frame. No newest label per source, no Pub/Sub, no books.
    """
    ids = [outcome.receipt.entry_id for outcome in batch if outcome.receipt]
    now = time.time()
    with calls("labels could not be published"):
        pipe = client.pipeline(transaction=False)
        for outcome in batch:
            pipe.xadd(
                queue.labels, _fields(outcome.prediction, now, encode), maxlen=results.max_length, approximate=True
            )
        pipe.xack(queue.stream, queue.group, *ids)
        pipe.xdel(queue.stream, *ids)
        pipe.execute()


def _fields(prediction: Prediction, now: float, encode: Encode) -> dict[str, str | bytes]:
    best = prediction.labels[0]
    return {
        "frame_id": prediction.frame_id,
        "entry_id": prediction.receipt.entry_id if prediction.receipt else "",
        "source": prediction.source,
        "captured_at": unix_seconds(prediction.captured_at),
        "published_at": unix_seconds(now),
        "label": best.label.name,
        "score": f"{best.score:.6f}",
        "status": "ok",
        "model": _MODEL.name,
        "json": encode(prediction, model=_MODEL, worker=_WORKER, published_at=now),
    }
