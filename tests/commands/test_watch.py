"""`coatstream watch` as a person runs it: labels from now on, whatever Redis does."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from coatstream import cli
from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import embedded_server
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.errors import ConfigError
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.protocol import EventStore, PendingEvent
from coatstream.settings.model import EventsSettings, RedisSettings
from rich.cells import cell_len

from tests.support.absence import missing
from tests.support.settled import NOW, publish

PATIENCE = 20.0  # seconds


def watchers(client: Client) -> int:
    """How many connections wait for a label right now."""
    return sum(one["cmd"].startswith("xread") and "b" in one["flags"] for one in client.client_list())


@contextmanager
def embedded() -> Iterator[str]:
    """The URL of a server of the test's own."""
    try:
        with embedded_server() as server:
            yield server.url
    except ConfigError as error:
        missing(str(error))


def client_of(url: str) -> Client:
    return connect(RedisSettings.model_validate({"url": url}))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.005)


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """`act` in a thread of its own. Should it fail, the watcher in the main thread is interrupted."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as failure:
            failures.append(failure)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
    assert not failures, failures


def watch(url: str, client: Client, act: Callable[[], object], *options: str) -> int:
    """Run the command; `act` as soon as it waits for labels."""

    def once_it_watches() -> None:
        wait_until(lambda: watchers(client) > 0)
        act()

    with meanwhile(once_it_watches):
        return cli.run(["watch", "--redis", url, *options])


def lines(text: str) -> list[list[str]]:
    """The columns of each line."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def test_a_label_is_a_line_of_time_source_label_score_and_age(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    code = watch(redis_url, client, lambda: publish(client, "1", source="door-1"), "--count", "1")

    out, err = capsys.readouterr()
    published_at = f"{datetime.fromtimestamp(NOW, UTC).astimezone():%H:%M:%S}.500"
    assert (code, err) == (0, "")
    assert lines(out) == [[published_at, "door-1", "Egyptian cat", "91.0%", "34 ms"]]


def test_labels_from_before_are_not_shown_and_the_command_ends_after_its_count(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(client, "old", source="old")

    def three() -> None:
        for source in ("a", "b", "c"):
            publish(client, source, source=source)

    assert watch(redis_url, client, three, "--count", "2") == 0

    assert [line[1] for line in lines(capsys.readouterr().out)] == ["a", "b"]


def test_json_is_the_document_as_it_was_published(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    documents: list[str] = []

    watch(redis_url, client, lambda: documents.append(publish(client, "1", label="Türe")), "--count", "1", "--json")

    assert capsys.readouterr().out.splitlines() == documents


def test_only_the_source_asked_for_is_shown_and_counted(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    def both() -> None:
        for number in range(2):
            publish(client, f"a{number}", source="a")
            publish(client, f"b{number}", source="b")

    watch(redis_url, client, both, "--source", "b", "--count", "2", "--json")

    assert [json.loads(line)["frame_id"] for line in capsys.readouterr().out.splitlines()] == ["b0", "b1"]


def announce(client: Client, *events: Event) -> list[str]:
    """Events as a worker says them; their documents."""
    server = EventStore(client, FleetKeys(), EventsSettings(), worker="me")
    server.publish([PendingEvent(event, event.fence) for event in events], newest="")
    return [fields[b"json"].decode() for _, fields in client.xrange("events")]


TAG_EVENTS = (
    Event(EventKind.TAG_STARTED, "door", NOW, {"tag": "cat", "score": 0.913, "started_at": NOW - 2, "frame_id": "f1"}),
    Event(
        EventKind.TAG_ENDED,
        "door",
        NOW + 9,
        {"tag": "cat", "started_at": NOW - 2, "ended_at": NOW + 7, "duration": 9.0, "peak": 0.97, "why": "gone"},
    ),
    Event(EventKind.CAMERA_STATE, "yard", NOW, {"state": "down", "reason": "auth", "message": "wrong password"}),
    Event(EventKind.PICTURE_SICK, "yard", NOW, {"fault": "black"}),
    Event(EventKind.PICTURE_WELL, "yard", NOW, {}),
)


def test_events_are_lines_of_time_source_what_and_more(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    code = watch(redis_url, client, lambda: announce(client, *TAG_EVENTS), "--events", "--count", "5")

    assert code == 0
    assert [line[1:] for line in lines(capsys.readouterr().out)] == [
        ["door", "tag.started", "cat", "score 0.91"],
        ["door", "tag.ended", "cat", "after 9.0 s, peak 0.97, gone"],
        ["yard", "camera.state", "down", "wrong password"],
        ["yard", "picture.sick", "black"],
        ["yard", "picture.well"],
    ]


def test_events_of_one_source_are_shown_as_the_documents_that_were_published(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    documents: list[str] = []

    def all_of_them() -> None:
        client.xadd("events", {"event": "of somebody else", "json": "[]"})
        documents.extend(announce(client, *TAG_EVENTS))

    watch(redis_url, client, all_of_them, "--events", "--json", "--source", "yard", "--count", "3")

    assert capsys.readouterr().out.splitlines() == documents[3:]


def test_ctrl_c_is_a_quiet_end(redis_url: str, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    code = watch(redis_url, client, lambda: os.kill(os.getpid(), signal.SIGINT))

    assert (code, *capsys.readouterr()) == (0, "", "")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_strangers_wrote_cannot_steer_the_terminal(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    source = "\x1b[2J[red]\x9b\u202e"

    watch(redis_url, client, lambda: publish(client, "1", source=source), "--count", "1", *options)

    out = capsys.readouterr().out
    assert out.removesuffix("\n").isprintable()
    assert "[red]" in out


def test_a_terminal_gets_colours(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")

    watch(redis_url, client, lambda: publish(client, "1", source="[red]"), "--count", "1")

    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "\x1b[" in out
    assert "[red]" in out


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("source", ["a" * 128, "\u732b" * 60, "[red]"], ids=["long", "wide", "markup"])
def test_a_line_fits_the_terminal_and_keeps_its_label(
    redis_url: str,
    client: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    source: str,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))

    watch(redis_url, client, lambda: publish(client, "1", source=source), "--count", "1")

    (line,) = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert cell_len(line) <= columns
    assert line.endswith("ms")
    assert source[:3] in line


def test_a_broken_connection_is_one_line_and_no_label_is_missed(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off_then_publish() -> None:
        client.client_kill_filter(_type="normal", skipme=True)
        publish(client, "1", source="a")
        wait_until(lambda: watchers(client) > 0)
        publish(client, "2", source="b")

    assert watch(redis_url, client, cut_off_then_publish, "--count", "2") == 0

    out, err = capsys.readouterr()
    assert [line[1] for line in lines(out)] == ["a", "b"]
    assert len(err.splitlines()) == 1
    assert err.startswith("coatstream: labels cannot be read")


def test_a_server_that_is_away_for_a_while_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "socket"  # where the first server is found, then none, then the second one
    url = f"unix://{link}"

    def replace_the_server() -> None:
        with embedded() as first, client_of(first) as client:
            link.symlink_to(first.removeprefix("unix://"))
            started.set()
            wait_until(lambda: watchers(client) > 0)
            publish(client, "1", source="first")
            wait_until(lambda: "first" in told())
        wait_until(lambda: "trying again" in told())
        with embedded() as second, client_of(second) as client:
            link.unlink()
            link.symlink_to(second.removeprefix("unix://"))
            wait_until(lambda: watchers(client) > 0)
            publish(client, "2", source="second")
            wait_until(ended.is_set)

    said: list[str] = []

    def told() -> str:
        said.extend(capfd.readouterr())
        return "".join(said)

    started, ended = threading.Event(), threading.Event()
    with meanwhile(replace_the_server):
        assert started.wait(PATIENCE)
        code = cli.run(["watch", "--redis", url, "--count", "2"])
        ended.set()

    assert code == 0
    assert told().count("trying again") == 1
    assert "first" in told()
    assert "second" in told()


def test_a_reader_that_has_enough_ends_the_command_well(redis_url: str, client: Client) -> None:
    command = [sys.executable, "-m", "coatstream", "watch", "--redis", redis_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_until(lambda: watchers(client) > 0)
        publish(client, "1", source="seen")
        assert "seen" in process.stdout.readline()

        process.stdout.close()
        publish(client, "2")

        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == ""


def test_without_redis_there_is_one_line_and_exit_code_4(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["watch", "--redis", "unix://user:secret@/nowhere/socket"])

    out, err = capsys.readouterr()
    assert (code, out) == (4, "")
    assert len(err.splitlines()) == 1
    assert "secret" not in err


def test_since_shows_what_was_published_before_and_goes_on_from_there(
    redis_url: str, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(client, "old", source="old")

    code = cli.run(["watch", "--redis", redis_url, "--since", "10m", "--count", "1"])

    assert code == 0
    assert [line[1] for line in lines(capsys.readouterr().out)] == ["old"]


@pytest.mark.parametrize("since", ["yesterday", "-5m", "10 m", ""])
def test_a_time_that_is_none_is_refused_in_one_line(since: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["watch", "--redis", "redis://127.0.0.1:1", f"--since={since}"]) == 2

    assert "give an age such as 90s" in capsys.readouterr().err
