"""The producer's side of the frames stream, on a real server."""

import pytest
from redis.exceptions import ResponseError

from worker.broker.connection import Client
from worker.broker.producer import MAX_BYTES, MAX_ENTRIES, Picture, Producer
from worker.errors import RedisUnavailable
from worker.sources.entry import parse


def picture(number: int = 0, *, size: int = 10) -> Picture:
    return Picture(b"x" * size, "door", f"f{number}", 1_700_000_000.25)


def test_a_picture_arrives_as_the_contract_has_it(client: Client) -> None:
    producer = Producer(client, "frames")

    producer.put(picture(7))
    producer.flush()

    [(entry_id, fields)] = client.xrange("frames")
    entry = parse(entry_id.decode(), fields)
    assert (entry.picture, entry.source, entry.frame_id, entry.captured_at) == (
        b"x" * 10,
        "door",
        "f7",
        1_700_000_000.25,
    )


def test_a_full_pipeline_leaves_by_itself_in_order(client: Client) -> None:
    producer = Producer(client, "frames")

    for number in range(MAX_ENTRIES + 1):
        producer.put(picture(number))

    names = [fields[b"frame_id"].decode() for _, fields in client.xrange("frames")]
    assert names == [f"f{number}" for number in range(MAX_ENTRIES)]
    assert producer.sent == MAX_ENTRIES


def test_pictures_held_never_exceed_the_bytes_of_one_pipeline(client: Client) -> None:
    producer = Producer(client, "frames")
    half = MAX_BYTES // 2 + 1

    producer.put(picture(size=half))
    assert producer.sent == 0

    producer.put(picture(size=half))
    assert producer.sent == 1


def test_a_picture_larger_than_a_pipeline_goes_alone_and_at_once(client: Client) -> None:
    producer = Producer(client, "frames")

    producer.put(picture(size=MAX_BYTES + 1))

    assert producer.sent == 1


def test_flushing_nothing_asks_the_server_nothing(client: Client) -> None:
    calls = client.info("stats")["total_commands_processed"]

    Producer(client, "frames").flush()

    assert client.info("stats")["total_commands_processed"] == calls + 1


def test_what_a_server_refuses_is_not_counted_as_sent(client: Client) -> None:
    client.set("frames", "not a stream")
    producer = Producer(client, "frames")
    producer.put(picture())

    with pytest.raises(RedisUnavailable, match="frames cannot be put into frames: WRONGTYPE") as caught:
        producer.flush()

    assert isinstance(caught.value.__cause__, ResponseError)
    assert producer.sent == 0


def test_a_failed_pipeline_is_not_sent_again(client: Client) -> None:
    producer = Producer(client, "frames")
    client.set("frames", "not a stream")
    producer.put(picture(1))
    with pytest.raises(RedisUnavailable):
        producer.flush()
    client.delete("frames")

    producer.put(picture(2))
    producer.flush()

    assert [fields[b"frame_id"] for _, fields in client.xrange("frames")] == [b"f2"]
