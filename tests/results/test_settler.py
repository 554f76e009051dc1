"""One outcome per frame, in one atomic step, on a real server."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.driver import Driver
from coatstream.broker.keys import Queue
from coatstream.broker.preflight import check_types
from coatstream.errors import ConfigError, DeadReason, RedisRefuses
from coatstream.frames.frame import Label, PictureFault, Prediction, Receipt, ScoredLabel
from coatstream.queue.producing.admission import Admission, Candidate, Confirmation, Verdict
from coatstream.results.documents import decode_embedding, schema
from coatstream.results.outcomes import Buried, Dropped, Outcome, Published
from coatstream.settings.model import QueueSettings, RedisSettings, ResultsSettings
from coatstream.telemetry.ledger import DropReason
from redis.exceptions import ResponseError

from tests.support import settled
from tests.support.settled import (
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
    pending,
    published,
    settler,
)


def read_entries(client: Client, count: int) -> list[str]:
    """Add frames and read them as a worker would, so that they are pending."""
    member(client).join()
    add(client, count)
    return settled.read(client)


def label_with_everything(entry_id: str | None) -> Published:
    label = ScoredLabel(Label(285, "n02124075", "Egyptian cat"), 0.91)
    receipt = Receipt("frames", entry_id) if entry_id else None
    embedding = np.array([1.5, -2.0], np.float16)
    return Published(Prediction("door", "f", 1000.25, (label,), 1920, 1080, receipt, embedding, '{"a": 1.10}'))


@contextmanager
def user_without(client: Client, *rights: str) -> Iterator[Client]:
    """A Redis user that may do anything but this."""
    client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "&*", "+@all", *(f"-{r}" for r in rights))
    path = client.connection_pool.connection_kwargs["path"]
    try:
        with connect(RedisSettings.model_validate({"url": f"unix://weak:pw@{path}"})) as weak:
            yield weak
    finally:
        client.execute_command("ACL", "DELUSER", "weak")


# ---- publishing


def test_a_user_of_queues_alone_needs_no_right_to_what_belongs_to_cameras(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)
    keys = ("~frames*", "~labels*")
    client.execute_command("ACL", "SETUSER", "queues", "reset", "on", ">pw", *keys, "&*", "+@all")
    path = client.connection_pool.connection_kwargs["path"]
    try:
        with connect(RedisSettings.model_validate({"url": f"unix://queues:pw@{path}"})) as narrow:
            settlement = settler(narrow).settle([published(entry_id)], now=NOW)
    finally:
        client.execute_command("ACL", "DELUSER", "queues")

    assert settlement.done == (True,)
    assert len(labels(client)) == 1


def test_a_published_queue_frame_leaves_the_queue_and_appears_in_stream_channel_and_hash(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("labels:door")
        listener.get_message(timeout=5)

        settlement = settler(client).settle([label_with_everything(entry_id)], now=1001.5)
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
        b"model": b"coat_lite_mini.in1k",
    }
    assert message is not None
    assert message["data"] == text
    assert client.hget("labels:latest", "door") == text
    assert (client.xlen("frames"), pending(client)) == (0, [])


def test_the_document_holds_what_the_contract_says_and_fits_its_published_schema(client: Client) -> None:
    settler(client).settle([label_with_everything(None)], now=1001.5)

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
        "regions": None,
        "picture": [],
        "fence": None,
        "meta": {"a": 1.1},
    }
    assert b"entry_id" not in fields
    assert (fields[b"status"], fields[b"fence"]) == (b"ok", b"0")


def test_the_label_of_a_sick_picture_is_marked(client: Client) -> None:
    well = label_with_everything(None).prediction
    sick = replace(well, faults=(PictureFault.BLACK, PictureFault.FROZEN), reused=True)

    settler(client).settle([Published(sick)], now=1001.5)

    (fields,) = labels(client)
    document = json.loads(fields[b"json"])
    jsonschema.validate(document, schema())
    assert fields[b"status"] == b"black,frozen"
    assert (document["picture"], document["reused"]) == (["black", "frozen"], True)


def test_a_label_under_an_older_fence_than_the_newest_granted_is_refused(client: Client) -> None:
    client.hset("cameras:fences", "door", 1_764_000_000_000_001)
    old, new = (
        Published(replace(label_with_everything(None).prediction, fence=fence))
        for fence in (1_764_000_000_000_000, 1_764_000_000_000_001)
    )

    settlement = settler(client).settle([old, new], now=1001.5)

    assert settlement.done == (False, True)
    assert [json.loads(fields[b"json"])["fence"] for fields in labels(client)] == [1_764_000_000_000_001]


def test_a_grant_that_the_server_has_forgotten_holds_again_from_its_first_label_on(client: Client) -> None:
    """A failover lost the second in which the camera changed hands: both workers believe that it is theirs."""
    old, new = (
        Published(replace(label_with_everything(None).prediction, fence=fence))
        for fence in (1_764_000_000_000_000, 1_764_000_000_000_001)
    )

    settlements = [
        settler(client, worker=worker).settle([label], now=1.0)
        for worker, label in zip("abc", (old, new, old), strict=True)
    ]

    assert [settlement.done for settlement in settlements] == [(True,), (True,), (False,)]


def test_a_camera_whose_fence_the_server_has_forgotten_may_speak(client: Client) -> None:
    assert settler(client).settle(
        [Published(replace(label_with_everything(None).prediction, fence=7))], now=1.0
    ).done == (True,)


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
    bounded = settler(client, results=ResultsSettings(latest_max_sources=2))

    settlement = bounded.settle([published(None, source=f"s{number}") for number in range(5)], now=1.0)

    assert client.hlen("labels:latest") == 2
    assert settlement.sources_left_out == 3
    assert len(labels(client)) == 5


def test_the_labels_stream_is_capped(client: Client) -> None:
    capped = settler(client, results=ResultsSettings(max_length=100))

    for _ in range(10):
        capped.settle([published(None) for _ in range(100)], now=1.0)

    assert len(labels(client)) <= 300  # MAXLEN ~ drops whole nodes of about 100 entries


def test_each_queue_settles_its_own_and_the_replies_come_in_the_order_of_the_outcomes(client: Client) -> None:
    other = Queue("fast", "coatstream", "fast:dead", "labels")
    (slow,) = read_entries(client, 1)
    member(client, queue=other).join()
    add(client, stream="fast")
    (fast,) = settled.read(client, queue=other)
    outcomes = [published(fast, stream="fast"), published("1-1"), published(None), published(slow)]

    settlement = settler(client, queues=(QUEUE, other)).settle(outcomes, now=NOW)

    assert settlement.done == (True, False, True, True)
    assert (client.xlen("frames"), client.xlen("fast"), len(labels(client))) == (0, 0, 3)
    assert (books(client)["published"], books(client, queue=other)["published"]) == (1, 1)


# ---- once and no more


def test_calling_again_after_a_doubt_has_no_second_effect_and_gives_the_first_reply(client: Client) -> None:
    entry_id, other = read_entries(client, 2)
    client.xack("frames", "coatstream", other)
    outcomes: Sequence[Outcome] = [published(entry_id), published(None), published(other)]
    first = settler(client)

    once = first.settle(outcomes, now=1.0)
    again = first.settle(outcomes, now=2.0)

    assert once.done == again.done == (True, True, False)
    assert len(labels(client)) == 2
    assert books(client)["published"] == 1


def test_a_call_that_arrives_late_does_nothing(client: Client) -> None:
    late, newer = settler(client), settler(client)
    newer.settle([published(None, frame_id="1")], now=1.0)
    newer.settle([published(None, frame_id="2")], now=1.0)

    late.settle([published(None, frame_id="late")], now=1.0)

    assert [fields[b"frame_id"] for fields in labels(client)] == [b"1", b"2"]


def test_a_memo_that_somebody_else_wrote_is_no_memo(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)
    client.set(QUEUE.memo("me", "pump"), "something else")

    assert settler(client).settle([published(entry_id)], now=1.0).done == (True,)


@pytest.mark.parametrize("outcome", [published, dropped, buried])
def test_who_comes_second_has_no_effect_whatever_the_outcome(client: Client, outcome: Callable[[str], Outcome]) -> None:
    (entry_id,) = read_entries(client, 1)

    first = settler(client, "a").settle([published(entry_id)], now=1.0)
    second = settler(client, "b").settle([outcome(entry_id)], now=1.0)

    assert (first.done, second.done) == ((True,), (False,))
    assert (len(labels(client)), letters(client)) == (1, [])
    assert books(client) == {"published": 1}


def test_the_first_committer_publishes_even_when_the_entry_has_gone_to_another_worker(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)
    client.xclaim("frames", "coatstream", "other", 0, [entry_id])

    slow_but_first = settler(client, worker="me").settle([published(entry_id, label="mine")], now=1.0)
    new_owner = settler(client, worker="other").settle([published(entry_id, label="its")], now=1.0)

    assert (slow_but_first.done, new_owner.done) == ((True,), (False,))
    assert [fields[b"label"] for fields in labels(client)] == [b"mine"]


def test_an_entry_that_nobody_was_given_cannot_be_settled(client: Client) -> None:
    member(client).join()
    (entry_id,) = add(client)

    settlement = settler(client).settle([published(entry_id), dropped(entry_id), buried(entry_id)], now=1.0)

    assert settlement.done == (False, False, False)
    assert client.xlen("frames") == 1
    assert_balanced(client)


def test_one_batch_that_names_an_entry_twice_settles_it_once(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)

    settlement = settler(client).settle([published(entry_id), buried(entry_id), published(entry_id)], now=1.0)

    assert settlement.done == (True, False, False)
    assert (len(labels(client)), letters(client)) == (1, [])


def test_a_dropped_frame_is_settled_without_a_label_and_one_without_receipt_needs_no_call(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)

    settlement = settler(client).settle([dropped(entry_id), Dropped("cam", DropReason.STALE, None)], now=1.0)

    assert settlement.done == (True, True)
    assert client.xlen("frames") == 0
    assert labels(client) == []
    assert books(client)["dropped"] == 1


def test_an_entry_that_was_trimmed_while_its_worker_had_it_is_published_all_the_same(client: Client) -> None:
    entry_id, other = read_entries(client, 2)
    client.xtrim("frames", 0, approximate=False)

    assert settler(client).settle([published(entry_id), buried(other)], now=1.0).done == (True, True)
    assert (len(labels(client)), letters(client)[0][b"entry_id"]) == (1, other.encode())
    assert_balanced(client)


def test_a_group_that_vanished_makes_outcomes_superseded_and_no_error(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)
    client.xgroup_destroy("frames", "coatstream")

    settlement = settler(client).settle([published(None), buried(entry_id)], now=1.0)

    assert settlement.done == (True, False)
    assert client.xlen("frames") == 1


# ---- the books


def test_the_books_say_what_became_of_every_entry(client: Client) -> None:
    entries = read_entries(client, 10)
    worker = settler(client)
    worker.settle([published(entries[0]), dropped(entries[1]), buried(entries[2]), published("1-1")], now=NOW)
    worker.settle([published(entry_id) for entry_id in entries[:4]], now=NOW)

    assert {name: count for name, count in books(client).items() if name != "dead_bytes"} == {
        "published": 2,
        "dropped": 1,
        "dead": 1,
    }
    assert_balanced(client)


def test_a_cameras_label_is_no_entry_of_the_books(client: Client) -> None:
    settler(client).settle([published(None)], now=NOW)

    assert books(client) == {}


@pytest.mark.parametrize("outcome", [published, dropped, buried])
def test_every_outcome_takes_an_admitted_entry_off_the_accounts_once(
    client: Client, outcome: Callable[..., Outcome]
) -> None:
    member(client).join()
    first, second, third = admit(client, 100), admit(client, 20), admit(client, 3, source="hall")
    settled.read(client)

    settler(client).settle([outcome(first, admitted=100)], now=NOW)
    settler(client, "again").settle([outcome(first, admitted=100)], now=NOW)

    assert books(client)["admitted_bytes"] == 23
    assert client.hgetall(QUEUE.sources) == {b"door": b"1", b"hall": b"1"}
    settler(client, "rest").settle([outcome(second, admitted=20), outcome(third, admitted=3, source="hall")], now=NOW)
    assert "admitted_bytes" not in books(client)
    assert client.hgetall(QUEUE.sources) == {}


def test_no_account_falls_below_zero_when_somebody_lies_about_what_was_admitted(client: Client) -> None:
    first, second = read_entries(client, 2)
    admit(client, 10)

    settler(client).settle([published(first, admitted=10**12), published(second, admitted=1)], now=NOW)

    assert client.hget(QUEUE.books, "admitted_bytes") == b"0"
    assert client.hgetall(QUEUE.sources) == {}


@pytest.mark.parametrize(("outcome", "counter"), [(published, "published"), (dropped, "dropped"), (buried, "dead")])
def test_counters_that_a_stranger_spoilt_cost_no_frame_its_outcome(
    client: Client, outcome: Callable[..., Outcome], counter: str
) -> None:
    (entry_id,) = read_entries(client, 1)
    client.hset(QUEUE.sources, "door", "spoilt")
    for name in ("published", "dropped", "dead", "admitted_bytes", "dead_bytes"):
        client.hset(QUEUE.books, name, "spoilt")
    batch: list[Outcome] = [outcome(entry_id, admitted=5), published(None)]
    worker = settler(client)

    once, again = worker.settle(batch, now=NOW), worker.settle(batch, now=NOW)

    assert once.done == again.done == (True, True)
    assert len(labels(client)) == 1 + (outcome is published)
    assert len(letters(client)) == (outcome is buried)
    assert client.hget(QUEUE.books, counter) == b"1"
    assert client.hgetall(QUEUE.sources) == {}


def test_counters_that_a_stranger_spoilt_let_no_frame_in_twice(client: Client) -> None:
    add(client)
    client.hset(QUEUE.books, "admitted_bytes", "spoilt")
    client.hset(QUEUE.sources, "door", "spoilt")
    admission = Admission(QUEUE, QueueSettings(), confirmation=Confirmation("none", 0, 1.0), counts=False)
    frame = Candidate("door", QUEUE.sequence("door"), 60.0, 1, [b"image", b"x"], 7)

    answers = [Driver(client).run(admission.ask([frame])) for _ in range(2)]

    assert [answer.verdict for (answer,) in answers] == [Verdict.ADMITTED, Verdict.DUPLICATE]
    assert client.xlen("frames") == 2
    assert (books(client)["admitted_bytes"], client.hgetall(QUEUE.sources)) == (7, {b"door": b"1"})


# ---- dead letters


def test_a_dead_letter_holds_the_whole_entry_and_why_it_died(client: Client) -> None:
    (entry_id,) = read_entries(client, 1)

    settler(client).settle(
        [Buried("door", DeadReason.UNDECODABLE, "not a picture", Receipt("frames", entry_id))], now=7.5
    )

    (fields,) = letters(client)
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


@pytest.mark.parametrize("count", [9_000, 20_000])
def test_an_entry_with_thousands_of_fields_becomes_a_dead_letter_and_not_a_script_error(
    client: Client, count: int
) -> None:
    member(client).join()
    client.xadd("frames", {**{f"field-{number}": number for number in range(count)}, "image": b"at the end"})
    (entry_id,) = settled.read(client)

    settlement = settler(client).settle([buried(entry_id)], now=1.0)

    (fields,) = letters(client)
    assert settlement.done == (True,)
    assert fields[b"reason"] == b"undecodable"
    assert fields[b"image"] == b"at the end"
    assert len(fields) == 3906
    assert books(client)["dead_bytes"] == size(fields)


def test_dead_letters_are_bounded_by_count_and_those_that_go_are_counted(client: Client) -> None:
    entries = read_entries(client, 7)

    settlement = settler(client, dead_max_length=3).settle([buried(entry_id) for entry_id in entries], now=NOW)

    assert [fields[b"entry_id"].decode() for fields in letters(client)] == entries[-3:]
    assert settlement.letters_dropped == 4
    assert (books(client)["dead"], books(client)["dead_dropped"]) == (7, 4)
    assert books(client)["dead_bytes"] == sum(map(size, letters(client)))
    assert_balanced(client)


def test_dead_letters_are_bounded_by_their_bytes_and_those_that_go_are_counted(client: Client) -> None:
    member(client).join()
    entries = add(client, 10, image=b"x" * 10_000)
    settled.read(client)

    settlement = settler(client, dead_max_bytes=35_000).settle([buried(entry_id) for entry_id in entries], now=NOW)

    assert [fields[b"entry_id"].decode() for fields in letters(client)] == entries[-3:]
    assert settlement.letters_dropped == 7
    assert books(client)["dead_bytes"] == sum(map(size, letters(client))) <= 35_000


@pytest.mark.parametrize(
    "huge",
    [
        {"image": b"x" * 100_000},
        {f"f{number}": b"x" * 4_000 for number in range(100)},
        {"f" * 100_000: b"x"},
        {f"field-{number}": b"x" * 20 for number in range(9_000)},
    ],
    ids=["picture", "many short fields", "long name", "thousands of fields"],
)
def test_a_letter_larger_than_the_bound_keeps_its_reason_and_what_fits(
    client: Client, huge: dict[str, str | bytes | int]
) -> None:
    (before,) = read_entries(client, 1)
    client.xadd("frames", {"source": "door", **huge})
    (entry_id,) = settled.read(client)

    settlement = settler(client, dead_max_bytes=50_000).settle([buried(before), buried(entry_id)], now=NOW)

    letter = letters(client)[-1]
    assert (letter[b"source"], letter[b"reason"], letter[b"entry_id"]) == (b"door", b"undecodable", entry_id.encode())
    assert b"image" not in letter
    assert books(client)["dead_bytes"] == sum(map(size, letters(client))) <= 50_000
    assert settlement.letters_dropped == books(client)["dead_dropped"] >= 1


def test_a_bound_that_not_even_a_reason_fits_in_keeps_one_reason(client: Client) -> None:
    entries = read_entries(client, 3)

    settler(client, dead_max_bytes=1).settle([buried(entry_id) for entry_id in entries], now=NOW)

    (letter,) = letters(client)
    assert list(letter) == [b"reason", b"error", b"deliveries", b"entry_id", b"died_at", b"worker"]
    assert letter[b"entry_id"] == entries[-1].encode()


def test_letters_that_were_trimmed_by_hand_are_forgotten_with_the_next_burial(client: Client) -> None:
    first, second = read_entries(client, 2)
    settler(client).settle([buried(first)], now=NOW)
    client.xtrim("frames:dead", 0, approximate=False)

    settler(client, "again").settle([buried(second)], now=NOW)

    assert books(client)["dead_bytes"] == size(letters(client)[0])


def size(fields: dict[bytes, bytes]) -> int:
    return sum(len(name) + len(value) for name, value in fields.items())


# ---- a server that does not do what we want


@pytest.mark.parametrize("key", [*QUEUE.types, QUEUE.memo("me", "pump")])
def test_a_key_of_another_type_stops_the_batch_before_anything_is_settled(client: Client, key: str) -> None:
    (entry_id,) = read_entries(client, 1)
    client.delete(key)
    client.rpush(key, "something else")
    batch: list[Outcome] = [published(None), published(entry_id), buried(entry_id)]

    if key == QUEUE.gate:  # which settling does not touch
        settler(client).settle(batch, now=1.0)
    else:
        with pytest.raises(RedisRefuses, match=f"{key} holds a list"):
            settler(client).settle(batch, now=1.0)
        assert client.type("labels") in (b"none", b"list")
        assert key == "frames" or len(pending(client)) == 1
    if key in QUEUE.types:
        with pytest.raises(ConfigError, match=key):
            check_types(client, QUEUE.types)


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
    assert_balanced(client)


@pytest.mark.parametrize("right", ["xdel", "hset", "publish", "hincrby", "hdel"])
def test_a_user_without_the_right_to_side_commands_still_gets_labels_and_letters_and_loses_nothing(
    client: Client, right: str
) -> None:
    first, second, third = read_entries(client, 3)

    with user_without(client, right) as weak:
        settlement = settler(weak, dead_max_length=1).settle(
            [published(first, admitted=5), buried(second), buried(third)], now=1.0
        )

    assert settlement.done == (True, True, True)
    assert len(labels(client)) == 1
    assert letters(client)[-1][b"entry_id"] == third.encode()


def test_a_right_that_is_taken_away_in_the_middle_of_the_work_costs_neither_a_frame_nor_a_letter(
    client: Client,
) -> None:
    first, second, third = read_entries(client, 3)
    bad = Buried("door", DeadReason.INVALID, "no picture", Receipt("frames", third))

    with user_without(client, "xadd") as weak:
        batches: list[list[Outcome]] = [[dropped(first), published(second)], [dropped(first), bad]]
        for outcomes in batches:
            with pytest.raises(RedisRefuses, match="lacks a right"):
                settler(weak).settle(outcomes, now=NOW)

    assert client.xpending("frames", "coatstream")["pending"] == 3
    assert books(client) == {}
    assert_balanced(client)


def test_the_delivery_limit_buries_nothing_where_no_letter_may_be_written(client: Client) -> None:
    read_entries(client, 1)
    settled.silence(client, "me", deliveries=9)

    with user_without(client, "xadd") as weak, pytest.raises(RedisRefuses, match="lacks a right"):
        member(weak, "other").reclaim(1, alone=False)

    assert (client.xlen("frames"), len(letters(client))) == (1, 0)


def test_the_delivery_limit_loses_no_letter_where_the_user_may_not_delete(client: Client) -> None:
    read_entries(client, 1)
    settled.silence(client, "me", deliveries=9)

    with user_without(client, "xdel") as weak:
        buried = member(weak, "other").reclaim(1, alone=False).buried

    assert buried == [b"door"]
    assert len(letters(client)) == 1
