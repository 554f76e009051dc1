"""Cameras in Redis: what strangers write there is looked at hard, what is of use is read all the same."""

import json
from collections.abc import Callable

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet.registry import LONGEST, Registry, document
from coatstream.errors import ConfigError, RedisRefuses, RedisUnavailable
from coatstream.settings.model import CameraSettings, RedisSettings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.servers import ON_ONE_SERVER

KEYS = FleetKeys()
DOOR = CameraSettings.model_validate({"name": "door", "url": "rtsp://me:hunter2@10.0.0.7/1", "fps": 2})


def registry(client: Client, *, most: int = 10) -> Registry:
    return Registry(client, KEYS, most=most)


def put(client: Client, name: str | bytes, entry: object) -> None:
    client.hset(KEYS.registry, name, entry if isinstance(entry, bytes) else json.dumps(entry))


def test_what_was_added_is_read_as_it_was_secrets_included(client: Client) -> None:
    camera = CameraSettings.model_validate(
        {
            "name": "Tür 2",
            "url": "rtsp://10.0.0.7/1",
            "username": "me",
            "password": "hün/ter2",
            "health": {"black_after": 3},
            "tags": {"groups": {"dog": ["151-268"]}},
        }
    )

    assert registry(client).add(camera) is True
    assert registry(client).read().cameras == {"Tür 2": camera}


def test_only_what_differs_from_the_defaults_is_written(client: Client) -> None:
    assert json.loads(document(DOOR)) == {"name": "door", "url": "rtsp://me:hunter2@10.0.0.7/1", "fps": 2.0}


def test_a_camera_is_overwritten_only_on_request(client: Client) -> None:
    cameras = registry(client)
    cameras.add(DOOR)
    other = DOOR.model_copy(update={"fps": 7.0})

    assert cameras.add(other) is False
    assert cameras.read().cameras["door"].fps == 2
    assert cameras.add(other, replace=True) is True
    assert cameras.read().cameras["door"].fps == 7


def test_there_are_never_more_than_the_bound(client: Client) -> None:
    cameras = registry(client, most=1)
    cameras.add(DOOR)

    assert cameras.add(DOOR.model_copy(update={"name": "yard"})) is False
    assert cameras.add(DOOR.model_copy(update={"fps": 1.0}), replace=True) is True
    put(client, "yard", {"url": "rtsp://h/1"})
    put(client, "zoo", {"url": "rtsp://h/1"})
    content = cameras.read()
    assert (set(content.cameras), content.beyond) == ({"door"}, 2)


def test_a_removed_camera_is_forgotten_but_not_its_number(client: Client) -> None:
    cameras = registry(client)
    cameras.add(DOOR)
    cameras.pause("door")
    client.hset(KEYS.states, "door", "{}")
    client.hset(KEYS.fences, "door", "17")

    assert (cameras.remove("door"), cameras.remove("door")) == (True, False)
    assert sorted(client.keys()) == sorted([KEYS.fences.encode(), KEYS.version.encode()])


def test_pausing_and_resuming_say_whether_they_changed_anything(client: Client) -> None:
    cameras = registry(client)

    assert (cameras.pause("door"), cameras.pause("door")) == (True, False)
    assert cameras.read().paused == {"door"}
    assert (cameras.resume("door"), cameras.resume("door")) == (True, False)
    assert cameras.read().paused == frozenset()


def test_every_change_raises_the_version_and_what_changes_nothing_does_not(client: Client) -> None:
    cameras = registry(client)
    seen = [cameras.read().version]
    changes: list[Callable[[], bool]] = [
        lambda: cameras.add(DOOR),
        lambda: cameras.add(DOOR, replace=True),
        lambda: cameras.pause("door"),
        lambda: cameras.resume("door"),
        lambda: cameras.remove("door"),
    ]
    for change in changes:
        assert change()
        seen.append(cameras.read().version)

    assert len(set(seen)) == 6
    assert not cameras.remove("door")
    assert not cameras.resume("door")
    assert cameras.read().version == seen[-1]


def test_what_is_known_already_is_not_sent_again(client: Client) -> None:
    cameras = registry(client)
    cameras.add(DOOR)
    first = cameras.read()
    client.incr(KEYS.version)

    second = cameras.read(first)

    assert second.cameras is first.cameras
    assert (second.digest, second.version != first.version) == (first.digest, True)


@pytest.mark.parametrize("change", ["entry", "pause", "another", "gone"])
def test_what_somebody_changed_by_hand_is_seen_without_a_version(client: Client, change: str) -> None:
    cameras = registry(client)
    cameras.add(DOOR)
    first = cameras.read()
    match change:
        case "entry":
            put(client, "door", {"url": "rtsp://h/2"})
        case "pause":
            client.sadd(KEYS.paused, "door")
        case "another":
            put(client, "yard", {"url": "rtsp://h/2"})
        case "gone":
            client.hdel(KEYS.registry, "door")

    assert cameras.read(first).digest != first.digest


@pytest.mark.parametrize(
    ("name", "entry", "fault"),
    [
        ("bad", b"", "its entry is not JSON"),
        ("bad", b"\xff\x00", "its entry is not JSON"),
        ("bad", b"[" * 9000, "its entry is not JSON"),
        ("bad", [1], "its entry is not a JSON object"),
        ("bad", {"url": "rtsp://me:hunter2@h/\ud800"}, "its entry is not text"),
        ("bad", {}, "url: Field required"),
        ("bad", {"url": "rtsp://me:hunter2@h", "pasword": "hunter2"}, "pasword: Extra inputs are not permitted"),
        ("bad", {"url": "rtsp://h", "fps": "many"}, "fps: Input should be a valid number"),
        ("bad", {"url": "rtsp://h", "fps": -1}, "fps: Input should be greater than or equal to 0"),
        (
            "bad",
            {"url": "rtsp://h", "tags": {"end_below": 0.9}},
            "tags.end_below: Value error, must not be above start",
        ),
        ("bad", {"url": "rtsp://h", "shared": False}, "a camera from Redis is shared by all workers"),
        ("bad", {"url": "rtsp://h", "meta": "x" * LONGEST}, f"its entry is larger than {LONGEST} bytes"),
        ("queue/1", {"url": "rtsp://h"}, "the name queue/1 is taken"),
        ("other", {"url": "rtsp://h"}, "the name other is taken"),
        ("b\x1b[2Jd", {"url": "rtsp://h"}, "its name holds characters that cannot be printed"),
        ("", {"url": "rtsp://h"}, "name: String should have at least 1 character"),
        ("x" * 129, {"url": "rtsp://h"}, "name: String should have at most 128 characters"),
        (b"\xff\xfe", {"url": "rtsp://h"}, "its name is not text in UTF-8"),
    ],
)
def test_one_bad_entry_is_told_in_one_line_without_secrets_and_the_others_live(
    client: Client, name: str | bytes, entry: object, fault: str
) -> None:
    put(client, name, entry)
    put(client, "good", {"url": "rtsp://h/1"})

    content = registry(client).read()

    assert set(content.cameras) == {"good"}
    ((shown, told),) = content.faults.items()
    assert fault in told
    assert "hunter2" not in told
    assert (shown + told).isprintable()


def test_the_name_is_that_of_the_field_whatever_the_entry_says(client: Client) -> None:
    put(client, "door", {"name": "yard", "url": "rtsp://h/1"})

    assert [camera.name for camera in registry(client).read().cameras.values()] == ["door"]


@ON_ONE_SERVER
@hypothesis_settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.dictionaries(
        st.binary(max_size=200),
        st.one_of(
            st.binary(max_size=300),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            ).map(lambda value: json.dumps(value).encode()),
            st.dictionaries(st.sampled_from(["url", "fps", "name", "tags"]), st.text() | st.floats()).map(
                lambda value: json.dumps(value).encode()
            ),
        ),
        max_size=5,
    )
)
def test_whatever_strangers_write_reading_never_fails(client: Client, entries: dict[bytes, bytes]) -> None:
    client.flushall()
    for name, entry in entries.items():
        client.hset(KEYS.registry, name, entry)
    put(client, "good", {"url": "rtsp://h/1"})

    content = registry(client).read()

    assert "good" in content.cameras
    assert all((name + fault).isprintable() for name, fault in content.faults.items())


def test_who_must_not_be_accepted_is_neither_added_nor_read(client: Client) -> None:
    def accept(camera: CameraSettings) -> None:
        raise ConfigError("not this one")

    strict = Registry(client, KEYS, most=10, accept=accept)
    registry(client).add(DOOR)

    with pytest.raises(ConfigError, match="not this one"):
        strict.add(DOOR)
    assert dict(strict.read().faults) == {"door": "not this one"}


@pytest.mark.parametrize("name", ["queue", "other", "new\nline"])
def test_a_name_that_is_taken_or_cannot_be_seen_is_not_added(client: Client, name: str) -> None:
    with pytest.raises(ConfigError, match=r"taken|printed"):
        registry(client).add(DOOR.model_copy(update={"name": name}))


def test_settings_beyond_all_measure_are_not_added(client: Client) -> None:
    with pytest.raises(ConfigError, match="larger than"):
        registry(client).add(DOOR.model_copy(update={"username": "x" * LONGEST}))


@pytest.mark.parametrize("key", [KEYS.registry, KEYS.paused, KEYS.version])
def test_a_key_that_holds_something_else_is_refused(client: Client, key: str) -> None:
    client.xadd(key, {"no": "hash"})

    with pytest.raises(RedisRefuses, match="WRONGTYPE"):
        registry(client).read()
    with pytest.raises(RedisRefuses, match="WRONGTYPE"):
        registry(client).add(DOOR)


def test_without_redis_nothing_is_read_or_changed() -> None:
    with connect(RedisSettings.model_validate({"url": "redis://127.0.0.1:1"})) as client:
        with pytest.raises(RedisUnavailable):
            registry(client).read()
        with pytest.raises(RedisUnavailable):
            registry(client).pause("door")
