"""Which entries a worker takes, and what it hands back; on real servers, and over a line that loses a reply."""

import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue
from coatstream.errors import RedisUnavailable
from coatstream.frames.frame import Receipt
from coatstream.pipeline.holdings import Holdings
from coatstream.queue.decoding import Taken
from coatstream.queue.reader import SWEEP_EVERY, TICK, EntryReader
from coatstream.settings.model import RedisSettings

from tests.support.doubles import HeardQueue, SettableClock
from tests.support.servers import ON_ONE_SERVER
from tests.support.settled import (
    HOUR,
    NOW,
    QUEUE,
    add,
    letters,
    member,
    owners,
    pending,
    published,
    read,
    settler,
    silence,
)
from tests.support.workers import eventually

OTHER = Queue("other", "coatstream", "other:dead", "labels")


class Ahead:
    """A reader with all that it needs. Its clock stands still until a test moves it."""

    def __init__(
        self,
        client: Client,
        *,
        consumer: str = "me",
        queues: Sequence[Queue] = (QUEUE,),
        prefetch: int = 8,
        holdings: Holdings | None = None,
        **limits: object,
    ) -> None:
        self.holdings = Holdings() if holdings is None else holdings
        self._client, self._queues = client, queues
        self.observer = HeardQueue()
        self.counted, self.buried = self.observer.counted, self.observer.buried
        self.clock = SettableClock()
        self.reader = EntryReader(
            [member(client, consumer, queue=queue, **limits) for queue in queues],
            self.holdings,
            self.observer,
            prefetch=prefetch,
            block=0.05,
            monotonic=self.clock,
        )
        self.reader.join()

    def take(self, *, wait: bool = False) -> list[str]:
        return [taken.entry_id for taken in self.reader.take(wait=wait)]

    def look_again(self) -> None:
        """Time for another look at entries of others."""
        self.clock.now += TICK
        for queue in self._queues:
            self._client.delete(queue.gate)  # it lives for less than a tick

    def finish(self, client: Client, entries: Sequence[str]) -> None:
        """A batch takes these and they are published."""
        for entry_id in entries:
            assert self.holdings.begin([Receipt("frames", entry_id)]) == [True]
        settler(client, f"finish {entries}").settle([published(entry_id) for entry_id in entries], now=NOW)
        self.holdings.remove("frames", entries)


# ---- new entries


def test_it_reads_ahead_as_far_as_it_may_and_reads_on_when_half_of_that_has_begun(client: Client) -> None:
    entries = add(client, 30)
    ahead = Ahead(client, prefetch=6)

    assert ahead.take() == entries[:6]
    assert ahead.take() == []
    for begun in entries[:2]:
        ahead.holdings.begin([Receipt("frames", begun)])
    assert ahead.take() == []
    ahead.holdings.begin([Receipt("frames", entries[2])])
    assert ahead.take() == entries[6:9]
    assert len(pending(client)) == len(ahead.holdings) == 9


def test_what_is_read_and_not_decoded_stays_within_its_bound_and_one_entry(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coatstream.queue.reader.MOST_BYTES", 100_000)
    chance = random.Random(13)
    sizes = [chance.choice([1, 500, 2_000, 60_000, 99_999]) for _ in range(200)]
    entries = [client.xadd("frames", {"image": bytes(size)}).decode() for size in sizes]
    ahead = Ahead(client, prefetch=16)
    member(client, "left").release(read(client, "left", 100), begun=False)

    undecoded: list[Taken] = []
    taken: list[str] = []
    while len(taken) < len(entries):
        waiting = sum(each.size for each in undecoded)
        came = ahead.reader.take(wait=False, undecoded=waiting)
        taken += [each.entry_id for each in came]
        undecoded += came
        assert sum(each.size for each in undecoded[:-1]) < 100_000
        if not came:
            for each in undecoded[: chance.randint(1, 16)]:
                ahead.holdings.remove("frames", [each.entry_id])
                undecoded.remove(each)

    assert taken == entries


def test_large_entries_behind_many_of_a_usual_size_stay_within_that_bound_too(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 64 * 40_000
    monkeypatch.setattr("coatstream.queue.reader.MOST_BYTES", most)
    for size in [*[40_000] * 80, *[most // 2 - 1] * 8]:
        client.xadd("frames", {"image": bytes(size)})
    ahead = Ahead(client, prefetch=16)

    labelled = 0
    while came := ahead.reader.take(wait=False):
        assert sum(each.size for each in came[:-1]) < most
        labelled += len(came)
        ahead.holdings.remove("frames", [each.entry_id for each in came])

    assert labelled == 88


def test_reading_begins_with_one_entry_and_grows(client: Client) -> None:
    add(client, 31)
    ahead = Ahead(client, prefetch=31)
    client.config_resetstat()

    assert len(ahead.take()) == 31
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 5 + 3  # 1, 2, 4, 8, 16; a sweep and a look


def test_of_an_entry_that_is_too_large_the_picture_stays_on_the_server(client: Client) -> None:
    client.xadd("frames", {"image": bytes(2000), "source": "door", "frame_id": "f", "junk": bytes(3000)}, id="5-1")
    client.xadd("frames", {"image": bytes(900), "source": "door", "junk": bytes(3000)}, id="5-2")
    client.xadd("frames", {"image": bytes(2000), "admitted": 2000}, id="5-3")
    ahead = Ahead(client, max_bytes=1000)
    member(client, "left").release(read(client, "left", 1), begun=False)

    taken = [each for _ in range(2) for each in ahead.reader.take(wait=False)]

    assert taken == [
        Taken("frames", "5-1", {b"source": b"door", b"frame_id": b"f"}, 2000),
        Taken("frames", "5-2", {b"image": bytes(900), b"source": b"door"}),
        Taken("frames", "5-3", {b"admitted": b"2000"}, 2000),
    ]


def test_what_it_takes_has_all_its_fields_and_is_held(client: Client) -> None:
    client.xadd("frames", {"image": b"\xff\x00", "source": "door"}, id="5-1")
    ahead = Ahead(client)

    assert ahead.reader.take(wait=True) == [Taken("frames", "5-1", {b"image": b"\xff\x00", b"source": b"door"})]
    assert ahead.holdings.entries("frames") == {"5-1"}


def test_waiting_ends_with_the_first_entry_of_any_queue_or_with_the_tick(client: Client) -> None:
    ahead = Ahead(client, queues=[QUEUE, OTHER])

    assert ahead.take(wait=True) == []
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(_until_something(ahead)))
    thread.start()
    (entry_id,) = add(client, stream="other")
    thread.join(20)

    assert found == [entry_id]
    assert ahead.holdings.entries("other") == {entry_id}


def _until_something(ahead: Ahead) -> list[str]:
    found: list[str] = []

    def came() -> bool:
        ahead.look_again()
        found.extend(ahead.take(wait=True))
        return bool(found)

    eventually(came, "an entry comes")
    return found


def test_who_waits_for_room_is_woken_by_the_batch_that_takes_something(client: Client) -> None:
    entries = add(client, 8)
    ahead = Ahead(client, prefetch=4)
    assert ahead.take() == entries[:4]
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(_until_something(ahead)))

    thread.start()
    for begun in entries[:2]:
        ahead.holdings.begin([Receipt("frames", begun)])
    thread.join(20)

    assert found == entries[4:6]


def test_queues_of_higher_priority_are_read_empty_first(client: Client) -> None:
    high, low = QUEUE, Queue("other", "coatstream", "other:dead", "labels", priority=1)
    slow, fast = add(client, 6, stream="other"), add(client, 6)
    ahead = Ahead(client, queues=[low, high], prefetch=4)

    taken = []
    while entries := ahead.take():
        taken += entries
        for stream in ("frames", "other"):
            ahead.holdings.remove(stream, entries)

    assert taken == fast + slow


def test_queues_of_one_priority_share_by_weight(client: Client) -> None:
    heavy, light = Queue("frames", "coatstream", "frames:dead", "labels", weight=3), OTHER
    add(client, 100)
    add(client, 100, stream="other")
    ahead = Ahead(client, queues=[light, heavy], prefetch=8)

    came: Counter[str] = Counter()
    for _ in range(10):
        for taken in ahead.reader.take(wait=False):
            came[taken.stream] += 1
            ahead.holdings.remove(taken.stream, [taken.entry_id])

    assert came == {"frames": 60, "other": 20}


# ---- entries of others


def test_what_was_handed_back_comes_before_what_is_new(client: Client) -> None:
    ahead = Ahead(client)
    old, new = add(client, 2), add(client, 2)
    member(client, "left").release(read(client, "left", 2), begun=False)

    assert ahead.take() == old
    assert ahead.take() == new
    assert ahead.counted["redelivered"] == 2


def test_it_looks_at_entries_of_others_once_a_tick(client: Client) -> None:
    ahead = Ahead(client)
    assert ahead.take() == []
    (entry_id,) = add(client)
    member(client, "left").release(read(client, "left"), begun=False)

    assert ahead.take() == []
    ahead.look_again()
    assert ahead.take() == [entry_id]


def test_suspects_wait_until_nothing_is_in_hand_and_then_travel_one_by_one(client: Client) -> None:
    ahead = Ahead(client)
    normal = add(client, 1)
    assert ahead.take() == normal
    add(client, 2)
    suspects = read(client, "crashed")
    silence(client, "crashed")
    add(client, 3)
    ahead.look_again()

    assert ahead.take() == ahead.take(wait=True) == []
    ahead.finish(client, normal)
    assert ahead.take() == []  # what was read is still being decoded
    assert ahead.take(wait=True) == suspects[:1]
    assert ahead.take() == ahead.take(wait=True) == []
    ahead.finish(client, suspects[:1])
    assert ahead.take(wait=True) == suspects[1:]
    ahead.finish(client, suspects[1:])
    assert ahead.take(wait=True) == []  # no more suspects
    assert len(ahead.take()) == 3
    assert {owner for owner, _ in owners(client).values()} == {"me"}


def test_a_suspect_that_nobody_settles_is_tried_so_often_and_then_buried(client: Client) -> None:
    ahead = Ahead(client, max_deliveries=3)
    add(client, source="x" * 200, image=b"x")
    read(client, "crashed")
    tries = 0

    while not letters(client):
        silence(client, "crashed", deliveries=tries + 1)
        ahead.look_again()
        ahead.take()
        taken = ahead.take(wait=True)
        tries += len(taken)
        ahead.holdings.remove("frames", taken)  # this worker dies over it
        client.xclaim("frames", "coatstream", "crashed", 0, taken or ["1-1"])

    assert tries == 2
    assert [letter[b"reason"] for letter in letters(client)] == [b"delivery_limit"]
    assert ahead.buried == ["queue"]  # a name that is too long is nobody's


def test_while_suspects_travel_no_other_reader_of_the_process_reads_and_afterwards_it_does(client: Client) -> None:
    holdings = Holdings()
    ahead, other = Ahead(client, holdings=holdings), Ahead(client, queues=[OTHER], holdings=holdings)
    suspects = add(client)
    read(client, "crashed")
    silence(client, "crashed")
    waiting = add(client, 2, stream="other")

    assert ahead.take(wait=True) == []
    assert other.take() == other.take(wait=True) == []
    assert ahead.take(wait=True) == suspects
    assert other.take() == []
    ahead.finish(client, suspects)
    assert ahead.take(wait=True) == []

    assert other.take() == waiting


def test_a_suspect_waits_for_what_another_reader_is_about_to_get(client: Client) -> None:
    ahead = Ahead(client)
    add(client)
    suspects = read(client, "crashed")
    silence(client, "crashed")

    assert ahead.holdings.start_reading("other")
    assert ahead.take(wait=True) == ahead.take(wait=True) == []
    ahead.holdings.add("other", ["1-1"])
    ahead.holdings.stop_reading("other")
    assert ahead.take(wait=True) == []
    ahead.holdings.remove("other", ["1-1"])
    assert ahead.take(wait=True) == suspects


def test_two_readers_that_both_see_suspects_take_turns(client: Client) -> None:
    holdings = Holdings()
    ahead, other = Ahead(client, holdings=holdings), Ahead(client, queues=[OTHER], holdings=holdings)
    for queue in (QUEUE, OTHER):
        add(client, stream=queue.stream)
        read(client, "crashed", queue=queue)
        silence(client, "crashed", queue=queue)
    ahead.take()
    other.take()

    taken = ahead.take(wait=True)
    assert len(taken) == 1
    assert other.take(wait=True) == []
    ahead.finish(client, taken)
    assert ahead.take(wait=True) == []
    other.look_again()
    other.take()

    assert len(other.take(wait=True)) == 1
    assert len(holdings) == 1


@pytest.mark.parametrize("in_hand", [True, False])
def test_a_reader_that_ends_while_it_has_suspects_lets_the_others_read(client: Client, in_hand: bool) -> None:
    holdings = Holdings()
    ahead, other = Ahead(client, holdings=holdings), Ahead(client, queues=[OTHER], holdings=holdings)
    add(client)
    read(client, "crashed")
    silence(client, "crashed")
    waiting = add(client, 2, stream="other")
    ahead.take()
    if in_hand:
        assert len(ahead.take(wait=True)) == 1

    ahead.reader.hand_back()
    ahead.reader.close()

    assert other.take() == waiting
    assert (ahead.counted["released"], owners(client).popitem()[1]) == (
        (1, ("_released", 1)) if in_hand else (0, ("crashed", 1))
    )


def test_entries_that_were_trimmed_are_no_work_and_do_not_stop_it(client: Client) -> None:
    ahead = Ahead(client)
    add(client, 3)
    read(client, "crashed")
    silence(client, "crashed")
    client.xtrim("frames", 0, approximate=False)
    after = add(client)

    assert ahead.take(wait=True) == []
    assert ahead.take(wait=True) == []
    assert ahead.take() == after
    assert len(pending(client)) == 1


# ---- what a lost reply leaves behind


class LossyLine:
    """A line to a server that loses the next reply with `marked` in it, and breaks. The server has done it all then."""

    def __init__(self, target: str, path: Path) -> None:
        self.path = path
        self.marked: bytes | None = None
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._ends = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="lossy line", daemon=True)

    @contextmanager
    def running(self) -> Iterator["LossyLine"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._ends[0].close()
            self._thread.join(10)
            self._listener.close()
            self._ends[1].close()

    def _serve(self) -> None:
        partner: dict[socket.socket, socket.socket] = {}  # both ways
        servers: set[socket.socket] = set()
        while True:
            ready, _, _ = select.select([self._listener, self._ends[1], *partner], [], [])
            for end in ready:
                if end is self._ends[1]:
                    for each in partner:
                        each.close()
                    return
                if end is self._listener:
                    near, far = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
                    far.connect(self._target)
                    partner |= {near: far, far: near}
                    servers.add(far)
                elif end in partner and not self._pass_on(end, partner[end], from_server=end in servers):
                    for each in (end, partner.pop(end)):
                        partner.pop(each, None)
                        servers.discard(each)
                        each.close()

    def _pass_on(self, end: socket.socket, other: socket.socket, *, from_server: bool) -> bool:
        """False: this connection has broken."""
        data = end.recv(1 << 20)
        if from_server and self.marked is not None and self.marked in data:
            self.marked = None
            return False
        if data:
            other.sendall(data)
        return bool(data)


@pytest.fixture
def line(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyLine]:
    path = tmp_path_factory.mktemp("line") / "s"
    with LossyLine(redis_url.removeprefix("unix://"), path).running() as made:
        yield made


@pytest.fixture
def over_the_line(line: LossyLine) -> Iterator[Client]:
    with connect(RedisSettings.model_validate({"url": f"unix://{line.path}"})) as client:
        yield client


def new(client: Client) -> list[str]:
    return add(client, 2, image=b"the picture")


def handed_back(client: Client) -> list[str]:
    entries = new(client)
    member(client, "left").release(read(client, "left"), begun=False)
    return entries


def suspect(client: Client) -> list[str]:
    entries = add(client, 1, image=b"the picture")
    read(client, "crashed")
    silence(client, "crashed", deliveries=2)
    return entries


@pytest.mark.parametrize(("make", "deliveries"), [(new, 1), (handed_back, 1), (suspect, 3)])
@pytest.mark.parametrize("at_once", [True, False], ids=["opened again at once", "found by the sweep"])
def test_entries_of_a_reply_that_was_lost_are_swept_up_and_do_not_count_as_delivered_twice(
    client: Client,
    over_the_line: Client,
    line: LossyLine,
    make: Callable[[Client], list[str]],
    deliveries: int,
    at_once: bool,
) -> None:
    ahead = Ahead(over_the_line)
    ahead.finish(client, add(client) and ahead.take())  # a reply that arrives, so that the next one may carry two
    entries = make(client)
    ahead.look_again()
    if make is suspect:
        assert ahead.take(wait=True) == []
    line.marked = b"the picture"

    with pytest.raises(RedisUnavailable):
        ahead.take(wait=True)
    assert set(owners(client)) == set(entries)
    assert len(ahead.holdings) == 0
    if at_once:
        ahead.reader.join()
    else:
        ahead.clock.now += SWEEP_EVERY

    assert _until_something(ahead) == entries
    assert ahead.counted["orphaned"] == len(entries)
    assert owners(client) == dict.fromkeys(entries, ("me", deliveries))


def test_an_entry_whose_reply_is_cut_off_three_times_even_alone_is_taken_without_its_picture(
    client: Client, over_the_line: Client, line: LossyLine
) -> None:
    client.xadd("frames", {"image": b"the picture", "source": "door", "frame_id": "f"}, id="5-1")
    (other,) = add(client)
    ahead = Ahead(over_the_line)

    for _ in range(3):
        line.marked = b"the picture"
        with pytest.raises(RedisUnavailable):
            ahead.take(wait=True)
        ahead.reader.join()

    assert ahead.reader.take(wait=True) == [
        Taken("frames", "5-1", {b"source": b"door", b"frame_id": b"f"}, len(b"the picture"))
    ]
    assert owners(client) == {"5-1": ("me", 1)}
    assert ahead.counted["orphaned"] == 2
    assert _until_something(ahead) == [other]


def test_what_arrived_before_a_reply_was_lost_is_worked_on(
    client: Client, over_the_line: Client, line: LossyLine
) -> None:
    ahead = Ahead(over_the_line, queues=[QUEUE, OTHER])
    (arrived,) = add(client)
    (lost,) = add(client, stream="other", image=b"the picture")
    line.marked = b"the picture"

    assert ahead.take() == [arrived]
    assert ahead.take() == []
    assert _until_something(ahead) == [lost]


def test_a_sweep_leaves_alone_what_is_in_hand(client: Client) -> None:
    ahead = Ahead(client)
    held = add(client, 3)
    assert ahead.take() == held
    ahead.holdings.begin([Receipt("frames", held[0])])

    ahead.clock.now += SWEEP_EVERY
    ahead.take()
    ahead.reader.join()
    ahead.take()

    assert ahead.counted["orphaned"] == 0
    assert owners(client) == dict.fromkeys(held, ("me", 1))


def test_it_sweeps_every_few_seconds_and_not_at_each_look(client: Client) -> None:
    ahead = Ahead(client)
    ahead.take()
    add(client)
    lost = read(client, "me")

    ahead.clock.now += SWEEP_EVERY - 0.1
    assert ahead.take() == []
    assert ahead.counted["orphaned"] == 0
    ahead.clock.now += 0.1
    assert _until_something(ahead) == lost


# ---- stopping, and servers that are gone


def test_what_no_batch_has_taken_goes_back_uncounted_and_others_take_it_at_once(client: Client) -> None:
    ahead, other = Ahead(client), Ahead(client, consumer="other")
    begun, *rest = add(client, 4)
    ahead.take()
    ahead.holdings.begin([Receipt("frames", begun)])

    ahead.reader.hand_back()

    assert owners(client) == {begun: ("me", 1)} | dict.fromkeys(rest, ("_released", 0))
    assert ahead.holdings.entries("frames") == {begun}
    assert ahead.counted["released"] == 3
    assert other.take() == rest
    assert other.holdings.begin([Receipt("frames", rest[0])]) == [True]


def test_an_entry_that_hangs_in_a_decoder_goes_back_as_a_suspect(client: Client) -> None:
    ahead = Ahead(client)
    hanging, other = add(client, 2)
    ahead.take()

    ahead.reader.hand_back({("frames", hanging), ("other", other)})

    assert owners(client) == {hanging: ("_released", 1), other: ("_released", 0)}
    assert ahead.counted["released"] == 2


def test_a_hand_back_gives_up_each_queue(client: Client) -> None:
    ahead = Ahead(client, queues=[QUEUE, OTHER])
    add(client, 2)
    add(client, 3, stream="other")
    ahead.take()

    ahead.reader.hand_back()

    assert len(ahead.holdings) == 0
    assert set(owners(client).values()) == set(owners(client, queue=OTHER).values()) == {("_released", 0)}


@pytest.mark.parametrize("disaster", ["FLUSHALL", "SET frames something"])
def test_a_hand_back_that_fails_is_no_error_and_no_batch_takes_what_was_given_up(client: Client, disaster: str) -> None:
    ahead = Ahead(client)
    (entry_id,) = add(client)
    ahead.take()
    client.execute_command(*disaster.split())

    ahead.reader.hand_back()

    assert ahead.holdings.begin([Receipt("frames", entry_id)]) == [False]


@pytest.mark.parametrize("disaster", ["FLUSHALL", "DEL frames", "XGROUP DESTROY frames coatstream"])
def test_after_a_disaster_it_joins_again_and_reads_what_is_there(client: Client, disaster: str) -> None:
    ahead = Ahead(client)
    add(client, 2)
    assert len(ahead.take()) == 2
    ahead.holdings.give_up("frames")
    client.execute_command(*disaster.split())

    ahead.clock.now += SWEEP_EVERY
    with pytest.raises(RedisUnavailable):
        ahead.take(wait=True)
    after = add(client, 2)
    ahead.reader.join()

    assert ahead.counted["groups_made"] == 1  # the first time nothing had vanished
    assert _until_something(ahead)[-2:] == after


@ON_ONE_SERVER
def test_a_read_that_waits_is_shorter_than_the_time_in_which_idle_entries_are_looked_for(client: Client) -> None:
    reader = EntryReader([member(client)], Holdings(), HeardQueue(), prefetch=8, block=HOUR, monotonic=SettableClock())
    reader.join()
    done: list[list[Taken]] = []
    thread = threading.Thread(target=lambda: done.append(reader.take(wait=True)), daemon=True)

    thread.start()
    thread.join(20 * TICK)

    assert done == [[]]
