"""The API as programs use it: what workers have left in Redis comes out, changes arrive there, and text stays text."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet.leases import Catalogue, CatalogueEntry, Leases
from coatstream.results.pictures import picture_id
from coatstream.results.reports import BatchReport, CameraReport, FramesReport, ModelReport, WorkerReport
from coatstream.web.calls import Busy, RedisCalls
from coatstream.web.live.hub import Hub

from tests.support.pages import page_of, page_settings
from tests.support.servers import ON_ONE_SERVER

pytestmark = ON_ONE_SERVER

KEYS = FleetKeys()
ODD = "<script>alert(1)</script>\u202e\x1b[31m javascript:alert(1)"


def label(source: str, text: str = "egret", at: float | None = None, **more: object) -> dict[str, Any]:
    """A label's document as a worker writes it."""
    now = time.time() if at is None else at
    return {
        "schema": 1, "frame_id": "f", "entry_id": None, "source": source, "captured_at": now, "published_at": now + 0.1,
        "labels": [{"index": 1, "wnid": None, "label": text, "score": 0.75}], "model": "m", "weights": "hub",
        "worker": "host-1-ab", "width": 640, "height": 480, "reused": False, "embedding": None, "meta": None, **more,
    }  # fmt: skip


def report(worker: str = "host-1-ab", **more: object) -> WorkerReport:
    values: dict[str, Any] = {"worker": worker, "at": time.time(), "started_at": time.time() - 60, "version": "1"}
    return WorkerReport.model_validate(values | more)


def event(client: Client, kind: str, camera: str, at: float | None = None, **detail: object) -> str:
    """An entry of the stream of events."""
    moment = time.time() if at is None else at
    document = {"schema": 1, "event": kind, "source": camera, "at": moment, "worker": "w", "fence": 1, **detail}
    fields = {"event": kind, "source": camera, "at": moment, **{name: str(value) for name, value in detail.items()}}
    entry: bytes = client.xadd("events", fields | {"json": json.dumps(document)}, id=f"{int(moment * 1000)}-*")
    return entry.decode()


async def get(http: httpx.AsyncClient, path: str, **query: object) -> Any:
    answer = await http.get(f"/api/{path}", params={name: str(value) for name, value in query.items()})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_camera_is_shown_with_its_state_tags_newest_label_and_worker(client: Client, redis_url: str) -> None:
    client.hset("cameras", "door", json.dumps({"url": "rtsp://me:hunter2@10.0.0.7/secret", "fps": 5}))
    Leases(client, KEYS, worker="host-1-ab", lease=60).beat(Catalogue((CatalogueEntry("door", "d"),)))
    client.hset("cameras:states", "door", '{"state": "live", "since": 1700000000.0, "worker": "host-1-ab"}')
    client.hset("tags:door", "egret", '{"score":0.5,"started_at":1700000001.0,"first_frame_id":"f"}')
    client.hset("labels:latest", "door", json.dumps(label("door")))
    cameras = {"door": CameraReport(fps=4.5, read_fps=25, sick=("blurred",), gate="the picture changes")}
    client.hset("cameras:reports", "host-1-ab", report(cameras=cameras).model_dump_json())

    async with page_of(page_settings(redis_url)) as http:
        page = await get(http, "cameras")

    (door,) = page["items"]
    assert page["next"] is None
    assert (door["name"], door["state"], door["worker"], door["url"]) == (
        "door",
        "live",
        "host-1-ab",
        "rtsp://10.0.0.7:554",
    )
    assert door["tags"] == [{"tag": "egret", "score": 0.75, "since": 1700000001.0}]
    assert (door["fps"], door["read_fps"], door["wanted_fps"], door["sick"]) == (4.5, 25, 5, ["blurred"])
    assert door["gate"] == "the picture changes"
    assert door["latest"]["labels"] == [{"label": "egret", "score": 0.75}]
    assert "hunter2" not in json.dumps(page)
    assert "secret" not in json.dumps(page)


async def test_a_thousand_cameras_come_in_pages_by_name(client: Client, redis_url: str) -> None:
    client.hset("cameras", mapping={f"cam-{number:04}": '{"url": "rtsp://h/1"}' for number in range(1000)})
    found, after = [], ""

    async with page_of(page_settings(redis_url)) as http:
        while True:
            page = await get(http, "cameras", limit=300, **({"after": after} if after else {}))
            found += [camera["name"] for camera in page["items"]]
            if page["next"] is None:
                break
            after = page["next"]

    assert found == [f"cam-{number:04}" for number in range(1000)]


async def test_cameras_are_added_paused_resumed_and_removed(client: Client, redis_url: str) -> None:
    async with page_of(page_settings(redis_url)) as http:
        camera = {"name": "yard/1", "url": "rtsp://10.0.0.8/1", "username": "me", "password": "hunter2", "fps": 2}
        added = await http.post("/api/cameras", json=camera)
        again = await http.post("/api/cameras", json=camera)
        bad = await http.post("/api/cameras", json={"name": "odd", "url": "file:///etc/passwd"})
        paused = await http.post("/api/cameras/pause", json={"name": "yard/1"})
        state = (await get(http, "cameras"))["items"][0]["state"]
        resumed = [await http.post("/api/cameras/resume", json={"name": "yard/1"}) for _ in range(2)]
        stored = json.loads(client.hget("cameras", "yard/1"))
        removed = [await http.delete("/api/cameras", params={"name": "yard/1"}) for _ in range(2)]

    assert (added.status_code, added.json()) == (201, {"done": "added yard/1"})
    assert (again.status_code, again.json()["error"]) == (
        409,
        "there is a camera yard/1 already: send replace: true to change it",
    )
    assert bad.status_code == 409
    assert (paused.status_code, state) == (200, "paused")
    assert [answer.status_code for answer in resumed] == [200, 404]
    assert stored == {"name": "yard/1", "url": "rtsp://10.0.0.8/1", "username": "me", "password": "hunter2", "fps": 2.0}
    assert [answer.status_code for answer in removed] == [200, 404]
    assert client.hlen("cameras") == 0
    assert "hunter2" not in added.text + again.text


async def test_events_come_newest_first_by_camera_label_kind_and_time_with_a_cursor(
    client: Client, redis_url: str
) -> None:
    now = time.time()
    for number in range(120):
        kind = "tag.started" if number % 2 else "tag.ended"
        event(
            client,
            kind,
            f"cam-{number % 3}",
            now - 3600 + 30 * number,
            tag="dog" if number % 4 else "Tibetan terrier",
            score=0.5,
        )
    client.xadd("events", {"not": "ours"})

    async with page_of(page_settings(redis_url)) as http:
        first = await get(http, "events", limit=50)
        second = await get(http, "events", limit=50, before=first["next"])
        third = await get(http, "events", limit=50, before=second["next"])
        terriers = await get(http, "events", label="TERRIER", camera="cam-0", limit=500)
        started = await get(http, "events", kind="tag.started", since="10m")
        early = await get(http, "events", until=now - 3000)

    seen = [one["id"] for page in (first, second, third) for one in page["items"]]
    assert (len(seen), seen, third["next"]) == (
        120,
        sorted(seen, key=lambda one: int(one.split("-")[0]), reverse=True),
        None,
    )
    assert len(terriers["items"]) == 10
    assert {(one["tag"], one["camera"]) for one in terriers["items"]} == {("Tibetan terrier", "cam-0")}
    assert {one["kind"] for one in started["items"]} == {"tag.started"}
    assert all(one["at"] >= now - 601 for one in started["items"])
    assert early["items"]
    assert all(one["at"] <= now - 3000 for one in early["items"])


async def test_a_request_for_rare_events_reads_a_bounded_number_and_goes_on(client: Client, redis_url: str) -> None:
    event(client, "tag.started", "door", 1_700_000_000, tag="unicorn")
    with client.pipeline() as batch:
        for number in range(6000):
            batch.xadd(
                "events",
                {"event": "tag.started", "source": "door", "tag": "dog", "json": "{}"},
                id=f"1700000001000-{number + 1}",
            )
        batch.execute()

    async with page_of(page_settings(redis_url)) as http:
        first = await get(http, "events", label="unicorn")
        second = await get(http, "events", label="unicorn", before=first["next"])

    assert (first["items"], len(second["items"]), second["next"]) == ([], 1, None)


async def test_a_picture_of_an_event_is_sent_once_and_then_its_tag_is_enough(client: Client, redis_url: str) -> None:
    name = picture_id("frame", 1_700_000_000.0)
    client.set(f"picture:{name}", b"\xff\xd8\xff\xe0jpeg")

    async with page_of(page_settings(redis_url)) as http:
        first = await http.get(f"/api/pictures/{name}")
        again = await http.get(f"/api/pictures/{name}", headers={"if-none-match": first.headers["etag"]})
        gone = await http.get(f"/api/pictures/{picture_id('other', 1.0)}")

    assert (first.status_code, first.content, first.headers["content-type"]) == (
        200,
        b"\xff\xd8\xff\xe0jpeg",
        "image/jpeg",
    )
    assert "immutable" in first.headers["cache-control"]
    assert (again.status_code, again.content) == (304, b"")
    assert gone.status_code == 404


@pytest.mark.parametrize(
    ("named", "status"),
    [
        ("{tag}", 304),
        ("W/{tag}", 304),
        ('"other", {tag}', 304),
        ('W/"other",W/{tag}', 304),
        ("*", 304),
        ('"other"', 200),
        ("", 200),
        ('"', 200),
    ],
)
async def test_a_tag_counts_also_where_a_proxy_weakened_it_or_several_are_named(
    client: Client, redis_url: str, named: str, status: int
) -> None:
    name = picture_id("frame", 1_700_000_000.0)
    client.set(f"picture:{name}", b"\xff\xd8\xff\xe0jpeg")

    async with page_of(page_settings(redis_url)) as http:
        for path in (f"/api/pictures/{name}", "/"):
            tag = (await http.get(path)).headers["etag"]
            again = await http.get(path, headers={"if-none-match": named.format(tag=tag)})
            assert (path, again.status_code) == (path, status)


async def test_dead_letters_are_listed_filtered_shown_replayed_and_dropped(client: Client, redis_url: str) -> None:
    why = {"error": "no", "deliveries": "1", "entry_id": "1-1", "died_at": "1700000000.5", "worker": "w"}
    for number in range(30):
        reason = "invalid" if number % 2 else "undecodable"
        client.xadd(
            "frames:dead",
            {"image": b"\x00" * 99, "source": f"s{number % 3}", "reason": reason, **why},
            id=f"{number + 1}-1",
        )

    async with page_of(page_settings(redis_url)) as http:
        first = await get(http, "dead", limit=20)
        rest = await get(http, "dead", limit=20, after=first["next"])
        some = await get(http, "dead", reason="invalid", source="s1")
        one = await get(http, "dead/letters/2-1", stream="frames")
        elsewhere = await http.get("/api/dead", params={"stream": "moon"})
        picture = await http.get("/api/dead/letters/2-1/picture")
        replayed = await http.post("/api/dead/replay", json={"letters": ["1-1", "99-1"]})
        dropped = await http.post("/api/dead/drop", json={"stream": "frames", "letters": ["2-1", "2-1"]})

    assert [len(page["items"]) for page in (first, rest)] == [20, 10]
    assert (rest["next"], {letter["source"] for letter in some["items"]}, len(some["items"])) == (None, {"s1"}, 5)
    assert (one["reason"], one["source"], one["sizes"], one["died_at"]) == (
        "invalid",
        "s1",
        {"image": 99},
        1700000000.5,
    )
    assert (elsewhere.status_code, picture.status_code) == (404, 404)
    assert replayed.json() == {"outcomes": {"1-1": "done", "99-1": "absent"}}
    assert dropped.json() == {"outcomes": {"2-1": "absent"}}
    assert (client.xlen("frames"), client.xlen("frames:dead")) == (1, 28)


async def test_the_overview_tells_of_workers_and_queues_and_the_ledger_sums_them_up(
    client: Client, redis_url: str
) -> None:
    frames = FramesReport(received=10, published=7, dropped={"stale": 2}, in_flight=1)
    model = ModelReport(name="coat", weights="random", engine="eager", precision="fp32", device="cpu")
    for worker in ("a", "b"):
        text = report(worker, frames=frames, model=model, batches=BatchReport(per_second=2, size=3)).model_dump_json()
        client.hset("cameras:reports", worker, text)
    client.hset("cameras:reports", "vanished", report("vanished", at=time.time() - 99).model_dump_json())
    client.hset("cameras:reports", "strange", "{")
    client.xadd("frames", {"image": b"x"})

    async with page_of(page_settings(redis_url)) as http:
        found = await get(http, "overview")
        ledger = await get(http, "ledger")

    assert [worker["worker"] for worker in found["workers"]] == ["a", "b"]
    assert (found["queues"][0]["stream"], found["queues"][0]["entries"]) == ("frames", 1)
    assert ledger["total"] == {"received": 20, "published": 14, "dropped": {"stale": 4}, "dead": {}, "in_flight": 2}


async def test_text_of_strangers_stays_text_and_secrets_in_it_are_hidden(client: Client, redis_url: str) -> None:
    client.hset("labels:latest", ODD, json.dumps(label(ODD, ODD, meta={"x": ODD})))
    client.hset("labels:latest", "nonsense", "{" * 5000)
    event(
        client,
        "camera.state",
        ODD,
        state=ODD,
        message="rtsp://me:hunter2@10.0.0.7/1 " + ODD,
        odd=float("inf"),
        deep={"a": [1]},
    )
    client.xadd(
        "frames:dead",
        {
            "image": b"x",
            "source": ODD,
            "reason": ODD,
            "error": "http://me:hunter2@h/ " + ODD,
            "deliveries": "1",
            "entry_id": "1-1",
            "died_at": "x",
            "worker": ODD,
        },
    )

    async with page_of(page_settings(redis_url)) as http:
        labels, events, letters = await get(http, "labels"), await get(http, "events"), await get(http, "dead")
        answers = [await http.get(f"/api/{path}") for path in ("labels", "events", "dead")]

    assert labels["items"][0]["source"] == labels["items"][0]["labels"][0]["label"] == ODD
    assert events["items"][0]["camera"] == letters["items"][0]["source"] == ODD
    assert "hunter2" not in "".join(answer.text for answer in answers)
    assert all(answer.headers["content-type"] == "application/json" for answer in answers)
    assert all(answer.headers["x-content-type-options"] == "nosniff" for answer in answers)


async def test_while_redis_is_away_each_answer_says_so(redis_url: str) -> None:
    async with page_of(page_settings("redis://me:hunter2@127.0.0.1:1")) as http:
        answers = [
            await http.get(f"/api/{path}") for path in ("cameras", "events", "labels", "queues", "dead", "ledger")
        ]
        page = await http.get("/")

    assert {answer.status_code for answer in answers} == {503}
    assert "hunter2" not in "".join(answer.text for answer in answers)
    assert page.status_code == 200


async def test_the_stream_begins_with_everything_goes_on_with_what_is_new_and_resumes(
    client: Client, redis_url: str
) -> None:
    client.hset("cameras", "door", '{"url": "rtsp://h/1"}')
    first = event(client, "tag.started", "door", tag="old")
    seen: list[tuple[str, Any]] = []

    async def read(http: httpx.AsyncClient, until: str, **query: str) -> None:
        async with http.stream("GET", "/api/live", params=query) as answer:
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                    if name == "cameras" and not client.hexists("cameras", "yard"):
                        client.hset("cameras", "yard", '{"url": "rtsp://h/2"}')
                        client.incr("cameras:version")
                        event(client, "tag.started", "door", tag="new")
                elif line.startswith("data: "):
                    seen.append((name, json.loads(line[6:])))
                    if name == until:
                        return

    async with page_of(page_settings(redis_url)) as http:
        await read(http, "event")
        resumed = len(seen)
        await read(http, "event", after=first)

    cameras = [document for name, document in seen[:resumed] if name == "cameras"]
    assert cameras[0]["whole"]
    assert [camera["name"] for camera in cameras[0]["set"]] == ["door"]
    assert "overview" in dict(seen)
    assert [document["tag"] for name, document in seen if name == "event"] == ["new", "new"]


@pytest.mark.parametrize("path", ["/api/live", "/api/labels/live?source=door"])
async def test_more_streams_than_fit_are_refused_and_probes_still_answer(redis_url: str, path: str) -> None:
    async with page_of(page_settings(redis_url)) as http:
        streams = [http.stream("GET", path) for _ in range(24)]
        for stream in streams:
            await stream.__aenter__()
        refused = await http.get("/api/live")
        healthy = await http.get("/healthz")
        for stream in streams:
            await stream.__aexit__(None, None, None)

    assert (refused.status_code, healthy.status_code) == (503, 200)


async def test_what_happens_while_a_page_opens_its_stream_anew_is_not_missed_though_it_has_seen_no_event_yet(
    client: Client, redis_url: str
) -> None:
    async def read(http: httpx.AsyncClient, until: str, **query: str) -> tuple[str, str]:
        """Id and data of the first message of this kind."""
        async with http.stream("GET", "/api/live", params=query) as answer:
            name = number = ""
            async for line in answer.aiter_lines():
                name = line[7:] if line.startswith("event: ") else name
                number = line[4:] if line.startswith("id: ") else number
                if line.startswith("data: ") and name == until:
                    return number, line[6:]
        raise AssertionError("the stream ended")

    async with page_of(page_settings(redis_url)) as http:
        position, _ = await read(http, "cameras")
        event(client, "tag.started", "door", tag="egret")
        _, missed = await read(http, "event", after=position)

    assert json.loads(missed)["tag"] == "egret"


async def test_a_page_that_comes_back_while_the_server_ends_is_refused(redis_url: str) -> None:
    settings = page_settings(redis_url)
    hub = Hub(settings, RedisCalls(settings))
    async with hub.running():
        before = hub.watch()

    with pytest.raises(Busy, match="this server ends"):
        hub.watch()

    assert [message async for message in before.messages()] == [b": coatstream\n\n"]


async def test_labels_of_one_source_come_as_they_are_published(client: Client, redis_url: str) -> None:
    async with (
        page_of(page_settings(redis_url)) as http,
        http.stream("GET", "/api/labels/live", params={"source": "door"}) as answer,
    ):
        async for line in answer.aiter_lines():
            client.publish("labels:door", json.dumps(label("door")))
            if line.startswith("data: ") and "egret" in line:
                break
    assert json.loads(line[6:])["source"] == "door"


async def test_a_reader_that_goes_at_once_leaves_room_for_others(redis_url: str) -> None:
    async with page_of(page_settings(redis_url)) as http:
        port = http.base_url.port
        for _ in range(60):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await writer.drain()
            writer.transport.abort()
        await asyncio.sleep(0.5)
        async with http.stream("GET", "/api/live") as answer:
            status = answer.status_code

    assert status == 200
