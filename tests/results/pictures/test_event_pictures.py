"""Pictures of events on the server: there before the event, never over the bound, the oldest first. Real servers."""

import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.broker.picture_keys import PictureKeys, picture_keys
from coatstream.errors import CoatstreamError, RedisRefuses, RedisUnavailable
from coatstream.frames.still import Still
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.publisher import EventPublisher
from coatstream.results.pictures import EventPictures, picture_id
from coatstream.results.pictures.attaching import PATIENCE, PictureAttacher
from coatstream.results.pictures.redis_store import RedisPictures, footprint
from coatstream.results.pictures.store import Stored
from coatstream.results.previews import wish
from coatstream.results.showing import PreviewPublisher
from coatstream.settings.model import EventsSettings, PictureSettings, SettingsTree

from tests.results.events.test_event_publisher import Health, documents, publishing, say
from tests.results.test_previews import Pictures
from tests.support.redis_servers import cluster
from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import eventually

JPEG = b"\xff\xd8\xff" + bytes(20_000)
KEYS = PictureKeys()


def pictures(client: Client, **settings: Any) -> EventPictures:
    return EventPictures(RedisPictures(client, KEYS, PictureSettings(**settings)))


def named(number: int) -> str:
    return picture_id(f"door-{number}", 1_700_000_000 + number)


def still(number: int, *, side: int = 64) -> Still:
    pixels = np.random.default_rng(number).integers(0, 255, (side * 9 // 16, side, 3), np.uint8)
    return Still(f"door-{number}", 1_700_000_000 + number, pixels)


def started(number: int, **more: Any) -> Event:
    at = 1_700_000_000.5 + number
    detail = {"tag": f"cat {number}", "score": 0.5, "started_at": at, "frame_id": f"door-{number}"}
    return Event(EventKind.TAG_STARTED, "door", at, detail, **({"still": lambda: still(number)} | more))


SUM = """
local sum = 0
for _, key in ipairs(redis.call('KEYS', 'picture*')) do sum = sum + redis.call('MEMORY', 'USAGE', key) end
return sum
"""


def memory(client: Any) -> int:
    """All that pictures take on the server, at one moment."""
    return int(client.eval(SUM, 0))


def test_a_picture_that_was_stored_is_found_by_its_id(client: Client) -> None:
    settings = SettingsTree.model_validate({"redis": {"prefix": "site1:"}})

    stored = EventPictures.of(settings, client).put(named(1), JPEG)

    assert stored == Stored("stored", footprint(len(JPEG)))
    assert EventPictures.of(settings, client).get(named(1)) == JPEG
    assert EventPictures.of(SettingsTree(), client).get(named(1)) is None
    assert 0 < client.pttl(f"site1:picture:{named(1)}") <= 7 * 86_400_000


@pytest.mark.parametrize("name", ["", "../1-0123456789ab", "1-0123456789AB", "1-0123456789ab\n", "9" * 500, "*"])
def test_what_is_no_id_is_not_looked_up(name: str) -> None:
    assert EventPictures(RedisPictures(None, KEYS, PictureSettings())).get(name) is None


def test_the_oldest_go_first_and_all_of_them_never_take_more_than_the_bound(client: Client) -> None:
    bound, stored = 500_000, []
    mine, yours = pictures(client, max_bytes=bound), pictures(client, max_bytes=bound)

    for number in range(60):
        store = mine if number % 3 else yours
        stored.append(store.put(named(number), JPEG + bytes(number * 100)))
        assert memory(client) <= bound

    found = [number for number in range(100) if mine.get(named(number)) is not None]
    assert found == list(range(found[0], 60))
    assert len(found) > 0.7 * bound / len(JPEG + bytes(10_000))
    assert sum(one.crowded for one in stored) == found[0]
    assert stored[-1].total == int(client.get("pictures:bytes")) <= bound


def test_a_picture_that_needs_the_room_of_many_gets_it(client: Client) -> None:
    store = pictures(client, max_bytes=200_000)
    for number in range(300):
        store.put(named(number), b"\xff\xd8\xff")

    assert store.put(named(300), b"\xff" * 150_000).crowded > 100
    assert store.put(named(301), b"\xff" * 300_000).place == "too_large"
    assert store.get(named(300)) is not None


def test_a_picture_that_is_there_is_not_stored_twice(client: Client) -> None:
    store = pictures(client)
    first = store.put(named(1), JPEG)

    assert store.put(named(1), JPEG) == Stored("there", first.total)


def test_pictures_end_with_their_age_and_give_their_room_back(client: Client) -> None:
    store = pictures(client, max_age=0.2)
    store.put(named(1), JPEG)
    eventually(lambda: store.get(named(1)) is None, "its time is over")

    assert store.put(named(2), JPEG) == Stored("stored", footprint(len(JPEG)), aged=1)


def test_a_list_that_was_deleted_by_hand_is_begun_anew(client: Client) -> None:
    store = pictures(client, max_bytes=60_000)
    store.put(named(1), JPEG)
    store.put(named(2), JPEG)
    client.delete("pictures:order")

    assert store.put(named(3), JPEG) == Stored("stored", footprint(len(JPEG)))


def test_a_key_of_another_type_is_refused_and_not_touched(client: Client) -> None:
    client.set("pictures:order", "mine")

    with pytest.raises(RedisRefuses):
        pictures(client).put(named(1), JPEG)

    assert client.get("pictures:order") == b"mine"


# ---- with events


@contextmanager
def picturing(client: Client, **settings: Any) -> Any:
    attacher = PictureAttacher(pictures(client, **settings), PictureSettings(**settings))
    with publishing(client, pictures=attacher) as publisher:
        yield publisher, attacher


def test_an_event_names_its_picture_which_is_there(client: Client) -> None:
    with picturing(client) as (publisher, attacher):
        say(publisher, started(1), started(2, still=None), started(3, still=lambda: None))

    first, second, third = documents(client)
    jpeg = pictures(client).get(first["picture"])
    assert jpeg is not None
    assert jpeg.startswith(b"\xff\xd8\xff")
    assert "picture" not in second
    assert "picture" not in third
    assert attacher.stats().missing == {"none": 1}


def test_events_of_one_frame_share_its_picture(client: Client) -> None:
    with picturing(client) as (publisher, attacher):
        say(publisher, *(started(number, still=lambda: still(7)) for number in range(3)))

    assert len({document["picture"] for document in documents(client)}) == 1
    assert attacher.stats().stored == 1


def test_an_event_that_was_said_before_is_not_said_again_with_another_picture(client: Client) -> None:
    with picturing(client) as (publisher, _):
        say(publisher, started(1))
        say(publisher, started(1, still=lambda: still(9)))

    assert len(documents(client)) == 1


def test_a_picture_that_cannot_be_made_does_not_cost_the_event(client: Client) -> None:
    with picturing(client) as (publisher, attacher):
        say(publisher, started(1, still=lambda: 1 / 0), started(2))

    assert [("picture" in document) for document in documents(client)] == [False, True]
    assert attacher.stats().missing == {"failed": 1}


class Trouble:
    """A store that fails."""

    def __init__(self, trouble: Exception) -> None:
        self.trouble = trouble
        self.calls = 0

    def put(self, picture: str, jpeg: bytes) -> Stored:
        self.calls += 1
        raise self.trouble

    def get(self, picture: str) -> bytes | None:
        raise self.trouble


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (RedisRefuses("no right"), "refused"),
        (OSError(28, "full"), "refused"),
        (RedisUnavailable("away"), "unavailable"),
    ],
)
def test_no_event_waits_for_ever_for_its_picture(trouble: CoatstreamError | OSError, reason: str) -> None:
    now = count(step=PATIENCE / 2)
    attacher = PictureAttacher(EventPictures(Trouble(trouble)), PictureSettings(), monotonic=lambda: next(now))
    event = attacher.developed(started(1))

    for _ in range(10):
        try:
            event = attacher.attached(event)
            break
        except RedisUnavailable:
            continue

    assert event.photo is None
    assert "picture" not in event.detail
    assert attacher.stats().missing == {reason: 1}


def has_said(client: Client, events: int) -> bool:
    return bool(client.xlen("events") > events)


KILLED = """
import sys, threading
from coatstream.broker.connection import connect
from coatstream.settings.model import RedisSettings
from tests.results.pictures.test_event_pictures import picturing, started
with connect(RedisSettings.model_validate({"url": sys.argv[1]})) as client, picturing(client) as (publisher, _):
    print("ready", flush=True)
    for number in range(100_000):
        publisher.publish(started(number))
        publisher.flush(10)
"""


@pytest.mark.slow
@ON_ONE_SERVER
def test_a_worker_that_is_killed_leaves_no_event_without_its_picture(client: Client, redis_url: str) -> None:
    for enough in (60, 120, 180):
        child = subprocess.Popen([sys.executable, "-c", KILLED, redis_url], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child.stdout:
            child.stdout.readline()
            eventually(partial(has_said, client, enough), "it publishes")
            child.send_signal(signal.SIGKILL)
            child.wait(10)

        said = documents(client)
        assert all(pictures(client).get(event["picture"]) for event in said)
        client.delete("tags:door")


@pytest.mark.slow
@ON_ONE_SERVER
def test_ten_thousand_events_stay_within_64_mb_and_each_that_is_younger_has_its_picture(client: Client) -> None:
    """The bar of the issue, in memory of the server: JPEGs of 640 x 360 noise, 20 to 30 KB each."""
    bound, largest = 64_000_000, 0
    smooth = [
        Still(f"s{seed}", 0.0, np.kron(still(seed, side=80).pixels, np.ones((8, 8, 1), np.uint8))) for seed in range(16)
    ]

    def one(number: int) -> Event:
        picture = smooth[number % 16]
        return started(number, still=lambda: Still(f"door-{number}", 1_700_000_000 + number, picture.pixels))

    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.2):
            largest = max(largest, memory(client))

    with picturing(client, max_bytes=bound) as (publisher, attacher):
        watching = threading.Thread(target=watch)
        watching.start()
        for first in range(0, 10_000, 500):
            for number in range(first, first + 500):
                publisher.publish(one(number))
            assert publisher.flush(120)
        done.set()
        watching.join(30)

    said = documents(client)
    has = [pictures(client).get(event["picture"]) is not None for event in said]
    print(f"largest {largest / 1e6:.1f} MB; {sum(has)} of {len(said)} events have their picture; {attacher.stats()}")
    assert len(said) == 10_000
    assert max(largest, memory(client)) <= bound
    assert has == sorted(has)
    assert sum(has) > 1000


def test_the_publisher_without_pictures_says_all_the_same(client: Client) -> None:
    publisher = EventPublisher(client, FleetKeys(), EventsSettings(), worker="me", health=Health())
    stop = threading.Event()
    publisher.publish(started(1))
    thread = threading.Thread(target=publisher.run, args=(stop,))
    thread.start()
    assert publisher.flush(20)
    stop.set()
    thread.join(20)

    assert "picture" not in documents(client)[0]


@pytest.mark.slow
def test_on_a_cluster_pictures_and_previews_lie_where_the_labels_are() -> None:
    streams = {"queue": {"stream": "{a}frames", "dead_stream": "{a}frames:dead"}, "results": {"stream": "{a}labels"}}
    with cluster() as servers:
        settings = SettingsTree.model_validate(
            {"redis": {"url": servers.url}, "pictures": {"max_bytes": 60_000}, **streams}
        )
        with connect(settings.redis) as client:
            store, keys, source = EventPictures.of(settings, client), picture_keys(settings), Pictures("door", "yard")
            stored = [store.put(named(number), JPEG) for number in range(5)]
            publisher = PreviewPublisher(client, keys, [source])
            wish(client, keys.wish("yard"))
            publisher.beat()

            assert [one.crowded for one in stored] == [0, 0, 1, 1, 1]
            assert store.get(named(4)) == JPEG
            assert (source.now, publisher.published) == ({"yard"}, 1)
