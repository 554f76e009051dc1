"""`coatstream check`: what works, what does not, and what to do about it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from coatstream.broker.connection import Client
from coatstream.cli import run
from coatstream.commands import check
from coatstream.commands.check import Finding, as_asked
from coatstream.frames.model import ModelInfo
from coatstream.settings.model import CameraSettings, ModelSettings, QueueSettings
from pydantic import SecretStr

from tests.support.burials import LIMITS, add, bury, take
from tests.support.pictures import CLIP
from tests.support.servers import ON_ONE_SERVER


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {line["what"]: (line["verdict"], line["detail"]) for line in lines if line["verdict"] != "warning"}


@ON_ONE_SERVER
def test_everything_that_works_is_ok_and_exit_0(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cameras = json.dumps([{"name": "bird", "url": str(CLIP)}])

    code = run(["check", "--json", "--redis", redis_url, "--engine", "noop", "--set", f"cameras={cameras}"])

    found = findings(capsys)
    assert code == 0
    assert {what: verdict for what, (verdict, _) in found.items()} == dict.fromkeys(
        ("settings", "redis", "queue frames", "dead letters of frames", "model", "tags", "camera bird"), "ok"
    )
    assert "640 x 360" in found["camera bird"][1]


def test_each_fault_is_named_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cameras = json.dumps([{"name": "gone", "url": "rtsp://admin:hunter2@127.0.0.1:1/x", "open_timeout": 2}])

    code = run(
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


def test_a_folder_without_a_picture_is_no_fault_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "LOOK_LONGER", 1.0)
    urls = (str(tmp_path), f"{tmp_path}/")
    cameras = [CameraSettings(name=url, url=SecretStr(url), open_timeout=0.5, read_timeout=0.5) for url in urls]

    found = [(finding.verdict, finding.detail) for finding in check.check_cameras(cameras)]

    assert found == [("ok", "a folder without a picture so far")] * 2


def test_wrong_settings_are_a_fault_too(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["check", "--json", "--set", "batch.max_size=many"])

    assert code == 1
    assert findings(capsys)["settings"][0] == "fault"


def test_a_page_on_the_network_without_a_token_is_a_fault_for_it_is_shut(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["check", "--json", "--set", "http.host=0.0.0.0", "--set", "model.engine=noop"])

    assert code == 1
    assert findings(capsys)["page"][0] == "fault"


def test_a_key_that_holds_something_else_is_found(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.set("labels", "not a stream")

    code = run(["check", "--json", "--redis", redis_url, "--engine", "noop"])

    assert code == 1
    assert "labels holds a string" in findings(capsys)["redis"][1]


def test_a_full_server_is_said_as_that(client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    client.config_set("maxmemory", 1)
    try:
        code = run(["check", "--redis", redis_url, "--engine", "noop", "--json"])
    finally:
        client.config_set("maxmemory", 0)

    assert code == 0
    assert "Redis has reached its maxmemory" in capsys.readouterr().out


def test_a_person_gets_a_table_with_warnings(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        code = run(["check", "--redis", redis_url, "--engine", "noop"])
    finally:
        client.config_set("maxmemory-policy", "noeviction")

    text = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "warning" in text
    assert "allkeys-lru" in text


def about_queues(capsys: pytest.CaptureFixture[str], redis_url: str, *options: str) -> list[dict[str, Any]]:
    """What `check` says of queues and dead letters; it must find no fault."""
    code = run(["check", "--json", "--redis", redis_url, "--engine", "noop", *options])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0, lines
    return [line for line in lines if line["what"].startswith(("queue", "dead"))]


def test_the_sum_of_each_queue_is_printed(client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    bury(client, ("image", "x" * 3000), stream="door")
    for _ in range(1234):
        add(client, ("image", "x"), stream="door")
    take(client, stream="door", count=4)
    client.hset("door:books", "refused", 5000)

    door, letters, hall, _ = about_queues(capsys, redis_url, "--set", 'queues=[{"stream":"door"},{"stream":"hall"}]')

    assert (door["what"], door["verdict"]) == ("queue door", "ok")
    assert door["detail"] == (
        "1,235 added = 1,230 waiting + 4 in work + 0 labelled + 0 dropped + 1 dead; "
        "5,000 frames refused for want of room"
    )
    assert door["figures"] | {"added": 1235, "waiting": 1230, "in_work": 4, "unaccounted": 0} == door["figures"]
    assert (letters["what"], letters["verdict"]) == ("dead letters of door", "ok")
    assert re.fullmatch(r"1 of 10,000 letters, 3\.\d KiB of 1\.0 GiB: 0% full", letters["detail"])
    assert hall["detail"] == "no worker has kept books yet; 0 waiting + 0 in work"


def test_entries_that_vanished_are_a_warning(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    take(client)
    for _ in range(40):
        client.xadd("frames", {"image": "x"}, maxlen=3, approximate=False)

    found, _ = about_queues(capsys, redis_url)

    assert found["verdict"] == "warning"
    assert found["detail"].startswith(
        "40 added = 3 waiting + 0 in work + 0 labelled + 0 dropped + 0 dead + 37 vanished"
    )
    assert "do not use MAXLEN" in found["detail"]
    assert found["figures"]["gone"] == 37


def test_an_id_of_the_future_and_stranded_entries_are_warnings(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.xadd("frames", {"image": b"jpeg"}, id="1764000000123456-0")
    client.xgroup_create("frames", "coatstream", "$")

    code = run(["check", "--redis", redis_url, "--engine", "noop"])

    text = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "days in the future" in text
    assert "1 or more entries are neither new nor in work" in text


def test_more_outcomes_than_entries_are_a_warning_of_another_kind(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        bury(client, ("image", "x"))
    client.delete("frames")

    found, _ = about_queues(capsys, redis_url)

    assert found["verdict"] == "warning"
    assert found["detail"].startswith(
        "0 added = 0 waiting + 0 in work + 0 labelled + 0 dropped + 3 dead - 3 that were never added: the stream"
    )


def test_dead_letters_that_had_to_go_or_soon_will_are_a_warning(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(9):
        bury(client, ("image", "x"), limits=LIMITS)

    def verdict(most: int) -> tuple[str, str]:
        _, letters = about_queues(capsys, redis_url, "--set", f"queue.dead_max_length={most}")
        return letters["verdict"], letters["detail"]

    assert verdict(11)[0] == "ok"
    assert verdict(10)[0] == "warning"
    assert "90% full; then the oldest have to go" in verdict(10)[1]
    bury(client, ("image", "x"), limits=QueueSettings(dead_max_length=8))
    assert verdict(100)[0] == "warning"
    assert "8% full; 2 dead letters had to go" in verdict(100)[1]


@ON_ONE_SERVER
def test_a_worker_for_cameras_alone_is_told_nothing_of_queues(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert about_queues(capsys, redis_url, "--set", "queue.enabled=false") == []


@ON_ONE_SERVER
def test_tags_that_the_model_cannot_have_are_a_fault(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    cameras = json.dumps([{"name": "bird", "url": str(CLIP)}])
    wrong = 'tags.groups={"dog": ["no such class"]}'

    code = run(
        ["check", "--json", "--redis", redis_url, "--engine", "noop", "--set", f"cameras={cameras}", "--set", wrong]
    )

    verdict, detail = findings(capsys)["tags"]
    assert (code, verdict) == (1, "fault")
    assert "no class is called 'no such class'" in detail


def test_another_engine_than_was_asked_for_is_a_warning() -> None:
    finding = Finding("model", "ok", "test_vit, engine openvino bf16")
    got = ModelInfo("test_vit", "random", "openvino", "bf16", "cpu", 64)

    assert as_asked(finding, ModelSettings(), got) == finding
    assert as_asked(finding, ModelSettings(engine="openvino", precision="bf16"), got) == finding
    warned = as_asked(finding, ModelSettings(engine="fused", precision="fp32"), got)
    assert warned.verdict == "warning"
    assert warned.detail.endswith("; asked for was model.engine = fused and model.precision = fp32")


@ON_ONE_SERVER
def test_a_user_without_the_rights_to_pictures_is_told_and_works_all_the_same(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.execute_command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "&*", "+@all", "-rpush", "-mget")
    cameras = json.dumps([{"name": "bird", "url": str(CLIP)}])
    asked = ["check", "--json", "--redis", redis_url, "--engine", "noop", "--set", f"cameras={cameras}"]
    try:
        code = run([*asked, "--set", "redis.username=plain", "--set", "redis.password=pw"])
    finally:
        client.execute_command("ACL", "DELUSER", "plain")

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [told] = [line["detail"] for line in lines if line["what"] == "pictures"]
    assert code == 0
    assert "lacks: MGET on preview:wish:source, RPUSH on pictures:order (ACL SETUSER plain +mget +rpush)" in told
