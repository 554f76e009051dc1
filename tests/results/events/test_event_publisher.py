"""Events on the server: each once, whatever becomes of the worker and of the server. Real servers."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import jsonschema
import pytest
import redis
from coatstream.broker.connection import Client, connect
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.errors import CoatstreamError, RedisRefuses
from coatstream.results.events import publisher
from coatstream.results.events.buffer import EventBuffer
from coatstream.results.events.confirmed import ConfirmedEvents
from coatstream.results.events.documents import schema, state_of
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.protocol import CameraSnapshot, EventOutcome, EventReply, EventStore, PendingEvent
from coatstream.results.events.publisher import EventPublisher
from coatstream.results.events.tags import PresentTag
from coatstream.settings.model import EventsSettings, RedisSettings

from tests.support.paths import DOCS
from tests.support.redis_servers import TcpServer, cluster, debian_redis, tcp_server
from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import eventually

NOW = 1_700_000_000.5
SCHEMA = json.loads((DOCS / "event.schema.json").read_text("utf-8"))
KEYS = FleetKeys()


def started(tag: str = "cat", *, camera: str = "door", at: float = NOW, fence: int = 0) -> Event:
    detail = {"tag": tag, "score": 0.75, "started_at": at - 1, "frame_id": f"f{at}"}
    return Event(EventKind.TAG_STARTED, camera, at, detail, fence)


def ended(
    tag: str = "cat", *, camera: str = "door", at: float = NOW + 5, start: float = NOW - 1, fence: int = 0
) -> Event:
    detail = {
        "tag": tag,
        "started_at": start,
        "ended_at": at - 1,
        "duration": at - 1 - start,
        "peak": 0.9,
        "first_frame_id": "first",
        "last_frame_id": "last",
        "why": "gone",
    }
    return Event(EventKind.TAG_ENDED, camera, at, detail, fence)


def state(name: str = "live", *, camera: str = "door", at: float = NOW, fence: int = 0) -> Event:
    detail = {"state": name, "reason": None, "message": "all well"}
    return Event(EventKind.CAMERA_STATE, camera, at, detail, fence)


def sick(fault: str = "black", *, camera: str = "door", at: float = NOW) -> Event:
    return Event(EventKind.PICTURE_SICK, camera, at, {"fault": fault})


class Health:
    """Remembers what the publisher reports of Redis."""

    def __init__(self) -> None:
        self.troubles: list[CoatstreamError] = []

    def up(self) -> None: ...

    def down(self, trouble: CoatstreamError) -> None:
        self.troubles.append(trouble)


@contextmanager
def publishing(client: Client, keys: FleetKeys = KEYS, **options: Any) -> Iterator[EventPublisher]:
    """A publisher that runs."""
    settings = EventsSettings(max_length=options.pop("max_length", 100_000))
    event_publisher = EventPublisher(client, keys, settings, **{"worker": "me", "health": Health(), **options})
    stop = threading.Event()
    thread = threading.Thread(target=event_publisher.run, args=(stop,))
    thread.start()
    try:
        yield event_publisher
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def say(event_publisher: EventPublisher, *events: Event) -> None:
    for event in events:
        event_publisher.publish(event)
    assert event_publisher.flush(20)


def documents(client: Any, stream: str = "events") -> list[dict[str, Any]]:
    return [json.loads(fields[b"json"]) for _, fields in client.xrange(stream)]


def story(client: Any, stream: str = "events") -> list[tuple[str, ...]]:
    """What the stream says, in few words."""
    return [
        (one["event"], one["source"], str(one.get("tag") or one.get("state") or one.get("fault")))
        for one in documents(client, stream)
    ]


def test_every_kind_of_event_is_an_entry_a_message_and_a_document_of_the_published_schema(client: Client) -> None:
    listener = client.pubsub(ignore_subscribe_messages=True)
    listener.psubscribe("events:*")
    listener.get_message(timeout=5)
    said = [state(fence=7), started(fence=7), sick(), ended(fence=7)]

    with publishing(client) as event_publisher:
        say(event_publisher, *said)

    entries = [fields for _, fields in client.xrange("events")]
    messages = [listener.get_message(timeout=5) for _ in range(4)]
    listener.close()
    assert [fields[b"event"].decode() for fields in entries] == [event.kind for event in said]
    assert [message["channel"] for message in messages] == [b"events:door"] * 4
    assert [message["data"] for message in messages] == [fields[b"json"] for fields in entries]
    for fields in entries:
        jsonschema.validate(json.loads(fields[b"json"]), SCHEMA)
    assert {name.decode(): value.decode() for name, value in entries[3].items() if name != b"json"} == {
        "event": "tag.ended",
        "source": "door",
        "at": "1700000005.500000",
        "tag": "cat",
        "started_at": "1699999999.5",
        "ended_at": "1700000004.5",
        "duration": "5.0",
        "peak": "0.9",
        "first_frame_id": "first",
        "last_frame_id": "last",
        "why": "gone",
    }
    assert json.loads(entries[0][b"json"]) == {
        "schema": 1,
        "event": "camera.state",
        "source": "door",
        "at": NOW,
        "worker": "me",
        "fence": 7,
        "state": "live",
        "reason": None,
        "message": "all well",
    }


def test_the_published_schema_is_that_of_the_documents() -> None:
    assert schema() == SCHEMA


def test_late_comers_read_the_present_tags_and_the_state(client: Client) -> None:
    with publishing(client) as event_publisher:
        say(event_publisher, state(), started("cat"), started("dog"), ended("cat"))

        assert event_publisher.present_tags("door") == {"dog": PresentTag(0.75, NOW - 1, f"f{NOW}")}

    assert json.loads(client.hgetall("cameras:states")[b"door"]) == {
        "state": "live",
        "reason": None,
        "message": "all well",
        "since": NOW,
        "worker": "me",
    }


def test_what_is_said_again_by_a_restarted_worker_is_not_said_twice(client: Client) -> None:
    with publishing(client) as event_publisher:
        say(event_publisher, started("cat"), started("dog"), ended("dog"))

    with publishing(client, worker="successor") as successor:
        say(successor, started("cat", at=NOW + 9), ended("dog", at=NOW + 9))
        stats = successor.stats()

    assert story(client) == [
        ("tag.started", "door", "cat"),
        ("tag.started", "door", "dog"),
        ("tag.ended", "door", "dog"),
    ]
    assert stats.repeated == {"tag.started": 1, "tag.ended": 1}


def test_a_tag_ends_as_the_one_that_an_earlier_worker_said(client: Client) -> None:
    with publishing(client) as event_publisher:
        say(event_publisher, started(at=NOW))

    with publishing(client, worker="successor") as successor:
        successor.publish(started(at=NOW + 9))
        say(successor, ended(at=NOW + 20, start=NOW + 8))

    start, end = documents(client)
    assert (end["started_at"], end["first_frame_id"]) == (start["started_at"], start["frame_id"])
    assert end["duration"] == end["ended_at"] - start["started_at"]


def test_a_late_end_leaves_a_tag_alone_that_started_since(client: Client) -> None:
    with publishing(client) as event_publisher:
        say(event_publisher, started(at=NOW + 9))

    with publishing(client, worker="late") as late:
        say(late, ended(start=NOW - 1))

        assert late.present_tags("door") == {"cat": PresentTag(0.75, NOW + 8, f"f{NOW + 9}")}


def test_a_worker_with_an_old_lease_is_refused_and_leaves_the_camera_alone(client: Client) -> None:
    client.hset("cameras:fences", "door", 8)

    with publishing(client, survey_every=0.05) as event_publisher:
        say(event_publisher, started(fence=7), state(fence=7), started(camera="yard", fence=7), started("dog"))
        stats = event_publisher.stats()

    assert story(client) == [("tag.started", "yard", "cat"), ("tag.started", "door", "dog")]
    assert stats.refused == {"tag.started": 1, "camera.state": 1}
    assert stats.sent == {"tag.started": 2}


@ON_ONE_SERVER
def test_a_tag_that_somebody_deleted_is_put_back_without_a_word(client: Client) -> None:
    with publishing(client, survey_every=0.05) as event_publisher:
        say(event_publisher, started(), state())

        client.delete("tags:door", "cameras:states")
        eventually(lambda: client.exists("tags:door", "cameras:states") == 2, "they are back")

    assert len(documents(client)) == 2


@ON_ONE_SERVER
def test_a_tag_that_nobody_looks_after_any_more_ends(client: Client) -> None:
    with publishing(client, survey_every=0.05) as event_publisher:
        event_publisher.take_over("door")
        say(event_publisher, started("cat"))

        client.hset("tags:door", "ghost", json.dumps({"score": 0.5, "started_at": NOW, "first_frame_id": "g"}))
        client.hset("tags:door", "junk", "not JSON")
        client.hset("tags:yard", "other", "somebody else's camera")
        eventually(lambda: client.hkeys("tags:door") == [b"cat"], "the others are gone")

    assert sorted(story(client)[1:]) == [("tag.ended", "door", "ghost"), ("tag.ended", "door", "junk")]
    assert client.hexists("tags:yard", "other")
    for one in documents(client):
        jsonschema.validate(one, SCHEMA)


@ON_ONE_SERVER
def test_tags_that_were_not_taken_over_are_left_to_whoever_looks_after_them(client: Client) -> None:
    client.hset("tags:door", "dog", json.dumps({"score": 0.5, "started_at": NOW, "first_frame_id": "g"}))

    with publishing(client, survey_every=0.02) as event_publisher:
        say(event_publisher, started("cat"))
        for number in range(5):
            client.hdel("tags:door", "cat")
            eventually(lambda: client.hexists("tags:door", "cat"), f"survey {number}")

    assert client.hexists("tags:door", "dog")


@ON_ONE_SERVER
def test_what_a_predecessor_left_is_taken_over_and_stays(client: Client) -> None:
    with publishing(client) as event_publisher:
        say(event_publisher, started("cat"), started("dog"))

    with publishing(client, worker="successor", survey_every=0.02) as successor:
        assert set(successor.take_over("door", fence=3)) == {"cat", "dog"}
        say(successor, ended("dog"))
        client.hdel("tags:door", "cat")
        eventually(lambda: client.hexists("tags:door", "cat"), "it is looked after")

    assert client.hkeys("tags:door") == [b"cat"]


def test_of_a_camera_that_was_removed_nothing_need_be_put_back() -> None:
    standing = ConfirmedEvents(worker="me")
    standing.confirm(PendingEvent(state("removed"), 7), EventReply(EventOutcome.PUBLISHED, "1-1"), now=0.0)

    assert standing.differences({"door": CameraSnapshot(None, {})}, at=NOW) == []
    assert len(standing.differences({"door": CameraSnapshot(state_of(state(), worker="me"), {})}, at=NOW)) == 1


@ON_ONE_SERVER
def test_a_camera_that_was_released_is_left_alone(client: Client) -> None:
    with publishing(client, survey_every=0.02) as event_publisher:
        event_publisher.publish(state())
        event_publisher.release("door")
        event_publisher.publish(state(camera="yard"))
        assert event_publisher.flush(20)

        client.delete("cameras:states")
        eventually(lambda: client.hexists("cameras:states", "yard"), "the other one is looked after")

    assert not client.hexists("cameras:states", "door")


@ON_ONE_SERVER
def test_a_call_whose_reply_was_lost_has_its_effect_once(client: Client) -> None:
    said = [PendingEvent(event, 0) for event in (state(), started("cat"), sick(), ended("dog"))]
    server = EventStore(client, KEYS, EventsSettings(), worker="me")
    server.publish([PendingEvent(started("dog"), 0)], newest="")
    without_reply = copy(server)  # as if the first reply had never come

    first = server.publish(said, newest="")
    second = without_reply.publish(said, newest="")

    assert [answer.entry for answer in second] == [answer.entry for answer in first]
    assert len(documents(client)) == 5
    assert client.hkeys("tags:door") == [b"cat"]


@ON_ONE_SERVER
def test_a_call_that_arrives_late_sets_nothing_back(client: Client) -> None:
    server = EventStore(client, KEYS, EventsSettings(), worker="me")
    server.publish([], newest="")
    late = copy(server)
    old, new = PendingEvent(state("down"), 0), PendingEvent(state("live", at=NOW + 1), 0)
    server.publish([old], newest="")
    server.publish([new], newest="")

    late.publish([old], newest="")

    assert story(client) == [("camera.state", "door", "down"), ("camera.state", "door", "live")]
    assert json.loads(client.hget("cameras:states", "door") or "")["state"] == "live"


@ON_ONE_SERVER
def test_a_full_buffer_drops_states_and_pictures_before_tags_and_counts_them(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "CAPACITY", 3)
    event_publisher = EventPublisher(client, KEYS, EventsSettings(), worker="me", health=Health())

    for event in (started("a"), state(), sick(), started("b"), started("c"), started("d")):
        event_publisher.publish(event)

    stats = event_publisher.stats()
    assert stats.dropped == {"camera.state": 1, "picture.sick": 1, "tag.started": 1}
    assert stats.buffered == 3


def test_nothing_is_kept_of_events_that_were_taken() -> None:
    buffer = EventBuffer(capacity=2)
    for turn in range(3):
        buffer.add(state(at=NOW + turn))
        buffer.add(started(at=NOW + turn))
        assert len(buffer.take(10)) == 2
        buffer.held(0)

    for event in (started("a"), state(), started("b")):
        buffer.add(event)

    assert buffer.dropped == {"camera.state": 1}
    assert buffer.events == 2
    assert not buffer.flush(0)


@ON_ONE_SERVER
def test_keys_that_hold_something_else_are_named_and_nothing_is_written(client: Client) -> None:
    client.set("tags:yard", "text")
    health = Health()

    with publishing(client, health=health) as event_publisher:
        event_publisher.publish(started(camera="door"))
        event_publisher.publish(started(camera="yard"))
        eventually(lambda: bool(health.troubles), "it says so")
        assert client.exists("events", "tags:door") == 0
        client.delete("tags:yard")
        assert event_publisher.flush(20)

    assert isinstance(health.troubles[0], RedisRefuses)
    assert "tags:yard" in str(health.troubles[0])
    assert len(documents(client)) == 2


def test_without_the_right_to_the_channel_the_stream_still_has_it(client: Client) -> None:
    client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "resetchannels", "+@all")
    path = client.connection_pool.connection_kwargs["path"]
    try:
        with connect(RedisSettings.model_validate({"url": f"unix://weak:pw@{path}"})) as weak, publishing(weak) as mute:
            say(mute, started())
    finally:
        client.execute_command("ACL", "DELUSER", "weak")

    assert story(client) == [("tag.started", "door", "cat")]


def test_a_right_that_is_missing_costs_no_event(client: Client) -> None:
    client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "&*", "+@all", "-xadd")
    path = client.connection_pool.connection_kwargs["path"]
    health = Health()
    try:
        with (
            connect(RedisSettings.model_validate({"url": f"unix://weak:pw@{path}"})) as weak,
            publishing(weak, health=health) as event_publisher,
        ):
            event_publisher.publish(started())
            eventually(lambda: bool(health.troubles), "it says so")
            assert client.exists("tags:door") == 0
            client.execute_command("ACL", "SETUSER", "weak", "+xadd")
            assert event_publisher.flush(20)
    finally:
        client.execute_command("ACL", "DELUSER", "weak")

    assert isinstance(health.troubles[0], RedisRefuses)
    assert story(client) == [("tag.started", "door", "cat")]


def test_the_stream_keeps_about_as_many_as_it_is_told(client: Client) -> None:
    with publishing(client, max_length=100) as event_publisher:
        say(event_publisher, *(sick(at=NOW + number) for number in range(1000)))

    assert 100 <= client.xlen("events") < 300


def test_on_a_cluster_names_with_one_hash_tag_work() -> None:
    keys = FleetKeys("{door}cameras", "{door}events", "{door}tags")
    with cluster(2) as servers, connect(RedisSettings.model_validate({"url": servers.url})) as client:
        with publishing(client, keys, survey_every=0.05) as event_publisher:
            assert event_publisher.take_over("door") == {}
            say(event_publisher, started("cat"), started("dog"), state(), ended("cat"))
            client.delete("{door}tags:door")
            eventually(lambda: set(event_publisher.present_tags("door")) == {"dog"}, "it is back")

        assert len(documents(client, "{door}events")) == 4


@contextmanager
def restarted(server: TcpServer) -> "Iterator[subprocess.Popen[bytes]]":
    """The same server once more, on its own files, after it was killed."""
    process = subprocess.Popen(server.process.args, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: _answers(server), "it is back")
        yield process
    finally:
        process.kill()
        process.wait(10)


def _answers(server: TcpServer) -> bool:
    try:
        return bool(server.admin.ping())
    except redis.RedisError:
        return False


def kill(server: TcpServer) -> None:
    server.process.kill()
    server.process.wait(10)


def client_of(server: TcpServer) -> Client:
    return connect(RedisSettings.model_validate({"url": server.url, "socket_timeout": 2}))


def test_what_happens_while_the_server_is_away_is_said_when_it_is_back() -> None:
    health = Health()
    with (
        tcp_server("--appendonly", "yes", "--appendfsync", "always") as server,
        client_of(server) as client,
        publishing(client, health=health) as event_publisher,
    ):
        say(event_publisher, started("cat"), state())
        kill(server)
        for event in (ended("cat"), started("cat", at=NOW + 10), started("dog"), sick()):
            event_publisher.publish(event)
        eventually(lambda: len(health.troubles) > 1, "it tries")
        with restarted(server):
            assert event_publisher.flush(20)

            assert story(server.admin) == [
                ("tag.started", "door", "cat"),
                ("camera.state", "door", "live"),
                ("tag.ended", "door", "cat"),
                ("tag.started", "door", "cat"),
                ("tag.started", "door", "dog"),
                ("picture.sick", "door", "black"),
            ]
            assert set(event_publisher.present_tags("door")) == {"cat", "dog"}


@pytest.mark.parametrize("binary", [None, "redis"])
def test_a_server_that_has_forgotten_everything_is_told_again(binary: str | None) -> None:
    with (
        tcp_server(binary=debian_redis() if binary else None) as server,
        client_of(server) as client,
        publishing(client) as event_publisher,
    ):
        say(event_publisher, started("cat"), state(), ended("cat"), started("dog"), sick())
        before = story(server.admin)
        kill(server)
        with restarted(server):
            eventually(lambda: story(server.admin) == before, "it knows all again")
            assert set(event_publisher.present_tags("door")) == {"dog"}
            say(event_publisher, ended("dog"))

            assert story(server.admin) == [*before, ("tag.ended", "door", "dog")]
            assert event_publisher.present_tags("door") == {}


def test_a_server_that_has_forgotten_its_last_moments_is_told_just_those() -> None:
    with tcp_server("--save", "3600 1") as server, client_of(server) as client, publishing(client) as event_publisher:
        say(event_publisher, started("cat"), started("bird"), state("connecting"))
        server.admin.save()
        say(event_publisher, ended("cat"), started("dog"), state("live"), sick())
        before = story(server.admin)
        kill(server)
        with restarted(server):
            say(event_publisher, ended("bird"))

            assert story(server.admin) == [*before, ("tag.ended", "door", "bird")]
            assert set(event_publisher.present_tags("door")) == {"dog"}
            assert json.loads(server.admin.hget("cameras:states", "door") or "")["state"] == "live"


def test_a_new_primary_that_somebody_else_wrote_to_first_is_told_too() -> None:
    with tcp_server("--save", "3600 1") as server, client_of(server) as client, publishing(client) as event_publisher:
        say(event_publisher, started("cat"))
        server.admin.save()
        say(event_publisher, started("dog"))
        kill(server)
        with restarted(server):
            server.admin.xadd("events", {"event": "camera.state", "json": json.dumps({"event": "x", "source": "y"})})
            say(event_publisher, started("bird"))

            assert sorted(tag for _, _, tag in story(server.admin) if tag != "None") == ["bird", "cat", "dog"]
            assert set(event_publisher.present_tags("door")) == {"bird", "cat", "dog"}


CHILD = """
import sys, threading
from coatstream.settings.model import EventsSettings, RedisSettings
from tests.results.events.test_event_publisher import Health, scripted
from coatstream.results.events.publisher import EventPublisher
from coatstream.broker.connection import connect
from coatstream.broker.fleet_keys import FleetKeys

with connect(RedisSettings.model_validate({"url": sys.argv[1]})) as client:
    event_publisher = EventPublisher(client, FleetKeys(), EventsSettings(), worker=sys.argv[2], health=Health())
    threading.Thread(target=event_publisher.run, args=(threading.Event(),), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.readline()
    scripted(event_publisher, int(sys.argv[2]), 60)
"""
CAMERAS = 6
LIVES = 6
PERIOD = 0.1  # seconds of a tag, and of the pause after it


def scripted(event_publisher: EventPublisher, fence: int, seconds: float) -> list[Event]:
    """A worker whose cameras show one tag on and off; of what was before it knows what it takes over. All it said."""
    said: list[Event] = []
    cameras = [f"camera {number}" for number in range(CAMERAS)]
    there = {camera: event_publisher.take_over(camera, fence=fence).get("cat") for camera in cameras}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for number, camera in enumerate(there):
            now, start = time.time(), there[camera]
            if (int(now / PERIOD + number / CAMERAS) % 2 == 0) == (start is not None):
                continue
            if start is None:
                there[camera] = PresentTag(0.75, now - 1, f"f{now}")
                said.append(started(camera=camera, at=now, fence=fence))
            else:
                there[camera] = None
                said.append(ended(camera=camera, at=now, start=start.started_at, fence=fence))
            event_publisher.publish(said[-1])
        time.sleep(0.001)
    return said


def waiting_worker(url: str, life: int) -> "subprocess.Popen[bytes]":
    """A process that becomes a worker when it is told to."""
    arguments = [sys.executable, "-c", CHILD, url, str(life)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def assert_in_turn(found: Sequence[dict[str, Any]]) -> None:
    """Each camera's tag starts and ends in turn, and ends as it started."""
    for camera in {one["source"] for one in found}:
        own = [one for one in found if one["source"] == camera]
        assert [one["event"] for one in own] == (["tag.started", "tag.ended"] * len(own))[: len(own)], camera
        assert all(a["started_at"] == b["started_at"] for a, b in zip(own[::2], own[1::2], strict=False)), camera


def present_after(found: Sequence[dict[str, Any]]) -> set[str]:
    """The cameras whose tag has started and not ended."""
    last = {one["source"]: one["event"] for one in found}
    return {camera for camera, event in last.items() if event == "tag.started"}


@pytest.mark.slow
@ON_ONE_SERVER
def test_workers_that_are_killed_at_any_moment_lose_no_tag_and_say_none_twice(client: Client, redis_url: str) -> None:
    rng = random.Random(7)
    cameras = [f"camera {number}" for number in range(CAMERAS)]

    lives = [waiting_worker(redis_url, life) for life in range(1, LIVES + 1)]

    for life, child in enumerate(lives, start=1):
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin, child.stdout:
            assert child.stdout.readline() == b"ready\n"
            client.hset("cameras:fences", mapping=dict.fromkeys(cameras, life))
            child.stdin.write(b"go\n")
            child.stdin.flush()
            time.sleep(rng.uniform(0.0, 0.5))  # the moment is what is tried
            child.kill()
            child.wait(10)
        assert_in_turn(documents(client))
        left = {camera for camera in cameras if client.hexists(f"tags:{camera}", "cat")}
        assert left == present_after(documents(client))
    with publishing(client, worker="last") as event_publisher:
        said = scripted(event_publisher, LIVES + 1, 0.5)
        assert event_publisher.flush(20)

    own = [one for one in documents(client) if one["worker"] == "last"]
    assert len(own) == len(said) > 0
    assert_in_turn(documents(client))


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_and_loses_the_end_of_its_file_has_every_tag_once() -> None:
    rng = random.Random(11)
    with (
        tcp_server("--appendonly", "yes", "--appendfsync", "everysec") as server,
        client_of(server) as client,
        publishing(client, survey_every=0.3) as event_publisher,
        ExitStack() as stack,
    ):
        said: list[Event] = []
        worker = in_background(lambda: said.extend(scripted(event_publisher, 0, 6)))
        process = server.process
        while worker.is_alive():
            time.sleep(rng.uniform(0.2, 0.8))  # the moment is what is tried
            process.kill()
            process.wait(10)
            _cut(server, rng.randrange(20_000))
            process = stack.enter_context(restarted(server))
        worker.join(30)
        assert event_publisher.flush(30)
        eventually(lambda: len(documents(server.admin)) >= len(said), "all is there")

        found = documents(server.admin)
        for camera in {event.camera for event in said}:
            expected = [(event.kind, event.at) for event in said if event.camera == camera]
            assert [(one["event"], one["at"]) for one in found if one["source"] == camera] == expected
        present = {camera for camera in present_after(found) if event_publisher.present_tags(camera)}
        assert present == present_after(found)
        assert event_publisher.stats().replayed > 0


def _cut(server: TcpServer, most: int) -> None:
    """What had not reached the disk when the machine went down."""
    (path,) = (server.server.folder / "appendonlydir").glob("*.incr.aof")
    os.truncate(path, max(0, path.stat().st_size - most))


def in_background(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread
