"""The tutorial: one worker, from frames to labels, on a real server. Read it top to bottom."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from coatstream.broker.connection import Client
from coatstream.errors import EngineBroken, EngineError, RedisUnavailable
from coatstream.service import Ready, Service
from coatstream.settings.model import SettingsTree
from coatstream.telemetry.identity import Lineage
from coatstream.telemetry.ledger import DropReason

from tests.support.doubles import FixedEngine
from tests.support.pictures import CLIP, grey_jpeg


def settings(url: str, **sections: object) -> SettingsTree:
    return SettingsTree.model_validate({"redis": {"url": url}, "http": {"port": 0}, **sections})


@asynccontextmanager
async def working(tree: SettingsTree, engine: FixedEngine) -> AsyncIterator[tuple[Service, Ready]]:
    """A worker that runs while entered, and has drained when left."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Ready] = loop.create_future()
    stop = asyncio.Event()
    service = Service(tree, on_ready=ready.set_result, load=lambda model, batch: engine)
    run = asyncio.create_task(service.run(stop))
    try:
        yield service, await asyncio.wait_for(ready, 10)
    finally:
        stop.set()
        engine.gate.set()
        await asyncio.wait_for(run, 30)


async def until(holds: Callable[[], bool]) -> None:
    """Let the worker work until something holds."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_frame_in_the_queue_becomes_a_label_and_leaves_the_queue(client: Client, redis_url: str) -> None:
    client.xadd("frames", {"image": grey_jpeg(42), "source": "door-1", "meta": '{"lane": 3}'})

    async with working(settings(redis_url), FixedEngine()):
        await until(lambda: client.xlen("labels") == 1)

    ((_, fields),) = client.xrange("labels")
    document = json.loads(fields[b"json"])
    assert document["source"] == "door-1"
    assert document["labels"][0]["label"] == "class 42"
    assert document["meta"] == {"lane": 3}
    assert client.xlen("frames") == 0


async def test_a_camera_is_a_few_lines_of_settings(client: Client, redis_url: str) -> None:
    camera = {"name": "bird", "url": str(CLIP), "fps": 2}

    async with working(settings(redis_url, cameras=[camera]), FixedEngine()) as (service, _):
        await until(
            lambda: (
                "bird" in service.telemetry.status.sources()
                and service.telemetry.status.sources()["bird"].state == "ended"
            )
        )

    assert client.xlen("labels") == 28  # 14 s of clip at 2 frames a second, none lost
    assert client.hexists("labels:latest", "bird")


async def test_a_live_camera_gives_its_newest_frame_and_counts_those_it_replaced(
    client: Client, redis_url: str
) -> None:
    engine = FixedEngine()
    camera = {"name": "live", "url": str(CLIP), "fps": 20, "realtime": True, "loop": True}

    async with working(settings(redis_url, cameras=[camera]), engine) as (service, _):
        await until(lambda: client.xlen("labels") > 0)
        engine.gate.clear()  # the model is slow now
        await until(lambda: service.telemetry.ledger.total().dropped[DropReason.REPLACED] >= 3)
        engine.gate.set()

    total = service.telemetry.ledger.total()
    assert total.in_flight == 0
    assert client.xlen("labels") == total.published


async def test_the_probes_and_the_metrics_tell_how_it_goes(client: Client, redis_url: str) -> None:
    async with working(settings(redis_url), FixedEngine()) as (_, ready), httpx.AsyncClient() as http:
        site = f"http://127.0.0.1:{ready.port}"
        for _ in range(10):
            client.xadd("frames", {"image": grey_jpeg(1), "source": "door"})
        await until(lambda: client.xlen("labels") == 10)

        probes = [(await http.get(f"{site}/{probe}")).status_code for probe in ("healthz", "readyz")]
        metrics = (await http.get(f"{site}/metrics")).text

    assert probes == [200, 200]
    assert 'coatstream_frames_published_total{source="door"} 10.0' in metrics
    assert 'coatstream_frames_in_flight{source="door"} 0.0' in metrics
    assert 'coatstream_stage_seconds_count{stage="decode"} 10.0' in metrics


async def test_leaving_drains_a_batch_in_work_is_published_and_the_rest_goes_back_to_the_queue(
    client: Client, redis_url: str
) -> None:
    engine = FixedEngine()

    async with working(settings(redis_url), engine) as (service, _):
        engine.gate.clear()
        while engine.entered.acquire(blocking=False):  # the batches by which it was measured
            pass
        for number in range(40):
            client.xadd("frames", {"image": grey_jpeg(1), "frame_id": str(number)})
        assert await asyncio.to_thread(engine.entered.acquire, timeout=10)

    published = service.telemetry.ledger.total().published
    assert service.drained
    assert 0 < published == client.xlen("labels")
    assert client.xlen("frames") == 40 - published
    assert {consumer["name"] for consumer in client.xinfo_consumers("frames", "coatstream")} == {b"_released"}


async def test_two_workers_share_a_queue_and_label_nothing_twice(client: Client, redis_url: str) -> None:
    async with (
        working(settings(redis_url), FixedEngine()) as (one, _),
        working(settings(redis_url), FixedEngine()) as (two, _),
    ):
        for number in range(300):
            client.xadd("frames", {"image": grey_jpeg(1), "frame_id": str(number)})
        await until(lambda: client.xlen("frames") == 0)

    ids = [fields[b"frame_id"] for _, fields in client.xrange("labels")]
    assert len(ids) == len(set(ids)) == 300
    assert one.telemetry.ledger.total().published + two.telemetry.ledger.total().published == 300


async def test_a_model_that_cannot_be_loaded_ends_the_start_and_leaves_nothing_running(redis_url: str) -> None:
    def load(model: object, batch: object) -> FixedEngine:
        raise EngineError("no such weights")

    service = Service(settings(redis_url), load=load)

    with pytest.raises(EngineError, match="no such weights"):
        await asyncio.wait_for(service.run(asyncio.Event()), 10)


async def test_a_server_that_is_not_there_ends_the_start() -> None:
    service = Service(settings("redis://127.0.0.1:1"), load=lambda model, batch: FixedEngine())

    with pytest.raises(RedisUnavailable, match=r"cannot reach Redis at redis://127\.0\.0\.1:1"):
        await asyncio.wait_for(service.run(asyncio.Event()), 10)


async def test_an_engine_that_breaks_ends_the_worker_and_leaves_the_frames_in_the_queue(
    client: Client, redis_url: str
) -> None:
    engine = FixedEngine()
    for _ in range(5):
        client.xadd("frames", {"image": grey_jpeg(1)})

    def breaks(_: int) -> None:
        engine.broken = True

    service = Service(settings(redis_url), load=lambda model, batch: engine, on_warm=breaks)

    with pytest.raises(EngineBroken, match="fails on every picture"):
        await asyncio.wait_for(service.run(asyncio.Event()), 20)

    assert not service.drained
    assert (client.xlen("frames"), client.xlen("frames:dead"), client.xlen("labels")) == (5, 0, 0)


async def test_what_a_crashed_worker_held_can_be_taken_before_its_successor_has_loaded_the_model(
    client: Client, redis_url: str
) -> None:
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    client.xadd("frames", {"image": grey_jpeg(1)})
    client.xreadgroup("coatstream", "dead", {"frames": ">"})
    owners: list[tuple[bytes, int]] = []

    def load(model: object, batch: object) -> FixedEngine:
        pending = client.xpending_range("frames", "coatstream", "-", "+", 10)
        owners.extend((entry["consumer"], entry["times_delivered"]) for entry in pending)
        raise EngineError("the model is no matter here")

    service = Service(settings(redis_url), lineage=Lineage(1, ("dead",)), load=load)
    with pytest.raises(EngineError):
        await asyncio.wait_for(service.run(asyncio.Event()), 10)

    assert owners == [(b"_released", 1)]
