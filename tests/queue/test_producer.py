"""The producer's side of the frames stream on real servers: bounded, each frame once, back-pressure told."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue
from coatstream.errors import BadFrame, ConfigError, DeadReason, RedisRefuses, RedisUnavailable
from coatstream.frames.frame import Receipt
from coatstream.frames.model import ModelInfo
from coatstream.queue import entry
from coatstream.queue.entry import RawPixels, admitted_of, parse
from coatstream.queue.producing import picture as pictures
from coatstream.queue.producing.admission import MAX_BYTES, MAX_ENTRIES
from coatstream.queue.producing.outbox import QueueFull, Terms
from coatstream.queue.producing.picture import Picture, RawPicture, fields_of
from coatstream.queue.producing.producer import Producer, name_of_queue
from coatstream.results.outcomes import Dropped
from coatstream.settings.model import QueueSettings, RedisSettings, SettingsTree
from coatstream.telemetry.ledger import DropReason
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as some

from tests.faults.proxy import Proxy, running_proxy
from tests.support.load import slack
from tests.support.redis_servers import TcpServer, cluster, debian_redis, tcp_server
from tests.support.servers import ON_ONE_SERVER
from tests.support.settled import settler
from tests.support.workers import eventually

QUEUE = Queue("frames", "coatstream", "frames:dead", "labels")
MODEL = ModelInfo("none", "none", "noop", "none", "cpu", 1)
WAIT, DROP = Terms(full_timeout=0), Terms(when_full="drop")


def picture(number: int = 0, *, size: int = 10, source: str = "door", sequence: int | None = None) -> Picture:
    return Picture(b"x" * size, source, f"f{number}", 1_700_000_000.25, sequence)


def producer(client: Client, terms: Terms = WAIT, *, stop: threading.Event | None = None, **limits: int) -> Producer:
    return Producer(client, [QUEUE], QueueSettings.model_validate(limits), terms, stop=stop)


def settings_of(url: str, **queue: object) -> SettingsTree:
    return SettingsTree.model_validate({"redis": {"url": url}, "queue": queue})


def names(client: Client, stream: str = "frames") -> list[str]:
    return [fields[b"frame_id"].decode() for _, fields in client.xrange(stream)]


def size_of(one: Picture) -> int:
    return sum(map(len, fields_of(one)))


class Workers:
    """Settles entries as a worker does, through its own script."""

    def __init__(self, client: Client) -> None:
        self.settled: list[str] = []  # frame ids
        self._client = client
        client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
        self._settler = settler(client, "n", worker="w")

    def settle(self, count: int) -> int:
        """The oldest ones; how many there were."""
        reply = self._client.xreadgroup("coatstream", "w", {"frames": ">"}, count=count)
        entries = reply[0][1] if reply else []
        outcomes = [
            Dropped(
                fields.get(b"source", b"queue").decode(),
                DropReason.EXPIRED,
                Receipt("frames", entry_id.decode(), admitted_of(fields)),
            )
            for entry_id, fields in entries
        ]
        if outcomes:
            self._settler.settle(outcomes, now=time.time())
        self.settled += [fields.get(b"frame_id", b"").decode() for _, fields in entries]
        return len(outcomes)


@pytest.fixture
def workers(client: Client) -> Workers:
    return Workers(client)


def accounts(client: Client) -> tuple[int, dict[str, int]]:
    """What admission has on its books: bytes, and entries per source."""
    held = {source.decode(): int(count) for source, count in client.hgetall(QUEUE.sources).items()}
    return int(client.hget(QUEUE.books, "admitted_bytes") or 0), held


def assert_accounts_are_true(client: Client) -> None:
    """They say what lies in the stream."""
    admitted = [fields for _, fields in client.xrange("frames") if b"admitted" in fields]
    by_source = Counter(fields[b"source"].decode() for fields in admitted)
    assert accounts(client) == (sum(admitted_of(fields) for fields in admitted), dict(by_source))


# ---- what arrives


def test_a_picture_arrives_as_the_contract_has_it(client: Client) -> None:
    one = Picture(b"jpeg", "Tür 1", "f7", 1_700_000_000.25, expires_at=1_700_000_060, meta={"zoom": 1.5, "ort": "Tür"})

    producer(client).put(one)

    [(entry_id, fields)] = client.xrange("frames")
    found = parse(entry_id.decode(), fields)
    assert (found.picture, found.source, found.frame_id) == (b"jpeg", "Tür 1", "f7")
    assert (found.captured_at, found.expires_at) == (1_700_000_000.25, 1_700_000_060.0)
    assert found.meta == '{"zoom":1.5,"ort":"Tür"}'
    assert admitted_of(fields) == size_of(one)


def test_what_is_not_said_is_left_to_the_worker(client: Client) -> None:
    producer(client).put(Picture(b"jpeg", "door"))

    [(entry_id, fields)] = client.xrange("frames")
    assert fields.keys() == {b"image", b"source", b"admitted", b"sequence"}
    assert parse(entry_id.decode(), fields).frame_id == entry_id.decode()


def test_raw_pixels_arrive(client: Client) -> None:
    producer(client).put(Picture(RawPicture(bytes(6), 2, 1, "rgb24"), "door"))

    [(entry_id, fields)] = client.xrange("frames")
    assert parse(entry_id.decode(), fields).picture == RawPixels(bytes(6), 2, 1, "rgb24")


def test_the_limits_of_its_texts_are_the_workers() -> None:
    ours = (pictures.MAX_SOURCE, pictures.MAX_FRAME_ID, pictures.MAX_META, pictures.LATEST_MOMENT)

    assert ours == (entry.MAX_SOURCE, entry.MAX_FRAME_ID, entry.MAX_META, entry.LATEST_MOMENT)


TEXTS = some.text(max_size=300)
MOMENTS = some.none() | some.floats() | some.floats(0, 2e10)


@given(
    source=TEXTS,
    frame_id=TEXTS,
    captured_at=MOMENTS,
    expires_at=MOMENTS,
    meta=some.none()
    | some.dictionaries(some.text(), some.floats() | some.text(max_size=4100) | some.none(), max_size=3),
)
def test_what_it_takes_a_worker_takes_too(
    source: str, frame_id: str, captured_at: float | None, expires_at: float | None, meta: dict[str, Any] | None
) -> None:
    try:
        flat = fields_of(Picture(b"x", source, frame_id, captured_at, None, expires_at, meta))
    except BadFrame:
        return

    found = parse("1-0", dict(zip(flat[::2], flat[1::2], strict=True)))

    assert (found.source, found.frame_id) == (source, frame_id or "1-0")
    assert (found.expires_at is None) == (expires_at is None)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (Picture(b"x", ""), "source has 0 characters; give 1 to 128"),
        (Picture(b"x", "y" * 129), "source has 129 characters; give 1 to 128"),
        (Picture(b"x", "\udce9"), "source is not UTF-8"),
        (Picture(b"x", "d", "y" * 257), "frame_id has 257 characters, at most 256 are allowed"),
        (Picture(b"x", "d", sequence=-1), "sequence is -1; give 0 to 9007199254740991"),
        (Picture(b"x", "d", captured_at=1.7e12), "captured_at is 1700000000000.0, not Unix seconds"),
        (Picture(b"x", "d", meta={"a": {1}}), "meta is not JSON: Object of type set is not JSON serializable"),
        (Picture(b"x", "d", meta={"a": "b" * 4096}), "meta has 4104 bytes, at most 4096 are allowed"),
    ],
)
@ON_ONE_SERVER
def test_what_no_worker_would_take_is_refused_before_it_is_sent(client: Client, wrong: Picture, line: str) -> None:
    ours = producer(client)

    with pytest.raises(BadFrame, match=line):
        ours.put(wrong)

    assert (ours.held, client.exists("frames")) == (0, 0)


@ON_ONE_SERVER
def test_a_frame_larger_than_the_whole_queue_is_refused_at_once(client: Client) -> None:
    ours = producer(client, max_total_bytes=100)

    with pytest.raises(BadFrame, match=r"more than queue.max_total_bytes \(100\) for all together") as caught:
        ours.put(picture(size=100))

    assert caught.value.reason is DeadReason.TOO_LARGE
    assert (ours.held, client.exists("frames")) == (0, 0)


# ---- one call


def test_every_picture_leaves_at_once_unless_batches_are_asked_for(client: Client) -> None:
    at_once, batches = producer(client), producer(client, Terms(batch=MAX_ENTRIES))

    at_once.put(picture(0))
    for number in range(1, MAX_ENTRIES):
        batches.put(picture(number))
    assert (names(client), batches.held) == (["f0"], MAX_ENTRIES - 1)

    batches.put(picture(MAX_ENTRIES))
    assert names(client) == [f"f{number}" for number in range(MAX_ENTRIES + 1)]
    assert (batches.sent, batches.held) == (MAX_ENTRIES, 0)


def test_pictures_held_never_exceed_the_bytes_of_one_call(client: Client) -> None:
    ours = producer(client, Terms(batch=MAX_ENTRIES))
    half = MAX_BYTES // 2 + 1

    ours.put(picture(size=half))
    assert ours.sent == 0

    ours.put(picture(size=half))
    assert (ours.sent, ours.held) == (1, 1)


def test_a_picture_larger_than_a_call_goes_alone_and_at_once(client: Client) -> None:
    ours = producer(client, Terms(batch=MAX_ENTRIES))

    ours.put(picture(size=MAX_BYTES + 1))

    assert ours.sent == 1


def test_flushing_nothing_asks_the_server_nothing(client: Client) -> None:
    calls = client.info("stats")["total_commands_processed"]

    producer(client).flush()

    assert client.info("stats")["total_commands_processed"] == calls + 1


def test_a_script_that_the_server_has_forgotten_is_sent_again(client: Client) -> None:
    ours = producer(client)
    ours.put(picture(1))
    client.script_flush()

    ours.put(picture(2))

    assert names(client) == ["f1", "f2"]


# ---- bounds


def test_a_full_queue_takes_no_more_entries(client: Client) -> None:
    ours = producer(client, DROP, max_length=5)

    for number in range(8):
        ours.put(picture(number))

    assert names(client) == [f"f{number}" for number in range(5)]
    assert (ours.sent, ours.refused) == (5, 3)
    assert client.hget(QUEUE.books, "refused") == b"3"


def test_a_full_queue_takes_no_more_bytes(client: Client) -> None:
    one = size_of(picture(size=100))
    ours = producer(client, DROP, max_total_bytes=5 * one + one - 1)

    for number in range(8):
        ours.put(picture(number, size=100))

    assert (client.xlen("frames"), accounts(client)) == (5, (5 * one, {"door": 5}))
    assert (ours.sent, ours.refused) == (5, 3)


def test_there_is_room_again_when_workers_have_settled(client: Client, workers: Workers) -> None:
    ours = producer(client, DROP, max_length=5)
    for number in range(6):
        ours.put(picture(number))

    workers.settle(2)
    for number in range(6, 9):
        ours.put(picture(number))

    assert names(client) == ["f2", "f3", "f4", "f6", "f7"]
    assert_accounts_are_true(client)
    workers.settle(10)
    assert accounts(client) == (0, {})


def test_a_plain_xadd_is_never_refused_and_takes_room(client: Client, workers: Workers) -> None:
    ours = producer(client, DROP, max_length=3)
    for _ in range(2):
        client.xadd("frames", {"image": b"jpeg", "source": "plain"})

    ours.put(picture(1))
    ours.put(picture(2))
    client.xadd("frames", {"image": b"jpeg", "source": "plain"})

    assert (ours.sent, ours.refused, client.xlen("frames")) == (1, 1, 4)
    assert accounts(client) == (size_of(picture(1)), {"door": 1})
    workers.settle(10)
    assert accounts(client) == (0, {})


def test_at_ten_times_the_load_the_queue_keeps_its_bounds_and_every_frame_is_accounted_for(
    client: Client, workers: Workers, redis_url: str
) -> None:
    """5 % of the frames come twice; workers take a tenth of what is sent."""
    cap, most, puts, threads = 100, 40_000, 500, 4
    sent, refused, seen, ended = Counter[str](), Counter[str](), [], threading.Event()

    def produce(number: int) -> None:
        rng, source = random.Random(number), f"door-{number}"
        with connect(RedisSettings.model_validate({"url": redis_url})) as own:
            ours = producer(own, Terms(when_full="drop"), max_length=cap, max_total_bytes=most)
            for sequence in range(puts):
                for _ in range(2 if rng.random() < 0.05 else 1):
                    ours.put(picture(sequence, size=rng.randrange(1, 2000), source=source, sequence=sequence))
        sent[source], refused[source] = ours.sent - ours.duplicates, ours.refused

    def watch() -> None:
        with connect(RedisSettings.model_validate({"url": redis_url})) as own:
            while not ended.is_set():
                seen.append((own.xlen("frames"), int(own.hget(QUEUE.books, "admitted_bytes") or 0)))

    running = [threading.Thread(target=produce, args=[number]) for number in range(threads)]
    watching = threading.Thread(target=watch)
    for thread in (*running, watching):
        thread.start()
    settled = 0
    while any(thread.is_alive() for thread in running):
        running[0].join(0.005)
        settled += workers.settle(3)
    ended.set()
    watching.join(10)

    assert max(length for length, _ in seen) <= cap
    assert max(size for _, size in seen) <= most
    assert max(length for length, _ in seen) > cap / 4  # it was full, or the test would say nothing
    assert sum(refused.values()) > puts
    assert settled + client.xlen("frames") == sum(sent.values()) == client.xinfo_stream("frames")["entries-added"]
    assert_accounts_are_true(client)


def test_a_server_at_its_maxmemory_is_full_and_nothing_is_recorded(client: Client) -> None:
    ours = producer(client, DROP)
    client.config_set("maxmemory", 1)
    try:
        ours.put(picture(1, sequence=1))
    finally:
        client.config_set("maxmemory", 0)

    assert (ours.sent, ours.refused) == (0, 1)
    assert client.keys("*") == []
    ours.put(picture(1, sequence=1))
    assert (ours.sent, ours.duplicates) == (1, 0)


def test_accounts_that_somebody_has_spoilt_are_healed_when_the_queue_is_empty(client: Client) -> None:
    ours = producer(client, DROP, max_length=5, max_total_bytes=5 * size_of(picture()))
    for number in range(5):
        ours.put(picture(number))
    client.xtrim("frames", maxlen=0, approximate=False)

    for number in range(5):
        ours.put(picture(number, source="gate"))

    assert (ours.sent, ours.refused) == (10, 0)
    assert accounts(client)[1] == {"gate": 5}
    assert_accounts_are_true(client)


@pytest.mark.parametrize(
    ("key", "kind"),
    [("frames", "stream"), (QUEUE.books, "hash"), (QUEUE.sources, "hash"), ("frames:newcomer", "string")],
)
def test_a_key_that_holds_something_else_is_named_before_anything_is_written(
    client: Client, key: str, kind: str
) -> None:
    client.lpush(key, "a list")
    ours = producer(client)

    with pytest.raises(RedisRefuses, match=f"frames cannot be put into frames: .*{key} holds a list, not a {kind}"):
        ours.put(picture())

    assert client.keys("*") == [key.encode()]
    assert (ours.sent, ours.held) == (0, 1)


def test_a_sequence_that_is_something_else_leaves_the_other_sources_frames_out_too(client: Client) -> None:
    client.lpush(QUEUE.sequence("gate"), "a list")
    ours = producer(client, Terms(batch=2))
    ours.put(picture(1, source="door", sequence=1))

    with pytest.raises(RedisRefuses, match="WRONGTYPE"):
        ours.put(picture(1, source="gate", sequence=1))

    assert client.exists("frames") == 0


# ---- each frame once


def test_a_frame_that_comes_again_is_taken_once(client: Client, workers: Workers) -> None:
    ours = producer(client)
    for sequence in (5, 6, 6, 5):
        ours.put(picture(sequence, sequence=sequence))

    assert (ours.sent, ours.duplicates, names(client)) == (4, 2, ["f5", "f6"])

    workers.settle(2)
    producer(client).put(picture(6, sequence=6))  # another process, after the frame was settled
    assert client.xlen("frames") == 0


def test_sequences_of_one_source_say_nothing_of_another(client: Client) -> None:
    ours = producer(client)

    ours.put(picture(1, sequence=9))
    ours.put(picture(2, sequence=1, source="gate"))

    assert names(client) == ["f1", "f2"]


def test_two_producers_of_one_source_that_count_for_themselves_do_not_shut_each_other_out(client: Client) -> None:
    one, other = producer(client, Terms(batch=2)), producer(client, Terms(batch=2))

    one.put(picture(1))
    other.put(picture(2))  # a later sequence, and first in
    other.flush()
    one.flush()

    assert names(client) == ["f2", "f1"]
    assert (one.duplicates, other.duplicates) == (0, 0)


def test_sequences_that_it_makes_rise_over_restarts_and_with_a_clock_that_stands_still(client: Client) -> None:
    for clock in (lambda: 1000.0, lambda: 1000.5):
        ours = Producer(client, [QUEUE], QueueSettings(), clock=clock)
        for number in range(3):
            ours.put(picture(number))

    sequences = [int(fields[b"sequence"]) for _, fields in client.xrange("frames")]
    assert sequences == [1_000_000_000 + n for n in range(3)] + [1_000_500_000 + n for n in range(3)]


def test_what_comes_after_a_refused_frame_of_its_source_is_refused_with_it(client: Client) -> None:
    """Else the refused one, sent again, would be taken for a repetition, and lost."""
    room = size_of(picture(1, size=500)) + 400
    ours = producer(client, Terms(batch=4, full_timeout=0), max_total_bytes=room)
    for number, size in ((1, 500), (2, 450), (3, 10)):
        ours.put(picture(number, size=size))

    with pytest.raises(QueueFull):
        ours.put(picture(4, size=10, source="gate"))
    assert (names(client), ours.held) == (["f1", "f4"], 2)

    Workers(client).settle(2)
    ours.flush()
    assert names(client) == ["f2", "f3"]
    assert (ours.sent, ours.duplicates) == (4, 0)


def test_the_server_forgets_sequences_in_time(client: Client) -> None:
    producer(client).put(picture(sequence=1))
    producer(client).put(picture())

    lives = sorted(client.pttl(key) for key in client.keys("frames:sequence:*"))
    assert [round(life / 3_600_000) for life in lives] == [24, 7 * 24]


@pytest.fixture
def tcp(redis_server: Any) -> Iterator[TcpServer]:
    """A server of the same kind on TCP."""
    binary = redis_server.process.args[0]
    with tcp_server(binary=binary) as server:
        yield server


@contextmanager
def through_proxy(tcp: TcpServer, seed: int = 7) -> Iterator[tuple[Proxy, Client]]:
    with running_proxy(tcp.port, random.Random(seed)) as proxy:
        redis_settings = RedisSettings.model_validate({"url": f"redis://127.0.0.1:{proxy.port}"})
        with connect(redis_settings) as client:
            yield proxy, client


def test_a_reply_that_is_lost_doubles_nothing_and_loses_nothing(tcp: TcpServer) -> None:
    with through_proxy(tcp) as (proxy, client):
        ours = producer(client, Terms(batch=2, retry_time=30))
        ours.put(picture(0))
        proxy.lose = 0.1
        for number in range(1, 160):
            ours.put(picture(number))
        ours.flush()
        proxy.lose = 0

        assert names(client) == [f"f{number}" for number in range(160)]
    assert proxy.lost > 3
    assert ours.sent == 160
    assert ours.duplicates >= 2


def test_a_connection_that_is_killed_doubles_nothing_and_loses_nothing(client: Client, redis_url: str) -> None:
    done = threading.Event()

    def kill() -> None:
        with connect(RedisSettings.model_validate({"url": redis_url})) as own:
            while not done.wait(0.01):
                own.client_kill_filter(_type="normal", skipme=True)

    killer = threading.Thread(target=kill)
    killer.start()
    ours = producer(client, Terms(batch=4, retry_time=30))
    try:
        for number in range(400):
            ours.put(picture(number))
        ours.flush()
    finally:
        done.set()
        killer.join(10)

    client.connection_pool.disconnect()
    assert names(client) == [f"f{number}" for number in range(400)]
    assert (ours.sent, ours.held, ours.unsure) == (400, 0, 0)


def test_what_could_not_be_sent_in_time_is_held_and_sent_later_without_doubling(tcp: TcpServer) -> None:
    with through_proxy(tcp) as (proxy, client):
        ours = producer(client, Terms(retry_time=0.2))
        ours.put(picture(1))
        proxy.lose = 1

        with pytest.raises(RedisUnavailable, match="frames cannot be put into frames"):
            ours.put(picture(2))
        with pytest.raises(RedisUnavailable):  # not taken: the one before it comes first
            ours.put(picture(3))
        assert (ours.sent, ours.held, ours.unsure) == (1, 1, 1)

        proxy.lose = 0
        ours.flush()
        assert (ours.sent, ours.duplicates, ours.held, ours.unsure) == (2, 1, 0, 0)
        assert names(client) == ["f1", "f2"]


def test_what_is_given_up_is_counted_as_what_it_is(tcp: TcpServer) -> None:
    with through_proxy(tcp) as (proxy, client):
        ours = producer(client, Terms(retry_time=0, full_timeout=0), max_length=1)
        ours.put(picture(1))
        with pytest.raises(QueueFull, match="the queue frames is full, and no room came in time"):
            ours.put(picture(2))
        assert (ours.held, ours.unsure, ours.forget()) == (1, 0, 1)

        proxy.lose = 1
        with pytest.raises(RedisUnavailable):
            ours.put(picture(3))
        assert (ours.unsure, ours.forget(), ours.held) == (1, 1, 0)

    assert (ours.sent, ours.refused, ours.doubtful) == (1, 1, 1)


# ---- waiting


def test_whoever_waits_goes_on_as_soon_as_there_is_room(client: Client, workers: Workers) -> None:
    waited: list[tuple[float, str]] = []
    ours = Producer(
        client,
        [QUEUE],
        QueueSettings(max_length=2),
        Terms(batch=4),
        on_wait=lambda seconds, why: waited.append((seconds, why)),
    )

    def put() -> None:
        for number in range(8):
            ours.put(picture(number))

    thread = threading.Thread(target=put)
    thread.start()
    while thread.is_alive():
        workers.settle(2)
        thread.join(0.005)
    workers.settle(8)

    assert workers.settled == [f"f{number}" for number in range(8)]
    assert (ours.sent, ours.refused) == (8, 0)
    assert {why for _, why in waited} == {"the queue frames is full"}
    assert waited[0][0] < 0.01
    assert client.hget(QUEUE.books, "refused") is None  # nothing was lost


def test_whoever_waits_for_memory_goes_on_when_there_is_some(client: Client) -> None:
    reasons: list[str] = []

    def make_room(_seconds: float, why: str) -> None:
        reasons.append(why)
        client.config_set("maxmemory", 0)

    client.config_set("maxmemory", 1)
    try:
        Producer(client, [QUEUE], QueueSettings(), on_wait=make_room).put(picture())
    finally:
        client.config_set("maxmemory", 0)

    assert (reasons, client.xlen("frames")) == (["Redis is at its maxmemory"], 1)


def until_stopped(put: Callable[[], None], stop: threading.Event, waits: threading.Event) -> Exception | None:
    """What `put` raises when it is stopped while it waits."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            put()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert waits.wait(10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    return raised[0] if raised else None


@ON_ONE_SERVER
def test_stop_ends_the_wait_for_room_and_what_was_not_taken_is_held(client: Client) -> None:
    stop, waits = threading.Event(), threading.Event()
    limits = QueueSettings(max_length=1)
    ours = Producer(client, [QUEUE], limits, stop=stop, on_wait=lambda _seconds, _why: waits.set())
    ours.put(picture(1))

    error = until_stopped(lambda: ours.put(picture(2)), stop, waits)

    assert isinstance(error, QueueFull)
    assert (ours.sent, ours.held) == (1, 1)


@ON_ONE_SERVER
def test_stop_ends_the_wait_for_redis(tcp: TcpServer) -> None:
    stop, waits = threading.Event(), threading.Event()
    with through_proxy(tcp) as (proxy, client):
        ours = producer(client, Terms(retry_time=1000), stop=stop)
        proxy.lose = 1
        proxy.answer = lambda _name: waits.set()

        error = until_stopped(lambda: ours.put(picture(1)), stop, waits)

    assert isinstance(error, RedisUnavailable)


@ON_ONE_SERVER
def test_the_wait_for_room_has_a_bound_of_its_own(client: Client) -> None:
    ours = producer(client, Terms(full_timeout=0.1), max_length=1)
    ours.put(picture(1))
    began = time.monotonic()

    with pytest.raises(QueueFull):
        ours.put(picture(2))

    assert 0.1 <= time.monotonic() - began < 5 + slack()


# ---- fairness


def test_who_floods_the_queue_cannot_shut_out_who_has_nothing_in_it(client: Client, workers: Workers) -> None:
    ours = producer(client, DROP, max_length=10)
    for number in range(10):
        ours.put(picture(number, source="flood"))
    ours.put(picture(0, source="quiet"))
    assert accounts(client)[1] == {"flood": 10}  # full is full

    workers.settle(1)
    ours.put(picture(10, source="flood"))
    assert accounts(client)[1] == {"flood": 9}  # the place is kept

    ours.put(picture(1, source="quiet"))
    assert accounts(client)[1] == {"flood": 9, "quiet": 1}

    workers.settle(5)  # what was kept is taken: the two share the queue, and nobody else does
    ours.put(picture(11, source="flood"))
    assert accounts(client)[1] == {"flood": 5, "quiet": 1}


def test_who_waits_gets_in_while_another_floods(client: Client, workers: Workers, redis_url: str) -> None:
    """All the while the flood tries a hundred times as often."""
    ended = threading.Event()

    def flood() -> None:
        with connect(RedisSettings.model_validate({"url": redis_url})) as own:
            flooding = producer(own, DROP, max_length=20)
            while not ended.is_set():
                flooding.put(picture(0, source="flood"))

    thread = threading.Thread(target=flood)
    thread.start()
    eventually(lambda: client.xlen("frames") == 20, "the queue is full")
    try:
        with connect(RedisSettings.model_validate({"url": redis_url})) as own:
            quiet = producer(own, Terms(full_timeout=20), max_length=20)

            def put() -> None:
                for number in range(30):
                    quiet.put(picture(number, source="quiet"))

            steady = threading.Thread(target=put)
            steady.start()
            while steady.is_alive():
                workers.settle(1)
                steady.join(0.005)
    finally:
        ended.set()
        thread.join(10)

    assert (quiet.sent, quiet.held) == (30, 0)


def test_in_a_crowded_queue_sources_have_equal_shares_of_the_entries(client: Client) -> None:
    ours = producer(client, DROP, max_length=12)

    for number in range(12):
        for source in ("flood", "flood", "flood", "door", "gate"):
            ours.put(picture(number, source=source))

    assert accounts(client)[1] == {"flood": 4, "door": 4, "gate": 4}


def test_in_a_crowded_queue_sources_have_equal_shares_of_the_bytes(client: Client) -> None:
    one = size_of(picture(source="flood", size=1000))
    ours = producer(client, DROP, max_total_bytes=12 * one)

    for number in range(12):
        for source in ("flood", "flood", "flood", "door1", "gate1"):
            ours.put(picture(number % 10, source=source, size=1000))

    assert accounts(client)[1] == {"flood": 4, "door1": 4, "gate1": 4}


def test_a_source_alone_may_fill_the_queue_and_half_of_it_is_anybodys(client: Client) -> None:
    ours = producer(client, DROP, max_length=10)
    ours.put(picture(0, source="door"))

    for number in range(5):
        ours.put(picture(number, source="gate"))

    assert accounts(client)[1] == {"door": 1, "gate": 4 + 1}


def test_a_newcomer_that_went_away_is_forgotten(client: Client) -> None:
    ours = producer(client, DROP, max_length=1)
    ours.put(picture(0))
    ours.put(picture(0, source="gate"))

    assert client.get("frames:newcomer") == b"gate"
    assert 0 < client.pttl("frames:newcomer") <= 30_000


# ---- any order of events

OPERATIONS = some.lists(
    some.tuples(some.just("put"), some.sampled_from(["a", "b", "c"]), some.integers(0, 12), some.integers(1, 300))
    | some.tuples(some.just("settle"), some.integers(1, 4))
    | some.tuples(some.just("plain")),
    max_size=60,
)


@given(operations=OPERATIONS, batch=some.integers(1, 5))
@examples(max_examples=40)
def test_whatever_happens_the_bounds_hold_and_the_accounts_are_true(
    redis_server: Any, operations: list[tuple[Any, ...]], batch: int
) -> None:
    with connect(RedisSettings.model_validate({"url": redis_server.url})) as client:
        client.flushall()
        workers, plain, puts = Workers(client), 0, 0
        ours = producer(client, Terms(when_full="drop", batch=batch), max_length=8, max_total_bytes=1500)
        for operation in operations:
            match operation:
                case "put", source, sequence, size:
                    ours.put(picture(sequence, source=source, sequence=sequence, size=size))
                    puts += 1
                case "settle", count:
                    workers.settle(count)
                case _:
                    client.xadd("frames", {"image": "x", "source": "plain"})
                    plain += 1
            admitted = [fields for _, fields in client.xrange("frames") if b"admitted" in fields]
            assert len(admitted) <= 8
            assert sum(map(admitted_of, admitted)) <= 1500
            assert puts == ours.sent + ours.refused + ours.held
            assert_accounts_are_true(client)
            for source in ("a", "b", "c"):
                rising = [int(fields[b"sequence"]) for fields in admitted if fields[b"source"].decode() == source]
                assert rising == sorted(set(rising))
        ours.flush()
        assert client.xinfo_stream("frames")["entries-added"] == plain + ours.sent - ours.duplicates


# ---- confirmation


@contextmanager
def with_replica(primary: TcpServer) -> Iterator[TcpServer]:
    with tcp_server("--replicaof", f"127.0.0.1 {primary.port}") as replica:
        eventually(lambda: replica.admin.info("replication")["master_link_status"] == "up", "the replica caught up")
        yield replica


def confirming(client: Client, by: str = "replicas", **terms: float) -> Producer:
    bounds = {"retry_time": 0.3, "confirm_timeout": 0.1, **terms}
    return producer(client, Terms(confirm=by, full_timeout=0, **bounds))  # type: ignore[arg-type]


@ON_ONE_SERVER
def test_a_frame_counts_when_a_replica_has_it(tcp: TcpServer, redis_server: Any) -> None:
    tcp.admin.config_set("repl-diskless-sync-delay", 0)
    with with_replica(tcp) as replica, connect(RedisSettings.model_validate({"url": tcp.url})) as client:
        ours = confirming(client, retry_time=10, confirm_timeout=2)

        for number in range(5):
            ours.put(picture(number))
            assert replica.admin.xlen("frames") == number + 1

        client.script_flush()  # EVALSHA and WAIT share a round trip: both are asked again
        ours.put(picture(5))
        assert (ours.sent, ours.duplicates, replica.admin.xlen("frames")) == (6, 0, 6)


def test_without_a_replica_no_frame_counts_and_none_is_doubled(client: Client) -> None:
    ours = confirming(client)

    with pytest.raises(
        RedisUnavailable, match=r"frames in frames were not confirmed within 0.1 s: 0 of 1 replicas have them"
    ):
        ours.put(picture(1))

    assert (ours.sent, ours.held, ours.unsure, client.xlen("frames")) == (0, 1, 1, 1)


@ON_ONE_SERVER
def test_a_frame_in_doubt_is_confirmed_by_the_replica_only_even_on_a_new_connection(
    tcp: TcpServer, redis_server: Any
) -> None:
    """WAIT counts from the connection's last write: a repetition without one would be confirmed by anybody."""
    tcp.admin.config_set("repl-diskless-sync-delay", 0)
    with with_replica(tcp) as replica, connect(RedisSettings.model_validate({"url": tcp.url})) as client:
        ours = confirming(client)
        ours.put(picture(1))
        replica.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(RedisUnavailable, match="not confirmed"):
                ours.put(picture(2))
            client.connection_pool.disconnect()
            with pytest.raises(RedisUnavailable, match="not confirmed"):
                ours.flush()
            assert (ours.sent, ours.unsure) == (1, 1)
        finally:
            replica.process.send_signal(signal.SIGCONT)
        eventually(lambda: replica.admin.xlen("frames") == 2, "the replica went on")

        ours.flush()

        assert (ours.sent, ours.duplicates, ours.held) == (2, 1, 0)
        assert names(client) == ["f1", "f2"]


def test_a_frame_counts_when_the_disk_has_it() -> None:
    with (
        tcp_server("--appendonly", "yes", "--appendfsync", "everysec") as server,
        connect(RedisSettings.model_validate({"url": server.url})) as client,
    ):
        ours = confirming(client, "disk", retry_time=10, confirm_timeout=3)
        ours.put(picture(1))

        server.process.kill()
        server.process.wait(10)
        written = b"".join(path.read_bytes() for path in (server.server.folder / "appendonlydir").iterdir())

    assert ours.sent == 1
    assert b"f1" in written


def test_a_disk_that_keeps_no_log_cannot_confirm_and_nothing_is_sent() -> None:
    with tcp_server() as server, connect(RedisSettings.model_validate({"url": server.url})) as client:
        ours = confirming(client, "disk")

        with pytest.raises(ConfigError, match="needs the append-only file, which is off on this server"):
            ours.put(picture(1))

        assert (client.exists("frames"), ours.held, ours.unsure) == (0, 1, 0)


def test_an_old_redis_cannot_confirm_by_disk_and_nothing_is_sent() -> None:
    with (
        tcp_server("--appendonly", "yes", binary=debian_redis()) as server,
        connect(RedisSettings.model_validate({"url": server.url})) as client,
    ):
        if tuple(map(int, client.info("server")["redis_version"].split(".")[:2])) >= (7, 2):
            ours = confirming(client, "disk", retry_time=10, confirm_timeout=3)
            ours.put(picture(1))
            assert ours.sent == 1
            return
        with pytest.raises(ConfigError, match=r"needs WAITAOF, which this server lacks: Redis 7.2 or Valkey"):
            confirming(client, "disk").put(picture(1))

        assert client.exists("frames") == 0


# ---- settings


def test_a_producer_of_ones_own_sends_what_is_held_on_leaving(client: Client, redis_url: str) -> None:
    with Producer.connect(settings_of(redis_url), Terms(batch=10)) as ours:
        ours.put(picture(1))
        assert client.xlen("frames") == 0

    assert names(client) == ["f1"]


@ON_ONE_SERVER
def test_leaving_by_an_error_sends_nothing_more(client: Client, redis_url: str) -> None:
    def fail() -> None:
        with Producer.connect(settings_of(redis_url), Terms(batch=10)) as ours:
            ours.put(picture(1))
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert client.exists("frames") == 0


@pytest.mark.parametrize(
    ("terms", "line"),
    [
        ({"batch": 0}, "batch is 0; give 1 to 64"),
        ({"batch": 65}, "batch is 65; give 1 to 64"),
        ({"when_full": "cry"}, "when_full is 'cry', not wait or drop"),
        ({"confirm": "hope"}, "confirm is 'hope', not none, replicas or disk"),
        ({"replicas": 0}, "replicas is 0; give at least 1"),
    ],
)
def test_terms_that_make_no_sense_are_refused(terms: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Terms(**terms)


def test_a_confirmation_that_would_outlast_the_socket_is_refused() -> None:
    settings = settings_of("redis://127.0.0.1:1")

    with (
        pytest.raises(ConfigError, match=r"confirm_timeout \(5\) must be shorter than redis.socket_timeout \(5\)"),
        Producer.connect(settings, Terms(confirm="replicas", confirm_timeout=5)),
    ):
        pass


@ON_ONE_SERVER
def test_a_key_of_another_kind_is_said_before_the_first_frame(client: Client, redis_url: str) -> None:
    client.set(QUEUE.books, "something else")

    with (
        pytest.raises(ConfigError, match="the key frames:books holds a string, not a hash"),
        Producer.connect(settings_of(redis_url)),
    ):
        pass


@ON_ONE_SERVER
def test_one_of_several_queues_is_named_by_its_stream(client: Client, redis_url: str) -> None:
    tree = {"redis": {"url": redis_url}, "queues": [{"stream": "urgent"}, {"stream": "later", "priority": 1}]}
    settings = SettingsTree.model_validate(tree)

    with Producer.connect(settings) as first, Producer.connect(settings, stream="later") as second:
        first.put(picture(1))
        second.put(picture(2))

    assert (names(client, "urgent"), names(client, "later")) == (["f1"], ["f2"])
    with pytest.raises(ConfigError, match="there is no queue frames: the settings have urgent, later"):
        name_of_queue(settings, "frames")


def partitioned(url: str, **queue: object) -> SettingsTree:
    streams = {"stream": "{door}frames", "dead_stream": "{door}frames:dead", "partitions": 4, **queue}
    tree = {"redis": {"url": url}, "queue": streams, "results": {"stream": "{door}labels"}}
    return SettingsTree.model_validate(tree)


@ON_ONE_SERVER
def test_partitions_share_the_sources_and_each_source_keeps_its_order(client: Client, redis_url: str) -> None:
    for run in range(2):  # the share of a source is the same in every process
        with Producer.connect(partitioned(redis_url), Terms(batch=16)) as ours:
            for number in range(10):
                for source in range(20):
                    ours.put(picture(10 * run + number, source=f"s{source}"))

    found: dict[str, list[tuple[int, str]]] = {}
    for part in range(4):
        for _, fields in client.xrange(f"{{door:{part}}}frames"):
            found.setdefault(fields[b"source"].decode(), []).append((part, fields[b"frame_id"].decode()))
    assert len(found) == 20
    assert {part for places in found.values() for part, _ in places} == {0, 1, 2, 3}
    for places in found.values():
        assert len({part for part, _ in places}) == 1
        assert [name for _, name in places] == [f"f{number}" for number in range(20)]


def test_on_a_cluster_partitions_lie_on_several_nodes_and_the_disk_confirms() -> None:
    with cluster(2, "--appendonly", "yes", "--appendfsync", "always") as servers:
        with Producer.connect(partitioned(servers.url), Terms(confirm="disk")) as ours:
            for source in range(20):
                ours.put(picture(0, source=f"s{source}"))

        held = [len(node.admin.keys("*frames")) for node in servers.nodes]
        with connect(RedisSettings.model_validate({"url": servers.url})) as client:
            lengths = [client.xlen(f"{{door:{part}}}frames") for part in range(4)]

    assert (ours.sent, sum(lengths), sum(held)) == (20, 20, 4)
    assert min(held) >= 1


def test_on_a_cluster_keys_of_one_queue_must_share_a_slot() -> None:
    with (
        cluster(2) as servers,
        pytest.raises(ConfigError, match="lie in different slots of the cluster"),
        Producer.connect(settings_of(servers.url)),
    ):
        pass
