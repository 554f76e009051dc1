"""What workers publish of their settings' cameras, read without their settings file."""

import json
import time

import pytest
from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet.changes import FleetChanges
from coatstream.cameras.fleet.known import KnownCameras
from coatstream.cameras.fleet.leases import Leases
from coatstream.cameras.fleet.published import PublishedCamera, published_cameras
from coatstream.cameras.fleet.removal import publish_no_worker
from coatstream.errors import ConfigError
from coatstream.settings.model import CameraSettings, EventsSettings, SettingsTree

KEYS = FleetKeys()
SECRET = "hunter2"


def camera(name: str, url: str = f"rtsp://admin:{SECRET}@10.0.0.7/{SECRET}/main", **more: object) -> CameraSettings:
    return CameraSettings.model_validate({"name": name, "url": url, **more})


def beat(client: Client, worker: str, *cameras: CameraSettings, lease: float = 10.0) -> None:
    known = KnownCameras(cameras)
    unshared = dict.fromkeys(known.unshared, "file:///tmp/clip.mp4")
    Leases(client, KEYS, worker=worker, lease=lease).beat(known.catalogue, unshared=unshared)


def test_cameras_of_all_live_workers_are_known_with_their_addresses_and_no_secret(client: Client) -> None:
    beat(client, "a", camera("door"), camera("own", shared=False))
    beat(client, "b", camera("door"), camera("gate", "rtsp://10.0.0.8:8554/x"))

    assert published_cameras(client, KEYS) == {
        "door": PublishedCamera("door", "rtsp://10.0.0.7:554", shared=True, worker="a"),
        "own": PublishedCamera("own", "file:///tmp/clip.mp4", shared=False, worker="a"),
        "gate": PublishedCamera("gate", "rtsp://10.0.0.8:8554", shared=True, worker="b"),
    }
    assert SECRET not in repr(client.hgetall(KEYS.members))


def test_those_of_a_worker_that_is_gone_are_not(client: Client) -> None:
    beat(client, "a", camera("door"), lease=0.05)
    time.sleep(0.1)

    assert published_cameras(client, KEYS) == {}


def test_a_worker_of_an_earlier_release_publishes_names_alone(client: Client) -> None:
    now = int(client.time()[0]) * 1000
    client.hset(KEYS.members, "a", json.dumps({"beat": now, "lease": 10_000, "catalogue": "d", "warm": []}))
    client.hset(KEYS.members, ":d", json.dumps([["door", "digest", 1, 5, 0, 0], ["added", "digest", 1, 5, 0, 1]]))

    assert published_cameras(client, KEYS) == {"door": PublishedCamera("door", "", shared=True, worker="a")}


@pytest.mark.parametrize(
    "junk", [b"", b"[]", b"\xff", b'{"beat": 1}', b'{"beat": 9e15, "lease": 1, "unshared": [[1]]}']
)
def test_damaged_records_are_none(client: Client, junk: bytes) -> None:
    client.hset(KEYS.members, "a", junk)
    client.hset(KEYS.members, ":d", junk)

    assert published_cameras(client, KEYS) == {}


def test_a_name_that_the_settings_file_of_a_worker_uses_cannot_be_added_or_removed(client: Client) -> None:
    beat(client, "a", camera("door"), camera("own", shared=False))
    changes = FleetChanges(client, SettingsTree(), warn=lambda line: None)

    for name in ("door", "own"):
        with pytest.raises(ConfigError, match="the settings file has a camera"):
            changes.add(camera(name))
        with pytest.raises(ConfigError, match="is in the settings file"):
            changes.remove(name)
    changes.add(camera("gate"))
    assert changes.remove("gate")


def test_tags_of_an_unshared_camera_that_another_worker_reads_too_do_not_end_with_one_of_them(client: Client) -> None:
    client.hset(KEYS.tags("own"), "cat", "{}")
    client.hset(KEYS.tags("alone"), "cat", "{}")
    beat(client, "b", camera("own", shared=False))

    publish_no_worker(client, KEYS, EventsSettings(), {"own": 0, "alone": 0})

    assert client.exists(KEYS.tags("own")) == 1
    assert client.exists(KEYS.tags("alone")) == 0
