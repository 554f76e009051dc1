"""redis.prefix: installations on one server that never meet."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from coatstream import LabelReader, Picture, Producer
from coatstream.broker.connection import Client
from coatstream.broker.embedded import EmbeddedServer
from coatstream.broker.fleet_keys import FleetKeys, fleet_keys
from coatstream.broker.keys import Queue, queues_of
from coatstream.broker.picture_keys import picture_keys
from coatstream.cli import app
from coatstream.settings.loading import load
from coatstream.settings.model import SettingsTree
from pydantic import ValidationError
from redis.crc import key_slot

from tests.support.photos import photo_files
from tests.support.pictures import CLIP
from tests.support.workers import PATIENCE, Worker, eventually, run_worker

SITES = ("site1", "site2")


def tree(prefix: str, **sections: object) -> SettingsTree:
    return SettingsTree.model_validate({"redis": {"prefix": prefix}, **sections})


def every_name(settings: SettingsTree) -> list[str]:
    """All that an installation names, as its own parts give it."""
    fleet = fleet_keys(settings)
    pictures = picture_keys(settings)
    names = [*fleet.rights, *fleet.types, fleet.channel("door"), fleet.tags("door"), *pictures.rights]
    names.append(pictures.previews("door"))
    for queue in queues_of(settings):
        names += [*queue.keys, *queue.rights, *queue.types, queue.channel("door"), queue.failure_channel("door")]
    return names


# ---- names


def test_without_a_prefix_the_names_are_those_of_the_contract() -> None:
    [queue] = queues_of(tree(""))

    assert queue == Queue("frames", "coatstream", "frames:dead", "labels")
    assert (queue.channel("door"), queue.failure_channel("door")) == ("labels:door", "failures:door")
    assert fleet_keys(tree("")) == FleetKeys()


def test_every_key_and_every_channel_begins_with_the_prefix() -> None:
    settings = tree("site1:", queues=[{"stream": "urgent"}, {"stream": "frames", "priority": 1}])

    names = every_name(settings)

    assert {name for name in names if not name.startswith("site1:")} == set()
    assert {name.removeprefix("site1:") for name in names} == set(
        every_name(settings.model_copy(update={"redis": settings.redis.model_copy(update={"prefix": ""})}))
    )


def test_the_group_is_named_as_ever_since_it_lies_within_the_stream() -> None:
    assert queues_of(tree("site1:"))[0].group == "coatstream"


@pytest.mark.parametrize(
    ("prefix", "tag"), [("site1:", "{door}"), ("{site1}:", ""), ("a:{site1}:", ""), ("{site1}:", "{door}")]
)
@pytest.mark.parametrize("partitions", [1, 3])
def test_on_a_cluster_all_keys_of_a_partition_stay_in_one_slot(prefix: str, tag: str, partitions: int) -> None:
    queue = {"stream": f"{tag}frames", "dead_stream": f"{tag}frames:dead", "partitions": partitions}
    settings = tree(prefix, queue=queue, results={"stream": f"{tag}labels"})

    parts = queues_of(settings)

    assert all(name.startswith(prefix.partition("{")[0]) for name in every_name(settings))
    assert [len({key_slot(key.encode()) for key in part.keys}) for part in parts] == [1] * partitions
    beside = [*fleet_keys(settings).rights, *picture_keys(settings).rights]
    assert {key_slot(key.encode()) for key in beside} == {key_slot(parts[0].labels.encode())}


def test_partitions_speak_on_one_channel() -> None:
    queue = {"stream": "{door}frames", "dead_stream": "{door}frames:dead", "partitions": 3}

    parts = queues_of(tree("site1:", queue=queue, results={"stream": "{door}labels"}))

    assert parts[2].labels == "site1:{door:2}labels"
    assert {part.channel("gate") for part in parts} == {"site1:{door}labels:gate"}


def test_a_queue_answers_to_its_name_with_and_without_the_prefix() -> None:
    [queue] = queues_of(tree("site1:"))

    named = ("frames", "frames:dead", "site1:frames", "site1:frames:dead")
    assert [queue.is_called(name) for name in (*named, "labels", "site2:frames")] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("prefix", ["a b", "*", "a[b", "{}", "{a", "{a}{b}", "x" * 65, "ä"])
def test_a_prefix_that_would_be_a_pattern_or_two_hash_tags_is_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match=r"redis\.prefix"):
        tree(prefix)


# ---- two installations


@dataclass(frozen=True, slots=True)
class Site:
    """One installation, whose Redis user may touch nothing beyond its prefix."""

    name: str
    client: Client
    worker: Worker
    capsys: pytest.CaptureFixture[str]

    def command(self, *arguments: str) -> str:
        """What a command of this installation prints; it must succeed."""
        code = app(args=[*arguments], standalone_mode=False)
        out, err = self.capsys.readouterr()
        assert not code, (arguments, out, err)
        return out + err

    def published(self, source: str) -> int:
        entries = self.client.xrange(f"{self.name}:labels")
        return sum(fields[b"source"] == source.encode() for _, fields in entries)


@pytest.fixture
def channels(client: Client) -> Iterator[Callable[[], set[str]]]:
    """All channels that were published to, once the workers are silent."""

    def heard() -> set[str]:
        messages = iter(lambda: ear.get_message(timeout=0.5), None)
        return {message["channel"].decode() for message in messages if message["type"] == "pmessage"}

    with client.pubsub() as ear:
        ear.psubscribe("*")
        yield heard


@pytest.fixture
def sites(
    client: Client,
    channels: Callable[[], set[str]],  # it listens before the first word
    redis_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator["dict[str, Site]"]:
    cameras = json.dumps([{"name": "gate", "url": str(CLIP), "loop": True, "realtime": True, "fps": 20}])
    for site in SITES:
        client.execute_command("ACL", "SETUSER", site, "reset", "on", ">pw", f"~{site}:*", f"&{site}:*", "+@all")
    monkeypatch.setenv("COATSTREAM_REDIS__URL", redis_server.url)
    monkeypatch.setenv("COATSTREAM_REDIS__PASSWORD", "pw")
    monkeypatch.setenv("COATSTREAM_CAMERAS", cameras)
    monkeypatch.setenv("COATSTREAM_MODEL__ENGINE", "noop")
    own: list[dict[str, Any]] = [
        {"redis__password": "pw", "redis__username": site, "redis__prefix": f"{site}:"} for site in SITES
    ]
    with (
        run_worker(redis_server.url, cameras=cameras, **own[0]) as first,
        run_worker(redis_server.url, cameras=cameras, **own[1]) as second,
    ):
        yield {site: Site(site, client, worker, capsys) for site, worker in zip(SITES, (first, second), strict=True)}
    client.execute_command("ACL", "DELUSER", *SITES)


def live(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that people and workers do to one installation."""
    monkeypatch.setenv("COATSTREAM_REDIS__USERNAME", site.name)
    monkeypatch.setenv("COATSTREAM_REDIS__PREFIX", f"{site.name}:")
    photo = str(photo_files()[0])
    site.command("enqueue", photo, "--source", f"photo-{site.name}")
    eventually(lambda: site.published(f"photo-{site.name}") == 1, "the photo is labelled")
    eventually(lambda: site.published("gate") > 0, "the camera is labelled")
    site.client.xadd(f"{site.name}:frames", {"image": b"no picture", "source": "broken"})
    eventually(lambda: site.client.xlen(f"{site.name}:frames:dead") == 1, "the letter is dead")
    assert "broken" in site.command("dead", "list", "--stream", "frames")
    assert "replayed 1" in site.command("dead", "replay", "--all")
    eventually(lambda: site.client.xlen(f"{site.name}:frames:dead") == 1, "it died again")
    assert "dropped 1" in site.command("dead", "drop", "--all")
    site.command("cameras", "add", f"yard-{site.name}", "rtsp://127.0.0.1:1/none")
    site.command("cameras", "pause", "gate")
    site.command("cameras", "resume", "gate")
    site.command("check")
    site.command("watch", "--count", "1")
    with Producer.connect(load()) as producer, LabelReader.connect(load(), since="1h") as labels:
        picture = Picture(Path(photo).read_bytes(), source=f"python-{site.name}")
        assert producer.classify(picture, timeout=PATIENCE).source == picture.source
        assert next(label for label in labels if label.source == picture.source).label


def test_two_installations_on_one_server_never_meet_over_their_whole_life(
    channels: Callable[[], set[str]], sites: dict[str, Site], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for site in sites.values():
        live(site, monkeypatch)
    assert [site.worker.stop() for site in sites.values()] == [0, 0]

    keys = {key.decode() for key in client.scan_iter(count=1000)}
    heard = channels()
    for mine, other in zip(SITES, reversed(SITES), strict=True):
        assert {f"{mine}:{name}" for name in ("frames", "frames:books", "labels", "labels:latest")} <= keys
        assert {f"{mine}:{name}" for name in ("cameras", "cameras:fences", "cameras:states", "events")} <= keys
        assert {
            f"{mine}:labels:gate",
            f"{mine}:labels:photo-{mine}",
            f"{mine}:labels:python-{mine}",
            f"{mine}:events:gate",
        } <= heard
        monkeypatch.setenv("COATSTREAM_REDIS__USERNAME", mine)
        monkeypatch.setenv("COATSTREAM_REDIS__PREFIX", f"{mine}:")
        listed = sites[mine].command("cameras", "list", "--json")
        assert f"yard-{mine}" in listed
        assert f"yard-{other}" not in listed
        assert sites[mine].published(f"photo-{other}") == 0
    assert {f"{site}:failures:broken" for site in SITES} <= heard
    strangers = {name for name in keys | heard if not name.startswith(("site1:", "site2:"))}
    assert strangers == set()
