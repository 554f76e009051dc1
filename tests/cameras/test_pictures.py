"""Pictures for people inside a whole worker: with events, of a camera that is lost, on a watcher's wish, to label."""

import csv
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from coatstream.broker.connection import Client
from coatstream.broker.picture_keys import PictureKeys
from coatstream.frames.decoding import decode
from coatstream.frames.frame import Pixels
from coatstream.results.pictures import EventPictures
from coatstream.results.previews import Preview, parse_preview, wish
from coatstream.settings.model import SettingsTree

from tests.cameras.test_active import LIVE, events
from tests.service.test_story import settings, until, working
from tests.support.doubles import FixedEngine
from tests.support.pictures import grey_jpeg
from tests.support.servers import ON_ONE_SERVER

if sys.platform != "linux":
    pytest.skip("Linux only", allow_module_level=True)

pytestmark = ON_ONE_SERVER
TAGS = {"min_duration": 0.2, "groups": {"bird": ["0-255"]}}


def picture_of(client: Client, event: dict[str, Any]) -> Pixels:
    jpeg = EventPictures.of(SettingsTree(), client).get(event["picture"])
    assert jpeg is not None
    return decode(jpeg, max_bytes=10**6, max_pixels=10**6)


async def test_a_tag_has_the_picture_of_the_frame_that_started_it(client: Client, redis_url: str) -> None:
    async with working(settings(redis_url, cameras=[LIVE], tags=TAGS), FixedEngine()) as (service, _):
        await until(lambda: bool(events(client, "tag.started")))
        [started] = events(client, "tag.started")

        assert picture_of(client, started).shape == (360, 640, 3)
        taken = int(started["picture"].partition("-")[0]) / 1000
        assert abs(taken - started["at"]) < 0.2  # of ten frames a second nearly each is kept
        assert service.telemetry.metrics.registry.get_sample_value("coatstream_event_pictures_total") == 1


async def test_the_picture_of_a_camera_is_there_after_its_process_was_killed(client: Client, redis_url: str) -> None:
    async with working(settings(redis_url, cameras=[LIVE], tags=TAGS), FixedEngine()) as (service, _):
        await until(lambda: bool(events(client, "tag.started")))
        [(_, stats, *_)] = service.cameras.reports()
        assert stats.pid is not None
        os.kill(stats.pid, signal.SIGKILL)
        await until(lambda: any(event["state"] == "down" for event in events(client, "camera.state")))

    down = next(event for event in events(client, "camera.state") if event["state"] == "down")
    assert down["reason"] == "crashed"
    assert picture_of(client, down).shape == (360, 640, 3)


async def test_without_pictures_events_have_none_and_a_wish_is_answered_all_the_same(
    client: Client, redis_url: str
) -> None:
    tree = settings(redis_url, cameras=[LIVE], tags=TAGS, pictures={"enabled": False})
    keys = PictureKeys()
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.psubscribe("preview:*")
    seen: dict[str, Preview] = {}

    def look() -> bool:
        client.xadd("frames", {"image": grey_jpeg(90, width=64, height=48), "source": "queue-1"})
        while (message := pubsub.get_message(timeout=0.05)) is not None:
            if (preview := parse_preview(message["data"])) is not None:
                seen[preview.source] = preview
        return len(seen) == 2

    async with working(tree, FixedEngine()):
        for source in ("live", "queue-1"):
            wish(client, keys.wish(source), seconds=60)
        await until(look)
        await until(lambda: bool(events(client, "tag.started")))

    pubsub.close()
    assert {(one.source, one.width, one.height) for one in seen.values()} == {
        ("live", 320, 180),
        ("queue-1", 32, 24),
    }  # decoded at half its size, as for the model
    assert "picture" not in events(client, "tag.started")[0]
    assert list(client.scan_iter("picture*")) == []


async def test_frames_of_which_the_model_is_unsure_are_kept(client: Client, redis_url: str, tmp_path: Path) -> None:
    training = {"folder": str(tmp_path), "share": 1.0}
    tree = settings(redis_url, cameras=[LIVE], training=training)

    async with working(tree, FixedEngine()):
        client.xadd("frames", {"image": grey_jpeg(90), "source": "queue-1", "frame_id": "q"})
        await until(lambda: len({row["source"] for row in rows(tmp_path)}) == 2)

    paths = {row["source"]: tmp_path / row["folder"] / row["file_name"] for row in rows(tmp_path)}
    assert decode(paths["live"].read_bytes(), max_bytes=10**6, max_pixels=10**6).shape == (360, 640, 3)


def rows(folder: Path) -> list[dict[str, str]]:
    found = []
    for table in folder.rglob("metadata.csv"):
        with table.open(newline="") as file:
            found += [{**row, "folder": table.parent.name} for row in csv.DictReader(file) if row["captured_at"]]
    return found
