"""Stranded entries are found and given back: each gets exactly one outcome, on real servers."""

from collections.abc import Callable

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.queue.stranded import adopt_stranded, count_stranded
from coatstream.settings.model import RedisSettings

from tests.support.settled import NOW, QUEUE, add, assert_balanced, books, ids, member, owners, published, read, settler


def deleted_consumer(client: Client) -> list[str]:
    member(client).join()
    entries = add(client, 5)
    read(client, "gone", 3)
    client.xgroup_delconsumer("frames", QUEUE.group, "gone")
    return entries[:3]


def acknowledged_by_a_tool(client: Client) -> list[str]:
    member(client).join()
    entries = add(client, 5)
    client.xack("frames", QUEUE.group, *read(client, "tool", 3))
    return entries[:3]


def group_made_at_the_end(client: Client) -> list[str]:
    entries = add(client, 5)
    client.xgroup_create("frames", QUEUE.group, "$", mkstream=True)
    member(client).join()
    return entries


def position_moved_to_the_end(client: Client) -> list[str]:
    member(client).join()
    entries = add(client, 5)
    client.xgroup_setid("frames", QUEUE.group, "$")
    return entries


WAYS = [deleted_consumer, acknowledged_by_a_tool, group_made_at_the_end, position_moved_to_the_end]


@pytest.mark.parametrize("strand", WAYS)
def test_stranded_entries_are_handed_out_like_new_ones_and_counted(
    client: Client, strand: Callable[[Client], list[str]]
) -> None:
    stranded = strand(client)

    assert count_stranded(client, QUEUE) == len(stranded)
    assert adopt_stranded(client, QUEUE, every=0) == len(stranded)

    assert ids(member(client).reclaim(10, alone=False).entries) == stranded
    assert count_stranded(client, QUEUE) == 0
    assert books(client)["stranded"] == len(stranded)


@pytest.mark.parametrize("strand", WAYS)
def test_after_adoption_every_entry_gets_one_outcome_and_the_sum_comes_out(
    client: Client, strand: Callable[[Client], list[str]]
) -> None:
    strand(client)
    adopt_stranded(client, QUEUE, every=0)

    taken = [*ids(member(client).reclaim(10, alone=False).entries), *read(client)]
    settler(client).settle([published(entry) for entry in taken], now=NOW)

    assert len(taken) == len(set(taken)) == 5
    assert client.xlen("frames") == 0
    assert client.xlen("labels") == 5
    assert_balanced(client)


@pytest.mark.parametrize("by", ["create", "setid"])
def test_a_position_beyond_the_newest_entry_passes_over_nothing_that_comes_after_the_look(
    client: Client, by: str
) -> None:
    if by == "create":
        client.xgroup_create("frames", QUEUE.group, "99999999999999-0", mkstream=True)
        member(client).join()
    else:
        member(client).join()
        client.xgroup_setid("frames", QUEUE.group, "99999999999999-0")
    passed_over = add(client, 2)

    assert adopt_stranded(client, QUEUE, every=0) == 2
    new = add(client, 3)

    assert read(client) == new
    assert ids(member(client).reclaim(10, alone=False).entries) == passed_over
    assert count_stranded(client, QUEUE) == 0


def test_a_frame_with_the_lowest_id_survives_the_look(client: Client) -> None:
    client.xadd("frames", {"image": b"x"}, id="0-1")
    member(client).join()
    assert read(client) == ["0-1"]

    adopt_stranded(client, QUEUE, every=0)

    assert client.xlen("frames") == 1
    settler(client).settle([published("0-1")], now=NOW)
    assert client.xlen("labels") == 1


def test_entries_in_work_and_new_ones_are_left_alone(client: Client) -> None:
    member(client).join()
    add(client, 6)
    read(client, "busy", 4)
    before = owners(client)

    assert count_stranded(client, QUEUE) == 0
    assert adopt_stranded(client, QUEUE, every=0) == 0

    assert owners(client) == before
    assert len(read(client)) == 2


def test_a_stranded_entry_behind_many_in_work_is_found_by_the_looks_that_follow(client: Client) -> None:
    member(client).join()
    entries = add(client, 601)
    read(client, "busy", 601)
    client.xack("frames", QUEUE.group, entries[-1])

    found = [adopt_stranded(client, QUEUE, every=0) for _ in range(3)]

    assert found == [0, 0, 1]


def test_stranded_entries_behind_hundreds_in_work_are_counted(client: Client) -> None:
    member(client).join()
    add(client, 700)
    read(client, "busy", 600)
    client.xgroup_setid("frames", QUEUE.group, "$")

    assert count_stranded(client, QUEUE) == 100
    assert count_stranded(client, QUEUE, looks=1) == 0


def test_all_workers_together_look_once_in_a_while(client: Client) -> None:
    deleted_consumer(client)
    adopt_stranded(client, QUEUE, every=3600)
    client.xack("frames", QUEUE.group, *read(client, "tool"))

    assert adopt_stranded(client, QUEUE, every=3600) == 0
    assert adopt_stranded(client, QUEUE, every=0) == 2


def test_a_clock_that_was_ahead_for_a_while_does_not_hold_the_looks_back(client: Client) -> None:
    deleted_consumer(client)
    client.hset(QUEUE.books, "strand_at", str(2**45))

    assert adopt_stranded(client, QUEUE, every=3600) == 3


def test_one_look_fetches_no_more_than_8_mib_and_one_entry(client: Client) -> None:
    add(client, 6, image=bytes(3 << 20))
    client.xgroup_create("frames", QUEUE.group, "$")

    assert adopt_stranded(client, QUEUE, every=0) == 3
    assert adopt_stranded(client, QUEUE, every=3600) == 3


def test_what_was_settled_without_the_right_to_delete_is_never_labelled_again(client: Client, redis_url: str) -> None:
    member(client).join()
    add(client, 3)
    taken = read(client)
    client.execute_command("ACL", "SETUSER", "mute", "reset", "on", ">pw", "~*", "&*", "+@all", "-xdel")
    with connect(RedisSettings.model_validate({"url": redis_url, "username": "mute", "password": "pw"})) as limited:
        settler(limited).settle([published(entry) for entry in taken], now=NOW)
        assert client.xlen("frames") == 3

        assert adopt_stranded(limited, QUEUE, every=0) == 0
    assert adopt_stranded(client, QUEUE, every=0) == 0

    assert client.xlen("labels") == 3


def test_a_user_who_may_not_move_the_position_adopts_all_the_same(client: Client, redis_url: str) -> None:
    client.xgroup_create("frames", QUEUE.group, "99999999999999-0", mkstream=True)
    member(client).join()
    add(client, 2)
    client.execute_command("ACL", "SETUSER", "mute", "reset", "on", ">pw", "~*", "&*", "+@all", "-xgroup|setid")
    with connect(RedisSettings.model_validate({"url": redis_url, "username": "mute", "password": "pw"})) as limited:
        assert adopt_stranded(limited, QUEUE, every=0) == 2
        add(client, 1)
        assert adopt_stranded(limited, QUEUE, every=0) == 1


def test_another_kind_of_key_is_refused_and_nothing_is_changed(client: Client) -> None:
    client.set("frames", "text")

    with pytest.raises(Exception, match="frames holds a string"):
        adopt_stranded(client, QUEUE, every=0)


def test_what_an_earlier_release_settled_where_it_might_not_delete_is_not_handed_out_again(client: Client) -> None:
    """Commit 0eb8494 acknowledges and counts such entries, and leaves no mark of them."""
    member(client).join()
    entries = add(client, 4)
    client.xack("frames", QUEUE.group, *read(client, "old", 2))
    client.hincrby(QUEUE.books, "published", 2)

    assert adopt_stranded(client, QUEUE, every=0) == 0
    client.xdel("frames", *entries[:2])
    client.xack("frames", QUEUE.group, *read(client, "tool", 1))  # with those gone, what is stranded is found

    assert adopt_stranded(client, QUEUE, every=0) == 1
    assert set(owners(client)) == {entries[2]}
