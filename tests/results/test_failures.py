"""What got no label is told on the channel of its source in the step that ends the frame, whatever path ends it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import pytest
from coatstream.broker.connection import Client, connect
from coatstream.errors import DeadReason
from coatstream.frames.frame import Receipt
from coatstream.results.documents import FailureDocument
from coatstream.results.outcomes import Buried, Dropped
from coatstream.settings.model import RedisSettings
from coatstream.telemetry.ledger import DropReason

from tests.support.paths import DOCS
from tests.support.settled import NOW, QUEUE, letters, member, read, settler, silence

SCHEMA = json.loads((DOCS / "failure.schema.json").read_text("utf-8"))


@contextmanager
def listening(client: Client, *channels: str) -> Iterator[Any]:
    """Yields a function that returns the documents that came since its last call, each checked against the schema."""
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(*channels)
        for _ in channels:
            listener.get_message(timeout=5)

        def heard() -> list[dict[str, Any]]:
            client.publish(channels[0], "end")
            found = []
            while (message := listener.get_message(timeout=5))["data"] != b"end":
                document = json.loads(message["data"])
                jsonschema.validate(document, SCHEMA)
                assert message["channel"].decode() == f"failures:{document['source']}"
                found.append(document)
            return found

        yield heard


def taken(client: Client, **fields: str | bytes) -> list[str]:
    """Entries that this worker has read."""
    member(client).join()
    client.xadd("frames", fields or {"image": b"jpeg", "source": "door"})
    return read(client)


def test_a_dropped_frame_is_told_and_its_label_is_not(client: Client) -> None:
    (entry_id,) = taken(client)

    with listening(client, "failures:door", "labels:door") as heard:
        settler(client).settle(
            [Dropped("door", DropReason.EXPIRED, Receipt("frames", entry_id), "f1")], now=1_700_000_000.25
        )

        assert heard() == [
            {
                "schema": 1,
                "frame_id": "f1",
                "entry_id": entry_id,
                "source": "door",
                "status": "dropped",
                "reason": "expired",
                "error": None,
                "at": 1_700_000_000.25,
            }
        ]


def test_a_dead_frame_is_told_with_its_error_and_under_its_entrys_id_where_it_has_no_other(client: Client) -> None:
    (entry_id,) = taken(client)
    error = 'no "picture": Tür\\é'

    with listening(client, "failures:door") as heard:
        settler(client).settle([Buried("door", DeadReason.UNDECODABLE, error, Receipt("frames", entry_id))], now=NOW)

        [failure] = heard()
        assert (failure["status"], failure["reason"], failure["error"]) == ("dead", "undecodable", error)
        assert failure["frame_id"] == failure["entry_id"] == entry_id
        assert FailureDocument.model_validate(failure).status == "dead"


def test_what_somebody_else_has_settled_is_told_once(client: Client) -> None:
    (entry_id,) = taken(client)
    drop = Dropped("door", DropReason.EXPIRED, Receipt("frames", entry_id), "f1")
    batch = [drop]

    with listening(client, "failures:door") as heard:
        mine = settler(client)
        for _ in range(2):  # a call whose reply was lost is made again
            mine.settle(batch, now=NOW)
        settler(client, worker="other").settle([drop], now=NOW)

        assert len(heard()) == 1


def test_the_delivery_limit_is_told(client: Client) -> None:
    (entry_id,) = taken(client, image=b"x", source="Tür", frame_id="f9")
    silence(client, "me", deliveries=5)

    with listening(client, "failures:Tür") as heard:
        member(client, "other").reclaim(1, alone=False)

        [failure] = heard()
    assert (failure["frame_id"], failure["entry_id"], failure["status"]) == ("f9", entry_id, "dead")
    assert (failure["reason"], failure["at"]) == ("delivery_limit", NOW)
    assert failure["error"] == "given to workers 5 times, and none settled it"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"\xff\xfe", ""),
        (b"\xed\xa0\x80", ""),  # a surrogate
        (b"\xc0\x80", ""),  # overlong
        (b"\xc3", ""),  # cut off
        (b"x" * 257, ""),
        ("é".encode() * 256, "é" * 256),
        ("\U0001f600 \u20ac é".encode(), "\U0001f600 \u20ac é"),
        (b'"\\\x00\x1f', '"\\\x00\x1f'),
    ],
)
def test_a_name_that_is_no_text_is_told_as_the_worker_would_read_it(client: Client, name: bytes, told: str) -> None:
    (entry_id,) = taken(client, image=b"x", source=name[:300] if len(name) < 100 else b"", frame_id=name)
    silence(client, "me", deliveries=5)
    source = told if told and len(name) < 100 else "queue"

    with listening(client, f"failures:{source}") as heard:
        member(client, "other").reclaim(1, alone=False)

        [failure] = heard()
    assert (failure["source"], failure["frame_id"]) == (source, told or entry_id)


def test_an_entry_that_was_deleted_is_told_by_its_id(client: Client) -> None:
    (entry_id,) = taken(client)
    silence(client, "me")
    client.xdel("frames", entry_id)

    with listening(client, "failures:queue") as heard:
        member(client, "other").reclaim(1, alone=True)

        [failure] = heard()
    assert (failure["frame_id"], failure["status"], failure["reason"]) == (entry_id, "dropped", "trimmed")


@pytest.mark.parametrize("path", ["settle", "reclaim"])
def test_a_user_who_may_not_publish_there_settles_all_the_same(client: Client, redis_url: str, path: str) -> None:
    (entry_id,) = taken(client)
    client.execute_command("ACL SETUSER quiet on >pw allkeys +@all resetchannels")
    user = RedisSettings.model_validate({"url": redis_url, "username": "quiet", "password": "pw"})

    with connect(user) as quiet, listening(client, "failures:door") as heard:
        if path == "settle":
            settler(quiet).settle([Buried("door", DeadReason.INVALID, "no", Receipt("frames", entry_id))], now=NOW)
        else:
            silence(client, "me", deliveries=5)
            member(quiet, "other").reclaim(1, alone=False)
        assert heard() == []

    client.execute_command("ACL DELUSER quiet")
    assert len(letters(client)) == 1
    assert client.xlen(QUEUE.stream) == 0
