"""Readers of results that go on and on: from a place, over outages, closed by others, as members of a group."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from coatstream.broker.connection import Client
from coatstream.errors import ConfigError, RedisRefuses, RedisUnavailable
from coatstream.results.events.reader import AsyncEventReader, EventReader
from coatstream.results.following import GROUP_COUNT, READ_COUNT
from coatstream.results.labels import AsyncLabelReader, LabelReader
from coatstream.results.since import entry_before
from coatstream.settings.model import SettingsTree

from tests.support.redis_servers import cluster
from tests.support.workers import eventually
from tests.support.worlds import BOTH_WORLDS, World, entered

FIELDS = {"source": "door", "captured_at": "1.0", "published_at": "2.0", "label": "Egyptian cat", "score": "0.91"}


def publish(client: Client, frame_id: str, *, stream: str = "labels", id: str = "*", **fields: str) -> str:  # noqa: A002
    """One entry as settle.lua writes it."""
    document = {
        "schema": 1,
        "frame_id": frame_id,
        "entry_id": None,
        "source": "door",
        "captured_at": 1.0,
        "published_at": 2.0,
        "labels": [{"index": 285, "wnid": "n02124075", "label": "Egyptian cat", "score": 0.91}],
        "model": "m",
        "weights": "random",
        "worker": "w",
        "width": 640,
        "height": 360,
        "reused": False,
        "embedding": "AACAPw==",
        "picture": [],
        "fence": None,
        "meta": None,
        "of_a_later_version": 1,
    }
    entry = {
        "frame_id": frame_id,
        "source": "door",
        "captured_at": "1.0",
        "published_at": "2.0",
        "label": "Egyptian cat",
    }
    return str(client.xadd(stream, entry | {"score": "0.91", "json": json.dumps(document)} | fields, id=id).decode())


@contextmanager
def reading(world: World, where: str | SettingsTree, **options: Any) -> Iterator[Any]:
    with entered(world, LabelReader.connect(where, **options), AsyncLabelReader.connect(where, **options)) as reader:
        yield reader


def next_ids(reader: Any, count: int) -> list[str]:
    """Frame ids of the next ones."""
    return [reader.next(20).document.frame_id for _ in range(count)]


def pending(client: Client, group: str = "mine") -> int:
    return int(client.xpending("labels", group)["pending"])


# ---- alone


@BOTH_WORLDS
def test_a_label_is_read_with_all_that_its_document_says(client: Client, redis_url: str, world: World) -> None:
    with reading(world, redis_url) as reader:
        entry = publish(client, "f1")
        label = reader.next(20)

    assert (label.entry, label.source, label.label, label.score) == (entry, "door", "Egyptian cat", 0.91)
    document = label.document
    assert document.labels[0].wnid == "n02124075"
    assert document.vector().tolist() == [0.0, 1.875]


@BOTH_WORLDS
def test_without_a_place_reading_begins_with_what_comes_now(client: Client, redis_url: str, world: World) -> None:
    publish(client, "old")

    with reading(world, redis_url) as reader:
        assert reader.next(0.01) is None
        publish(client, "new")
        assert next_ids(reader, 1) == ["new"]


@BOTH_WORLDS
@pytest.mark.parametrize(
    "since",
    [1_700_000_000.5, datetime.fromtimestamp(1_700_000_000.5, UTC), "2023-11-14T22:13:20.500+00:00", "1700000000.5",
     "1700000000499-7"],
)  # fmt: skip
def test_reading_begins_at_a_moment_or_behind_an_entry(
    client: Client, redis_url: str, world: World, since: str | float | datetime
) -> None:
    for number, entry in enumerate(("1700000000499-7", "1700000000500-0", "1700000000501-0")):
        publish(client, f"f{number}", id=entry)

    with reading(world, redis_url, since=since) as reader:
        assert next_ids(reader, 2) == ["f1", "f2"]


def test_an_age_is_counted_back_from_now() -> None:
    assert entry_before("2m", now=1000.0) == f"879999-{2**64 - 1}"


@pytest.mark.parametrize("since", ["yesterday", "-1", "2026-13-01", "1e400", "1-2-3", float("nan"), float("inf")])
def test_what_is_no_place_is_refused_in_one_line(since: str | float) -> None:
    with pytest.raises(ConfigError, match=r"since .*: give an age such as"):
        entry_before(since, now=0.0)


@BOTH_WORLDS
def test_a_url_that_cannot_be_read_is_refused_without_its_password(world: World) -> None:
    with pytest.raises(ConfigError) as caught, reading(world, "http://user:hunter2@host"):
        pass

    assert "redis.url" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@BOTH_WORLDS
def test_a_server_that_is_away_at_the_start_is_an_error(world: World) -> None:
    with pytest.raises(RedisUnavailable, match="labels cannot be read"), reading(world, "redis://127.0.0.1:1"):
        pass


@BOTH_WORLDS
def test_an_outage_is_told_once_and_nothing_is_missed(client: Client, redis_url: str, world: World) -> None:
    troubles: list[RedisUnavailable] = []

    with reading(world, redis_url, on_trouble=troubles.append) as reader:
        publish(client, "f1")
        assert next_ids(reader, 1) == ["f1"]
        client.client_pause(300)
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_unpause()
        publish(client, "f2")
        assert next_ids(reader, 1) == ["f2"]

    assert len(troubles) <= 1


@BOTH_WORLDS
def test_closing_ends_a_loop_that_waits(client: Client, redis_url: str, world: World) -> None:
    ended = threading.Event()

    with reading(world, redis_url) as reader:

        def wait() -> None:
            assert reader.next() is None
            ended.set()

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: any(one["cmd"] == "xread" for one in client.client_list()), "it waits")
        reader.close()

        assert ended.wait(20)
        thread.join(20)


def test_a_loop_gives_each_label_and_ends_when_it_is_closed(client: Client, redis_url: str) -> None:
    with LabelReader.connect(redis_url) as labels:
        for number in range(READ_COUNT + 3):
            publish(client, f"f{number}")
        seen = []
        for label in labels:
            seen.append(label.document.frame_id)
            if len(seen) == READ_COUNT + 3:
                labels.close()

    assert seen == [f"f{number}" for number in range(READ_COUNT + 3)]


async def test_an_async_loop_does_so_too(client: Client, redis_url: str) -> None:
    async with AsyncLabelReader.connect(redis_url) as labels:
        publish(client, "f1")
        async for label in labels:
            assert label.document.frame_id == "f1"
            await labels.aclose()


@BOTH_WORLDS
def test_a_key_that_holds_something_else_is_a_refusal(client: Client, redis_url: str, world: World) -> None:
    client.set("labels", "no stream")

    with pytest.raises(RedisRefuses, match="labels cannot be read"), reading(world, redis_url):
        pass


@BOTH_WORLDS
def test_all_partitions_of_a_cluster_are_read(world: World) -> None:
    with cluster(3) as servers:
        settings = SettingsTree.model_validate(
            {
                "redis": {"url": servers.url},
                "queue": {"stream": "{q}frames", "dead_stream": "{q}frames:dead", "partitions": 3},
                "results": {"stream": "{q}labels"},
            }
        )
        for group in (None, "mine"):
            with reading(world, settings, group=group) as reader:
                for number in range(3):
                    for node in servers.nodes:
                        try:
                            publish(node.admin, f"f{number}", stream=f"{{q:{number}}}labels")
                        except Exception:  # the slot is another node's
                            continue
                assert sorted(next_ids(reader, 3)) == ["f0", "f1", "f2"]


# ---- events


@pytest.mark.parametrize("kind", ["picture.sick", "of.a.later.version"])
@BOTH_WORLDS
def test_events_are_read_in_the_same_way(client: Client, redis_url: str, world: World, kind: str) -> None:
    document = {"schema": 1, "event": kind, "source": "cam", "at": 5.0, "worker": "w", "fence": None, "fault": "black"}

    with entered(world, EventReader.connect(redis_url), AsyncEventReader.connect(redis_url)) as reader:
        client.xadd("events", {"hello": "world"})
        client.xadd("events", {"json": json.dumps(document)})
        event = reader.next(20)

    assert (event.kind, event.source, event.at, event.detail["fault"]) == (kind, "cam", 5.0, "black")
    if kind == "picture.sick":
        assert event.document.event == "picture.sick"
    else:
        with pytest.raises(ValueError, match="event"):
            _ = event.document


@BOTH_WORLDS
@pytest.mark.parametrize("group", [None, "mine"])
def test_without_time_what_is_there_is_read_all_the_same(
    client: Client, redis_url: str, world: World, group: str | None
) -> None:
    with reading(world, redis_url, group=group) as reader:
        publish(client, "f1")

        assert reader.next(0).document.frame_id == "f1"
        assert reader.next(0) is None


# ---- a group


@BOTH_WORLDS
def test_members_of_a_group_share_what_comes_and_leave_nothing_behind(
    client: Client, redis_url: str, world: World
) -> None:
    with reading(world, redis_url, group="mine") as one, reading(world, redis_url, group="mine") as other:
        for number in range(20):
            publish(client, f"f{number}")
        seen = next_ids(one, 20)
        for number in range(20, 25):
            publish(client, f"f{number}")
        seen += next_ids(other, 5)

    assert sorted(seen) == sorted(f"f{number}" for number in range(25))
    assert pending(client) == 0
    assert client.xinfo_consumers("labels", "mine") == []


@BOTH_WORLDS
def test_a_label_in_work_when_its_reader_failed_comes_again(client: Client, redis_url: str, world: World) -> None:
    publish(client, "f0")

    def fail() -> None:
        with reading(world, redis_url, group="mine", since=0.0, consumer="me") as reader:
            publish(client, "f1")
            publish(client, "f2")
            assert next_ids(reader, 2) == ["f0", "f1"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert pending(client) == 2  # f0 was handled: f1 was asked for

    with reading(world, redis_url, group="mine", consumer="me") as reader:
        assert next_ids(reader, 2) == ["f1", "f2"]
    assert pending(client) == 0


@BOTH_WORLDS
def test_what_a_silent_member_holds_goes_to_another(client: Client, redis_url: str, world: World) -> None:
    client.xgroup_create("labels", "mine", "$", mkstream=True)
    publish(client, "f1")
    client.xreadgroup("mine", "crashed", {"labels": ">"})

    with reading(world, redis_url, group="mine", redeliver_after=0.2) as reader:
        assert next_ids(reader, 1) == ["f1"]
    assert pending(client) == 0


@BOTH_WORLDS
def test_what_waits_in_a_slow_member_stays_its_own(client: Client, redis_url: str, world: World) -> None:
    with reading(world, redis_url, group="mine", consumer="slow", redeliver_after=0.3) as reader:
        ids = [publish(client, f"f{number}") for number in range(4)]
        assert next_ids(reader, 1) == ["f0"]
        client.xclaim("labels", "mine", "slow", 0, ids, idle=1_000_000, justid=True)
        client.xclaim("labels", "mine", "other", 0, [ids[1]], justid=True)
        time.sleep(0.11)

        assert next_ids(reader, 1) == ["f2"]  # f1 is another member's now

        [held] = client.xpending_range("labels", "mine", ids[3], ids[3], 1)
        assert held["consumer"] == b"slow"
        assert held["time_since_delivered"] < 1_000_000
        [taken] = client.xpending_range("labels", "mine", ids[1], ids[1], 1)
        assert taken["consumer"] == b"other"


@BOTH_WORLDS
def test_what_was_trimmed_while_it_waited_in_a_member_is_handed_out(
    client: Client, redis_url: str, world: World
) -> None:
    with reading(world, redis_url, group="mine", redeliver_after=0.3) as reader:
        for number in range(4):
            publish(client, f"f{number}")
        assert next_ids(reader, 1) == ["f0"]
        client.xtrim("labels", maxlen=1, approximate=False)

        seen = []
        for _ in range(3):
            time.sleep(0.11)
            seen += next_ids(reader, 1)
    assert seen == ["f1", "f2", "f3"]


@BOTH_WORLDS
def test_a_member_takes_few_at_once(client: Client, redis_url: str, world: World) -> None:
    with reading(world, redis_url, group="mine") as reader:
        for number in range(100):
            publish(client, f"f{number}")
        next_ids(reader, 1)

        assert pending(client) == GROUP_COUNT


@BOTH_WORLDS
def test_a_group_goes_on_over_broken_connections_and_misses_nothing(
    client: Client, redis_url: str, world: World
) -> None:
    count, done = 3000, threading.Event()

    def disturb() -> None:
        while not done.wait(0.02):
            client.client_kill_filter(_type="normal", skipme=True)

    killer = threading.Thread(target=disturb)
    with reading(world, redis_url, group="mine", on_trouble=lambda trouble: None) as reader:
        pipe = client.pipeline(transaction=False)
        for number in range(count):
            pipe.xadd("labels", {**FIELDS, "frame_id": f"f{number}", "json": f'{{"n": {number}}}'})
        pipe.execute()
        killer.start()
        try:
            seen = [json.loads(reader.next(60).json)["n"] for _ in range(count)]
        finally:
            done.set()
            killer.join(20)
        extra = reader.next(0.05)

    assert sorted(set(seen)) == list(range(count))
    assert len(seen) == count
    assert extra is None
    assert pending(client) == 0


@BOTH_WORLDS
def test_a_group_that_vanished_is_made_again_and_what_it_had_not_given_out_comes(
    client: Client, redis_url: str, world: World
) -> None:
    with reading(world, redis_url, group="mine", on_trouble=lambda trouble: None) as reader:
        publish(client, "f1")
        assert next_ids(reader, 1) == ["f1"]
        client.delete("labels")
        publish(client, "f2", id="9999999999999-0")  # an id of this millisecond could be that of f1 once more

        assert next_ids(reader, 1) == ["f2"]


@BOTH_WORLDS
def test_what_is_handled_is_acknowledged_though_nothing_new_comes(client: Client, redis_url: str, world: World) -> None:
    with reading(world, redis_url, group="mine") as reader:
        publish(client, "f1")
        assert next_ids(reader, 1) == ["f1"]
        assert reader.next(0.05) is None

        assert pending(client) == 0


@BOTH_WORLDS
def test_a_strangers_entry_is_passed_over_for_good(client: Client, redis_url: str, world: World) -> None:
    with reading(world, redis_url, group="mine") as reader:
        client.xadd("labels", {"hello": "world"})
        publish(client, "f1")
        assert next_ids(reader, 1) == ["f1"]

    assert pending(client) == 0


def test_the_clock_is_read_when_reading_begins(client: Client, redis_url: str) -> None:
    publish(client, "f1")

    with LabelReader.connect(redis_url, since=time.time() - 60) as reader:
        label = reader.next(20)

    assert label is not None
