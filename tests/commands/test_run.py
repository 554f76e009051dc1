"""`coatstream run` as its users run it: a real process, a real server, signals."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from coatstream.broker.connection import Client
from coatstream.broker.embedded import EmbeddedServer, embedded_server

from tests.support.pictures import CLIP, jpeg, png_that_claims
from tests.support.ports import free_port
from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import PATIENCE, Worker, eventually, run_worker, starting_worker

PICTURES = [jpeg(width, height) for width, height in ((64, 48), (640, 360), (33, 700), (1280, 720), (224, 224))]


def enqueue(client: Client, count: int, first: int = 0) -> None:
    with client.pipeline(transaction=False) as pipe:
        for number in range(first, first + count):
            pipe.xadd(
                "frames",
                {"image": PICTURES[number % len(PICTURES)], "source": f"cam-{number % 4}", "frame_id": f"f{number}"},
            )
        pipe.execute()


def published(client: Client) -> list[str]:
    return [fields[b"frame_id"].decode() for _, fields in client.xrange("labels")]


def test_every_queue_frame_becomes_exactly_one_label_and_the_ledger_balances(client: Client, redis_url: str) -> None:
    with run_worker(redis_url) as worker:
        enqueue(client, 500)
        eventually(lambda: client.xlen("labels") >= 500 and client.xlen("frames") == 0, "500 labels")

        worker.assert_balanced()
        assert worker.total("coatstream_frames_published_total") == 500
        assert worker.stop() == 0

    assert sorted(published(client)) == sorted(f"f{number}" for number in range(500))
    assert client.xlen("frames:dead") == 0
    assert client.xpending("frames", "coatstream")["pending"] == 0


@ON_ONE_SERVER
def test_order_is_kept_for_each_source(client: Client, redis_url: str) -> None:
    with run_worker(redis_url, model__streams=2):
        enqueue(client, 300)
        eventually(lambda: client.xlen("labels") >= 300, "300 labels")

    by_source: dict[bytes, list[int]] = {}
    for _, fields in client.xrange("labels"):
        by_source.setdefault(fields[b"source"], []).append(int(fields[b"frame_id"][1:]))
    assert len(by_source) == 4
    assert all(numbers == sorted(numbers) for numbers in by_source.values())


def test_sigterm_in_the_middle_leaves_the_rest_to_the_next_worker_and_no_frame_is_labelled_twice(
    client: Client, redis_url: str
) -> None:
    enqueue(client, 400)
    with run_worker(redis_url, model__noop_delay=0.02) as first:
        eventually(lambda: client.xlen("labels") >= 50, "some labels")
        assert first.stop() == 0

    done = client.xlen("labels")
    assert done < 400
    assert client.xlen("frames") == 400 - done
    assert {consumer["name"] for consumer in client.xinfo_consumers("frames", "coatstream")} <= {b"_released"}

    with run_worker(redis_url) as second:
        eventually(lambda: client.xlen("frames") == 0, "the rest")
        assert second.stop() == 0
    counts = Counter(published(client))
    assert len(counts) == 400
    assert set(counts.values()) == {1}


@ON_ONE_SERVER
def test_a_second_signal_leaves_at_once(client: Client, redis_url: str) -> None:
    enqueue(client, 20)
    with run_worker(redis_url, model__noop_delay=60, batch__max_size=4) as worker:
        eventually(lambda: worker.total("coatstream_frames_received_total") > 0, "a frame in the engine")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("draining")

        assert worker.stop(signal.SIGTERM) == 1

    assert client.xlen("frames") == 20


def _events_left(worker: Worker) -> list[str]:
    """Of the log lines that nobody has waited for."""
    return [json.loads(line)["event"] for line in list(worker.lines.queue)]


@ON_ONE_SERVER
def test_a_signal_while_the_model_is_being_loaded_ends_the_worker_at_once(client: Client, redis_url: str) -> None:
    enqueue(client, 1)
    with starting_worker(redis_url, model__engine="eager", model__weights="random") as worker:
        worker.wait_for("redis")  # the model comes next

        assert worker.stop() == 0
        eventually(lambda: _events_left(worker)[-1:] == ["asked to stop while loading: nothing was read"], "it says so")

    assert "ready" not in _events_left(worker)
    assert client.xlen("frames") == 1


@ON_ONE_SERVER
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_terminal_that_is_closed_drains_like_sigterm(client: Client, redis_url: str, name: str) -> None:
    enqueue(client, 100)
    with run_worker(redis_url, model__noop_delay=0.02) as worker:
        eventually(lambda: client.xlen("labels") >= 5, "some labels")

        assert worker.stop(signal.Signals[name]) == 0

    assert client.xlen("frames") + client.xlen("labels") == 100


@ON_ONE_SERVER
def test_under_nohup_a_terminal_that_is_closed_is_nothing(client: Client, redis_url: str) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with run_worker(redis_url) as worker:
            worker.process.send_signal(signal.SIGHUP)
            enqueue(client, 20)
            eventually(lambda: client.xlen("labels") == 20, "all labels")
            assert worker.stop() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def _catches_sigterm(pid: int) -> bool:
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("after", [0.0, 0.2, 0.4, 0.8])
def test_a_signal_in_the_first_second_ends_it_with_0(after: float) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-m", "coatstream", "run", "--engine", "noop", "--redis", "redis://127.0.0.1:1"],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"COATSTREAM_REDIS__START_TIMEOUT": "0", "COATSTREAM_HTTP__PORT": "0"},
    )
    eventually(lambda: _catches_sigterm(worker.pid), "the first lines of ours run")  # Python needs some 50 ms for it
    time.sleep(after)
    worker.send_signal(signal.SIGTERM)

    assert worker.wait(timeout=PATIENCE) == 0


def test_a_worker_that_starts_while_redis_is_away_loads_its_model_and_waits() -> None:
    port = free_port()
    with starting_worker(f"redis://127.0.0.1:{port}", redis__start_timeout=0) as worker:
        worker.wait_for("waiting for Redis")
        eventually(lambda: worker.get("/startedz").status_code == 200, "the model is warm")
        unready = worker.get("/readyz")

        assert worker.get("/healthz").status_code == 200
        assert unready.status_code == 503
        assert "cannot reach Redis" in unready.text
        with embedded_server("--port", str(port), "--bind", "127.0.0.1"):
            worker.wait_for("ready")
            assert worker.stop() == 0


@ON_ONE_SERVER
def test_a_server_that_would_lose_the_queue_is_named_at_the_start(redis_url: str) -> None:
    with run_worker(redis_url) as worker:
        warnings = [line["why"] for line in worker.log if line["event"] == "Redis may lose frames"]

    assert [line.partition(":")[0] for line in warnings] == ["no append-only file"]


@ON_ONE_SERVER
def test_a_server_that_lost_its_stream_is_logged_as_that(client: Client, redis_url: str) -> None:
    with run_worker(redis_url) as worker:
        enqueue(client, 5)
        eventually(lambda: client.xlen("labels") == 5, "labels")
        client.flushall()
        eventually(lambda: client.exists("frames") == 1, "the stream is made again")
        assert worker.stop() == 0
        events = _events_left(worker)

    assert any(event.startswith("the server has lost the stream") for event in events)


@ON_ONE_SERVER
def test_a_drain_that_takes_too_long_ends_with_1_and_loses_nothing(client: Client, redis_url: str) -> None:
    enqueue(client, 5)
    with run_worker(redis_url, model__noop_delay=60, drain__timeout=1) as worker:
        eventually(lambda: worker.total("coatstream_frames_received_total") > 0, "a frame in the engine")

        assert worker.stop() == 1

    assert client.xlen("frames") == 5
    assert client.xlen("labels") == 0


def test_broken_entries_among_good_ones_are_dead_letters_with_the_right_reason(client: Client, redis_url: str) -> None:
    good, huge = PICTURES[1], png_that_claims(20_000, 20_000)
    broken: list[tuple[dict[str, object], str]] = [
        ({"image": b""}, "undecodable"),
        ({"image": good[: len(good) // 2]}, "undecodable"),
        ({"image": random.Random(1).randbytes(3000)}, "undecodable"),
        ({"image": "just a text"}, "undecodable"),
        ({"image": huge}, "too_large"),
        ({"source": "nothing"}, "invalid"),
        ({"pixels": b"123", "width": 4, "height": 4}, "invalid"),
        ({"image": good, "captured_at": "nan"}, "invalid"),
        ({"image": good, "meta": "{" * 5000}, "invalid"),
        ({"image": good, "source": "x" * 500}, "invalid"),
    ]
    with run_worker(redis_url) as worker:
        for number in range(300):
            client.xadd("frames", {"image": good, "frame_id": f"good-{number}"})
            if number % 5 == 0:
                fields, reason = broken[number // 5 % len(broken)]
                client.xadd("frames", {**fields, "frame_id": f"bad-{reason}"} if "frame_id" not in fields else fields)
        eventually(lambda: client.xlen("frames") == 0, "everything settled")
        worker.assert_balanced()
        assert worker.stop() == 0

    assert sorted(published(client)) == sorted(f"good-{number}" for number in range(300))
    dead = [
        (fields[b"frame_id"].decode(), f"bad-{fields[b'reason'].decode()}")
        for _, fields in client.xrange("frames:dead")
    ]
    assert len(dead) == 60
    assert all(expected == found for expected, found in dead)


def test_a_frozen_server_is_waited_out_and_nothing_is_lost_or_doubled(
    client: Client, redis_url: str, redis_server: EmbeddedServer
) -> None:
    """The short form of `kill -STOP`; the socket time-out is short, so that calls do end in doubt."""
    with run_worker(redis_url, redis__socket_timeout=0.5, model__noop_delay=0.005) as worker:
        enqueue(client, 300)
        eventually(lambda: client.xlen("labels") >= 20, "some labels")
        redis_server.process.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: worker.get("/readyz").status_code == 503, "not ready")
            assert worker.get("/healthz").status_code == 200
        finally:
            redis_server.process.send_signal(signal.SIGCONT)
        eventually(lambda: worker.get("/readyz").status_code == 200, "ready again")
        enqueue(client, 100, first=300)
        eventually(lambda: client.xlen("frames") == 0, "everything settled")
        worker.assert_balanced()
        assert worker.stop() == 0

    counts = Counter(published(client))
    assert len(counts) == 400
    assert set(counts.values()) == {1}


@ON_ONE_SERVER
def test_a_camera_and_the_queue_are_served_by_one_process(client: Client, redis_url: str) -> None:
    cameras = [
        {"name": "file", "url": str(CLIP), "fps": 5},
        {"name": "live", "url": str(CLIP), "fps": 20, "realtime": True, "loop": True},
    ]
    with run_worker(redis_url, cameras=json.dumps(cameras)) as worker:
        enqueue(client, 40)
        eventually(lambda: _by_source(client)["file"] == 70, "the whole file")
        eventually(lambda: _by_source(client)["live"] >= 10, "some live frames")
        eventually(
            lambda: sum(count for source, count in _by_source(client).items() if source.startswith("cam-")) == 40,
            "the queue",
        )
        assert worker.stop() == 0

    assert set(map(bytes.decode, client.hkeys("labels:latest"))) >= {"file", "live", "cam-0"}


@ON_ONE_SERVER
def test_a_file_without_a_queue_ends_the_worker_when_it_is_labelled(client: Client, redis_url: str) -> None:
    cameras = json.dumps([{"name": "file", "url": str(CLIP), "fps": 2}])
    with run_worker(redis_url, cameras=cameras, queue__enabled="false") as worker:
        assert worker.process.wait(timeout=30) == 0

    assert _by_source(client) == {"file": 28}


@ON_ONE_SERVER
def test_the_model_and_its_weights_are_said_in_the_metrics(redis_url: str) -> None:
    with run_worker(redis_url) as worker:
        infos = [dict(labels) for (name, labels) in worker.metrics() if name == "coatstream_model_info"]

    said = {"name": "coat_lite_mini.in1k", "weights": "none", "engine": "noop", "precision": "none", "device": "none"}
    assert infos == [said]


def _by_source(client: Client) -> Counter[str]:
    return Counter(fields[b"source"].decode() for _, fields in client.xrange("labels"))


def ended(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COATSTREAM_")}
    return subprocess.run(
        [sys.executable, "-m", "coatstream", *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "code", "says"),
    [
        ({}, 2, "redis.url is not set"),
        ({"COATSTREAM_REDIS__URL": "http://x"}, 2, "redis://"),
        ({"COATSTREAM_BATCH__MAX_SIZE": "many"}, 2, "batch.max_size"),
        ({"COATSTREAM_QUEUE__STREEM": "x"}, 2, "did you mean"),
        (
            {"COATSTREAM_REDIS__URL": "redis://:hunter2@127.0.0.1:1/0", "COATSTREAM_REDIS__START_TIMEOUT": "0.2"},
            4,
            "cannot reach Redis",
        ),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line_and_an_exit_code(
    environment: dict[str, str], code: int, says: str
) -> None:
    done = ended("run", "--engine", "noop", "--set", "http.port=0", **environment)

    errors = [line for line in done.stderr.splitlines() if line.startswith("coatstream:")]
    assert done.returncode == code
    assert len(errors) == 1
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_a_redis_that_takes_calls_and_never_answers_is_exit_4_within_its_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"

        done = ended(
            *("run", "--engine", "noop", "--set", "http.port=0", "--redis", url),
            *("--set", "redis.socket_timeout=0.5", "--set", "redis.start_timeout=0.5"),
        )

    assert done.returncode == 4


def test_weights_that_cannot_be_had_are_exit_3_and_name_the_three_ways_out() -> None:
    hub = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": "/nonexistent"}
    with embedded_server() as server:
        done = ended("run", "--set", "http.port=0", "--redis", server.url, **hub)

    assert done.returncode == 3
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("coatstream:")]
    for way_out in ("HF_HOME", "--weights FILE", "--weights random"):
        assert way_out in error


def test_a_usage_error_is_one_line_and_exit_2() -> None:
    done = ended("run", "--no-such-option")

    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
