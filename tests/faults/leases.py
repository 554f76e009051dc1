"""F8, F9, F10, F27: who holds a frame, for how long, and who may take it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

from coatstream.broker.connection import Client

from tests.faults import frames
from tests.faults.inside.sitecustomize import STUCK_ONCE
from tests.faults.kills import TICK
from tests.faults.stage import MIN_IDLE, Stage

BATCH_TIMEOUT = 1.0  # seconds


def long_batches(stage: Stage, *, frame_count: int) -> None:
    """F8: batches that take four times as long as a lease lasts, renewed all the while."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    fleet = stage.fleet(server.url, 2, model__noop_delay=4 * MIN_IDLE, batch__max_size=8)
    frames.send(client, sent)
    most = 0

    def done() -> bool:
        nonlocal most
        most = max([most, *(count for _, count in frames.pending(client).values())])
        return not client.xlen(frames.KEYS.stream)

    stage.until(done, "the queue becomes empty")
    inferences = sum(member.total("coatstream_batch_size_frames_sum") for member in fleet.members)
    stage.settle_up(client, fleet, sent)
    stage.findings.exactly("inferences", int(inferences), frame_count)
    stage.findings.exactly("highest delivery count", most, 1)


def stuck(stage: Stage, *, frame_count: int) -> None:
    """F9: a model that never returns keeps its frames for no longer than it may."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    fleet = stage.fleet(server.url, 2, batch__timeout=BATCH_TIMEOUT, batch__max_size=4)
    frames.send(client, sent, {sent[0]: STUCK_ONCE})
    stage.until((stage.folder / "stuck").exists, "a model is stuck", within=10)
    began = time.monotonic()
    [holder] = {owner for owner, _ in frames.pending(client).values() if _is_stuck(client, owner)} or {""}
    victim = fleet.of_consumer(holder)
    assert victim is not None, f"no worker of the fleet has the consumer {holder}"
    stage.empty(client)
    seconds = time.monotonic() - began
    stage.until(lambda: victim.probe("/healthz") == HTTPStatus.SERVICE_UNAVAILABLE, "/healthz fails", within=2)
    victim.kill()
    victim.process.wait(10)
    fleet.members.remove(victim)
    stage.settle_up(client, fleet, sent)
    stage.findings.at_most("longest until done elsewhere", seconds, BATCH_TIMEOUT + MIN_IDLE + TICK + 0.3, " s")


def _is_stuck(client: Client, owner: str) -> bool:
    """Whether that consumer has the first frame of the stream: the one that is stuck."""
    oldest = client.xrange(frames.KEYS.stream, count=1)[0][0].decode()
    return frames.pending(client).get(oldest, ("", 0))[0] == owner


def behind_busy_ones(stage: Stage, *, busy: int = 100, idle: int = 50) -> None:
    """F10: idle frames are found behind many that a worker has in hand."""
    server = stage.server()
    client = server.client()
    fleet = stage.fleet(server.url, 1)
    pipe = client.pipeline(transaction=True)  # so that no worker is served in between
    for name in frames.names(busy, "busy") + frames.names(idle, "idle"):
        pipe.xadd(frames.KEYS.stream, frames.fields(name))
    pipe.xreadgroup(frames.KEYS.group, "busy-1-0", {frames.KEYS.stream: ">"}, count=busy)
    pipe.xreadgroup(frames.KEYS.group, "gone-1-0", {frames.KEYS.stream: ">"}, count=idle)
    *entries, _, _ = pipe.execute()
    with _beating(server.client(), "busy-1-0", entries[:busy]):
        time.sleep(MIN_IDLE)
        seconds = stage.until(lambda: client.xlen(frames.KEYS.labels) >= idle, "the idle ones are done", within=10)
        stage.findings.exactly("busy ones left alone", client.xlen(frames.KEYS.stream), busy)
    stage.settle_up(client, fleet, frames.names(busy, "busy") + frames.names(idle, "idle"))
    stage.findings.at_most("idle ones done after", seconds, 2 * TICK, " s")


@contextmanager
def _beating(client: Client, consumer: str, entries: list[bytes]) -> Iterator[None]:
    """A consumer that is at work on these, as the server sees it."""

    def beat() -> None:
        client.xclaim(frames.KEYS.stream, frames.KEYS.group, consumer, 0, entries, justid=True)

    with _every(MIN_IDLE / 5, beat):
        yield


@contextmanager
def _every(seconds: float, do: Callable[[], object]) -> Iterator[None]:
    """In a thread, again and again."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            do()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)


def reaped(stage: Stage, *, frame_count: int) -> None:
    """F27: a reaper without patience races consumers that are alive. No entry may vanish with its consumer."""
    from coatstream.broker.keys import Queue
    from coatstream.queue.group import ConsumerGroup
    from coatstream.settings.model import QueueSettings

    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    fleet = stage.fleet(server.url, 2, batch__max_size=4, queue__min_idle=30)
    queue = Queue(frames.KEYS.stream, frames.KEYS.group, frames.KEYS.dead, frames.KEYS.labels)
    reaper = ConsumerGroup(server.client(), queue, QueueSettings(), consumer="reaper-1-0")
    reaped = 0

    def reap() -> None:
        nonlocal reaped
        reaped += reaper.reap(0.0)

    with _every(0.0005, reap):
        for page in range(0, frame_count, 50):  # so that workers have now something, now nothing
            frames.send(client, sent[page : page + 50])
            stage.until(lambda: client.xlen(frames.KEYS.stream) == 0, "a page is done", within=10, every=0.001)
    stage.settle_up(client, fleet, sent)
    stage.findings.at_least("live consumers removed", reaped, 1)
