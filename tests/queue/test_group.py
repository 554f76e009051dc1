"""A worker's place in the group, on real servers: take over, renew, hand back, tidy up; nothing is lost or stolen."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import EmbeddedServer, embedded_server
from coatstream.errors import RedisRefuses, RedisUnavailable
from coatstream.queue.group import AT_ONCE, GATE
from coatstream.settings.model import RedisSettings
from redis.exceptions import OutOfMemoryError

from tests.support.settled import (
    HOUR,
    NOW,
    QUEUE,
    add,
    admit,
    assert_balanced,
    books,
    consumers,
    ids,
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

# ---- join


def test_joining_makes_the_group_at_the_beginning_of_the_stream_and_joining_again_changes_nothing(
    client: Client,
) -> None:
    entries = add(client, 3)

    assert (member(client).join(), member(client, "other").join()) == ("stream", "")
    assert read(client) == entries
    assert member(client).join() == ""
    assert len(pending(client)) == 3


def test_the_books_begin_when_they_are_opened_and_do_not_blame_anybody_for_what_was_gone_before(
    client: Client,
) -> None:
    gone, *_ = add(client, 5)
    client.xdel("frames", gone)

    member(client).join()

    assert books(client) == {"base": 1}
    assert_balanced(client)


@pytest.mark.parametrize("disaster", ["FLUSHALL", "DEL frames", "XGROUP DESTROY frames coatstream"])
def test_after_a_disaster_the_group_is_made_again_and_what_is_there_is_read_from_the_beginning(
    client: Client, disaster: str
) -> None:
    group = member(client)
    group.join()
    first, second, third = add(client, 3)
    read(client)
    settler(client).settle([published(first)], now=NOW)
    client.execute_command(*disaster.split())
    with pytest.raises(RedisUnavailable, match="group"):
        group.reclaim(8, alone=False)
    after = add(client, 2)

    assert group.join() == ("group" if "XGROUP" in disaster else "stream")
    assert read(client) == ([second, third, *after] if "XGROUP" in disaster else after)
    assert_balanced(client)


def test_what_vanished_while_the_group_was_missing_stays_unaccounted_for(client: Client) -> None:
    group = member(client)
    group.join()
    lost, _ = add(client, 2)
    client.xgroup_destroy("frames", "coatstream")
    client.xdel("frames", lost)

    group.join()

    assert_balanced(client, vanished=1)


# ---- reclaim


def test_fifty_idle_entries_behind_a_hundred_busy_ones_are_found_in_one_call(client: Client) -> None:
    group = member(client)
    group.join()
    add(client, 150)
    read(client, "busy", 100)
    idle = read(client, "dead", 50)
    silence(client, "dead", deliveries=0)

    found = group.reclaim(50, alone=False)

    assert ids(found.entries) == idle
    assert found.entries[0][1] == {b"image": b"jpeg", b"source": b"door", b"number": b"100"}
    assert owners(client) | dict.fromkeys(idle, ("me", 1)) == owners(client)


def test_idle_entries_are_found_behind_more_busy_ones_than_one_page_of_the_search(client: Client) -> None:
    group = member(client)
    group.join()
    add(client, 700)
    read(client, "busy", 690)
    idle = read(client, "dead", 10)
    silence(client, "dead", deliveries=0)

    assert ids(group.reclaim(10, alone=False).entries) == idle


def test_a_worker_never_takes_its_own_entries_over(client: Client) -> None:
    group = member(client)
    group.join()
    add(client, 2)
    read(client, "me")
    silence(client, "me", deliveries=0)

    assert group.reclaim(8, alone=False).entries == group.reclaim(1, alone=True).entries == []
    assert len(member(client, "other").reclaim(8, alone=False).entries) == 2


def test_an_entry_that_is_not_idle_long_enough_stays_where_it_is(client: Client) -> None:
    group = member(client)
    group.join()
    add(client)
    read(client, "busy")

    assert group.reclaim(8, alone=False).entries == group.reclaim(1, alone=True).entries == []


def test_what_nobody_has_begun_comes_in_batches_and_suspects_only_alone_and_only_on_request(client: Client) -> None:
    group = member(client)
    group.join()
    add(client, 6)
    fresh = read(client, "left", 3)
    suspects = read(client, "crashed", 3)
    member(client, "left").release(fresh, begun=False)
    silence(client, "crashed")

    batch = group.reclaim(2, alone=False)
    rest = group.reclaim(8, alone=False)
    alone = [group.reclaim(8, alone=True) for _ in range(4)]

    assert (ids(batch.entries), ids(rest.entries)) == (fresh[:2], fresh[2:])
    assert rest.suspects
    assert [ids(found.entries) for found in alone] == [[suspect] for suspect in suspects] + [[]]
    assert [found.suspects for found in alone] == [True, True, False, False]
    assert owners(client) == dict.fromkeys(fresh, ("me", 1)) | dict.fromkeys(suspects, ("me", 2))


def test_a_request_for_a_suspect_brings_no_fresh_entry(client: Client) -> None:
    group = member(client)
    group.join()
    add(client)
    member(client, "left").release(read(client, "left"), begun=False)

    assert group.reclaim(1, alone=True).entries == []


def test_what_was_delivered_too_often_is_buried_with_all_its_fields_and_its_last_owner(client: Client) -> None:
    group = member(client, max_deliveries=3)
    group.join()
    (entry_id,) = add(client, image=b"jpeg", source="door", note="kept")
    read(client, "killed")
    silence(client, "killed", deliveries=3)

    found = group.reclaim(8, alone=False)

    assert (found.entries, found.buried, found.suspects) == ([], [b"door"], False)
    (letter,) = letters(client)
    assert letter == {
        b"image": b"jpeg",
        b"source": b"door",
        b"note": b"kept",
        b"number": b"0",
        b"reason": b"delivery_limit",
        b"error": b"given to workers 3 times, and none settled it",
        b"deliveries": b"3",
        b"entry_id": entry_id.encode(),
        b"died_at": b"1700000000.500000",
        b"worker": b"killed",
    }
    assert (client.xlen("frames"), pending(client)) == (0, [])
    assert books(client)["dead"] == 1
    assert_balanced(client)


def test_one_delivery_fewer_than_the_limit_is_a_suspect_still(client: Client) -> None:
    group = member(client, max_deliveries=3)
    group.join()
    (entry_id,) = add(client)
    read(client, "crashed")
    silence(client, "crashed", deliveries=2)

    assert ids(group.reclaim(1, alone=True).entries) == [entry_id]
    assert owners(client) == {entry_id: ("me", 3)}


def test_one_call_buries_a_bounded_number_and_the_next_one_goes_on(client: Client) -> None:
    group = member(client)
    group.join()
    add(client, 40)
    read(client, "crashed")
    silence(client, "crashed", deliveries=99)

    buried = [len(group.reclaim(8, alone=False).buried) for _ in range(4)]

    assert buried == [16, 16, 8, 0]
    assert_balanced(client)


@pytest.mark.parametrize("admitted", [b"", b"nan", b"1.5", b"1e300", b"-7", b"0x10", b"9" * 13, b"0"])
def test_what_a_stranger_writes_into_admitted_neither_breaks_the_burial_nor_the_books(
    client: Client, admitted: bytes
) -> None:
    admit(client, 100)
    group = member(client)
    group.join()
    read(client, "admitted")
    add(client, image=b"jpeg", source="door", admitted=admitted)
    read(client, "crashed")
    silence(client, "crashed", deliveries=9)

    assert group.reclaim(8, alone=False).buried == [b"door"]
    assert books(client)["admitted_bytes"] == 100
    assert client.hgetall(QUEUE.sources) == {b"door": b"1"}


@pytest.mark.parametrize(("source", "account"), [(b"", b"queue"), (b"\xff", b"\xff")])
def test_a_source_without_a_name_is_booked_as_everywhere(client: Client, source: bytes, account: bytes) -> None:
    group = member(client)
    group.join()
    add(client, image=b"jpeg", source=source)
    read(client, "crashed")
    silence(client, "crashed", deliveries=9)

    assert group.reclaim(8, alone=False).buried == [account]


def test_the_delivery_limit_takes_an_admitted_entry_off_the_accounts(client: Client) -> None:
    group = member(client)
    group.join()
    admit(client, 100)
    admit(client, 23)
    read(client, "crashed", 1)
    silence(client, "crashed", deliveries=9)

    group.reclaim(8, alone=False)

    assert books(client)["admitted_bytes"] == 23
    assert client.hgetall(QUEUE.sources) == {b"door": b"1"}


@pytest.mark.parametrize("deliveries", [0, 1, 9])
def test_an_entry_that_was_trimmed_while_somebody_had_it_is_counted_and_nothing_stays_pending(
    client: Client, deliveries: int
) -> None:
    group = member(client)
    group.join()
    add(client, 3)
    read(client, "crashed")
    silence(client, "crashed", deliveries=deliveries)
    client.xtrim("frames", 0, approximate=False)

    looks = [group.reclaim(8, alone=False), group.reclaim(8, alone=True)]

    assert sum(look.trimmed for look in looks) == 3
    assert [look.entries for look in looks] == [[], []]
    assert (pending(client), letters(client)) == ([], [])
    assert books(client)["trimmed"] == 3
    assert_balanced(client)


def test_a_look_that_finds_nothing_keeps_everybody_from_looking(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coatstream.queue.group.GATE", 60.0)
    group = member(client)
    group.join()
    assert group.reclaim(8, alone=False).entries == []
    add(client)
    read(client, "crashed")
    silence(client, "crashed", deliveries=0)

    assert member(client, "other").reclaim(8, alone=False).entries == []
    assert 50_000 < client.pttl(QUEUE.gate) <= 60_000


def test_the_gate_opens_by_itself_after_its_time(client: Client) -> None:
    group = member(client)
    group.join()
    group.reclaim(8, alone=False)
    life = client.pttl(QUEUE.gate)
    add(client)
    read(client, "crashed")
    silence(client, "crashed", deliveries=0)

    assert life == -2 or 0 <= life <= GATE * 1000  # -2: this machine was slower than that
    eventually(lambda: bool(group.reclaim(8, alone=False).entries), "the gate opens")


def test_a_gate_that_is_shut_hides_idle_entries_and_a_release_opens_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coatstream.queue.group.GATE", 60.0)
    group = member(client)
    group.join()
    add(client, 2)
    read(client, "left")
    client.set(QUEUE.gate, "somebody", px=60_000)
    first, second = silence(client, "left", deliveries=0)
    assert group.reclaim(8, alone=False).entries == []

    member(client, "left").release([second], begun=False)

    assert client.exists(QUEUE.gate) == 0
    assert ids(group.reclaim(8, alone=False).entries) == [first, second]


@pytest.mark.parametrize("life", [3_573_588, None])
def test_a_gate_that_a_wrong_clock_has_shut_for_hours_hides_nothing(client: Client, life: int | None) -> None:
    group = member(client)
    group.join()
    held = add(client, 2)
    read(client, "crashed")
    silence(client, "crashed", deliveries=0)

    client.set(QUEUE.gate, "somebody", px=life)

    assert ids(group.reclaim(8, alone=False).entries) == held


def test_a_release_of_nothing_leaves_the_gate_shut(client: Client) -> None:
    group = member(client)
    group.join()
    client.set(QUEUE.gate, "somebody", px=60_000)

    group.release(["1-1"], begun=False)
    group.leave()

    assert client.exists(QUEUE.gate) == 1


@pytest.mark.parametrize("deliveries", [0, 1, 9])
def test_a_look_that_found_work_of_any_kind_leaves_the_gate_open(client: Client, deliveries: int) -> None:
    group = member(client)
    group.join()
    add(client)
    read(client, "crashed")
    silence(client, "crashed", deliveries=deliveries)

    group.reclaim(8, alone=False)

    assert client.exists(QUEUE.gate) == 0


def test_the_gate_is_never_shut_for_longer_than_a_quarter_of_the_time_that_makes_idle(client: Client) -> None:
    group = member(client, min_idle=0.1)
    group.join()

    group.reclaim(8, alone=False)

    assert client.pttl(QUEUE.gate) <= 25


@pytest.mark.parametrize("key", ["frames", "frames:dead", "frames:books", "frames:sources", "frames:gate"])
def test_a_key_of_another_type_stops_a_look_before_anything_is_acknowledged(client: Client, key: str) -> None:
    group = member(client)
    group.join()
    if key == "frames":
        client.delete("frames")
    else:
        add(client)
        read(client, "crashed")
        silence(client, "crashed", deliveries=9)
        client.delete(key)
    client.rpush(key, "something else")

    with pytest.raises(RedisRefuses, match=f"{key} holds a list"):
        group.reclaim(8, alone=False)

    assert key == "frames" or len(pending(client)) == 1


@pytest.mark.parametrize("deliveries", [0, 9])
def test_an_entry_with_twenty_thousand_fields_is_handed_out_and_buried_like_any_other(
    client: Client, deliveries: int
) -> None:
    group = member(client)
    group.join()
    many: dict[str, str | bytes | int] = {f"field-{number}": "x" for number in range(20_000)}
    client.xadd("frames", many | {"image": b"at the end"})
    read(client, "crashed")
    silence(client, "crashed", deliveries=deliveries)

    found = group.reclaim(1, alone=False)

    if deliveries:
        (letter,) = letters(client)
        assert letter[b"reason"] == b"delivery_limit"
        assert letter[b"image"] == b"at the end"
        assert_balanced(client)
    else:
        assert len(found.entries[0][1]) == 20_001


# ---- beat


def test_a_beat_renews_leases_without_counting_a_delivery(client: Client) -> None:
    group = member(client)
    group.join()
    held = add(client, 3)
    read(client)
    silence(client, "me")

    lost = group.beat(held)

    assert lost == []
    assert max(item["time_since_delivered"] for item in pending(client)) < HOUR * 500
    assert owners(client) == dict.fromkeys(held, ("me", 1))
    assert member(client, "other").reclaim(8, alone=True).entries == []


def test_a_beat_names_what_is_not_mine_and_does_not_steal_it_back(client: Client) -> None:
    group = member(client)
    group.join()
    mine, taken, settled, undelivered = add(client, 4)
    read(client, count=3)
    client.xclaim("frames", "coatstream", "other", 0, [taken])
    settler(client).settle([published(settled)], now=NOW)

    lost = group.beat([mine, taken, settled, undelivered, "1-1"])

    assert lost == [taken, settled, undelivered, "1-1"]
    assert owners(client) == {mine: ("me", 1), taken: ("other", 2)}


def test_more_leases_than_one_call_takes_are_all_renewed(client: Client) -> None:
    group = member(client)
    group.join()
    held = add(client, AT_ONCE * 2 + 1)
    read(client)

    assert group.beat([*held, "1-1"]) == ["1-1"]


# ---- release, leave, inherit


def test_what_nobody_has_begun_goes_back_uncounted_and_others_take_it_at_once(client: Client) -> None:
    group = member(client)
    group.join()
    held = add(client, 3)
    read(client)

    released = group.release(held, begun=False)

    assert released == 3
    assert owners(client) == dict.fromkeys(held, ("_released", 0))
    assert ids(member(client, "other").reclaim(8, alone=False).entries) == held
    assert owners(client) == dict.fromkeys(held, ("other", 1))


def test_what_was_begun_goes_back_with_its_count_and_travels_alone(client: Client) -> None:
    group = member(client)
    group.join()
    first, second = add(client, 2)
    read(client)

    group.release([first, second], begun=True)

    other = member(client, "other")
    assert owners(client) == {first: ("_released", 1), second: ("_released", 1)}
    assert other.reclaim(8, alone=False).entries == []
    assert ids(other.reclaim(8, alone=True).entries) == [first]


def test_a_release_of_somebody_elses_entries_does_nothing(client: Client) -> None:
    group = member(client)
    group.join()
    entries = add(client, 3)
    read(client, "other")
    before = owners(client)

    assert group.release([*entries, "1-1"], begun=False) == group.release(entries, begun=True) == 0
    assert owners(client) == before


def test_a_released_entry_can_still_be_settled_by_whoever_has_finished_it(client: Client) -> None:
    group = member(client)
    group.join()
    (entry_id,) = add(client)
    read(client)
    group.release([entry_id], begun=True)

    assert settler(client).settle([published(entry_id)], now=NOW).done == (True,)
    assert_balanced(client)


def test_who_leaves_is_gone_unless_something_of_his_is_still_pending(client: Client) -> None:
    tidy, busy = member(client, "tidy"), member(client, "busy")
    tidy.join()
    add(client, 2)
    tidy.release(read(client, "tidy", 1), begun=False)
    read(client, "busy", 1)

    tidy.leave()
    busy.leave()

    assert consumers(client) == {"busy", "_released"}
    assert sorted(owner for owner, _ in owners(client).values()) == ["_released", "busy"]


def test_what_a_dead_worker_held_can_be_taken_at_once_and_keeps_its_count(client: Client) -> None:
    group = member(client)
    group.join()
    held = add(client, 300)
    read(client, "dead")
    client.set(QUEUE.gate, "somebody", px=60_000)

    inherited = group.take_over_from("dead")

    assert inherited == 300
    assert owners(client) == dict.fromkeys(held, ("_released", 1))
    assert consumers(client) == {"_released"}
    assert ids(group.reclaim(1, alone=True).entries) == held[:1]


def test_a_dead_worker_that_held_nothing_or_was_never_here_leaves_nothing_to_inherit(client: Client) -> None:
    group = member(client)
    group.join()
    client.xgroup_createconsumer("frames", "coatstream", "idle")

    assert (group.take_over_from("idle"), group.take_over_from("never")) == (0, 0)
    assert consumers(client) == set()


def test_orphans_are_the_entries_that_the_server_counts_as_mine(client: Client) -> None:
    group = member(client)
    group.join()
    add(client, 3)
    mine = read(client, "me", 2)
    read(client, "other")

    assert group.orphans() == mine


# ---- reap


def test_only_consumers_that_have_nothing_and_were_silent_for_long_are_removed(client: Client) -> None:
    group = member(client)
    group.join()
    add(client)
    read(client, "pending")
    client.xgroup_createconsumer("frames", "coatstream", "empty")
    client.xgroup_createconsumer("frames", "coatstream", "me")

    assert group.reap(HOUR) == 0
    assert group.reap(0.0) == 1
    assert consumers(client) == {"pending", "me"}


def test_where_there_is_no_group_yet_there_is_nobody_to_remove(client: Client) -> None:
    assert member(client).reap(0.0) == 0
    client.xadd("frames", {"image": b"x"})
    assert member(client).reap(0.0) == 0


def test_a_reaper_that_races_a_living_worker_never_loses_it_an_entry(client: Client, redis_url: str) -> None:
    group = member(client)
    group.join()
    entries = add(client, 400)
    lost: list[str] = []
    held: list[str] = []

    def work() -> None:
        with connect(RedisSettings.model_validate({"url": redis_url})) as own:
            while found := read(own, "live", 1):
                held.extend(found)
                lost.extend(entry_id for entry_id in found if owners(own).get(entry_id) != ("live", 1))
                if len(held) % 2:  # so that it has nothing pending time and again
                    settler(own, f"call {len(held)}").settle([published(entry_id) for entry_id in held], now=NOW)

    worker = threading.Thread(target=work)
    worker.start()
    removed = 0
    while worker.is_alive():
        removed += group.reap(0.0)
    worker.join(20)

    assert removed > 0
    assert lost == []
    assert held == entries
    assert_balanced(client)


# ---- a full server


@pytest.fixture
def full(redis_server: EmbeddedServer) -> Iterator[Client]:
    """A server that is at its `maxmemory`: 20 entries are pending, the half of them with a worker that crashed."""
    with (
        embedded_server("--maxmemory", "8mb", binary=str(redis_server.process.args[0])) as server,  # type: ignore[index]
        connect(RedisSettings.model_validate({"url": server.url})) as client,
    ):
        member(client).join()
        add(client, 20)
        read(client, "me", 10)
        read(client, "crashed", 10)
        silence(client, "crashed", deliveries=0)
        with suppress(OutOfMemoryError):
            while True:
                client.xadd("frames", {"image": b"x" * 65_536})
        yield client


def test_on_a_full_server_everything_but_a_producer_still_works(full: Client) -> None:
    me = member(full)
    mine = [entry_id for entry_id, (owner, _) in owners(full).items() if owner == "me"]

    assert me.join() == ""
    assert me.beat(mine) == []
    assert len(me.reclaim(10, alone=False).entries) == 10
    assert me.release(mine[:5], begun=False) == 5
    assert len(member(full, "other").reclaim(8, alone=False).entries) == 5
    assert settler(full).settle([published(entry_id) for entry_id in mine], now=NOW).done == (True,) * 10
    assert member(full, "other").take_over_from("me") == 10
    assert_balanced(full)


def test_on_a_full_server_the_delivery_limit_still_buries(full: Client) -> None:
    silence(full, "crashed", deliveries=9)

    buried = member(full).reclaim(1, alone=False).buried

    assert len(buried) == len(letters(full)) == 10
    assert_balanced(full)


def test_on_a_full_server_a_group_that_vanished_is_made_again(full: Client) -> None:
    full.xgroup_destroy("frames", "coatstream")
    full.delete(QUEUE.books)

    assert member(full).join() == "stream"  # without its books it may be another one
    assert len(read(full, count=10)) == 10
    assert_balanced(full)


# ---- trouble


def test_a_server_that_is_away_is_one_clear_error_whatever_is_asked() -> None:
    with connect(RedisSettings.model_validate({"url": "redis://:hunter2@127.0.0.1:1"})) as nowhere:
        group = member(nowhere)
        calls: list[Callable[[], object]] = [
            group.join,
            lambda: group.reclaim(1, alone=False),
            lambda: group.beat(["1-1"]),
            lambda: group.release(["1-1"], begun=False),
            group.leave,
            lambda: group.take_over_from("dead"),
            group.orphans,
            lambda: group.reap(1.0),
        ]
        for call in calls:
            with pytest.raises(RedisUnavailable) as caught:
                call()
            assert "hunter2" not in str(caught.value)


def test_on_a_full_server_a_cameras_label_takes_the_place_of_the_oldest_one(full: Client) -> None:
    mine = [entry_id for entry_id, (owner, _) in owners(full).items() if owner == "me"]
    settler(full, "queue").settle([published(entry_id) for entry_id in mine[:4]], now=NOW)
    while int(full.info("memory")["used_memory"]) < 8 * 2**20:  # what was freed is taken again
        try:
            full.xadd("frames", {"image": b"x" * 65_536})
        except OutOfMemoryError:
            break
    before = full.xlen("labels")

    cameras = settler(full, "camera")
    done = [cameras.settle([published(None, frame_id=str(number))], now=NOW).done for number in range(50)]

    assert done == [(True,)] * 50
    assert full.xlen("labels") == before
    ((_, newest),) = full.xrevrange("labels", count=1)
    assert newest[b"frame_id"] == b"49"
