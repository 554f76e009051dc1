"""One outcome per frame, in one atomic step, on a real server."""

import json
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from redis.exceptions import ResponseError

from config.settings import QueueSettings, RedisSettings, ResultsSettings
from tests import settled
from tests.settled import (
    NOW,
    QUEUE,
    add,
    admit,
    assert_balanced,
    books,
    buried,
    dropped,
    labels,
    letters,
    member,
    owners,
    published,
    settler,
)
from worker.broker.connection import Client, connect
from worker.broker.documents import decode_embedding, schema
from worker.broker.preflight import check_keys
from worker.broker.queues import Queue
from worker.errors import ConfigError, RedisRefuses
from worker.ledger import DropReason
from worker.outcomes import Dropped, Outcome, Published


def read_entries(client: Client, count: int, **fields: str | bytes | int) -> list[str]:
    """Add frames and read them as a worker would, so that they are pending."""
    member(client).join()
    add(client, count, **fields)
    return settled.read(client)


def test_a_published_queue_frame_leaves_the_queue_and_appears_in_stream_channel_and_hash(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("labels:door")
        listener.get_message(timeout=5)

        settlement = settler(client).settle([published(entry_id)], now=1001.5)
        message = listener.get_message(timeout=5)

    (fields,) = labels(client)
    text = fields.pop(b"json")
    assert settlement.done == (True,)
    assert fields == {
        b"frame_id": b"f",
        b"entry_id": entry_id.encode(),
        b"source": b"door",
        b"captured_at": b"1000.250000",
        b"published_at": b"1001.500000",
        b"label": b"Egyptian cat",
        b"score": b"0.910000",
        b"status": b"ok",
    }
    assert message is not None
    assert message["data"] == text
    assert client.hget("labels:latest", "door") == text
    assert (client.xlen("frames"), client.xpending("frames", "coatstream")["pending"]) == (0, 0)


def test_the_document_holds_what_the_contract_says_and_fits_its_published_schema(client: Client) -> None:
    settler(client).settle([published(None)], now=1001.5)

    (fields,) = labels(client)
    assert fields[b"json"].endswith(b'"meta":{"a": 1.10}}')  # untouched, to the letter
    document = json.loads(fields[b"json"])
    jsonschema.validate(document, schema())
    embedding = document.pop("embedding")
    assert decode_embedding(embedding).tolist() == [1.5, -2.0]
    assert document == {
        "schema": 1,
        "frame_id": "f",
        "entry_id": None,
        "source": "door",
        "captured_at": 1000.25,
        "published_at": 1001.5,
        "labels": [{"index": 285, "wnid": "n02124075", "label": "Egyptian cat", "score": 0.91}],
        "model": "coat_lite_mini.in1k",
        "weights": "random",
        "worker": "me",
        "width": 1920,
        "height": 1080,
        "reused": False,
        "meta": {"a": 1.1},
    }
    assert b"entry_id" not in fields


def test_the_schema_in_docs_is_the_schema_of_the_code() -> None:
    written = json.loads((Path(__file__).parents[1] / "docs" / "label.schema.json").read_text())

    assert written == schema()


def test_calling_again_after_a_doubt_has_no_second_effect_and_gives_the_first_reply(client: Client) -> None:
    entry_id, other = read_entries(client, 2)
    client.xack("frames", "coatstream", other)
    outcomes: Sequence[Outcome] = [published(entry_id), published(None), published(other)]
    first = settler(client)

    once = first.settle(outcomes, now=1.0)
    again = first.settle(outcomes, now=2.0)

    assert once.done == again.done == (True, True, False)
    assert len(labels(client)) == 2


def test_a_call_that_arrives_late_does_nothing(client: Client) -> None:
    late, newer = settler(client), settler(client)
    newer.settle([published(None, frame_id="1")], now=1.0)
    newer.settle([published(None, frame_id="2")], now=1.0)

    late.settle([published(None, frame_id="late")], now=1.0)

    assert [fields[b"frame_id"] for fields in labels(client)] == [b"1", b"2"]


def test_who_comes_second_publishes_nothing(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)
    outcomes = [published(entry_id)]

    first = settler(client, "a").settle(outcomes, now=1.0)
    second = settler(client, "b").settle([published(entry_id)], now=1.0)

    assert (first.done, second.done) == ((True,), (False,))
    assert len(labels(client)) == 1


def test_a_dropped_frame_is_settled_without_a_label_and_one_without_receipt_needs_no_call(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)

    settlement = settler(client).settle(
        [Dropped("door", DropReason.EXPIRED, Receipt("frames", entry_id)), Dropped("cam", DropReason.STALE, None)],
        now=1.0,
    )

    assert settlement.done == (True, True)
    assert client.xlen("frames") == 0
    assert labels(client) == []


def test_a_dead_letter_holds_the_whole_entry_and_why_it_died(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)

    settler(client).settle(
        [Buried("door", DeadReason.UNDECODABLE, "not a picture", Receipt("frames", entry_id))], now=7.5
    )

    ((_, fields),) = client.xrange("frames:dead")
    assert fields == {
        b"image": b"jpeg",
        b"source": b"door",
        b"number": b"0",
        b"reason": b"undecodable",
        b"error": b"not a picture",
        b"deliveries": b"1",
        b"entry_id": entry_id.encode(),
        b"died_at": b"7.500000",
        b"worker": b"me",
    }
    assert client.xlen("frames") == 0


def test_an_entry_with_thousands_of_fields_becomes_a_dead_letter_and_not_a_script_error(client: Client) -> None:
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    client.xadd("frames", {**{f"field-{number}": number for number in range(9000)}, "image": b"at the end"})
    ((_, entries),) = client.xreadgroup("coatstream", "me", {"frames": ">"})
    entry_id = entries[0][0].decode()

    settlement = settler(client).settle(
        [Buried("q", DeadReason.INVALID, "no picture", Receipt("frames", entry_id))], now=1.0
    )

    ((_, fields),) = client.xrange("frames:dead")
    assert settlement.done == (True,)
    assert fields[b"reason"] == b"invalid"
    assert fields[b"image"] == b"at the end"
    assert len(fields) == 3906


def test_the_hash_keeps_the_newest_label_of_a_source_whatever_the_order_of_publishing(client: Client) -> None:
    settler(client).settle(
        [published(None, captured_at=2000.0, frame_id="new"), published(None, captured_at=1000.0, frame_id="old")],
        now=3000.0,
    )

    newest = client.hget("labels:latest", "door")
    assert newest is not None
    assert json.loads(newest)["frame_id"] == "new"
    assert len(labels(client)) == 2


def test_a_capture_time_in_the_future_does_not_hold_its_place_in_the_hash(client: Client) -> None:
    worker = settler(client)
    worker.settle([published(None, captured_at=9_999_999_999.0, frame_id="wrong clock")], now=2000.0)
    worker.settle([published(None, captured_at=2000.0, frame_id="right")], now=2001.0)

    newest = client.hget("labels:latest", "door")
    assert newest is not None
    assert json.loads(newest)["frame_id"] == "right"


def test_the_hash_is_bounded_and_counts_the_sources_that_it_leaves_out(client: Client) -> None:
    bounded = settler(client, latest_max_sources=2)

    settlement = bounded.settle([published(None, source=f"s{number}") for number in range(5)], now=1.0)

    assert client.hlen("labels:latest") == 2
    assert settlement.sources_left_out == 3
    assert len(labels(client)) == 5


def test_the_labels_stream_is_capped(client: Client) -> None:
    capped = settler(client, max_length=100)

    for _ in range(10):
        capped.settle([published(None) for _ in range(100)], now=1.0)

    assert len(labels(client)) <= 300  # MAXLEN ~ drops whole nodes of about 100 entries


@pytest.mark.parametrize("key", ["labels", "labels:latest", "frames:dead"])
def test_a_key_of_another_type_stops_the_batch_before_anything_is_settled(client: Client, key: str) -> None:
    (entry_id,) = read_entries(client, 1)
    client.set(key, "something else")

    with pytest.raises(RedisUnavailable, match=f"{key} holds a string"):
        settler(client).settle([published(entry_id)], now=1.0)

    assert client.xpending("frames", "coatstream")["pending"] == 1
    with pytest.raises(ConfigError, match=key):
        check_keys(client, QUEUE, RESULTS)


def test_the_queue_drains_when_the_server_is_full(client: Client) -> None:
    entry_ids = read_entries(client, 50)
    outcomes = [published(None, source="camera"), *(published(entry_id) for entry_id in entry_ids)]
    client.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(ResponseError, match="maxmemory"):
            client.xadd("frames", {"image": b"x"})

        settlement = settler(client).settle(outcomes, now=1.0)
    finally:
        client.config_set("maxmemory", "0")

    assert all(settlement.done)
    assert (client.xlen("frames"), len(labels(client))) == (0, 51)


def test_a_user_without_the_right_to_side_commands_still_gets_labels_and_loses_nothing(client: Client) -> None:
    entry_ids = read_entries(client, 2)
    client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "&*", "+@all", "-xdel", "-hset", "-publish")
    path = client.connection_pool.connection_kwargs["path"]
    try:
        with connect(RedisSettings.model_validate({"url": f"unix://weak:pw@{path}"})) as weak:
            settlement = settler(weak).settle([published(entry_id) for entry_id in entry_ids], now=1.0)
    finally:
        client.execute_command("ACL", "DELUSER", "weak")

    assert settlement.done == (True, True)
    assert len(labels(client)) == 2


def test_a_group_that_vanished_makes_outcomes_superseded_and_no_error(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)
    client.xgroup_destroy("frames", "coatstream")
    buried = Buried("door", DeadReason.INVALID, "x", Receipt("frames", entry_id))

    settlement = settler(client).settle([published(None), buried], now=1.0)

    assert settlement.done == (True, False)
    assert client.xlen("frames") == 1


def test_the_script_is_sent_again_where_the_server_forgot_it(client: Client) -> None:
    first = settler(client)
    first.settle([published(None)], now=1.0)
    client.script_flush()

    first.settle([published(None)], now=1.0)

    assert len(labels(client)) == 2
