"""`coatstream check`: what works, what does not, and what to do about it."""

import json
from pathlib import Path

import pytest

from tests.pictures import CLIP
from tests.servers import ON_ONE_SERVER
from worker.broker.connection import Client
from worker.cli import _run


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {line["what"]: (line["verdict"], line["detail"]) for line in lines if line["verdict"] != "warning"}


@ON_ONE_SERVER
def test_everything_that_works_is_ok_and_exit_0(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cameras = json.dumps([{"name": "bird", "url": str(CLIP)}])

    code = _run(["check", "--json", "--redis", redis_url, "--engine", "noop", "--set", f"cameras={cameras}"])

    found = findings(capsys)
    assert code == 0
    assert {what: verdict for what, (verdict, _) in found.items()} == dict.fromkeys(
        ("settings", "redis", "model", "camera bird"), "ok"
    )
    assert "640 x 360" in found["camera bird"][1]


def test_each_fault_is_named_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cameras = json.dumps([{"name": "gone", "url": "rtsp://admin:hunter2@127.0.0.1:1/x", "open_timeout": 2}])

    code = _run(
        [
            *("check", "--json", "--redis", "redis://:hunter2@127.0.0.1:1", "--weights", str(tmp_path / "no.pth")),
            *("--set", f"cameras={cameras}"),
        ]
    )

    text = capsys.readouterr().out
    found = [json.loads(line) for line in text.splitlines()]
    assert code == 1
    assert [line["what"] for line in found if line["verdict"] == "fault"] == ["redis", "model", "camera gone"]
    assert "hunter2" not in text


def test_wrong_settings_are_a_fault_too(capsys: pytest.CaptureFixture[str]) -> None:
    code = _run(["check", "--json", "--set", "batch.max_size=many"])

    assert code == 1
    assert findings(capsys)["settings"][0] == "fault"


def test_a_key_that_holds_something_else_is_found(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.set("labels", "not a stream")

    code = _run(["check", "--json", "--redis", redis_url, "--engine", "noop"])

    assert code == 1
    assert "labels holds a string" in findings(capsys)["redis"][1]


def test_a_person_gets_a_table_with_warnings(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        code = _run(["check", "--redis", redis_url, "--engine", "noop"])
    finally:
        client.config_set("maxmemory-policy", "noeviction")

    text = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "warning" in text
    assert "allkeys-lru" in text
