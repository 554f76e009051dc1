"""`coatstream cameras` as a person runs it."""

import io
import json
import re
from pathlib import Path

import pytest
from coatstream import cli
from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet.leases import Catalogue, CatalogueEntry, Leases
from coatstream.commands import cameras
from coatstream.results.reports import CameraReport, WorkerReport

from tests.support.servers import ON_ONE_SERVER

pytestmark = ON_ONE_SERVER

KEYS = FleetKeys()


@pytest.fixture(autouse=True)
def _settings(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COATSTREAM_REDIS__URL", redis_url)


@pytest.fixture
def of_the_file(monkeypatch: pytest.MonkeyPatch) -> str:
    """A camera of the settings file."""
    monkeypatch.setenv("COATSTREAM_CAMERAS", '[{"name": "roof", "url": "rtsp://me:hunter2@10.0.0.9/1"}]')
    return "roof"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code = cli.run(["cameras", *arguments])
    out, err = capsys.readouterr()
    assert "hunter2" not in out + err
    assert "Traceback" not in err
    return code, out, err


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    code, out, _ = run(capsys, "list", "--json")
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def stored(client: Client, name: str) -> dict[str, object]:
    found = json.loads(client.hget(KEYS.registry, name))
    assert isinstance(found, dict)
    return found


def lease(client: Client, *names: str) -> dict[str, int]:
    """A worker that reads these; their numbers."""
    catalogue = Catalogue(tuple(CatalogueEntry(name, "d") for name in names))
    answer = Leases(client, KEYS, worker="host-1-ab", lease=60).beat(catalogue)
    return {name: own.fence for name, own in answer.held.items()}


# ---- list


def test_an_empty_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list") == (0, "no cameras\n", "")


def test_the_list_has_a_line_for_each_camera_wherever_it_comes_from(
    client: Client, capsys: pytest.CaptureFixture[str], of_the_file: str
) -> None:
    run(capsys, "add", "door", "rtsp://me:hunter2@10.0.0.7/1")
    fence = lease(client, "door", "roof")["door"]
    client.hset(KEYS.states, "door", '{"state": "down", "reason": "auth", "message": "no", "since": 1, "worker": "x"}')
    client.hset(KEYS.tags("door"), mapping={"dog": "{}", "cat": "{}"})

    code, out, err = run(capsys, "list")

    header, door, roof = ([cell for cell in re.split(r"\s{2,}", line.strip()) if cell] for line in out.splitlines())
    assert (code, err, header) == (0, "", list(cameras.COLUMNS))
    assert door[:5] == ["door", "rtsp://10.0.0.7:554", "redis", "down", "auth"]
    assert door[6:] == ["host-1-ab", str(fence), "cat, dog"]
    assert roof[:4] == ["roof", "rtsp://10.0.0.9:554", "settings", "unknown"]


def test_as_json_it_is_one_object_a_line(client: Client, capsys: pytest.CaptureFixture[str], of_the_file: str) -> None:
    fence = lease(client, "roof")["roof"]
    client.hset(KEYS.states, "roof", '{"state": "live", "reason": null, "message": "", "since": 5.5, "worker": "x"}')

    assert rows(capsys) == [
        {
            "camera": "roof",
            "url": "rtsp://10.0.0.9:554",
            "from": "settings",
            "state": "live",
            "reason": None,
            "message": None,
            "since": 5.5,
            "worker": "host-1-ab",
            "fence": fence,
            "tags": [],
            "gate": None,
        }
    ]


def test_a_camera_whose_gate_saves_nothing_says_why(
    client: Client, capsys: pytest.CaptureFixture[str], of_the_file: str
) -> None:
    lease(client, "roof")
    client.hset(KEYS.states, "roof", '{"state": "live", "since": 5.5, "worker": "host-1-ab"}')
    report = WorkerReport(
        worker="host-1-ab",
        at=client.time()[0],
        started_at=0,
        version="1",
        cameras={"roof": CameraReport(gate="the picture changes")},
    )
    client.hset(KEYS.reports, report.worker, report.model_dump_json())

    assert rows(capsys)[0]["gate"] == "the picture changes"
    assert "reuse saves nothing: the picture changes" in run(capsys, "list")[1]


def test_a_camera_that_nobody_reads_is_not_called_live_and_a_paused_one_is_paused(
    client: Client, capsys: pytest.CaptureFixture[str], of_the_file: str
) -> None:
    client.hset(KEYS.states, "roof", '{"state": "live", "since": 5.5, "worker": "dead"}')
    unread = rows(capsys)[0]

    run(capsys, "pause", "roof")

    assert (unread["state"], unread["message"], unread["worker"]) == ("unread", "no worker reads it", None)
    assert rows(capsys)[0]["state"] == "paused"


@pytest.mark.parametrize(
    "junk",
    [
        *("", "nonsense", "[]", '{"state": {"a": 1}, "since": "x"}', "\x1b[2J"),
        *('{"since": 1e30}', '{"since": NaN}', '{"since": -1e30}', '{"since": 1' + "0" * 400 + "}"),
    ],
)
def test_what_strangers_wrote_as_a_state_breaks_nothing(
    client: Client, capsys: pytest.CaptureFixture[str], of_the_file: str, junk: str
) -> None:
    lease(client, "roof")
    client.hset(KEYS.states, "roof", junk)

    code, out, _ = run(capsys, "list")

    assert code == 0
    assert "\x1b" not in out


def test_an_entry_that_is_of_no_use_is_told_and_makes_the_exit_code_1(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "add", "door", "rtsp://10.0.0.7/1")
    client.hset(KEYS.registry, "b\x1bad", '{"url": "rtsp://me:hunter2@h", "fps": "x"}')

    code, out, err = run(capsys, "list")

    assert (code, len(out.splitlines())) == (1, 2)
    assert err == (
        "coatstream: camera b\\x1bad in Redis is left out: fps: Input should be a valid number, "
        "unable to parse string as a number\n"
    )


# ---- add


def test_a_camera_is_added_with_what_was_said_of_it(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        *("--fps", "0.5", "--priority", "2", "--username", "me", "--transport", "udp", "--keyframes-only"),
        *("--max-age", "3", "--read-timeout", "8", "--open-timeout", "9", "--lossless"),
    )

    assert run(capsys, "add", "door", "rtsp://10.0.0.7/1", *options) == (0, "added door\n", "")
    assert stored(client, "door") == {
        "name": "door",
        "url": "rtsp://10.0.0.7/1",
        "fps": 0.5,
        "priority": 2.0,
        "username": "me",
        "transport": "udp",
        "keyframes_only": True,
        "max_age": 3.0,
        "read_timeout": 8.0,
        "open_timeout": 9.0,
        "realtime": False,
    }
    assert client.get(KEYS.version) == b"1"


def test_a_password_comes_from_a_file_or_from_stdin(
    client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("hunter2 too\r\n"))

    run(capsys, "add", "one", "rtsp://h/1", "--username", "me", "--password-file", str(tmp_path / "secret"))
    run(capsys, "add", "two", "rtsp://h/1", "--username", "me", "--password-stdin")

    assert (stored(client, "one")["password"], stored(client, "two")["password"]) == ("hunter2", "hunter2 too")
    assert "password_file" not in stored(client, "one")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--password-file", "nowhere"), "the password cannot be read from nowhere: No such file or directory"),
        (("--password-stdin",), "the password is empty"),
        (("--password-stdin", "--password-file", "x"), "give --password-file or --password-stdin, not both"),
        (("--fps", "-1"), "--fps: Input should be greater than or equal to 0"),
        (("--max-age", "0"), "--max-age: Input should be greater than 0"),
        (
            ("--password", "hunter2"),
            "No such option: --password (Possible options: --password-file, --password-stdin); "
            "see `coatstream cameras add --help`",
        ),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))

    assert run(capsys, "add", "door", "rtsp://h/1", *arguments) == (2, "", f"coatstream: {told}\n")
    assert client.keys() == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("clip.mp4", "may be a file only where fleet.local is true"),
        ("0", "may be a device only where fleet.local is true"),
        ("gopher://me:hunter2@h/1", "its url begins with gopher://"),
        ("rtsp://", "its url names no host"),
        ("", "its url is none that is known"),
    ],
)
def test_a_url_that_no_worker_would_open_is_refused(
    client: Client, capsys: pytest.CaptureFixture[str], url: str, told: str
) -> None:
    code, out, err = run(capsys, "add", "door", url)

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert told in err
    assert client.keys() == []


def test_bytes_that_are_no_text_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["add", "door", "rtsp://h/\udcff"], ["add", "\udcff", "rtsp://h/1"]):
        code, _, err = run(capsys, *command)
        assert (code, err.count("\n")) == (2, 1)
    for command in (["pause", "\udcff"], ["resume", "\udcff"], ["remove", "\udcff"]):
        assert run(capsys, *command)[0] == 1


def test_a_local_one_is_taken_where_the_settings_allow_it(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "add", "door", "clip.mp4", "--set", "fleet.local=true")[0] == 0
    assert stored(client, "door")["url"] == "clip.mp4"


def test_what_is_there_is_replaced_only_on_request(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "add", "door", "rtsp://h/1")

    told = run(capsys, "add", "door", "rtsp://h/2")
    assert told == (2, "", "coatstream: there is a camera door already: give --replace to change it\n")
    assert run(capsys, "add", "door", "rtsp://h/2", "--replace")[0] == 0
    assert stored(client, "door")["url"] == "rtsp://h/2"


def test_there_is_an_end_to_the_room(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "add", "door", "rtsp://h/1", "--set", "fleet.max_cameras=1")

    told = run(capsys, "add", "yard", "rtsp://h/1", "--set", "fleet.max_cameras=1")

    assert told == (2, "", "coatstream: there are 1 cameras in Redis already (fleet.max_cameras)\n")


def test_a_name_of_the_settings_file_is_taken(capsys: pytest.CaptureFixture[str], of_the_file: str) -> None:
    code, _, err = run(capsys, "add", "roof", "rtsp://h/1", "--replace")

    assert (code, err) == (
        2,
        "coatstream: the settings file has a camera roof already: give this one another name\n",
    )


# ---- remove, pause, resume


def test_a_camera_is_removed_once(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "add", "door", "rtsp://h/1")

    assert run(capsys, "remove", "door") == (0, "removed door\n", "")
    assert run(capsys, "remove", "door") == (1, "", "coatstream: there is no camera door in Redis\n")


def test_where_no_worker_reads_it_the_command_says_that_its_tags_are_over(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "add", "door", "rtsp://h/1")
    client.hset(KEYS.fences, "door", "77")
    client.hset(KEYS.states, "door", '{"state":"live"}')
    client.hset(KEYS.tags("door"), "cat", '{"score":0.9,"started_at":1700000000.5,"first_frame_id":"f"}')

    run(capsys, "remove", "door")

    said = [json.loads(fields[b"json"]) for _, fields in client.xrange(KEYS.events)]
    assert [(one["event"], one.get("tag"), one.get("why"), one["fence"]) for one in said] == [
        ("tag.ended", "cat", "removed", 77),
        ("camera.state", None, None, 77),
    ]
    assert said[1]["state"] == "removed"
    assert client.exists(KEYS.tags("door"), KEYS.states) == 0


def test_a_camera_is_removed_also_by_whoever_may_not_say_so(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "add", "door", "rtsp://h/1")
    client.set(KEYS.events, "no stream")

    code, out, err = run(capsys, "remove", "door")

    assert (code, out, client.hexists(KEYS.registry, "door")) == (0, "removed door\n", False)
    assert err.startswith("coatstream: its tags are not ended: ")
    assert len(err.splitlines()) == 1


def test_where_a_worker_reads_it_that_one_says_so(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "add", "door", "rtsp://h/1")
    lease(client, "door")

    run(capsys, "remove", "door")

    assert client.exists(KEYS.events) == 0


def test_one_of_the_settings_file_cannot_be_removed_but_paused(
    client: Client, capsys: pytest.CaptureFixture[str], of_the_file: str
) -> None:
    code, _, err = run(capsys, "remove", "roof")

    assert (code, len(err.splitlines())) == (2, 1)
    assert "pause it instead (coatstream cameras pause roof)" in err
    assert run(capsys, "pause", "roof") == (0, "paused roof\n", "")
    assert client.smembers(KEYS.paused) == {b"roof"}
    assert run(capsys, "resume", "roof") == (0, "resumed roof\n", "")
    assert run(capsys, "resume", "roof") == (1, "", "coatstream: the camera roof is not paused\n")


def test_who_pauses_twice_has_what_it_wants_and_who_pauses_nothing_is_told(
    capsys: pytest.CaptureFixture[str], of_the_file: str
) -> None:
    assert [run(capsys, "pause", "roof")[0] for _ in range(2)] == [0, 0]
    assert run(capsys, "pause", "moon") == (1, "", "coatstream: there is no camera moon\n")


@pytest.mark.parametrize(
    "command", [("list",), ("add", "a", "rtsp://h/1"), ("remove", "a"), ("pause", "a"), ("resume", "a")]
)
def test_without_redis_each_says_so(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *command, "--redis", "redis://127.0.0.1:1")

    assert (code, out, len(err.splitlines())) == (4, "", 1)
