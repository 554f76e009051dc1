"""Cameras inside a whole worker: tags, reuse, sick pictures, metrics and the API, on a real server and a real clip."""

import json
from typing import Any

import httpx
import pytest

from config.settings import CameraSettings
from tests.doubles import FixedEngine
from tests.pictures import CLIP
from tests.test_story import settings, until, working
from worker.broker.connection import Client
from worker.cameras import demand
from worker.errors import ConfigError


def events(client: Client, kind: str) -> list[dict[str, Any]]:
    documents = [json.loads(fields[b"json"]) for _, fields in client.xrange("events")]
    return [document for document in documents if document["event"] == kind]


def newest(client: Client, source: str) -> dict[str, Any]:
    text = client.hget("labels:latest", source)
    assert text is not None
    document: dict[str, Any] = json.loads(text)
    return document


LIVE = {"name": "live", "url": str(CLIP), "fps": 10, "realtime": True, "loop": True}


async def test_a_camera_has_states_and_its_labels_the_fence_of_its_lease(client: Client, redis_url: str) -> None:
    async with working(settings(redis_url, cameras=[LIVE]), FixedEngine()):
        await until(lambda: client.hexists("labels:latest", "live"))
        await until(lambda: len(events(client, "camera.state")) >= 2)

    assert [event["state"] for event in events(client, "camera.state")][:2] == ["connecting", "live"]
    fence = newest(client, "live")["fence"]
    assert fence == events(client, "camera.state")[1]["fence"] > 10**15
    assert client.hget("cameras:fences", "live") == str(fence).encode()


async def test_a_label_that_holds_becomes_a_tag_that_late_comers_find(client: Client, redis_url: str) -> None:
    tags = {"min_duration": 0.2, "groups": {"bird": ["0-255"]}}

    async with working(settings(redis_url, cameras=[LIVE], tags=tags), FixedEngine()):
        await until(lambda: client.hexists("tags:live", "bird"))
        await until(lambda: bool(events(client, "tag.started")))

    (started,) = events(client, "tag.started")
    assert (started["tag"], started["source"]) == ("bird", "live")
    assert started["at"] - started["started_at"] >= 0.2
    assert client.hexists("tags:live", "bird")  # it has not ended: the worker has


async def test_the_next_worker_ends_the_tag_that_the_last_one_started(client: Client, redis_url: str) -> None:
    groups = {"groups": {"bird": ["0-255"]}, "min_duration": 0.2, "min_gap": 0.2, "memory": 0.2}
    async with working(settings(redis_url, cameras=[LIVE], tags=groups), FixedEngine()):
        await until(lambda: client.hexists("tags:live", "bird"))

    without = {"groups": {"bird": ["255"]}, "min_gap": 0.2}
    async with working(settings(redis_url, cameras=[LIVE], tags=without), FixedEngine()):
        await until(lambda: not client.hexists("tags:live", "bird"))

    (started,) = events(client, "tag.started")
    (ended,) = [event for event in events(client, "tag.ended") if event["tag"] == "bird"]
    assert ended["started_at"] == started["started_at"]
    assert ended["worker"] != started["worker"]


async def test_a_frame_like_the_last_one_reuses_its_labels_and_says_so(client: Client, redis_url: str) -> None:
    reuse = {"enabled": True, "difference": 255, "check": 0, "heartbeat": 60}
    engine = FixedEngine()

    async with working(settings(redis_url, cameras=[{**LIVE, "reuse": reuse}]), engine):
        engine.batches.clear()  # those that measured its rate
        await until(lambda: client.xlen("labels") >= 10)

    documents = [json.loads(fields[b"json"]) for _, fields in client.xrange("labels")]
    assert sum(document["reused"] for document in documents) >= len(documents) - 3
    assert sum(engine.batches) == sum(not document["reused"] for document in documents)
    assert len({document["frame_id"] for document in documents}) == len(documents)


async def test_the_labels_of_a_sick_picture_are_marked_and_an_event_says_so(client: Client, redis_url: str) -> None:
    # A clip that is the same picture for ever, as far as this camera can see: it takes one in each round.
    health = {"frozen_after": 1.0}
    still = {"name": "still", "url": str(CLIP), "fps": 0.07, "loop": True, "realtime": False, "health": health}

    async with working(settings(redis_url, cameras=[still]), FixedEngine()):
        await until(lambda: bool(events(client, "picture.sick")))
        await until(lambda: newest(client, "still")["picture"] == ["frozen"])

    assert events(client, "picture.sick")[0]["fault"] == "frozen"
    statuses = [fields[b"status"] for _, fields in client.xrange("labels")]
    assert (statuses[0], statuses[-1]) == (b"ok", b"frozen")


async def test_the_api_and_the_metrics_tell_of_each_camera_and_no_secret(client: Client, redis_url: str) -> None:
    dead = {"name": "dead", "url": "rtsp://viewer:hunter2@127.0.0.1:9/stream", "open_timeout": 2}

    async with working(settings(redis_url, cameras=[LIVE, dead]), FixedEngine()) as (service, ready):
        await until(lambda: client.hexists("labels:latest", "live"))
        await until(lambda: service.status.sources()["dead"].state == "down")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ready.port}") as http:
            cameras = {camera["name"]: camera for camera in (await http.get("/api/cameras")).json()}
            metrics = (await http.get("/metrics")).text

    assert cameras["live"]["state"] == "live"
    assert (cameras["dead"]["state"], cameras["dead"]["reason"]) == ("down", "unreachable")
    assert 'coatstream_camera_state{source="live",state="live"} 1.0' in metrics
    assert 'coatstream_camera_down{reason="unreachable",source="dead"} 1.0' in metrics
    assert "coatstream_fleet_held_cameras 2.0" in metrics
    assert "hunter2" not in metrics + json.dumps(cameras)
    assert service.ledger.snapshot()["live"].in_flight == 0


async def test_two_workers_do_not_read_one_camera(client: Client, redis_url: str) -> None:
    cameras = [{**LIVE, "name": f"cam-{number}"} for number in range(4)]
    tree = settings(redis_url, cameras=cameras, fleet={"lease": 2})

    async with working(tree, FixedEngine()) as (first, _), working(tree, FixedEngine()) as (second, _):
        await until(lambda: len(first.status.sources()) == 3 and len(second.status.sources()) == 3)  # and the queue

    fences: dict[str, dict[int, str]] = {}
    for _, fields in client.xrange("labels"):
        document = json.loads(fields[b"json"])
        fences.setdefault(document["source"], {}).setdefault(document["fence"], document["worker"])
        assert fences[document["source"]][document["fence"]] == document["worker"]
        assert document["fence"] == max(fences[document["source"]])


@pytest.mark.parametrize(
    ("more", "asked"),
    [({"fps": 4}, 4.0), ({"fps": 0}, 25.0), ({"url": "clip.mp4"}, 0.0), ({"url": "clip.mp4", "realtime": True}, 5.0)],
)
def test_what_a_camera_asks_of_the_model(more: dict[str, Any], asked: float) -> None:
    camera = CameraSettings.model_validate({"name": "door", "url": "rtsp://10.0.0.7/x", **more})

    assert demand(camera) == asked


def test_an_address_of_no_known_kind_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="door"):
        demand(CameraSettings.model_validate({"name": "door", "url": "gopher://10.0.0.7/x"}))
