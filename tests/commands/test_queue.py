"""`coatstream queue`: on real servers, with and without workers."""

import json
import os
import signal
import subprocess
import sys

import httpx
import pytest
from coatstream.broker.connection import Client
from coatstream.cli import run

from tests.support.ports import free_port
from tests.support.servers import ON_ONE_SERVER
from tests.support.settled import MODEL, QUEUE, add, buried, dropped, member, published, read, settler
from tests.support.workers import PATIENCE, eventually


def overview(redis_url: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run(["queue", "--json", "--redis", redis_url]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_everything_that_became_of_entries_is_counted(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    member(client).join()
    add(client, 6, image=b"x", source="door-1")
    add(client, 3, image=b"x", source="gate")
    add(client, 1, image=b"x")
    first, second, third, *_ = read(client, "me", 5)
    settler(client).settle([published(first), dropped(second), buried(third)], now=1.0)
    client.xack("frames", QUEUE.group, *read(client, "tool", 1))

    found = overview(redis_url, capsys)

    assert {name: found[name] for name in ("depth", "in_work", "stranded", "dead", "sources")} == {
        "depth": 7,
        "in_work": 2,
        "stranded": 1,
        "dead": 1,
        "sources": {"door-1": 3, "gate": 3, "queue": 1},
    }
    assert found["rate"] > 0  # type: ignore[operator]
    consumers = {one["name"]: one for one in found["consumers"]}  # type: ignore[attr-defined]
    assert (consumers["me"]["in_work"], consumers["tool"]["in_work"]) == (2, 0)
    assert consumers["me"]["rate"] > 0
    assert found["books"]["unaccounted"] == 0  # type: ignore[index]
    assert MODEL.name not in json.dumps(found)


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_queue_that_was_never_used_is_empty(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(["queue", "--redis", redis_url, *arguments]) == 0

    assert "0" in capsys.readouterr().out
    assert client.keys("*") == []  # it changes nothing


@ON_ONE_SERVER
@pytest.mark.parametrize("columns", ["60", "200"])
def test_a_person_sees_it_in_words(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    member(client).join()
    add(client, 3, image=b"x", source="door\x1b[31m")
    read(client, "me", 1)

    assert run(["queue", "--redis", redis_url]) == 0

    out = capsys.readouterr().out
    assert "3 unfinished" in out
    assert "1 in work" in out
    assert "door\\x1b[31m" in out
    assert "\x1b[31m" not in out


@ON_ONE_SERVER
def test_its_metrics_are_there_without_a_worker(client: Client, redis_url: str) -> None:
    member(client).join()
    add(client, 4)
    port = free_port()
    command = [sys.executable, "-m", "coatstream", "queue", "--metrics", str(port), "--redis", redis_url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"COATSTREAM_HTTP__HOST": "127.0.0.1"})
    try:
        assert process.stdout is not None
        assert str(port) in process.stdout.readline().decode()
        url = f"http://127.0.0.1:{port}"
        eventually(
            lambda: 'coatstream_queue_depth_frames{stream="frames"} 4.0' in httpx.get(f"{url}/metrics").text, "4"
        )
        assert httpx.get(f"{url}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()
