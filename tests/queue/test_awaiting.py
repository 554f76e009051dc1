"""Who puts a frame may wait for what becomes of it: in threads and in tasks, whatever message is lost."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import queues_of
from coatstream.errors import (
    BadFrame,
    CoatstreamError,
    ConfigError,
    DeadReason,
    FrameDead,
    FrameDropped,
    NoOutcome,
    RedisUnavailable,
)
from coatstream.frames.frame import Receipt
from coatstream.queue.producing.awaiting import MOST_IDLE
from coatstream.queue.producing.outbox import QueueFull, Terms
from coatstream.queue.producing.picture import Picture
from coatstream.queue.producing.producer import AsyncProducer, Producer
from coatstream.results.outcomes import Buried, Dropped, Outcome
from coatstream.settings.model import RedisSettings, SettingsTree
from coatstream.telemetry.ledger import DropReason

from tests.support.load import slack
from tests.support.redis_servers import ClusterServers, cluster
from tests.support.settled import published, settler
from tests.support.workers import eventually
from tests.support.worlds import BOTH_WORLDS, World, entered

pytestmark = BOTH_WORLDS


def settings_of(url: str, **sections: object) -> SettingsTree:
    return SettingsTree.model_validate({"redis": {"url": url}, **sections})


@contextmanager
def producing(world: World, where: str | SettingsTree, terms: Terms = Terms()) -> Iterator[Any]:  # noqa: B008
    with entered(world, Producer.connect(where, terms), AsyncProducer.connect(where, terms)) as producer:
        yield producer


class Worker:
    """Settles each entry as its picture says: `ok`, `bad` or `old`; what is `slow` it keeps, until `release`."""

    def __init__(self, client: Client, settings: SettingsTree) -> None:
        self._client = client
        self._queues = queues_of(settings)
        self._settlers = {queue.stream: settler(client, "pump", queues=[queue]) for queue in self._queues}
        self.kept: list[tuple[str, str, dict[bytes, bytes]]] = []
        for queue in self._queues:
            client.xgroup_create(queue.stream, queue.group, "0", mkstream=True)

    def work(self) -> int:
        """What is there now; how many that were."""
        count = 0
        for queue in self._queues:
            reply = self._client.xreadgroup(queue.group, "me", {queue.stream: ">"}, count=100)
            for entry_id, fields in reply[0][1] if reply else ():
                count += 1
                if fields[b"image"] == b"slow":
                    self.kept.append((queue.stream, entry_id.decode(), fields))
                else:
                    self.settle(queue.stream, entry_id.decode(), fields)
        return count

    def release(self) -> None:
        for stream, entry_id, fields in self.kept:
            self.settle(stream, entry_id, fields | {b"image": b"ok"})
        self.kept = []

    def settle(self, stream: str, entry_id: str, fields: dict[bytes, bytes]) -> None:
        source, frame_id = fields[b"source"].decode(), fields.get(b"frame_id", b"").decode()
        receipt = Receipt(stream, entry_id)
        outcome: Outcome | None = None
        match fields[b"image"]:
            case b"bad":
                outcome = Buried(source, DeadReason.UNDECODABLE, "no picture", receipt, frame_id)
            case b"old":
                outcome = Dropped(source, DropReason.EXPIRED, receipt, frame_id)
        label = published(
            entry_id, source=source, frame_id=frame_id or entry_id, label=f"label of {entry_id}", stream=stream
        )
        self._settlers[stream].settle([outcome or label], now=time.time())


@contextmanager
def working(client: Client, settings: SettingsTree) -> Iterator[Worker]:
    """A worker in a thread."""
    worker, stop = Worker(client, settings), threading.Event()

    def run() -> None:
        while not stop.wait(0.002):
            worker.work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield worker
    finally:
        stop.set()
        thread.join(10)


@pytest.fixture
def worker(client: Client, redis_url: str) -> Iterator[Worker]:
    with working(client, settings_of(redis_url)) as made:
        yield made


def silence(client: Client, redis_url: str) -> RedisSettings:
    """A worker's user whose messages on channels get lost."""
    client.execute_command("ACL SETUSER quiet on >pw allkeys +@all resetchannels")
    return RedisSettings.model_validate({"url": redis_url, "username": "quiet", "password": "pw"})


def picture(kind: str = "ok", source: str = "door", **more: Any) -> Picture:
    return Picture(kind.encode(), source, **more)


def in_background(call: Any, *args: Any, **options: Any) -> "Future[Any]":
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call, *args, **options)
    pool.shutdown(wait=False)
    return future


# ---- what comes back


def test_a_label_comes_back(worker: Worker, client: Client, redis_url: str, world: World) -> None:
    with producing(world, redis_url) as producer:
        label = producer.classify(picture(frame_id="f7", meta={"lane": 3}), timeout=20)

    ((_, fields),) = client.xrange("labels")
    assert (label.frame_id, label.source, label.entry_id) == ("f7", "door", fields[b"entry_id"].decode())
    assert label.labels[0].label == f"label of {label.entry_id}"
    assert client.xlen("frames") == 0


def test_a_frame_without_a_name_is_given_one(worker: Worker, redis_url: str, world: World) -> None:
    with producing(world, redis_url) as producer:
        first, second = (producer.classify(picture(), timeout=20) for _ in range(2))

    assert first.frame_id != second.frame_id
    assert first.entry_id != second.entry_id


@pytest.mark.parametrize(
    ("kind", "error", "reason", "line"),
    [
        ("bad", FrameDead, "undecodable", "the frame f1 is a dead letter: undecodable: no picture"),
        ("old", FrameDropped, "expired", "the frame f1 was dropped: expired"),
    ],
)
def test_a_failure_is_an_error_that_says_why(
    worker: Worker, redis_url: str, world: World, kind: str, error: type[Exception], reason: str, line: str
) -> None:
    with producing(world, redis_url) as producer, pytest.raises(error, match=line) as caught:
        producer.classify(picture(kind, frame_id="f1"), timeout=20)

    assert (getattr(caught.value, "reason"), getattr(caught.value, "frame_id")) == (reason, "f1")  # noqa: B009


def test_silence_ends_with_the_time(worker: Worker, redis_url: str, world: World) -> None:
    with producing(world, redis_url) as producer, pytest.raises(TimeoutError, match=r"nothing became .* within 0.5 s"):
        producer.classify(picture("slow"), timeout=0.5)


def test_what_no_worker_would_take_is_refused(redis_url: str, client: Client, world: World) -> None:
    with producing(world, redis_url) as producer, pytest.raises(BadFrame):
        producer.classify(picture(source=""), timeout=5)

    assert client.exists("frames") == 0


def test_a_full_queue_is_an_error_in_time_and_nothing_is_held(redis_url: str, client: Client, world: World) -> None:
    client.xadd("frames", {"image": "x"})

    with producing(world, settings_of(redis_url, queue={"max_length": 1})) as producer:
        with pytest.raises(QueueFull, match="the queue frames is full"):
            producer.classify(picture(), timeout=0.3)
        assert (producer.held, producer.refused, producer.sent) == (0, 1, 0)


def test_two_frames_of_one_name_have_a_label_each(worker: Worker, redis_url: str, world: World) -> None:
    with producing(world, redis_url) as producer:
        slow = in_background(producer.classify, picture("slow", frame_id="same"), timeout=30)
        eventually(lambda: len(worker.kept) == 1, "the first is in work")
        quick = producer.classify(picture(frame_id="same"), timeout=20)
        worker.release()

        assert slow.result(30).entry_id < quick.entry_id


def test_a_frame_that_was_in_already_gets_no_label_of_an_earlier_frame_of_its_name(
    worker: Worker, redis_url: str, world: World
) -> None:
    with producing(world, redis_url) as producer:
        producer.classify(picture(frame_id="f1", sequence=1), timeout=20)
        again = picture("slow", frame_id="f1", sequence=2)
        producer.put(again)
        eventually(lambda: len(worker.kept) == 1, "it is in work")
        [(_, entry_id, _)] = worker.kept

        with pytest.raises(NoOutcome):
            producer.classify(again, timeout=1.5)

        waiting = in_background(producer.classify, again, timeout=60)
        worker.release()
        assert waiting.result(60).entry_id == entry_id
        assert producer.duplicates == 2


@pytest.mark.parametrize("call", ["classify", "wait_for"])
def test_a_server_that_hangs_takes_no_longer_than_the_time_out(
    client: Client, redis_url: str, world: World, worker: Worker, call: str
) -> None:
    with producing(world, redis_url) as producer:
        producer.classify(picture(frame_id="f1"), timeout=20)
        client.execute_command("CLIENT PAUSE 3000 ALL")
        ask = {
            "classify": lambda: producer.classify(picture(), timeout=0.5),
            "wait_for": lambda: producer.wait_for("other", source="door", timeout=0.5),
        }
        begun = time.monotonic()
        with pytest.raises((NoOutcome, RedisUnavailable), match="no reply came"):
            ask[call]()
        took = time.monotonic() - begun

    assert took < 1.5 + slack()


def test_two_sources_that_number_their_frames_alike_are_told_apart(
    redis_url: str, world: World, worker: Worker
) -> None:
    with producing(world, redis_url) as producer:
        for source in ("door", "gate"):
            producer.put(picture(source=source, frame_id="7"))
        found = [producer.wait_for("7", source=source, timeout=20) for source in ("door", "gate")]

    assert [(label.source, label.frame_id) for label in found] == [("door", "7"), ("gate", "7")]


def test_a_repetition_without_a_frame_id_hears_of_the_first(redis_url: str, world: World, worker: Worker) -> None:
    with producing(world, redis_url) as producer:
        first, again = (producer.classify(picture(sequence=5), timeout=20) for _ in range(2))

    assert again == first


def test_a_time_out_that_is_no_number_is_refused_and_an_endless_one_is_none(
    redis_url: str, world: World, worker: Worker
) -> None:
    with producing(world, redis_url) as producer:
        with pytest.raises(ConfigError, match="timeout"):
            producer.classify(picture(), timeout=float("nan"))
        assert producer.classify(picture(), timeout=float("inf")).labels


def test_what_strangers_say_on_a_channel_changes_nothing(
    worker: Worker, client: Client, redis_url: str, world: World
) -> None:
    with producing(world, redis_url) as producer:
        waiting = in_background(producer.classify, picture("slow", frame_id="f1"), timeout=30)
        eventually(lambda: len(worker.kept) == 1, "it is in work")
        for text in ("", "[]", "{", '{"frame_id": "f1"}', '{"frame_id": "f1", "status": "dead"}', b"\xff"):
            client.publish("labels:door", text)
            client.publish("failures:door", text)
        worker.release()

        assert waiting.result(30).frame_id == "f1"


# ---- messages that get lost


@pytest.mark.parametrize(
    ("kind", "error", "reason"), [("ok", None, ""), ("bad", FrameDead, "undecodable"), ("old", FrameDropped, "unknown")]
)
def test_what_no_channel_told_is_found_in_the_streams(
    client: Client, redis_url: str, world: World, kind: str, error: type[CoatstreamError] | None, reason: str
) -> None:
    with (
        connect(silence(client, redis_url)) as quiet,
        working(quiet, settings_of(redis_url)),
        producing(world, redis_url) as producer,
    ):
        if error is None:
            assert producer.classify(picture(kind, frame_id="f1"), timeout=20).frame_id == "f1"
        else:
            with pytest.raises(error) as caught:
                producer.classify(picture(kind, frame_id="f1"), timeout=20)
            assert getattr(caught.value, "reason") == reason  # noqa: B009


def test_a_user_who_may_not_listen_gets_his_label_all_the_same(
    worker: Worker, client: Client, redis_url: str, world: World
) -> None:
    client.execute_command("ACL SETUSER deaf on >pw allkeys +@all resetchannels")
    settings = settings_of(redis_url)
    own = settings.model_copy(
        update={"redis": RedisSettings.model_validate({"url": redis_url, "username": "deaf", "password": "pw"})}
    )

    with producing(world, own) as producer:
        assert producer.classify(picture(frame_id="f1"), timeout=20).frame_id == "f1"


def test_a_subscription_that_breaks_loses_no_answer(
    worker: Worker, client: Client, redis_url: str, world: World
) -> None:
    with producing(world, redis_url) as producer:
        waiting = [in_background(producer.classify, picture("slow"), timeout=60) for _ in range(5)]
        eventually(lambda: len(worker.kept) == 5, "all are in work")
        client.client_kill_filter(_type="pubsub")
        worker.release()

        assert len({future.result(60).entry_id for future in waiting}) == 5
        assert producer.classify(picture(), timeout=20).labels


def test_a_label_far_behind_in_the_stream_is_found(client: Client, redis_url: str, world: World) -> None:
    with (
        connect(silence(client, redis_url)) as quiet,
        working(quiet, settings_of(redis_url)) as worker,
        producing(world, redis_url) as producer,
    ):
        waiting = in_background(producer.classify, picture("slow", frame_id="f1"), timeout=60)
        eventually(lambda: len(worker.kept) == 1, "it is in work")
        pipe = client.pipeline(transaction=False)
        for number in range(3000):
            pipe.xadd("labels", {"frame_id": f"other{number}", "json": "{}"})
        pipe.execute()
        worker.release()

        assert waiting.result(60).frame_id == "f1"


def test_a_label_is_found_though_the_ids_of_frames_are_ahead_of_the_servers_clock(
    client: Client, redis_url: str, world: World
) -> None:
    client.xdel("frames", client.xadd("frames", {"a": "b"}, id=f"{int(time.time() + 3600) * 1000}-0"))

    with (
        connect(silence(client, redis_url)) as quiet,
        working(quiet, settings_of(redis_url)),
        producing(world, redis_url) as producer,
    ):
        assert producer.classify(picture(frame_id="f1"), timeout=20).frame_id == "f1"


# ---- frames that were put before


def test_a_frame_that_was_put_can_be_waited_for_later(
    worker: Worker, client: Client, redis_url: str, world: World
) -> None:
    with producing(world, redis_url) as producer:
        producer.put(picture(frame_id="f1"))
        producer.put(picture("bad", frame_id="f2"))
        producer.put(picture("old", frame_id="f3"))
        eventually(lambda: client.xlen("frames") == 0, "all are settled")

        assert producer.wait_for("f1", timeout=20).frame_id == "f1"
        with pytest.raises(FrameDead):
            producer.wait_for("f2", timeout=20)
        with pytest.raises(FrameDropped):
            producer.wait_for("f3", timeout=20)


@pytest.mark.parametrize("source", ["door", None])
@pytest.mark.parametrize("when", ["before", "after"])
def test_another_producers_frame_can_be_waited_for_by_its_id(
    worker: Worker, client: Client, redis_url: str, world: World, source: str | None, when: str
) -> None:
    """By the entry's id, where it has no name of its own."""
    entry_id = client.xadd("frames", {"image": "slow", "source": "door"}).decode()
    eventually(lambda: len(worker.kept) == 1, "it is in work")

    with producing(world, redis_url) as producer:
        if when == "before":
            worker.release()
        waiting = in_background(producer.wait_for, entry_id, timeout=60, source=source)
        if when == "after":
            assert not waiting.done()
            worker.release()

        assert waiting.result(60).entry_id == entry_id


def test_an_unknown_frame_is_waited_for_in_vain(worker: Worker, redis_url: str, world: World) -> None:
    with producing(world, redis_url) as producer, pytest.raises(NoOutcome):
        producer.wait_for("never", timeout=0.3)


# ---- many at once


def test_many_calls_at_once_share_a_few_connections(
    worker: Worker, client: Client, redis_url: str, world: World
) -> None:
    before = len(client.client_list())

    with producing(world, redis_url) as producer, ThreadPoolExecutor(40) as pool:
        labels = list(pool.map(lambda n: producer.classify(picture(source=f"door-{n % 5}"), timeout=60), range(400)))
        connections = len(client.client_list()) - before

    assert len({label.entry_id for label in labels}) == 400
    assert connections <= 6
    assert client.xinfo_stream("frames")["entries-added"] == 400


def test_sources_without_frames_stay_subscribed_in_a_bounded_number(
    worker: Worker, client: Client, redis_url: str, world: World
) -> None:
    with producing(world, redis_url) as producer:
        for number in range(MOST_IDLE + 20):
            producer.classify(picture(source=f"s{number}"), timeout=20)

        eventually(lambda: len(client.pubsub_channels("labels:*")) == MOST_IDLE, "the oldest were given up")
        assert producer.classify(picture(source="s0"), timeout=20).source == "s0"


def test_closing_wakes_those_who_wait(worker: Worker, redis_url: str, world: World) -> None:
    with producing(world, redis_url) as producer:
        waiting = in_background(producer.classify, picture("slow"), timeout=600)
        eventually(lambda: len(worker.kept) == 1, "it is in work")

        producer.close()

        with pytest.raises(NoOutcome):
            waiting.result(60)


# ---- a cluster


@pytest.fixture(scope="module")
def servers() -> Iterator[ClusterServers]:
    with cluster(3) as made:
        yield made


def test_on_a_cluster_each_partition_answers(servers: ClusterServers, world: World) -> None:
    settings = settings_of(
        servers.url,
        queue={"stream": "{q}frames", "dead_stream": "{q}frames:dead", "partitions": 3},
        results={"stream": "{q}labels"},
    )
    for node in servers.nodes:
        node.admin.flushall()
    with connect(settings.redis) as client:
        with working(client, settings), producing(world, settings) as producer:
            labels = [producer.classify(picture(source=f"door-{n}"), timeout=20) for n in range(12)]
            with pytest.raises(FrameDead):
                producer.classify(picture("bad"), timeout=20)
        filled = [client.xlen(queue.labels) for queue in queues_of(settings)]

    assert [label.source for label in labels] == [f"door-{n}" for n in range(12)]
    assert all(filled)
    assert sum(filled) == 12
