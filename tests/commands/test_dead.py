"""`coatstream dead` as a person runs it."""

import json
import re
from pathlib import Path

import pytest
from coatstream import cli
from coatstream.broker.connection import Client, connect
from coatstream.commands import dead, dead_view
from coatstream.queue.audit import audit
from coatstream.settings.model import QueueSettings, RedisSettings

from tests.support.burials import bury, queue
from tests.support.redis_servers import cluster
from tests.support.servers import ON_ONE_SERVER
from tests.support.settled import NOW


@pytest.fixture(autouse=True)
def _settings(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COATSTREAM_REDIS__URL", redis_url)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code = cli.run(["dead", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def two_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COATSTREAM_QUEUES", '[{"stream": "slow", "priority": 1}, {"stream": "fast"}]')


@pytest.fixture
def twins(client: Client, two_queues: None) -> str:
    """An id that a dead letter of either queue has."""
    for stream in ("fast", "slow"):
        client.xadd(f"{stream}:dead", {"image": stream}, id="5-5")
    return "5-5"


def images(client: Client, stream: str = "frames") -> list[bytes]:
    return [fields[b"image"] for _, fields in client.xrange(stream)]


def test_the_list_has_a_line_per_letter_newest_last(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    first = bury(client, ("image", b"x" * 12345), ("source", "door-1"))
    second = bury(client, ("pixels", b"x" * 300), error="a very long error " * 10)

    code, out, err = run(capsys, "list")

    header, *lines = out.splitlines()
    assert code == 0
    assert re.split(r"\s{2,}", header.strip()) == list(dead_view.COLUMNS)
    assert [line.split()[0] for line in lines] == [first, second]
    assert re.split(r"\s{2,}", lines[0].strip())[1:5] == ["door-1", "undecodable", "no picture", "1"]
    assert lines[0].endswith("12,345 B")
    assert "queue" in lines[1]
    assert ("a very long error " * 10).strip() in lines[1]
    assert lines[1].endswith("300 B")
    size = audit(client, queue()).dead_bytes
    assert err == f"frames: 2 of 10,000 letters, {size / 1024:.1f} KiB of 1.0 GiB: 0% full\n"


def test_letters_that_had_to_go_are_not_kept_quiet(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        bury(client, ("image", "x"), limits=QueueSettings(dead_max_length=1))

    told = run(capsys, "list", "--set", "queue.dead_max_length=2")[2]

    assert told.startswith("frames: 1 of 2 letters")
    assert "50% full; 2 dead letters had to go" in told
    assert len(told.splitlines()) == 1


def test_an_empty_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list") == (0, "no dead letters\n", "")
    assert run(capsys, "list", "--json") == (0, "", "")


def test_json_has_everything_but_the_pictures(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    letter = bury(client, ("image", b"\xff" * 10), ("source", "door"), ("note", "n" * 5000), ("frame_id", "7"))

    code, out, _ = run(capsys, "list", "--json")

    assert code == 0
    told = json.loads(out)
    assert told.pop("entry_id").endswith("-0")
    assert told == {
        "entry": letter,
        "stream": "frames",
        "reason": "undecodable",
        "error": "no picture",
        "deliveries": 1,
        "died_at": NOW,
        "worker": "me",
        "fields": {"source": "door", "frame_id": "7"},
        "sizes": {"image": 10, "note": 5000},
    }


def test_named_letters_alone_are_listed_and_an_unknown_one_is_a_fault(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    bury(client, ("image", b"a"))
    wanted = bury(client, ("image", b"b"))

    code, out, err = run(capsys, "list", wanted, "1-1", "--json")

    assert code == 1
    assert [json.loads(line)["entry"] for line in out.splitlines()] == [wanted]
    assert err == "coatstream: 1-1: there is no such dead letter\n"


@pytest.mark.parametrize("command", ["list", "show"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_strangers_wrote_cannot_steer_the_terminal(
    client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, options: tuple[str, ...]
) -> None:
    letter = bury(
        *(client, ("pixels", b"x"), ("source", "\x1b[2J[red]\x9b"), ("\x1b[1m", "\u202e"), ("width", "\x1b[3J")),
        error="[bold]it[/] \x1b]0;title\x07",
    )
    save = ("--save", str(tmp_path / "picture")) if command == "show" else ()

    _, out, err = run(capsys, command, letter, *options, *save)

    assert out.replace("\n", "").isprintable()
    assert err.replace("\n", "").isprintable()
    assert "[red]" in out
    assert "[bold]it[/]" in out


def test_a_terminal_gets_a_table_that_fits(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    letter = bury(client, ("image", b"x"), error="far too long for one line of a terminal " * 5)

    _, out, _ = run(capsys, "list")

    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in out.splitlines()]
    assert max(map(len, lines)) <= 100
    assert any(line.startswith(letter) for line in lines)


def test_replayed_letters_are_frames_again(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [bury(client, ("image", image)) for image in (b"a", b"b", b"c")]

    assert run(capsys, "replay", ids[0], ids[2]) == (0, "replayed 2\n", "")

    assert images(client) == [b"a", b"c"]
    assert images(client, "frames:dead") == [b"b"]


def test_a_letter_that_is_named_twice_is_replayed_once(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    letter = bury(client, ("image", b"a"))

    assert run(capsys, "replay", letter, letter) == (0, "replayed 1\n", "")


def test_all_letters_are_replayed_in_their_order(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "AT_ONCE", 7)
    for number in range(40):
        bury(client, ("image", f"{number}"))

    assert run(capsys, "replay", "--all") == (0, "replayed 40\n", "")

    assert images(client) == [str(number).encode() for number in range(40)]
    assert run(capsys, "replay", "--all") == (0, "replayed 0\n", "")


def test_unknown_letters_are_a_line_each_and_the_others_are_replayed(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    letter = bury(client, ("image", b"a"))

    code, out, err = run(capsys, "replay", "1-1", letter, "\x1b[2J")

    assert (code, out) == (1, "replayed 1\n")
    assert err.splitlines() == [
        "coatstream: 1-1: there is no such dead letter",
        "coatstream: \\x1b[2J: there is no such dead letter",
    ]


def test_a_letter_that_cannot_be_put_back_stays_and_is_a_fault(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    letter = client.xadd("frames:dead", {f"f{number}": "x" for number in range(5000)}).decode()

    code, out, err = run(capsys, "replay", "--all")

    assert (code, out) == (1, "replayed 0\n")
    assert err.startswith(f"coatstream: {letter}: it cannot be put back")
    assert client.xlen("frames:dead") == 1


def test_dropped_letters_are_deleted(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [bury(client, ("image", image)) for image in (b"a", b"b", b"c")]

    assert run(capsys, "drop", ids[1]) == (0, "dropped 1\n", "")
    assert images(client, "frames:dead") == [b"a", b"c"]

    assert run(capsys, "drop", ids[1])[0] == 1
    assert run(capsys, "drop", "--all") == (0, "dropped 2\n", "")
    assert client.xlen("frames:dead") == client.xlen("frames") == 0


@pytest.mark.parametrize("arguments", [("replay",), ("drop",), ("replay", "1-1", "--all"), ("drop", "1-1", "--all")])
def test_entries_or_all_must_be_named(
    client: Client, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    bury(client, ("image", b"a"))

    code, out, err = run(capsys, *arguments)

    assert (code, out) == (2, "")
    assert err.startswith("coatstream: name the entries")
    assert client.xlen("frames:dead") == 1


def test_everything_about_one_letter_is_shown(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    bury(client, ("image", b"another"))
    letter = bury(
        client, ("image", b"x" * 12345), ("source", "door-1"), ("meta", '{"a": 1}'), ("note", "n" * 5000), error="bad"
    )

    code, out, err = run(capsys, "show", letter)

    told = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines())
    assert (code, err) == (0, "")
    assert told.pop("died at").startswith("2023-11-1")
    assert told.pop("frame's entry").endswith("-0")
    assert told == {
        "entry": letter,
        "queue": "frames",
        "reason": "undecodable",
        "error": "bad",
        "deliveries": "1",
        "worker": "me",
        "field source": "door-1",
        "field meta": '{"a": 1}',
        "field image": "(12,345 B)",
        "field note": "(5,000 B)",
    }


def test_one_letter_as_json_is_as_in_the_list(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    letter = bury(client, ("image", b"x"), ("source", "door-1"))

    assert run(capsys, "show", letter, "--json") == run(capsys, "list", "--json")


def test_of_thousands_of_fields_a_screenful_is_shown(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    letter = bury(client, *((f"f{number}", "x") for number in range(3000)))

    _, out, _ = run(capsys, "show", letter)

    assert 100 < len(out.splitlines()) < 120
    assert "and 2,900 more fields" in out


def test_a_letter_that_is_not_there_is_one_line_and_no_file(
    client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, "show", "1-1", "--save", str(tmp_path / "picture"))

    assert (code, out, err) == (1, "", "coatstream: 1-1: there is no such dead letter\n")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_saved_as_it_came(client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = bytes(range(256)) * 100
    letter = bury(client, ("image", picture))
    file = tmp_path / "picture.jpg"

    code, out, err = run(capsys, "show", letter, "--save", str(file))

    assert (code, err) == (0, f"saved 25,600 B as {file}\n")
    assert letter in out
    assert file.read_bytes() == picture


def test_raw_pixels_are_saved_with_a_word_about_their_format(
    client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    letter = bury(client, ("pixels", b"\x00\x01" * 3), ("width", 2), ("height", 1), ("format", "rgb24"))

    code, out, err = run(capsys, "show", letter, "--json", "--save", str(tmp_path / "raw"))

    assert (code, json.loads(out)["sizes"]) == (0, {"pixels": 6})
    assert err.endswith("raw; raw pixels, width 2, height 1, format rgb24\n")
    assert (tmp_path / "raw").read_bytes() == b"\x00\x01" * 3


def test_a_file_is_overwritten_only_by_force(
    client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    letter = bury(client, ("image", b"new"))
    file = tmp_path / "picture.jpg"
    file.write_bytes(b"an old picture")

    code, out, err = run(capsys, "show", letter, "--save", str(file))

    assert (code, out) == (2, "")
    assert err == f"coatstream: {file} is there already: give --force to overwrite it, or another name\n"
    assert file.read_bytes() == b"an old picture"

    assert run(capsys, "show", letter, "--save", str(file), "--force")[0] == 0
    assert file.read_bytes() == b"new"


def test_a_file_that_cannot_be_written_is_one_line(
    client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    letter = bury(client, ("image", b"x"))

    code, _, err = run(capsys, "show", letter, "--save", str(tmp_path / "nowhere" / "x"))

    assert code == 2
    assert err == f"coatstream: the picture cannot be saved as {tmp_path}/nowhere/x: No such file or directory\n"


def test_a_letter_without_a_picture_is_shown_and_that_is_a_fault(
    client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    letter = bury(client, ("source", "door"))

    code, out, err = run(capsys, "show", letter, "--save", str(tmp_path / "x"))

    assert (code, err) == (1, f"coatstream: {letter}: it has no picture to save\n")
    assert letter in out
    assert list(tmp_path.iterdir()) == []


def test_the_letters_of_all_queues_are_listed_by_priority(
    client: Client, capsys: pytest.CaptureFixture[str], two_queues: None
) -> None:
    slow, fast = (bury(client, ("image", b"x"), stream=stream) for stream in ("slow", "fast"))

    code, out, err = run(capsys, "list")

    header, *lines = out.splitlines()
    assert code == 0
    assert header.split()[0] == "queue"
    assert [line.split()[:2] for line in lines] == [["fast", fast], ["slow", slow]]
    assert [line.split(":")[0] for line in err.splitlines()] == ["fast", "slow"]
    assert [json.loads(line)["stream"] for line in run(capsys, "list", "--json")[1].splitlines()] == ["fast", "slow"]


@pytest.mark.parametrize("name", ["slow", "slow:dead"])
def test_one_queue_can_be_picked_by_its_frames_or_its_letters(
    client: Client, capsys: pytest.CaptureFixture[str], two_queues: None, name: str
) -> None:
    for stream in ("slow", "fast"):
        bury(client, ("image", stream), stream=stream)

    assert len(run(capsys, "list", "--json", "--stream", name)[1].splitlines()) == 1
    assert run(capsys, "replay", "--all", "--stream", name) == (0, "replayed 1\n", "")

    assert images(client, "slow") == [b"slow"]
    assert client.xlen("fast:dead") == 1


def test_a_queue_that_nobody_configured_is_a_wrong_usage(capsys: pytest.CaptureFixture[str], two_queues: None) -> None:
    code, out, err = run(capsys, "drop", "--all", "--stream", "labels")

    assert (code, out) == (2, "")
    assert err == "coatstream: no queue has the stream labels: --stream takes one of fast, slow\n"


def test_letters_are_found_in_whichever_queue_they_are(
    client: Client, capsys: pytest.CaptureFixture[str], two_queues: None
) -> None:
    slow = client.xadd("slow:dead", {"image": "slow"}).decode()
    fast = client.xadd("fast:dead", {"image": "fast"}, id="5-5").decode()

    assert json.loads(run(capsys, "show", slow, "--json")[1])["stream"] == "slow"
    assert run(capsys, "replay", slow, "1-1", fast) == (
        *(1, "replayed 2\n"),
        "coatstream: 1-1: there is no such dead letter\n",
    )
    assert (images(client, "slow"), images(client, "fast")) == ([b"slow"], [b"fast"])


@pytest.mark.parametrize("command", ["show", "replay", "drop"])
def test_a_name_that_two_letters_have_is_asked_back(
    client: Client, capsys: pytest.CaptureFixture[str], twins: str, command: str
) -> None:
    code, _, err = run(capsys, command, twins)

    assert code == 1
    assert err == (
        "coatstream: 5-5: several queues have a dead letter of this name (fast, slow): name one with --stream\n"
    )
    assert client.xlen("fast:dead") == client.xlen("slow:dead") == 1

    assert run(capsys, command, twins, "--stream", "fast")[0] == 0
    assert client.xlen("fast:dead") == (1 if command == "show" else 0)
    assert client.xlen("slow:dead") == 1


def test_a_list_shows_both_letters_of_one_name(client: Client, capsys: pytest.CaptureFixture[str], twins: str) -> None:
    code, out, _ = run(capsys, "list", twins, "--json")

    assert code == 0
    assert [json.loads(line)["stream"] for line in out.splitlines()] == ["fast", "slow"]


@ON_ONE_SERVER
def test_the_letters_of_all_partitions_of_a_cluster_are_at_hand(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{{door:{number}}}frames" for number in range(3)]
    settings = {
        "queue.stream": "{door}frames",
        "queue.dead_stream": "{door}frames:dead",
        "results.stream": "{door}labels",
        "queue.partitions": "3",
    }
    with cluster() as servers, connect(RedisSettings.model_validate({"url": servers.url})) as client:
        options = ["--redis", servers.url, *(word for pair in settings.items() for word in ("--set", "=".join(pair)))]
        letters = [
            client.xadd(f"{name}:dead", {"image": name}, id=f"{at}-1").decode() for at, name in enumerate(names, 1)
        ]

        assert len(run(capsys, "list", *options)[1].splitlines()) == 1 + len(names)
        assert json.loads(run(capsys, "show", letters[1], "--json", *options)[1])["stream"] == names[1]
        assert run(capsys, "replay", letters[2], *options) == (0, "replayed 1\n", "")
        assert run(capsys, "drop", "--all", *options) == (0, "dropped 2\n", "")

        assert images(client, names[2]) == [names[2].encode()]
        assert sum(client.xlen(f"{name}:dead") for name in names) == 0


@pytest.mark.parametrize("command", [("list",), ("show", "1-1"), ("replay", "--all"), ("drop", "1-1")])
def test_without_redis_there_is_one_line_and_exit_code_4(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    code, out, err = run(capsys, *command, "--redis", "unix://user:secret@/nowhere/socket")

    assert (code, out) == (4, "")
    assert len(err.splitlines()) == 1
    assert "cannot reach Redis" in err
    assert "secret" not in err


def test_the_list_can_be_of_one_source_and_one_reason(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    first = bury(client, ("image", b"x"), ("source", "door-1"))
    bury(client, ("image", b"x"), ("source", "door-2"))
    unnamed = bury(client, ("image", b"x"))

    assert [
        json.loads(line)["entry"] for line in run(capsys, "list", "--json", "--source", "door-1")[1].splitlines()
    ] == [first]
    assert [
        json.loads(line)["entry"] for line in run(capsys, "list", "--json", "--source", "queue")[1].splitlines()
    ] == [unnamed]
    assert len(run(capsys, "list", "--json", "--reason", "undecodable")[1].splitlines()) == 3
    assert run(capsys, "list", "--json", "--reason", "invalid")[1] == ""


def test_a_reason_that_is_none_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "list", "--reason", "tired")

    assert (code, out) == (2, "")
    assert "give one of undecodable, invalid, too_large, model_error, delivery_limit" in err
