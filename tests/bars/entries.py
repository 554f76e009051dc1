"""The queue's own bars: mixed sizes under a bound of bytes, and stranding in four ways while workers die."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue
from coatstream.frames.frame import Pixels
from coatstream.frames.model import ModelInfo
from coatstream.pipeline.accounting import Accounting
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.queue.decoding import EntryDecoder, Taken
from coatstream.queue.group import ConsumerGroup
from coatstream.queue.reader import MOST_BYTES, EntryReader
from coatstream.queue.source import QueueSource
from coatstream.results.metrics import SettlementMetrics
from coatstream.results.outcomes import Dropped
from coatstream.results.publisher import Publisher
from coatstream.results.settler import Settler, SettlingTerms
from coatstream.settings.model import QueueSettings, RedisSettings, ResultsSettings
from coatstream.telemetry.ledger import DropReason, Ledger
from coatstream.telemetry.status import Status
from prometheus_client import CollectorRegistry

from tests.faults import frames
from tests.faults.findings import Findings
from tests.faults.servers import running_server
from tests.faults.stage import Stage
from tests.support.doubles import HeardHealth, HeardQueue
from tests.support.threads import in_background

QUEUE: Final = Queue("frames", "coatstream", "frames:dead", "labels")
WAITING: Final = 256 * 1024**2  # bytes at most that the producer leaves in the queue


class MeasuredReader(EntryReader):
    """Notes the most bytes that were read and not decoded at one moment, and the largest entry."""

    peak = largest = 0

    def take(self, *, wait: bool, undecoded: int = 0) -> list[Taken]:
        found = super().take(wait=wait, undecoded=undecoded)
        self.peak = max(self.peak, undecoded + sum(taken.size for taken in found))
        self.largest = max([self.largest, *(taken.size for taken in found)])
        return found


def mixed_sizes(findings: Findings, *, kind: str, entries: int, largest: int, seed: int = 1) -> None:
    """Entries of 1 kB to `largest` bytes, evenly over the orders of magnitude, through the worker's own reader."""
    rng = random.Random(seed)
    sides = [int((1000 * (largest / 1000) ** rng.random() / 3) ** 0.5) for _ in range(entries)]
    with running_server(kind) as server, connect(RedisSettings.model_validate({"url": server.url})) as client:
        limits = QueueSettings(max_bytes=2 * largest, max_pixels=largest, decode_threads=2)
        source, reader, accounting = _source(client, limits)
        stop = threading.Event()
        send = partial(_send, server.client(), sides, stop)
        with in_background(send, stop=stop.set, name="producer"):
            began, done = time.monotonic(), 0
            for frame in source.frames(stop):
                accounting.holdings.begin([frame.receipt])
                dropped = [Dropped(frame.source, DropReason.STALE, frame.receipt)]
                settler = Settler(client, _terms(limits), model=_MODEL, name=f"{done}")
                accounting.settled(dropped, settler.settle(dropped, now=time.time()))
                done += 1
                if done == entries:
                    stop.set()
        findings.note("entries", done)
        findings.note("bytes, in GB", sum(3 * side * side for side in sides) / 1e9)
        findings.note("seconds", time.monotonic() - began)
        findings.note("largest entry, in MB", reader.largest / 1e6)
        findings.at_most("peak over the bound, in entries", (reader.peak - MOST_BYTES) / reader.largest, 1.0)


_MODEL = ModelInfo("none", "none", "noop", "none", "none", 0)


def _terms(limits: QueueSettings) -> SettlingTerms:
    return SettlingTerms([QUEUE], limits, ResultsSettings(), "me", "cameras:fences")


def _source(client: Client, limits: QueueSettings) -> tuple[QueueSource, MeasuredReader, Accounting]:
    registry = CollectorRegistry()
    accounting = Accounting(Ledger(), SettlementMetrics(registry))
    group = ConsumerGroup(client, QUEUE, limits, consumer="me")
    reader = MeasuredReader([group], accounting.holdings, HeardQueue(), prefetch=16, block=0.2)
    decode = EntryDecoder(limits, _shrink, Status(stall_after=60), PipelineMetrics(registry), HeardQueue())
    publisher = Publisher(Settler(client, _terms(limits), model=_MODEL, name="queue"), HeardHealth())
    return QueueSource("queue", reader, decode, publisher, accounting, HeardHealth()), reader, accounting


def _shrink(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[:8, :8])


def _send(client: Client, sides: Sequence[int], stop: threading.Event) -> None:
    """The server's memory is bounded, too: what waits is kept below `WAITING`."""
    block = b"\x80" * (3 * max(sides) ** 2)
    sizes = [3 * side * side for side in sides]
    for sent, (side, size) in enumerate(zip(sides, sizes, strict=True)):
        while not stop.is_set() and sum(sizes[max(0, sent - client.xlen("frames")) : sent]) > WAITING:
            stop.wait(0.01)
        client.xadd("frames", {"pixels": block[:size], "width": side, "height": side, "format": "bgr24"})


# ---- stranding


_DELETE_CONSUMER = """
local most, whose = 0, nil
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = {}
  for i = 1, #flat, 2 do one[flat[i]] = flat[i + 1] end
  if one.name ~= '_released' and one.pending > most then most, whose = one.pending, one.name end
end
if whose then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], whose) end
return most
"""
_ACKNOWLEDGE = """
local taken = 0
for _, entry in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 50)) do
  taken = taken + redis.call('XACK', KEYS[1], ARGV[1], entry[1])
end
return taken
"""
_SET_ID = """
local before = redis.call('XLEN', KEYS[1]) - redis.call('XPENDING', KEYS[1], ARGV[1])[1]
redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], '$')
return before
"""
_AT_THE_END = """
redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '$')
return redis.call('XLEN', KEYS[1])
"""
WAYS: Final = {
    "XGROUP DELCONSUMER": _DELETE_CONSUMER,
    "XACK by a tool": _ACKNOWLEDGE,
    "XGROUP SETID $": _SET_ID,
    "a group made at $": _AT_THE_END,
}


def stranded(stage: Stage, *, frame_count: int, kills: int, workers: int = 2) -> None:
    """Each way once, from a backlog that workers are at, with kills before and after. The books are empty in between,
    so that each stranded entry is counted once.
    """
    server = stage.server()
    client, sent = server.client(), list[str]()
    fleet = stage.fleet(server.url, workers, model__noop_delay=0.02)  # 3,200 frames/s: much waits at each stranding
    expected = 0
    for number, (way, script) in enumerate(WAYS.items()):
        some = frames.names(frame_count // len(WAYS), f"{number}-")
        frames.send(client, some)
        sent += some
        stage.until(lambda: client.xlen("frames") < frame_count // len(WAYS) * 0.9, "work has begun")
        kill: Callable[[], Any] = lambda: stage.rng.choice(fleet.members).kill_child()  # noqa: E731
        for _ in range(kills // len(WAYS) // 2):
            kill()
            time.sleep(0.02)
        found = int(client.eval(script, 1, "frames", "coatstream"))
        stage.findings.note(way, found)
        expected += found
        for _ in range(kills // len(WAYS) // 2):
            time.sleep(0.2)
            kill()
        stage.empty(client)
    stage.findings.exactly("counted as stranded", int(client.hget("frames:books", "stranded") or 0), expected)
    stage.findings.at_least("stranded", expected, frame_count // 20)
    stage.settle_up(client, fleet, sent)
