"""Cameras inside a whole worker: tags, reuse, sick pictures, metrics and the API, on a real server and a real clip."""

import asyncio
import json
import random
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from coatstream.broker.connection import Client
from coatstream.broker.embedded import EmbeddedServer
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.active import ActiveCameras
from coatstream.cameras.camera import CameraContext
from coatstream.cameras.capacity import demand
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.fleet.registry import Registry
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.engine.backends.noop import NoopEngine
from coatstream.errors import ConfigError, EngineBroken
from coatstream.pipeline.intake import Intake
from coatstream.pipeline.mailbox import Mailbox
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.results.events.publisher import EventPublisher
from coatstream.results.events.tag_classes import tag_classes
from coatstream.service import Service
from coatstream.settings.model import CameraSettings
from coatstream.telemetry.status import Status
from coatstream.telemetry.telemetry import Telemetry
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from tests.service.test_story import settings, until, working
from tests.support.doubles import SPEC, FixedEngine
from tests.support.pictures import CLIP, grey_jpeg
from tests.support.servers import ON_ONE_SERVER


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
        await until(lambda: b"seen_at" in (client.hget("tags:live", "bird") or b""))
        present = json.loads(client.hget("tags:live", "bird"))
        assert 0 < client.pttl("tags:live") <= 120_000  # what no worker looks after does not stay for ever
        assert 0 < client.pttl("cameras:states") <= 120_000

    (started,) = events(client, "tag.started")
    assert (started["tag"], started["source"], started["model"]) == ("bird", "live", "fixed")
    assert started["at"] - started["started_at"] >= 0.2
    assert present["model"] == "fixed"
    assert present["seen_at"] >= present["started_at"] == started["started_at"]


async def test_when_the_last_worker_leaves_the_tags_of_its_cameras_end_and_their_states_say_so(
    client: Client, redis_url: str
) -> None:
    tags = {"min_duration": 0.2, "groups": {"bird": ["0-255"]}}

    async with working(settings(redis_url, cameras=[LIVE], tags=tags), FixedEngine()):
        await until(lambda: client.hexists("tags:live", "bird"))

    (ended,) = events(client, "tag.ended")
    assert (ended["why"], ended["tag"]) == ("no_worker", "bird")
    assert ended["duration"] >= 0
    assert not client.exists("tags:live")
    state = json.loads(client.hget("cameras:states", "live"))
    assert (state["state"], state["reason"]) == ("unread", "no_worker")


async def test_a_tag_that_another_model_saw_ends_as_model(client: Client, redis_url: str) -> None:
    began = time.time() - 100
    seen = {"score": 0.9, "started_at": began, "first_frame_id": "f", "model": "another", "seen_at": began + 5}
    client.hset("tags:live", "cat", json.dumps(seen, separators=(",", ":")))
    tags = {"groups": {"bird": ["0-255"]}}

    async with working(settings(redis_url, cameras=[LIVE], tags=tags), FixedEngine()):
        await until(lambda: bool(events(client, "tag.ended")))

    ended = events(client, "tag.ended")[0]
    assert (ended["why"], ended["tag"], ended["model"]) == ("model", "cat", "another")
    assert ended["duration"] == pytest.approx(5, abs=0.01)  # not to now: clocks of two workers may differ


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


@ON_ONE_SERVER
async def test_a_file_that_is_read_to_its_end_leaves_no_tag_behind(client: Client, redis_url: str) -> None:
    tags = {"min_duration": 0, "memory": 0.001, "min_gap": 3600, "groups": {"any": ["0-255"]}}
    clip = {"name": "clip", "url": str(CLIP), "fps": 5}
    tree = settings(redis_url, cameras=[clip], tags=tags, queue={"enabled": False})

    await asyncio.wait_for(Service(tree, load=lambda model, batch: FixedEngine()).run(asyncio.Event()), 30)

    (started,), (ended,) = events(client, "tag.started"), events(client, "tag.ended")
    frames = [fields[b"frame_id"].decode() for _, fields in client.xrange("labels")]
    assert (ended["first_frame_id"], ended["last_frame_id"]) == (frames[0], frames[-1])
    assert (started["tag"], ended["why"]) == ("any", "ended")
    assert client.exists("tags:clip") == 0


@ON_ONE_SERVER
async def test_an_ended_file_beside_others_leaves_no_tag_behind_either(client: Client, redis_url: str) -> None:
    tags = {"min_duration": 0, "memory": 0.001, "min_gap": 3600, "groups": {"any": ["0-255"]}}
    clips = [{"name": f"clip-{shared}", "url": str(CLIP), "fps": 5, "shared": shared} for shared in (True, False)]

    async with working(settings(redis_url, cameras=[*clips, LIVE], tags=tags), FixedEngine()):
        await until(lambda: len(events(client, "tag.ended")) == 2)

        assert client.exists("tags:clip-True", "tags:clip-False") == 0


@ON_ONE_SERVER
async def test_tags_that_are_switched_off_end(client: Client, redis_url: str) -> None:
    client.hset("tags:live", "bird", '{"score":0.9,"started_at":1700000000.5,"first_frame_id":"f"}')

    async with working(settings(redis_url, cameras=[LIVE], tags={"enabled": False, "min_gap": 0.2}), FixedEngine()):
        await until(lambda: not client.exists("tags:live"))

    (ended,) = events(client, "tag.ended")
    assert (ended["tag"], ended["started_at"], ended["why"]) == ("bird", 1700000000.5, "gone")
    assert events(client, "tag.started") == []


@ON_ONE_SERVER
async def test_a_camera_from_redis_with_tags_that_cannot_be_is_left_out_and_harms_no_other(
    client: Client, redis_url: str
) -> None:
    client.hset("cameras", "odd", json.dumps({"url": str(CLIP), "realtime": True, "tags": {"include": ["unicorn"]}}))

    async with working(settings(redis_url, cameras=[LIVE], fleet={"local": True}), FixedEngine()):
        await until(lambda: client.xlen("labels") > 5)

    assert client.hkeys("labels:latest") == [b"live"]
    assert {event["fence"] for event in events(client, "camera.state")} == {newest(client, "live")["fence"]}


@ON_ONE_SERVER
async def test_of_a_removed_camera_nothing_is_left_but_what_was_said(client: Client, redis_url: str) -> None:
    guest = CameraSettings.model_validate({**LIVE, "name": "guest"})
    cameras = Registry(client, FleetKeys(), most=10)
    cameras.add(guest)
    client.hset("tags:guest", "bird", '{"score":0.9,"started_at":1700000000.5,"first_frame_id":"f"}')

    async with working(settings(redis_url, fleet={"local": True}), FixedEngine()) as (service, _):
        await until(lambda: client.xlen("labels") > 0)  # its tags are this worker's from the first frame on
        cameras.remove("guest")
        await until(lambda: any(event["state"] == "removed" for event in events(client, "camera.state")))
        assert list(service.cameras.reports()) == []

    assert [(event["tag"], event["why"]) for event in events(client, "tag.ended")] == [("bird", "removed")]
    assert events(client, "camera.state")[-1]["state"] == "removed"
    assert client.exists("tags:guest", "cameras:states") == 0


@ON_ONE_SERVER
async def test_a_worker_whose_engine_breaks_leaves_its_cameras_to_the_next_one(client: Client, redis_url: str) -> None:
    engine, tree = FixedEngine(), settings(redis_url, cameras=[LIVE])

    run = asyncio.create_task(Service(tree, load=lambda model, batch: engine).run(asyncio.Event()))
    await until(lambda: client.hexists("labels:latest", "live"))
    engine.broken = True
    with pytest.raises(EngineBroken):
        await asyncio.wait_for(run, 30)
    said = client.xlen("labels")

    assert "ended" not in [event["state"] for event in events(client, "camera.state")]
    async with working(tree, FixedEngine()):
        await until(lambda: client.xlen("labels") > said)


async def test_a_frame_like_the_last_one_reuses_its_labels_and_says_so(client: Client, redis_url: str) -> None:
    reuse = {"enabled": True, "difference": 255, "check": 0, "heartbeat": 60}
    engine = FixedEngine()

    camera = {
        **LIVE,
        "reuse": reuse,
        "view": "centre",
        "tags": {"enabled": False},
    }  # its labels change, and no tag is near a threshold
    async with working(settings(redis_url, cameras=[camera]), engine):
        engine.batches.clear()  # those that measured its rate
        await until(lambda: client.xlen("labels") >= 10)

    documents = [json.loads(fields[b"json"]) for _, fields in client.xrange("labels")]
    assert sum(document["reused"] for document in documents) >= len(documents) - 4
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
        await until(lambda: service.telemetry.status.sources()["dead"].state == "down")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ready.port}") as http:
            cameras = {camera["name"]: camera for camera in (await http.get("/api/cameras")).json()["items"]}
            metrics = (await http.get("/metrics")).text

    assert cameras["live"]["state"] == "live"
    assert (cameras["dead"]["state"], cameras["dead"]["reason"]) == ("down", "unreachable")
    assert 'coatstream_camera_state{source="live",state="live"} 1.0' in metrics
    assert 'coatstream_camera_down{reason="unreachable",source="dead"} 1.0' in metrics
    assert "coatstream_fleet_held_cameras 2.0" in metrics
    assert "hunter2" not in metrics + json.dumps(cameras)
    assert service.telemetry.ledger.snapshot()["live"].in_flight == 0


async def test_two_workers_do_not_read_one_camera(client: Client, redis_url: str) -> None:
    cameras = [{**LIVE, "name": f"cam-{number}"} for number in range(4)]
    tree = settings(redis_url, cameras=cameras, fleet={"lease": 2})

    async with working(tree, FixedEngine()) as (first, _), working(tree, FixedEngine()) as (second, _):
        await until(
            lambda: len(first.telemetry.status.sources()) == 3 and len(second.telemetry.status.sources()) == 3
        )  # and the queue

    fences: dict[str, dict[int, str]] = {}
    for _, fields in client.xrange("labels"):
        document = json.loads(fields[b"json"])
        fences.setdefault(document["source"], {}).setdefault(document["fence"], document["worker"])
        assert fences[document["source"]][document["fence"]] == document["worker"]
        assert document["fence"] == max(fences[document["source"]])


class Impatient(random.Random):
    """A lost camera is opened again soon."""

    def uniform(self, a: float, b: float) -> float:
        return min(b, 0.1)


@asynccontextmanager
async def cameras_without_a_fleet(client: Client, **sections: Any) -> AsyncIterator[tuple[ActiveCameras, Status]]:
    """A test says which cameras there are."""
    tree, engine = settings("redis://", **sections), FixedEngine()
    telemetry, lost = Telemetry.of(tree), threading.Event()
    mailbox = Mailbox(8, telemetry.ledger)
    telemetry.status.redis_up("start")
    health = telemetry.outages.of("events")
    event_publisher = EventPublisher(client, FleetKeys(), tree.events, worker="me", health=health)
    intake = Intake(mailbox, telemetry, rng=Impatient())
    with ForkServer(SPEC) as fork_server:
        context = CameraContext(
            tree,
            SPEC,
            engine.labels,
            tag_classes(tree.tags, engine.labels),
            fork_server,
            event_publisher,
            telemetry,
            PipelineMetrics(CollectorRegistry()),
            asyncio.get_running_loop(),
        )
        thread = threading.Thread(target=event_publisher.run, args=(lost,))
        thread.start()
        try:
            yield ActiveCameras({}, context, intake), telemetry.status
        finally:
            mailbox.close()
            assert await intake.halt(within=10) == []
            lost.set()
            thread.join(10)


@ON_ONE_SERVER
async def test_a_camera_that_was_down_before_it_became_ours_is_said_to_be_and_its_tags_end(client: Client) -> None:
    client.hset("tags:yard", "bird", '{"score":0.9,"started_at":1700000000.5,"first_frame_id":"f"}')
    camera = CameraSettings.model_validate({"name": "yard", "url": "rtsp://127.0.0.1:9/stream", "open_timeout": 2})
    lease = CameraLease()

    async with cameras_without_a_fleet(client, tags={"lost_after": 0.5}) as (cameras, status):
        cameras.start(camera, lease)
        await until(lambda: [source.state for source in status.sources().values()] == ["down"])
        assert client.exists("events") == 0  # another worker speaks for it
        lease.grant(7, until=float("inf"))
        cameras.tick()
        await until(lambda: client.hexists("cameras:states", "yard"))
        async with asyncio.timeout(60):
            while not events(client, "tag.ended"):
                cameras.tick()
                await asyncio.sleep(0.01)

    assert [(event["state"], event["fence"]) for event in events(client, "camera.state")] == [("down", 7)]
    assert [(event["tag"], event["why"]) for event in events(client, "tag.ended")] == [("bird", "camera_lost")]
    assert client.exists("tags:yard") == 0


@ON_ONE_SERVER
async def test_each_region_of_a_camera_has_a_gate_with_settings_of_its_own(client: Client) -> None:
    corners = [[0, 0], [0.5, 0.5]]
    regions = [
        {"name": "gate", "at": corners, "reuse": {"enabled": True, "difference": 8}},
        {"name": "till", "at": corners},
        {"name": "sky", "at": corners, "reuse": {"enabled": False}},
    ]
    common = {"url": "rtsp://127.0.0.1:9/stream", "open_timeout": 2}
    yard = CameraSettings.model_validate({"name": "yard", "view": regions, **common})
    door = CameraSettings.model_validate({"name": "door", "reuse": {"enabled": True}, **common})
    plain = CameraSettings.model_validate({"name": "plain", "reuse": {"enabled": False}, **common})

    async with cameras_without_a_fleet(client, reuse={"enabled": True, "difference": 3}) as (cameras, _):
        for camera in (yard, door, plain):
            cameras.start(camera, CameraLease())
        await until(lambda: len(cameras.policies) == 3)
        found = {name: policy.gates and policy.gates.stats() for name, policy in cameras.policies.items()}

    allowed = {name: {region: one.difference for region, one in (stats or {}).items()} for name, stats in found.items()}
    assert allowed == {"yard": {"gate": 8, "till": 3}, "door": {"": 4}, "plain": {}}


@ON_ONE_SERVER
async def test_regions_beyond_the_picture_are_logged_once(client: Client, redis_url: str) -> None:
    regions = [{"name": "till", "at": [[1000, 100], [1900, 300]]}, {"name": "gate", "at": [[0, 0], [320, 180]]}]
    with capture_logs() as log:
        async with working(settings(redis_url, cameras=[LIVE | {"view": regions}]), FixedEngine()):
            await until(lambda: client.xlen("labels") >= 5)

    beyond = [line for line in log if line["event"] == "regions reach beyond the picture"]
    assert [(line["source"], line["regions"], line["picture"]) for line in beyond] == [("live", ("till",), "640 x 360")]


@ON_ONE_SERVER
async def test_what_was_read_is_labelled_before_another_worker_gets_the_camera(client: Client, redis_url: str) -> None:
    clip = {"name": "clip", "url": str(CLIP), "fps": 0}  # a file waits for the model, and cannot be opened by a standby
    tree, stop = settings(redis_url, cameras=[clip], batch={"max_size": 4}, queue={"prefetch": 16}), asyncio.Event()
    slow = Service(tree, load=lambda model, batch: NoopEngine("noop", (1, 2, 4), delay=0.3))
    run = asyncio.create_task(slow.run(stop))
    await until(lambda: client.hexists("labels:latest", "clip"))
    fence = client.hget("cameras:fences", "clip")

    async with working(tree, FixedEngine()):
        stop.set()
        await asyncio.wait_for(run, 30)
        await until(lambda: client.hget("cameras:fences", "clip") != fence)

    account = slow.telemetry.ledger.snapshot()["clip"]
    assert slow.drained
    assert account.published == account.received > 16


@ON_ONE_SERVER
async def test_a_server_that_goes_away_while_the_model_is_loaded_is_waited_for(
    client: Client, redis_url: str, redis_server: EmbeddedServer
) -> None:
    redis = {"url": redis_url, "socket_timeout": 0.5, "connect_timeout": 0.5}
    ready, stop = asyncio.Event(), asyncio.Event()

    def load(model: object, batch: object) -> FixedEngine:
        redis_server.process.send_signal(signal.SIGSTOP)
        return FixedEngine()

    service = Service(settings("", redis=redis, cameras=[LIVE]), load=load, on_ready=lambda _: ready.set())
    run = asyncio.create_task(service.run(stop))
    try:
        await asyncio.wait([run, asyncio.ensure_future(ready.wait())], timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert service.telemetry.status.unready_because()
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    await until(lambda: client.hexists("labels:latest", "live") and not service.telemetry.status.unready_because())
    stop.set()
    await asyncio.wait_for(run, 30)

    assert ready.is_set()


@ON_ONE_SERVER
async def test_cameras_of_ones_own_leave_less_room_for_shared_ones(redis_url: str) -> None:
    own = {"name": "own", "url": "rtsp://127.0.0.1:9/stream", "fps": 20, "shared": False}
    tree = settings(redis_url, cameras=[own], fleet={"overload": "refuse"})
    service = Service(tree)

    assert service.cameras.room(100.0) == pytest.approx(0.9 * 100 - 40)  # two inputs a frame


@ON_ONE_SERVER
async def test_without_the_right_to_events_a_worker_is_ready_and_hands_its_queue_back(
    client: Client, redis_url: str
) -> None:
    client.hset("cameras", "live", json.dumps({key: value for key, value in LIVE.items() if key != "name"}))
    keys = ("~frames*", "~labels*", "~cameras*")
    client.execute_command("ACL", "SETUSER", "mute", "reset", "on", ">pw", *keys, "&*", "+@all")
    url = redis_url.replace("unix://", "unix://mute:pw@")
    tree = settings(url, fleet={"local": True}, drain={"timeout": 3600})
    try:
        async with working(tree, FixedEngine()) as (service, _):
            registry = service.telemetry.metrics.registry
            await until(lambda: client.xlen("labels") > 5)
            await until(lambda: bool(registry.get_sample_value("coatstream_redis_errors_total")))
            assert service.telemetry.status.unready_because() == []
    finally:
        client.execute_command("ACL", "DELUSER", "mute")

    assert service.drained
    assert client.xinfo_consumers("frames", "coatstream") == []


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ({"fps": 4}, 8.0),
        ({"fps": 4, "view": "centre"}, 4.0),
        ({"fps": 0, "view": "centre"}, 25.0),
        ({"url": "clip.mp4"}, 0.0),
        ({"url": "clip.mp4", "realtime": True, "view": "centre"}, 5.0),
    ],
)
def test_what_a_camera_asks_of_the_model(more: dict[str, Any], asked: float) -> None:
    camera = CameraSettings.model_validate({"name": "door", "url": "rtsp://10.0.0.7/x", **more})

    assert demand(camera) == asked


def test_an_address_of_no_known_kind_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="door"):
        demand(CameraSettings.model_validate({"name": "door", "url": "gopher://10.0.0.7/x"}))


async def test_a_folders_labels_name_their_files_and_a_bad_one_is_said(
    client: Client, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "well.jpg").write_bytes(grey_jpeg(42))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    folder = {"name": "drop", "url": f"{tmp_path}/", "backlog": True}

    async with working(settings(redis_url, cameras=[folder]), FixedEngine()) as (service, _):
        await until(lambda: service.telemetry.ledger.snapshot()["drop"].published == 1)
        await until(lambda: service.telemetry.ledger.snapshot()["drop"].dead.total() == 1)

    assert newest(client, "drop")["meta"] == {"file": "well.jpg"}
    assert "broken.jpg" in capsys.readouterr().out


async def test_a_folder_in_which_nothing_happens_is_live(client: Client, redis_url: str, tmp_path: Path) -> None:
    folder = {"name": "drop", "url": f"{tmp_path}/"}

    async with working(settings(redis_url, cameras=[folder]), FixedEngine()) as (service, _):
        await until(
            lambda: (
                "drop" in service.telemetry.status.sources()
                and service.telemetry.status.sources()["drop"].state == "live"
            )
        )

    assert client.xlen("labels") == 0


async def test_a_still_picture_that_plays_for_ever_keeps_the_cameras_rate(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "still.jpg").write_bytes(grey_jpeg(42))
    still = {"name": "still", "url": str(tmp_path / "still.jpg"), "fps": 5, "realtime": True, "loop": True}

    async with working(settings(redis_url, cameras=[still]), FixedEngine()):
        await until(lambda: client.xlen("labels") >= 6)

    times = [float(fields[b"captured_at"]) for _, fields in client.xrange("labels")]
    assert (len(times) - 1) / (times[-1] - times[0]) < 6
