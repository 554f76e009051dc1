"""The books of a queue come out, whatever becomes of its entries; and what nobody booked is seen."""

from dataclasses import replace

import pytest
from coatstream.broker.connection import Client
from coatstream.errors import RedisRefuses, RedisUnavailable
from coatstream.queue.audit import Audit, audit
from coatstream.queue.dead.letters import DeadLetters, Replayed
from coatstream.queue.group import ConsumerGroup
from coatstream.settings.model import QueueSettings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.burials import LIMITS, add, bury, queue, settle, take
from tests.support.settled import dropped, published
from tests.support.workers import eventually

EMPTY = Audit("frames", 0, None, *(0,) * 13)


def publish(client: Client, entry_id: str) -> None:
    settle(client, published(entry_id), name=f"label {entry_id}")


def drop(client: Client, entry_id: str) -> None:
    settle(client, dropped(entry_id), name=f"drop {entry_id}")


def bytes_of_letters(client: Client) -> int:
    """What really lies there, of names and values."""
    script = """local sum = 0
    for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
      for _, text in ipairs(entry[2]) do sum = sum + #text end
    end
    return sum"""
    return int(client.eval(script, 1, "frames:dead"))


def test_of_a_queue_that_never_was_there_is_nothing_to_say(client: Client) -> None:
    found = audit(client, queue())

    assert found == EMPTY
    assert (found.balanced, found.gone, found.added) == (True, 0, 0)


def test_before_any_worker_there_are_no_books_and_nothing_is_amiss(client: Client) -> None:
    for _ in range(3):
        add(client, ("image", "x"))
    client.xtrim("frames", maxlen=1, approximate=False)

    assert audit(client, queue()) == replace(EMPTY, entries_added=3, waiting=1)
    assert audit(client, queue()).balanced


def test_every_entry_is_waiting_in_work_or_has_an_outcome(client: Client) -> None:
    bury(client, ("image", "x"))
    for _ in range(5):
        add(client, ("image", "x"))
    labelled, dropped, *in_work = take(client, count=4)
    publish(client, labelled)
    drop(client, dropped)

    found = audit(client, queue())

    assert (found.added, found.waiting, found.in_work) == (6, 1, len(in_work))
    assert (found.published, found.dropped, found.dead, found.trimmed) == (1, 1, 1, 0)
    assert (found.letters, found.dead_bytes, found.dead_dropped) == (1, bytes_of_letters(client), 0)
    assert (found.balanced, found.gone) == (True, 0)


def test_what_went_before_the_books_were_opened_is_no_loss(client: Client) -> None:
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    for _ in range(5):
        add(client, ("image", "x"))
    client.xreadgroup("coatstream", "old", {"frames": ">"}, count=3)
    settled = [entry_id for entry_id, _ in client.xrange("frames", count=2)]  # by a worker that kept no books
    client.xack("frames", "coatstream", *settled)
    client.xdel("frames", *settled)

    [*_, newest] = take(client)
    publish(client, newest)

    found = audit(client, queue())
    assert (found.base, found.added, found.published, found.in_work) == (2, 3, 1, 2)
    assert found.balanced


@pytest.mark.parametrize("loss", ["MAXLEN", "XTRIM", "XDEL"])
def test_entries_that_vanish_without_a_worker_are_seen(client: Client, loss: str) -> None:
    ids = [take(client), *(add(client, ("image", "x")) for _ in range(4))][1:]

    match loss:
        case "MAXLEN":
            client.xadd("frames", {"image": "x"}, maxlen=2, approximate=False)
        case "XTRIM":
            client.xtrim("frames", maxlen=1, approximate=False)
        case "XDEL":
            client.xdel("frames", *ids[1:])

    found = audit(client, queue())
    assert (found.unaccounted, found.gone, found.balanced) == (3, 3, False)


def test_an_entry_that_vanished_from_a_workers_hands_is_gone_before_and_after_the_workers_notice(
    client: Client,
) -> None:
    add(client, ("image", "x"))
    add(client, ("image", "x"))
    first, _ = take(client)
    client.xdel("frames", first)

    before = audit(client, queue())
    other = ConsumerGroup(client, queue(), QueueSettings(min_idle=0.001), consumer="other")
    eventually(lambda: other.reclaim(1, alone=True).trimmed == 1, "another worker finds out")
    after = audit(client, queue())

    assert (before.waiting, before.in_work) == (0, 1)  # the group still remembers two
    assert (before.trimmed, before.gone, before.balanced) == (0, 1, False)
    assert (after.trimmed, after.gone, after.balanced) == (1, 1, True)


def test_a_stream_that_was_made_anew_has_more_outcomes_than_entries(client: Client) -> None:
    for _ in range(3):
        add(client, ("image", "x"))
    for entry_id in take(client):
        publish(client, entry_id)
    client.delete("frames")

    assert audit(client, queue()).unaccounted == -3
    assert not audit(client, queue()).balanced

    take(client)  # the next worker that joins opens the books anew
    assert audit(client, queue()).balanced


def test_a_replayed_frame_is_an_entry_like_any_other(client: Client) -> None:
    letter = bury(client, ("image", "x"))

    DeadLetters(client, queue()).replay([letter])

    found = audit(client, queue())
    assert (found.added, found.waiting, found.dead, found.letters) == (2, 1, 1, 0)
    assert found.balanced


def test_dead_letters_that_had_to_go_are_counted(client: Client) -> None:
    limits = QueueSettings(dead_max_length=2)

    for _ in range(5):
        bury(client, ("image", "x"), limits=limits)

    found = audit(client, queue())
    assert (found.dead, found.letters, found.dead_dropped) == (5, 2, 3)
    assert found.dead_bytes == bytes_of_letters(client)
    assert found.balanced


def test_letters_that_somebody_trimmed_by_hand_leave_no_bytes_behind(client: Client) -> None:
    bury(client, ("image", "x" * 1000))
    client.xtrim("frames:dead", maxlen=0, approximate=False)

    assert audit(client, queue()).dead_bytes == 0


def test_what_producers_are_told_of_is_passed_on(client: Client) -> None:
    client.hset("frames:books", mapping={"refused": 7, "admitted_bytes": 2**40})

    found = audit(client, queue())

    assert (found.refused, found.admitted_bytes) == (7, 2**40)


def test_what_is_no_number_in_the_books_counts_as_nothing(client: Client) -> None:
    add(client, ("image", "x"))
    for entry_id in take(client):
        publish(client, entry_id)
    client.hset("frames:books", mapping={"published": "\x1b[2J", "dead": "1e3", "refused": "9" * 40})

    found = audit(client, queue())

    assert (found.published, found.dead, found.refused, found.unaccounted) == (0, 0, 0, 1)


def test_pictures_stay_on_the_server_and_nothing_is_changed(client: Client) -> None:
    for _ in range(3):
        add(client, ("image", b"x" * 300_000))
    take(client, count=1)
    before = client.info("stats")["total_net_output_bytes"], client.info("persistence")["rdb_changes_since_last_save"]

    audit(client, queue())

    assert client.info("stats")["total_net_output_bytes"] - before[0] < 50_000
    assert client.info("persistence")["rdb_changes_since_last_save"] == before[1]


def test_a_full_server_can_be_audited(client: Client) -> None:
    bury(client, ("image", "x"))
    client.config_set("maxmemory", 1)
    try:
        assert audit(client, queue()).dead == 1
    finally:
        client.config_set("maxmemory", 0)


@pytest.mark.parametrize("key", ["frames", "frames:dead", "frames:books"])
def test_a_key_that_holds_something_else_is_one_line(client: Client, key: str) -> None:
    client.set(key, "x")

    with pytest.raises((RedisRefuses, RedisUnavailable), match="the queue frames cannot be audited") as caught:
        audit(client, queue())

    assert "\n" not in str(caught.value)


steps = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 2)),
    st.tuples(st.just("publish"), st.integers(0, 5)),
    st.tuples(st.just("drop"), st.integers(0, 5)),
    st.tuples(st.just("bury"), st.integers(0, 1500)),
    st.tuples(st.just("replay"), st.integers(0, 5)),
    st.tuples(st.just("discard"), st.integers(0, 5)),
    st.tuples(st.just("vanish"), st.integers(0, 5)),
)


class Story:
    """A queue to which one thing after the other happens, and what the books must say by then."""

    limits = LIMITS.model_copy(update={"dead_max_length": 4, "dead_max_bytes": 2500})

    def __init__(self, client: Client) -> None:
        self.client = client
        self.letters = DeadLetters(client, queue())
        self.added = self.vanished = self.published = self.dropped = self.dead = self.taken_out = 0
        take(client)

    def do(self, what: str, number: int) -> None:
        match what:
            case "add":
                for _ in range(number):
                    add(self.client, ("image", "x" * 10))
                self.added += number
            case "publish" | "drop":
                for entry_id in take(self.client, count=1):
                    (publish if what == "publish" else drop)(self.client, entry_id)
                    self.published += what == "publish"
                    self.dropped += what == "drop"
            case "bury":
                bury(self.client, ("image", "x" * number), limits=self.limits)
                self.added += 1
                self.dead += 1
            case "replay":
                done = self.letters.replay(self._one_letter(number)).count(Replayed.MOVED)
                self.added += done
                self.taken_out += done
            case "discard":
                self.taken_out += sum(self.letters.drop(self._one_letter(number)))
            case "vanish":
                self.vanished += self.client.xtrim("frames", minid=f"{2**50}-0", approximate=False)

    def _one_letter(self, number: int) -> list[str]:
        """One of those that are there, and one that is not."""
        ids = [letter.letter for letter in self.letters.all()]
        return [*ids[number % len(ids) :][:1], "1-1"] if ids else ["1-1"]

    def check(self) -> None:
        found = audit(self.client, queue())
        outcomes = (found.published, found.dropped, found.dead, found.trimmed)
        assert outcomes == (self.published, self.dropped, self.dead, 0)
        assert (found.added, found.unaccounted) == (self.added, self.vanished)
        assert found.waiting + found.in_work == self.client.xlen("frames")
        assert found.letters == self.client.xlen("frames:dead") <= self.limits.dead_max_length
        assert found.dead_bytes == bytes_of_letters(self.client) <= self.limits.dead_max_bytes
        assert found.dead_dropped == self.dead - self.taken_out - found.letters


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=5, max_size=40))
def test_the_books_stay_exact_whatever_happens_in_whatever_order(
    client: Client, happenings: list[tuple[str, int]]
) -> None:
    client.flushdb()
    story = Story(client)

    for what, number in happenings:
        story.do(what, number)
        story.check()
