"""Leases live as long as the work makes progress, and not a moment longer."""

import threading
import time
from collections.abc import Sequence

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue
from coatstream.errors import RedisRefuses, RedisUnavailable
from coatstream.frames.frame import Receipt
from coatstream.pipeline.holdings import Holdings
from coatstream.queue.group import ConsumerGroup
from coatstream.queue.heartbeat import AFTER_TROUBLE, REAP_EVERY, Heartbeat
from coatstream.settings.model import RedisSettings

from tests.support.doubles import HeardHealth, HeardQueue, SettableClock
from tests.support.servers import ON_ONE_SERVER
from tests.support.settled import (
    HOUR,
    NOW,
    QUEUE,
    add,
    consumers,
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


class Beating:
    """A heartbeat with all that it needs; `why` is what makes the process unhealthy."""

    def __init__(self, groups: Sequence[ConsumerGroup], *, min_idle: float = HOUR / 2) -> None:
        self.holdings = Holdings()
        self.why: list[str] = []
        self.observer, self.health = HeardQueue(), HeardHealth()
        self.clock = SettableClock()
        self.heart = Heartbeat(
            groups,
            self.holdings,
            self.observer,
            self.health,
            min_idle=min_idle,
            stalled=lambda: self.why,
            monotonic=self.clock,
        )

    def hold(self, entries: Sequence[str], queue: Queue = QUEUE) -> None:
        self.holdings.add(queue.stream, entries)


def is_fresh(client: Client, queue: Queue = QUEUE) -> bool:
    """Whether every lease was renewed since it was an hour old."""
    return all(item["time_since_delivered"] < HOUR * 500 for item in pending(client, queue=queue))


def grow_old(client: Client, *, deliveries: int = 1) -> list[str]:
    return silence(client, "me", deliveries=deliveries)


@pytest.fixture
def beating(client: Client) -> Beating:
    """With three entries in hand whose leases are an hour old."""
    member(client).join()
    add(client, 3)
    made = Beating([member(client)])
    made.hold(read(client))
    grow_old(client)
    return made


def test_every_lease_is_renewed_and_no_delivery_counted(client: Client, beating: Beating) -> None:
    beating.heart.beat()

    assert is_fresh(client)
    assert set(owners(client).values()) == {("me", 1)}
    assert (beating.observer.counted, beating.health.troubles, beating.health.successes) == ({}, [], 1)


def test_a_process_without_progress_lets_its_leases_go_and_renews_them_when_it_goes_on(
    client: Client, beating: Beating
) -> None:
    beating.why = ["a batch has been in hand for 61 s"]
    for _ in range(3):
        beating.heart.beat()
    silent = is_fresh(client)

    beating.why = []
    beating.heart.beat()

    assert (silent, is_fresh(client)) == (False, True)
    assert beating.health.successes == 1


def test_while_it_is_silent_another_worker_takes_the_entries_and_it_does_not_take_them_back(
    client: Client, beating: Beating
) -> None:
    beating.why = ["a picture has been in hand for 61 s"]
    beating.heart.beat()
    taken = member(client, "other").reclaim(1, alone=True).entries[0][0]
    beating.why = []

    beating.heart.beat()
    beating.heart.beat()

    assert owners(client)[taken] == ("other", 2)
    assert beating.holdings.begin([Receipt("frames", taken)]) == [False]
    assert len(beating.holdings) == 2
    assert beating.observer.counted == {"leases_lost": 1}


def test_an_entry_that_is_settled_at_this_moment_is_no_lost_lease(client: Client, beating: Beating) -> None:
    first, *_ = beating.holdings.entries("frames")

    settler(client).settle([published(first)], now=NOW)
    beating.heart.beat()  # the server has settled it, and the pump is about to hear of that
    beating.holdings.settled([Receipt("frames", first)])
    beating.heart.beat()

    assert beating.observer.counted == {}
    assert len(beating.holdings) == 2


def test_an_entry_that_was_lost_and_is_read_again_is_held_again(client: Client, beating: Beating) -> None:
    first, *_ = beating.holdings.entries("frames")
    client.xclaim("frames", "coatstream", "other", 0, [first])
    beating.heart.beat()
    client.xclaim("frames", "coatstream", "me", 0, [first])
    beating.hold([first])

    beating.heart.beat()
    beating.heart.beat()

    assert len(beating.holdings) == 3
    assert beating.observer.counted == {}


@pytest.mark.parametrize("trouble", ["no group", "another type"])
def test_trouble_with_one_queue_does_not_cost_the_others_their_leases(client: Client, trouble: str) -> None:
    for queue in (OTHER, QUEUE):
        member(client, queue=queue).join()
    add(client, 2)
    beating = Beating([member(client, queue=OTHER), member(client)])
    beating.hold(read(client))
    beating.hold(["1-1"], OTHER)
    grow_old(client)
    client.delete("other")
    if trouble == "another type":
        client.set("other", "something else")

    beating.heart.beat()
    renewed = is_fresh(client)
    beating.heart.beat()

    assert renewed
    kinds = {type(trouble) for trouble in beating.health.troubles}
    assert kinds == ({RedisRefuses} if trouble == "another type" else {RedisUnavailable})
    assert beating.health.successes == 0


@ON_ONE_SERVER
def test_a_server_that_is_away_is_told_and_beaten_again(client: Client) -> None:
    with connect(RedisSettings.model_validate({"url": "redis://127.0.0.1:1"})) as nowhere:
        beating = Beating([member(nowhere)])
        beating.hold(["1-1"])
        beating.heart.beat()
        beating.heart.beat()

    assert [type(trouble) for trouble in beating.health.troubles] == [RedisUnavailable, RedisUnavailable]
    assert len(beating.holdings) == 1


def test_a_server_in_trouble_is_left_alone_for_a_while_however_short_the_lease() -> None:
    rounds: list[float] = []

    class Troubled(Heartbeat):
        def beat(self) -> bool:
            rounds.append(time.monotonic())
            return False

    stop = threading.Event()
    heart = Troubled([], Holdings(), HeardQueue(), HeardHealth(), min_idle=0.001, stalled=list)
    thread = threading.Thread(target=heart.run, args=(stop,), daemon=True)
    thread.start()
    eventually(lambda: len(rounds) == 3, "three rounds")
    stop.set()
    thread.join(10)

    assert min(rounds[1] - rounds[0], rounds[2] - rounds[1]) > AFTER_TROUBLE * 0.9


def test_now_and_then_it_removes_consumers_that_have_long_been_silent(client: Client) -> None:
    member(client).join()
    beating = Beating([member(client)], min_idle=0.001)

    def vanished() -> bool:
        beating.heart.beat()
        return consumers(client) == set()

    client.xgroup_createconsumer("frames", "coatstream", "first")
    eventually(lambda: client.xinfo_consumers("frames", "coatstream")[0]["idle"] > 4, "silent for four times min_idle")
    assert vanished()

    client.xgroup_createconsumer("frames", "coatstream", "second")
    eventually(lambda: client.xinfo_consumers("frames", "coatstream")[0]["idle"] > 4, "silent for four times min_idle")
    beating.clock.now += REAP_EVERY - 0.1
    assert not vanished()

    beating.clock.now += 0.1
    assert vanished()


@pytest.mark.parametrize(("min_idle", "every"), [(15.0, 3.0), (1000.0, 3.0), (2.0, 0.5), (0.1, 0.025)])
def test_four_beats_fit_into_the_shortest_lease(min_idle: float, every: float) -> None:
    assert Beating([], min_idle=min_idle).heart.every == pytest.approx(every)


@ON_ONE_SERVER
def test_it_beats_in_a_thread_until_it_is_told_to_stop(client: Client) -> None:
    member(client).join()
    add(client)
    beating = Beating([member(client)], min_idle=0.02)
    beating.hold(read(client))
    stop = threading.Event()
    thread = threading.Thread(target=beating.heart.run, args=(stop,), daemon=True)
    thread.start()

    def renewed_again() -> bool:
        grow_old(client)
        before = beating.health.successes
        eventually(lambda: beating.health.successes > before + 1, "two more rounds")
        return is_fresh(client)

    assert renewed_again()
    assert renewed_again()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
