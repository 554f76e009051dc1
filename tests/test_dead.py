"""`coatstream dead` as a person runs it."""

import json
import re

import pytest

from tests.settled import NOW, bury
from worker import cli
from worker.broker.connection import Client
from worker.commands import dead


@pytest.fixture(autouse=True)
def _settings(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COATSTREAM_REDIS__URL", redis_url)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code = cli._run(["dead", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def images(client: Client, stream: str = "frames") -> list[bytes]:
    return [fields[b"image"] for _, fields in client.xrange(stream)]


def test_the_list_has_a_line_per_letter_newest_last(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    first = bury(client, ("image", b"x" * 12345), ("source", "door-1"))
    second = bury(client, ("pixels", b"x" * 300), error="a very long error " * 10)

    code, out, err = run(capsys, "list")

    header, *lines = out.splitlines()
    assert (code, err) == (0, "")
    assert re.split(r"\s{2,}", header.strip()) == list(dead.COLUMNS)
    assert [line.split()[0] for line in lines] == [first, second]
    assert re.split(r"\s{2,}", lines[0].strip())[1:5] == ["door-1", "undecodable", "no picture", "1"]
    assert lines[0].endswith("12,345 B")
    assert "queue" in lines[1]
    assert ("a very long error " * 10).strip() in lines[1]
    assert lines[1].endswith("300 B")


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


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_strangers_wrote_cannot_steer_the_terminal(
    client: Client, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    bury(client, ("image", b"x"), ("source", "\x1b[2J[red]\x9b"), error="[bold]it[/] \x1b]0;title\x07")

    _, out, _ = run(capsys, "list", *options)

    assert out.replace("\n", "").isprintable()
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


@pytest.mark.parametrize("command", [("list",), ("replay", "--all"), ("drop", "1-1")])
def test_without_redis_there_is_one_line_and_exit_code_4(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    code, out, err = run(capsys, *command, "--redis", "unix://user:secret@/nowhere/socket")

    assert (code, out) == (4, "")
    assert len(err.splitlines()) == 1
    assert "cannot reach Redis" in err
    assert "secret" not in err
