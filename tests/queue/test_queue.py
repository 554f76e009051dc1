"""Frames from a real stream: in order, decoded, and never forgotten."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue
from coatstream.errors import REFUSALS, DeadReason, RedisRefuses, SourceLost
from coatstream.frames.frame import Frame, Pixels, Receipt
from coatstream.pipeline.accounting import Accounting
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.queue.decoding import EntryDecoder, Taken
from coatstream.queue.group import ConsumerGroup
from coatstream.queue.reader import EntryReader
from coatstream.queue.server_clock import ServerClock
from coatstream.queue.source import TOGETHER, QueueSource
from coatstream.results.metrics import SettlementMetrics
from coatstream.results.outcomes import Dropped
from coatstream.results.publisher import Publisher
from coatstream.results.settler import Settler, SettlingTerms
from coatstream.settings.model import QueueSettings, RedisSettings, ResultsSettings
from coatstream.telemetry.ledger import DropReason, Ledger
from coatstream.telemetry.status import Status
from prometheus_client import CollectorRegistry

from tests.support.doubles import HeardHealth, HeardQueue, SettableClock
from tests.support.pictures import grey_jpeg
from tests.support.servers import ON_ONE_SERVER
from tests.support.settled import MODEL, QUEUE, admit, books, member, owners
from tests.support.workers import eventually


def shrink(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image[:8, :8])


class Reader:
    """A queue source on a real server, with all that it needs."""

    def __init__(
        self,
        client: Client,
        *,
        consumer: str = "me",
        prefetch: int = 8,
        queues: Sequence[Queue] = (QUEUE,),
        prepare: Callable[[Pixels], Pixels] = shrink,
        **queue: object,
    ) -> None:
        limits, registry = QueueSettings.model_validate(queue), CollectorRegistry()
        self.client = client
        self.ledger = Ledger()
        self.accounting = Accounting(self.ledger, SettlementMetrics(registry))
        self.holdings = self.accounting.holdings
        self.registry = registry
        self.stop = threading.Event()
        self.clock = SettableClock()
        self.status = Status(stall_after=60, monotonic=self.clock)
        terms = SettlingTerms(queues, limits, ResultsSettings(), consumer, "cameras:fences")
        self.publisher = Publisher(Settler(client, terms, model=MODEL, name="queue"), HeardHealth())
        groups = [ConsumerGroup(client, queue, limits, consumer=consumer) for queue in queues]
        self.heard = HeardQueue()
        reader = EntryReader(groups, self.holdings, self.heard, prefetch=prefetch, block=0.05)
        decode = EntryDecoder(limits, prepare, self.status, PipelineMetrics(registry), self.heard)
        self.source = QueueSource("queue", reader, decode, self.publisher, self.accounting, HeardHealth())

    @contextmanager
    def reading(self) -> Iterator[Iterator[Frame]]:
        frames = self.source.frames(self.stop)
        try:
            yield frames
        finally:
            self.stop.set()
            frames.close()


def take(reader: Reader, frames: Iterator[Frame], count: int) -> list[Frame]:
    taken = []
    for _ in range(count):
        taken.append(next(frames))
        begin(reader, taken[-1])
    return taken


def drain(reader: Reader) -> list[Frame]:
    """Everything that is in the stream: a batch takes each frame at once, and what is left of the stream is those."""
    frames: list[Frame] = []
    reading = threading.Thread(target=_read_all, args=(reader, frames))
    reading.start()
    eventually(lambda: reader.client.xlen("frames") == len(frames), "all else is settled")
    reader.stop.set()
    reading.join(20)
    return frames


def _read_all(reader: Reader, frames: list[Frame]) -> None:
    for frame in reader.source.frames(reader.stop):
        begin(reader, frame)
        frames.append(frame)


def begin(reader: Reader, frame: Frame) -> None:
    """A batch takes it."""
    assert frame.receipt is not None
    assert reader.holdings.begin([frame.receipt]) == [True]


def test_frames_come_in_the_order_of_the_stream_with_what_their_producer_said(client: Client) -> None:
    for number in range(20):
        client.xadd(
            "frames", {"image": grey_jpeg(number * 10), "source": f"cam-{number % 3}", "frame_id": f"f{number}"}
        )

    reader = Reader(client)
    with reader.reading() as frames:
        got = take(reader, frames, 20)

    assert [frame.frame_id for frame in got] == [f"f{number}" for number in range(20)]
    assert [int(frame.pixels[0, 0, 0]) for frame in got] == pytest.approx([number * 10 for number in range(20)], abs=2)
    assert {(frame.width, frame.height) for frame in got} == {(32, 24)}
    assert isinstance(got[0].receipt, Receipt)


def test_one_id_in_microseconds_puts_no_later_frame_into_the_future(client: Client) -> None:
    began = time.time()
    client.xadd("frames", {"image": grey_jpeg(9)}, id=f"{time.time_ns() // 1000}-0")
    client.xadd("frames", {"image": grey_jpeg(9)})
    client.xadd("frames", {"image": grey_jpeg(9), "captured_at": str(began - 5)})

    reader = Reader(client)
    with reader.reading() as frames:
        got = take(reader, frames, 3)

    assert all(began <= frame.captured_at <= time.time() for frame in got[:2])
    assert got[2].captured_at == pytest.approx(began - 5)
    assert reader.heard.counted["wrong_times"] == 2


def test_a_producer_whose_clock_has_begun_anew_gets_the_time_of_reading(client: Client) -> None:
    client.xadd("frames", {"image": grey_jpeg(9), "captured_at": "0"})
    began = time.time()

    reader = Reader(client)
    with reader.reading() as frames:
        (frame,) = take(reader, frames, 1)

    assert frame.captured_at >= began


def test_raw_pixels_arrive_in_rgb_whatever_their_order_was(client: Client) -> None:
    red_in_bgr = np.full((8, 8, 3), (0, 0, 255), np.uint8).tobytes()
    red_in_rgb = np.full((8, 8, 3), (255, 0, 0), np.uint8).tobytes()
    for data, pixel_format in ((red_in_bgr, "bgr24"), (red_in_rgb, "rgb24"), (b"\x80" * 64, "gray8")):
        client.xadd("frames", {"pixels": data, "width": 8, "height": 8, "format": pixel_format})

    reader = Reader(client)
    with reader.reading() as frames:
        first, second, third = take(reader, frames, 3)

    assert first.pixels[0, 0].tolist() == second.pixels[0, 0].tolist() == [255, 0, 0]
    assert third.pixels[0, 0].tolist() == [128, 128, 128]


def test_bad_entries_are_buried_at_once_with_their_reason_and_the_good_ones_go_on(client: Client) -> None:
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "first"})
    client.xadd("frames", {"image": b"", "source": "a"})
    client.xadd("frames", {"image": b"this is a text"})
    client.xadd("frames", {"image": grey_jpeg(128)[:200]})
    client.xadd("frames", {"source": "nothing here"})
    client.xadd("frames", {"pixels": b"abc", "width": 10, "height": 10})
    client.xadd("frames", {"image": grey_jpeg(128), "meta": "[]"})
    client.xadd("frames", {"image": b"x" * 5000})
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "last"})
    reader = Reader(client, max_bytes=4000)

    frames = drain(reader)

    assert [frame.frame_id for frame in frames] == ["first", "last"]
    dead = [fields[b"reason"].decode() for _, fields in client.xrange("frames:dead")]
    assert dead == ["undecodable", "undecodable", "undecodable", "invalid", "invalid", "invalid", "too_large"]
    assert client.xlen("frames") == 2
    account = reader.ledger.total()
    assert account.dead == {DeadReason.UNDECODABLE: 3, DeadReason.INVALID: 3, DeadReason.TOO_LARGE: 1}
    assert account.in_flight == 0


def test_an_expired_frame_is_settled_without_being_decoded(client: Client) -> None:
    client.xadd("frames", {"image": b"not even a picture", "expires_at": "1000"})
    reader = Reader(client)

    frames = drain(reader)

    assert frames == []
    assert client.xlen("frames") == 0
    assert reader.ledger.total().dropped == {DropReason.EXPIRED: 1}


def test_stopping_hands_back_what_no_batch_has_taken_and_keeps_the_rest(client: Client) -> None:
    for number in range(30):
        client.xadd("frames", {"image": grey_jpeg(128), "frame_id": str(number)})
    reader = Reader(client, prefetch=8)
    frames = reader.source.frames(reader.stop)
    first, second = next(frames), next(frames)
    begin(reader, first)

    reader.stop.set()
    rest = list(frames)

    assert rest == []
    assert first.receipt is not None
    assert second.receipt is not None
    assert reader.holdings.entries("frames") == {first.receipt.entry_id}
    assert reader.holdings.begin([second.receipt]) == [False]
    owned = {item["message_id"].decode(): item for item in client.xpending_range("frames", "coatstream", "-", "+", 100)}
    mine = owned.pop(first.receipt.entry_id)
    assert (mine["consumer"], mine["times_delivered"]) == (b"me", 1)
    assert {(item["consumer"], item["times_delivered"]) for item in owned.values()} == {(b"_released", 0)}
    assert len(owned) == 7


def test_never_more_waits_for_a_batch_than_may_be_read_ahead(client: Client) -> None:
    for _ in range(50):
        client.xadd("frames", {"image": grey_jpeg(128)})
    reader = Reader(client, prefetch=6)

    with reader.reading() as frames:
        for _ in range(20):
            begin(reader, next(frames))
            assert reader.holdings.waiting(("frames",)) <= 6


@pytest.mark.parametrize("bound", [1, 700, 5000])
def test_entries_larger_than_what_may_be_read_ahead_come_one_by_one_and_none_is_left(
    client: Client, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr("coatstream.queue.reader.MOST_BYTES", bound)
    pictures = [grey_jpeg(128), np.full((60, 80, 3), 50, np.uint8).tobytes(), b""]
    for number in range(30):
        picture = pictures[number % 3]
        name = "pixels" if len(picture) == 60 * 80 * 3 else "image"
        client.xadd("frames", {name: picture, "width": 80, "height": 60, "frame_id": f"f{number}"})

    reader = Reader(client)
    frames = drain(reader)

    assert [frame.frame_id for frame in frames] == [f"f{number}" for number in range(30) if number % 3 < 2]
    assert client.xlen("frames:dead") == 10


def test_entries_whose_reply_was_lost_come_again_and_those_in_hand_are_left_alone(client: Client) -> None:
    reader = Reader(client)
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    lost, held = (
        client.xadd("frames", {"image": grey_jpeg(128), "frame_id": name}).decode() for name in ("lost", "held")
    )
    client.xreadgroup("coatstream", "me", {"frames": ">"})
    reader.holdings.add("frames", [held])

    with reader.reading() as frames:
        frame = next(frames)

    assert frame.frame_id == "lost"
    assert frame.receipt == Receipt("frames", lost)


def test_a_group_that_vanished_is_lost_once_and_made_again_from_the_beginning(client: Client) -> None:
    reader = Reader(client)
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "before"})
    frames = reader.source.frames(reader.stop)
    settled = next(frames)
    begin(reader, settled)
    reader.publisher.publish([Dropped("door", DropReason.STALE, settled.receipt)])
    reader.holdings.settled([settled.receipt])
    client.xgroup_destroy("frames", "coatstream")

    with pytest.raises(SourceLost, match="consumer group is gone"):
        next(frames)
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "after"})
    again = next(reader.source.frames(reader.stop))

    assert again.frame_id == "after"


def test_a_key_of_another_type_is_a_lost_source_twice_and_a_refusal_the_third_time(client: Client) -> None:
    client.set("frames", "not a stream")
    reader = Reader(client)

    for _ in range(REFUSALS - 1):
        with pytest.raises(SourceLost, match="WRONGTYPE"):
            next(reader.source.frames(reader.stop))
    with pytest.raises(RedisRefuses, match="WRONGTYPE"):
        next(reader.source.frames(reader.stop))


def test_a_server_that_is_away_is_a_lost_source_and_no_traceback() -> None:
    with connect(RedisSettings.model_validate({"url": "redis://:hunter2@127.0.0.1:1"})) as client:
        reader = Reader(client)

        with pytest.raises(SourceLost, match="group cannot be joined") as caught:
            next(reader.source.frames(reader.stop))

    assert "hunter2" not in str(caught.value)


def test_a_reader_starts_on_a_server_that_is_full(client: Client) -> None:
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "waits"})
    client.config_set("maxmemory", "1mb")
    try:
        with Reader(client).reading() as frames:
            frame = next(frames)
    finally:
        client.config_set("maxmemory", "0")

    assert frame.frame_id == "waits"


def test_what_a_decoder_raises_buries_the_entry_and_not_the_worker(client: Client) -> None:
    client.xadd("frames", {"image": grey_jpeg(128)})

    def fail(image: Pixels) -> Pixels:
        raise LookupError

    assert drain(Reader(client, prepare=fail)) == []
    ((_, fields),) = client.xrange("frames:dead")
    assert (fields[b"reason"], fields[b"error"]) == (b"undecodable", b"LookupError while preparing")


@pytest.mark.parametrize("no_memory", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_picture_that_finds_no_memory_is_tried_again_alone(client: Client, no_memory: Exception) -> None:
    for number in range(8):
        client.xadd("frames", {"image": grey_jpeg(128), "frame_id": str(number)})
    inside, failed = [0], [0]
    lock = threading.Lock()

    def greedy(image: Pixels) -> Pixels:
        """Has room for one picture at a time."""
        with lock:
            inside[0] += 1
        try:
            threading.Event().wait(0.01)
            if inside[0] > 1:
                failed[0] += 1
                raise no_memory
            return shrink(image)
        finally:
            with lock:
                inside[0] -= 1

    frames = drain(Reader(client, prepare=greedy, decode_threads=4))

    assert [frame.frame_id for frame in frames] == [str(number) for number in range(8)]
    assert failed[0] > 0


def test_a_picture_that_never_finds_memory_goes_back_and_is_given_up_only_after_all_its_deliveries(
    client: Client,
) -> None:
    client.xadd("frames", {"image": grey_jpeg(128)})

    def fail(image: Pixels) -> Pixels:
        raise MemoryError

    reader = Reader(client, prepare=fail, max_deliveries=3)
    assert drain(reader) == []
    ((_, fields),) = client.xrange("frames:dead")
    assert fields[b"reason"] == b"delivery_limit"
    assert reader.heard.counted["no_memory"] == 3
    assert reader.ledger.total().in_flight == 0


@pytest.mark.parametrize(("ahead", "expires_in", "expired"), [(3600, 60, False), (-3600, -60, True), (0, 60, False)])
def test_expiry_is_judged_by_the_servers_clock(client: Client, ahead: float, expires_in: float, expired: bool) -> None:
    there = 1_800_000_000.0
    clock = ServerClock(clock=lambda: there + ahead)
    clock.tell(there)
    decode = EntryDecoder(
        QueueSettings(),
        shrink,
        Status(stall_after=60),
        PipelineMetrics(CollectorRegistry()),
        HeardQueue(),
        clock=clock,
    )
    fields = {b"image": grey_jpeg(1), b"expires_at": str(there + expires_in).encode()}

    found = decode(Taken("frames", "1800000000000-0", fields))

    assert isinstance(found, Dropped) is expired


def test_a_frame_is_received_when_a_batch_takes_it_and_a_bad_one_when_it_is_buried(client: Client) -> None:
    client.xadd("frames", {"image": b"no picture", "source": "bad"})
    client.xadd("frames", {"image": grey_jpeg(128), "source": "good"})
    reader = Reader(client)

    with reader.reading() as frames:
        assert next(frames).source == "good"

    accounts = reader.ledger.snapshot()
    assert list(accounts) == ["bad"]
    assert (accounts["bad"].received, accounts["bad"].in_flight) == (1, 0)


def test_what_an_admitted_entry_weighs_is_in_its_receipt_and_comes_off_when_it_is_buried(client: Client) -> None:
    admit(client, 100)  # no picture either
    entry_id = client.xadd("frames", {"image": grey_jpeg(128), "admitted": 23}).decode()
    reader = Reader(client)

    with reader.reading() as frames:
        assert next(frames).receipt == Receipt("frames", entry_id, 23)

    assert "admitted_bytes" not in books(client)
    assert client.hgetall(QUEUE.sources) == {}


def test_dead_letters_that_have_to_go_for_newer_ones_are_counted(client: Client) -> None:
    for _ in range(5):
        client.xadd("frames", {"image": b"no picture"})
    reader = Reader(client, dead_max_length=2)

    drain(reader)

    assert reader.registry.get_sample_value("coatstream_queue_dead_letters_dropped_total") == 3


def test_each_frame_is_settled_in_the_queue_that_it_came_from(client: Client) -> None:
    other = Queue("other", "coatstream", "other:dead", "labels", priority=1)
    client.xadd("other", {"image": b"no picture"})
    mine, its = (client.xadd(stream, {"image": grey_jpeg(128)}).decode() for stream in ("frames", "other"))
    reader = Reader(client, queues=[QUEUE, other])

    with reader.reading() as frames:
        receipts = [frame.receipt for frame in take(reader, frames, 2)]

    assert receipts == [Receipt("frames", mine), Receipt("other", its)]
    assert (client.xlen("frames:dead"), client.xlen("other:dead")) == (0, 1)


def test_when_redis_goes_away_what_was_read_before_is_handed_on_first(client: Client) -> None:
    for number in range(4):
        client.xadd("frames", {"image": grey_jpeg(128), "frame_id": str(number)})
    reader = Reader(client)
    frames = reader.source.frames(reader.stop)
    got = [next(frames).frame_id]
    client.xgroup_destroy("frames", "coatstream")

    with pytest.raises(SourceLost):
        got.extend(frame.frame_id for frame in frames)

    assert got == ["0", "1", "2", "3"]


class Stuck:
    """A decoder that hangs at the first picture, until a test lets it go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, picture: Pixels) -> Pixels:
        self.entered.set()
        assert self.let_go.wait(20)
        return shrink(picture)


@ON_ONE_SERVER
def test_a_decoder_that_hangs_makes_the_worker_unhealthy_until_it_comes_back(client: Client) -> None:
    client.xadd("frames", {"image": grey_jpeg(128)})
    stuck = Stuck()
    reader = Reader(client, prepare=stuck, decode_threads=1)
    frames: list[Frame] = []
    reading = threading.Thread(target=_read_all, args=(reader, frames))

    reading.start()
    assert stuck.entered.wait(20)
    healthy = reader.status.unhealthy_because()
    reader.clock.now += 61
    unhealthy = reader.status.unhealthy_because()
    stuck.let_go.set()
    eventually(lambda: len(frames) == 1, "the picture is handed on")
    reader.stop.set()
    reading.join(20)

    assert (healthy, unhealthy) == ([], ["a picture has been in hand for 61 s"])
    assert reader.status.unhealthy_because() == []


@ON_ONE_SERVER
def test_a_picture_that_hangs_in_the_decoder_is_a_suspect_when_the_source_is_stopped_and_the_others_are_new(
    client: Client,
) -> None:
    for _ in range(3):
        client.xadd("frames", {"image": grey_jpeg(128)})
    stuck = Stuck()
    reader = Reader(client, prepare=stuck, decode_threads=1)
    frames: list[Frame] = []
    reading = threading.Thread(target=_read_all, args=(reader, frames))
    reading.start()
    assert stuck.entered.wait(20)

    reader.stop.set()
    eventually(lambda: {owner for owner, _ in owners(client).values()} == {"_released"}, "all are handed back")
    handed_back = sorted(deliveries for _, deliveries in owners(client).values())
    others = member(client, "other").reclaim(8, alone=False)
    stuck.let_go.set()
    reading.join(20)

    assert handed_back == [0, 0, 1]
    assert (len(others.entries), others.suspects, frames, len(reader.holdings)) == (2, True, [], 0)


@ON_ONE_SERVER
def test_when_the_source_is_stopped_no_picture_is_begun_that_was_to_be_decoded_together_with_others(
    client: Client,
) -> None:
    for _ in range(2 * TOGETHER):
        client.xadd("frames", {"image": grey_jpeg(128)})
    begun: list[Pixels] = []
    stuck = Stuck()

    def prepare(image: Pixels) -> Pixels:
        begun.append(image)
        return stuck(image)

    reader = Reader(client, prepare=prepare, decode_threads=1, prefetch=4 * TOGETHER)
    frames: list[Frame] = []
    reading = threading.Thread(target=_read_all, args=(reader, frames))
    reading.start()
    assert stuck.entered.wait(20)
    reader.stop.set()
    stuck.let_go.set()
    reading.join(20)

    assert len(begun) == 1
    released = sum(owner == "_released" for owner, _ in owners(client).values())
    assert released == 2 * TOGETHER - len(frames) == 2 * TOGETHER - len(reader.holdings)


@pytest.mark.parametrize("bound", ["client-output-buffer-limit", "maxmemory-clients"])
def test_behind_a_server_that_bounds_a_reply_large_and_small_entries_are_all_labelled(
    client: Client, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    large, small = bytes(3_000_000), grey_jpeg(128)
    for number in range(108):
        padding = {"padding": large} if 20 <= number < 28 else {}
        client.xadd("frames", {"image": small, "frame_id": f"f{number}", **padding})
    before = client.config_get(bound)[bound]
    client.config_set(bound, "normal 4mb 0 0" if bound.startswith("client") else "4mb")
    handed_back: Counter[str] = Counter()
    release = ConsumerGroup.release

    def counted(group: ConsumerGroup, entries: Iterable[str], *, begun: bool) -> int:
        handed_back.update(ids := list(entries))
        return release(group, ids, begun=begun)

    monkeypatch.setattr(ConsumerGroup, "release", counted)
    reader = Reader(client, prefetch=16)
    got: list[str] = []
    try:
        while len(got) < 108:
            with suppress(SourceLost):
                for frame in reader.source.frames(reader.stop):
                    begin(reader, frame)
                    got.append(frame.frame_id)
                    if len(got) == 108:
                        break
    finally:
        client.config_set(bound, before)

    assert sorted(got) == sorted(f"f{number}" for number in range(108))
    assert max(handed_back.values(), default=0) <= 4
    if bound == "client-output-buffer-limit":  # the other one spares a client that reads fast enough
        assert reader.heard.counted["orphaned"] > 0
