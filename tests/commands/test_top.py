"""`coatstream top`: one true screen of any size, and its keys."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from coatstream import cli
from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet.leases import Catalogue, CatalogueEntry, Leases
from coatstream.commands.top_view import Sight, TopChoice, screen
from coatstream.results.events.reader import PublishedEvent
from coatstream.results.reports import BatchReport, FramesReport, ModelReport, WorkerReport
from coatstream.web.snapshot import LatestLabels, Overview, ShownCamera, ShownLabel, ShownQueue, ShownTag, Snapshot

from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import PATIENCE, run_worker

NOW = 1_764_000_000.0
EVIL = "<script>\x1b[31m\u202edoor"


def camera(name: str, state: str = "live", **more: object) -> ShownCamera:
    latest = LatestLabels(source=name, at=NOW - 0.2, published_at=NOW, labels=(ShownLabel(label="tabby", score=0.7),))
    fields = {
        "name": name, "url": "rtsp://h", "origin": "settings", "state": state, "reason": "", "message": "",
        "since": NOW - 90, "worker": "host-1", "wanted_fps": 5.0, "fps": 4.9, "read_fps": 25.0,
        "last_picture": NOW, "sick": (), "tags": (), "latest": latest,
    }  # fmt: skip
    return ShownCamera.model_validate(fields | more)


def worker(name: str = "host-1", weights: str = "hub", **more: object) -> WorkerReport:
    model = ModelReport(name="coat", weights=weights, engine="openvino", precision="bf16", device="cpu")
    frames = FramesReport(received=100, published=90, dropped={"replaced": 8}, dead={"undecodable": 1}, in_flight=1)
    fields = {
        "worker": name, "at": NOW, "started_at": NOW, "version": "1", "model": model, "frames_per_second": 24.5,
        "age_p95": 0.31, "batches": BatchReport(size=3.5), "frames": frames,
    }  # fmt: skip
    return WorkerReport.model_validate(fields | more)


QUEUE = ShownQueue(
    stream="frames", entries=12, in_work=4, oldest_age=75.0, dead=2, published=1, dropped=0, died=2, gone=0,
    stranded=0, refused=0, balanced=True,
)  # fmt: skip


def sight(*cameras: ShownCamera, workers: tuple[WorkerReport, ...] = (), trouble: str = "") -> Sight:
    overview = Overview(at=NOW, workers=workers or (worker(),), queues=(QUEUE,), faults={})
    down = {"state": "down", "message": "no route"}
    events = [PublishedEvent("1-0", "camera.state", "yard", NOW, down, "{}")]
    return Sight(Snapshot(overview=overview, cameras=cameras), events, trouble)


def shown(what: Sight, choice: TopChoice | None = None, width: int = 80, height: int = 24) -> str:
    return "\n".join(
        line.plain for line in screen(what, choice or TopChoice(), where="here", width=width, height=height)
    )


def test_eighty_by_twenty_four_hold_what_matters() -> None:
    dog = ShownTag(tag="dog", score=0.8, since=NOW - 12)
    text = shown(sight(camera("door", tags=(dog,)), camera("yard", "down", message="no route to it"), camera("hall")))

    assert len(text.splitlines()) == 24
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "1 replica  24.5 labels/s  age p95 0.31s",
        "8 waiting, 4 in work, oldest 75s, 2 dead letters, books balance",
        "received 100 = labelled 90 + dropped 8 (replaced 8) + dead 1 (undecodable 1)",
        "dog 12s",
        "no route to it",
        "(tabby 70%)",
        "LAST EVENTS",
        "q quit",
    ):
        assert words in text, words


def test_what_strangers_write_is_text() -> None:
    text = shown(sight(camera(EVIL, message=EVIL, state="down"), workers=(worker(EVIL, because=(EVIL,)),)), width=200)

    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>" in text


def test_a_gate_that_saves_nothing_says_why_beside_its_camera() -> None:
    lines = screen(sight(camera("door", gate="the picture changes")), TopChoice(), where="r", width=160, height=24)

    (door,) = (line.plain for line in lines if line.plain.startswith("door"))
    assert door.rstrip().endswith("reuse saves nothing: the picture changes")


def test_random_weights_and_an_outage_are_said_in_words() -> None:
    text = shown(sight(workers=(worker(weights="random"),), trouble="cannot reach Redis"), width=120)

    assert "RANDOM WEIGHTS" in text
    assert "NOT UP TO DATE: cannot reach Redis" in text


@pytest.mark.parametrize("size", [(20, 3), (40, 10), (80, 24), (300, 100)])
def test_no_terminal_is_too_small(size: tuple[int, int]) -> None:
    lines = shown(sight(*(camera(f"camera-{number}") for number in range(200))), width=size[0], height=size[1])

    assert len(lines.splitlines()) <= size[1]
    assert max(map(len, lines.splitlines())) <= size[0]


def test_keys_sort_filter_find_scroll_and_quit() -> None:
    dog = ShownTag(tag="dog", score=0.8, since=NOW)
    cameras = sight(camera("a", "down"), camera("b", tags=(dog,)), camera("c", fps=9.0))

    def after(keys: str) -> list[str]:
        choice = TopChoice()
        for key in keys:
            choice = choice.after(key) or choice
        return [line.split()[0] for line in shown(cameras, choice).splitlines() if line[:2] in ("a ", "b ", "c ")]

    assert after("") == ["a", "b", "c"]
    assert after("ss") == ["c", "a", "b"]
    assert after("f") == ["a"]
    assert after("ff") == ["b"]
    assert after("/dog\r") == ["b"]
    assert after("/dogx\x7f\r") == ["b"]
    assert after("/dog\x1b") == ["a", "b", "c"]
    assert TopChoice().after("q") is None
    assert TopChoice(typing=True).after("q") == TopChoice(typing=True, find="q")


@ON_ONE_SERVER
def test_without_a_terminal_one_screen_is_printed(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.hset("labels:latest", "queue", json.dumps({}))

    assert cli.run(["top", "--redis", redis_url]) == 0

    assert "0 replicas" in capsys.readouterr().out


@ON_ONE_SERVER
def test_cameras_of_a_workers_settings_file_are_there_without_that_file(
    client: Client, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    roof = CatalogueEntry("roof", "d", rate=2.0, url="rtsp://10.0.0.9:554")
    Leases(client, FleetKeys(), worker="host-1-ab", lease=60).beat(Catalogue((roof,)))

    assert cli.run(["top", "--once", "--redis", redis_url]) == 0

    assert "roof" in capsys.readouterr().out


@pytest.mark.slow
@ON_ONE_SERVER
def test_on_a_terminal_it_shows_a_worker_and_q_ends_it(redis_url: str) -> None:
    master, slave = pty.openpty()
    with run_worker(redis_url):
        process = subprocess.Popen(
            [sys.executable, "-m", "coatstream", "top", "--redis", redis_url],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        seen, ends = b"", time.monotonic() + PATIENCE
        while b"1 replica " not in seen and time.monotonic() < ends:
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 65_536)
        os.write(master, b"q")
        try:
            assert process.wait(20) == 0
        finally:
            process.send_signal(signal.SIGKILL) if process.poll() is None else None
            os.close(master)

    assert b"1 replica " in seen
    assert b"\x1b[31m" not in seen
