"""The reader's side of the labels stream, on a real server."""

import json

import pytest
from coatstream.broker.connection import Client
from coatstream.errors import RedisRefuses
from coatstream.results.following import READ_COUNT
from coatstream.results.labels import LabelReader


def publish(client: Client, frame_id: str, **fields: str) -> bytes:
    """One entry as settle.lua writes it."""
    entry = {
        "frame_id": frame_id,
        "source": "door",
        "captured_at": "1700000000.000000",
        "published_at": "1700000000.034000",
        "label": "Egyptian cat",
        "score": "0.910000",
        "status": "ok",
        "json": json.dumps({"frame_id": frame_id}),
    }
    return client.xadd("labels", entry | fields)  # type: ignore[no-any-return]


def reader(client: Client, *, after: str | None = None) -> LabelReader:
    return LabelReader(client, ["labels"], after=after, block=0.05)


def frame_ids(reader: LabelReader) -> list[str]:
    return [json.loads(label.json)["frame_id"] for label in reader.read()]


def test_reading_begins_after_the_newest_label(client: Client) -> None:
    publish(client, "old")
    mine = reader(client)
    mine.start()

    publish(client, "new")

    assert frame_ids(mine) == ["new"]


def test_a_stream_that_does_not_exist_yet_is_read_from_its_first_label(client: Client) -> None:
    mine = reader(client)
    mine.start()

    publish(client, "first")

    assert frame_ids(mine) == ["first"]


def test_nothing_is_missed_between_two_reads(client: Client) -> None:
    mine = reader(client)
    assert frame_ids(mine) == []
    publish(client, "a")
    assert frame_ids(mine) == ["a"]

    publish(client, "b")
    publish(client, "c")

    assert frame_ids(mine) == ["b", "c"]


def test_a_named_entry_is_where_reading_begins(client: Client) -> None:
    first = publish(client, "a")
    publish(client, "b")

    assert frame_ids(reader(client, after=first.decode())) == ["b"]
    assert frame_ids(reader(client, after="0-0")) == ["a", "b"]


def test_one_reply_is_bounded_and_the_next_goes_on(client: Client) -> None:
    for number in range(READ_COUNT + 1):
        publish(client, str(number))
    mine = reader(client, after="0-0")

    assert len(frame_ids(mine)) == READ_COUNT
    assert frame_ids(mine) == [str(READ_COUNT)]


def test_a_label_has_the_fields_of_its_entry(client: Client) -> None:
    entry = publish(client, "a")

    [label] = reader(client, after="0-0").read()

    assert (label.entry, label.source, label.label, label.score) == (entry.decode(), "door", "Egyptian cat", 0.91)
    assert (label.captured_at, label.published_at) == (1_700_000_000.0, 1_700_000_000.034)


@pytest.mark.parametrize(
    "fields", [{"score": "high"}, {"published_at": "inf"}, {"captured_at": "1e300"}, {"published_at": "nan"}]
)
def test_an_entry_that_is_no_label_of_ours_is_passed_over(client: Client, fields: dict[str, str]) -> None:
    client.xadd("labels", {"hello": "world"})
    publish(client, "broken", **fields)
    publish(client, "a")

    assert frame_ids(reader(client, after="0-0")) == ["a"]


def test_a_reader_goes_on_where_it_was_after_its_connection_broke(client: Client) -> None:
    mine = reader(client, after="0-0")
    publish(client, "a")
    assert frame_ids(mine) == ["a"]
    publish(client, "b")
    client.connection_pool.disconnect()

    assert frame_ids(mine) == ["b"]


def test_a_key_that_holds_something_else_is_a_refusal(client: Client) -> None:
    client.set("labels", "not a stream")

    with pytest.raises(RedisRefuses, match="labels cannot be read"):
        reader(client, after="0-0").read()
