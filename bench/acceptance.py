"""The promises at full size, on a real worker process and a real server; prints one line per bar.

    python -m bench acceptance [--weights random|noop] [--server PATH]

What it measures: 2,000 real JPEG frames of mixed sizes become 2,000 labels; SIGTERM in the middle of 2,000 more leaves
the rest to the next worker and labels none twice; 200 broken entries among 1,000 good ones become 200 dead letters with
the right reason, without a restart and without growing; a server that is frozen for 10 s is waited out.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer
from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import EmbeddedServer, embedded_server
from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import cv2
from coatstream.settings.model import RedisSettings

from tests.support.pictures import clip_frames, png_that_claims
from tests.support.workers import Worker, eventually, run_worker

SIZES = ((640, 360), (1280, 720), (320, 240), (1920, 1080), (480, 640), (333, 777))
CHUNK = 50

Model = dict[str, Any]  # settings of the worker


def main(
    weights: Annotated[Literal["random", "noop"], typer.Option(help="random: the real model; noop: none.")] = "random",
    server: Annotated[str | None, typer.Option(metavar="PATH", help="Another server binary.")] = None,
) -> None:
    model: Model = (
        {"model__engine": "noop"} if weights == "noop" else {"model__engine": "auto", "model__weights": "random"}
    )
    pictures = [_jpeg(frame, size) for frame, size in zip(clip_frames(48), SIZES * 8, strict=True)]
    for bar in (every_frame_once, sigterm_in_the_middle, broken_among_good, frozen_server):
        with embedded_server(binary=server) as own, _client(own) as client:
            started = time.monotonic()
            print(
                f"{bar.__name__:<24} {bar(own, client, pictures, model)}; {time.monotonic() - started:.0f} s",
                flush=True,
            )


def every_frame_once(server: EmbeddedServer, client: Client, pictures: list[bytes], model: Model) -> str:
    """2,000 frames, one worker: exactly 2,000 labels."""
    with run_worker(server.url, **model) as worker:
        started = time.monotonic()
        _enqueue(client, pictures, 2000)
        _until_empty(client)
        rate = 2000 / (time.monotonic() - started)
        worker.assert_balanced()
        assert worker.stop() == 0
    counts = _labels(client)
    assert (len(counts), max(counts.values()), client.xlen("frames"), client.xlen("frames:dead")) == (2000, 1, 0, 0)
    return f"2,000 frames: {len(counts)} labels, 0 doubled, 0 dead, ledger balanced, {rate:.0f} frames/s"


def sigterm_in_the_middle(server: EmbeddedServer, client: Client, pictures: list[bytes], model: Model) -> str:
    """The first worker is stopped half-way, the second one does the rest."""
    _enqueue(client, pictures, 2000)
    with run_worker(server.url, **model) as first:
        eventually(lambda: client.xlen("labels") >= 500, "a quarter")
        told = time.monotonic()
        assert first.stop() == 0
        drained = time.monotonic() - told
    done, left = client.xlen("labels"), client.xlen("frames")
    assert done + left == 2000
    assert {consumer["name"] for consumer in client.xinfo_consumers("frames", "coatstream")} <= {b"_released"}
    with run_worker(server.url, **model) as second:
        _until_empty(client)
        second.assert_balanced()
        assert second.stop() == 0
    counts = _labels(client)
    assert (len(counts), max(counts.values())) == (2000, 1)
    return f"exit 0 {drained:.1f} s after SIGTERM with {done} published and {left} left; then 2000 labels, 0 doubled"


def broken_among_good(server: EmbeddedServer, client: Client, pictures: list[bytes], model: Model) -> str:
    """200 broken entries of ten kinds among 1,000 good ones."""
    broken = list(_broken(pictures))
    with run_worker(server.url, **model) as worker:
        _enqueue(client, pictures, 200, prefix="warm")
        _until_empty(client)
        before = _rss(worker)
        for number in range(1000):
            client.xadd("frames", {"image": pictures[number % len(pictures)], "frame_id": f"f{number}"})
            if number % 5 == 0:
                fields, reason = broken[number // 5 % len(broken)]
                client.xadd("frames", {**fields, "frame_id": f"bad-{reason}"})
        _until_empty(client)
        grown = _rss(worker) - before
        worker.assert_balanced()
        assert worker.stop() == 0
    good = [name for name in _labels(client) if name.startswith("f")]
    dead = [
        (fields[b"frame_id"].decode(), f"bad-{fields[b'reason'].decode()}")
        for _, fields in client.xrange("frames:dead")
    ]
    assert (len(good), len(dead)) == (1000, 200)
    assert all(expected == found for expected, found in dead)
    reasons = ", ".join(f"{count} {name[4:]}" for name, count in Counter(name for name, _ in dead).items())
    return (
        f"1000 labels, 200 dead letters, all with the right reason ({reasons}), resident memory {grown / 1e6:+.0f} MB"
    )


def frozen_server(server: EmbeddedServer, client: Client, pictures: list[bytes], model: Model) -> str:
    """`kill -STOP` for 10 s in the middle of 1,000 frames, with the default time-outs."""
    with run_worker(server.url, **model) as worker:
        _enqueue(client, pictures, 1000)
        eventually(lambda: client.xlen("labels") >= 100, "some labels")
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(10)
        server.process.send_signal(signal.SIGCONT)
        thawed = time.monotonic()
        before = client.xlen("labels")
        eventually(lambda: client.xlen("labels") > before, "the first label after the thaw")
        resumed = time.monotonic() - thawed
        _until_empty(client)
        worker.assert_balanced()
        assert worker.stop() == 0
    counts = _labels(client)
    assert (len(counts), max(counts.values())) == (1000, 1)
    return f"frozen for 10 s: labels again after {resumed:.1f} s, 1000 labels, 0 lost, 0 doubled"


def _until_empty(client: Client) -> None:
    deadline = time.monotonic() + 600
    while client.xlen("frames"):
        assert time.monotonic() < deadline, "the queue does not become empty"
        time.sleep(0.02)


def _enqueue(client: Client, pictures: list[bytes], count: int, *, prefix: str = "f") -> None:
    for first in range(0, count, CHUNK):
        with client.pipeline(transaction=False) as pipe:
            for number in range(first, min(first + CHUNK, count)):
                picture = pictures[number % len(pictures)]
                pipe.xadd("frames", {"image": picture, "frame_id": f"{prefix}{number}", "source": f"cam-{number % 7}"})
            pipe.execute()


def _labels(client: Client) -> Counter[str]:
    return Counter(fields[b"frame_id"].decode() for _, fields in client.xrange("labels"))


def _broken(pictures: list[bytes]) -> Iterator[tuple[dict[str, Any], str]]:
    good = pictures[0]
    yield {"image": b""}, "undecodable"
    yield {"image": good[: len(good) // 3]}, "undecodable"
    yield {"image": random.Random(1).randbytes(20_000)}, "undecodable"
    yield {"image": "this is a text, not a picture"}, "undecodable"
    yield {"image": png_that_claims(20_000, 20_000)}, "too_large"
    yield {"source": "no picture at all"}, "invalid"
    yield {"pixels": b"123", "width": 640, "height": 360}, "invalid"
    yield {"image": good, "captured_at": "the day before yesterday"}, "invalid"
    yield {"image": good, "meta": "{" * 5000}, "invalid"
    yield {"image": good, "source": "x" * 5000}, "invalid"


def _rss(worker: Worker) -> float:
    return worker.total("process_resident_memory_bytes")


def _jpeg(frame: Pixels, size: tuple[int, int]) -> bytes:
    return bytes(cv2.imencode(".jpg", cv2.resize(frame, size), [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


@contextmanager
def _client(server: EmbeddedServer) -> Iterator[Client]:
    with connect(RedisSettings.model_validate({"url": server.url})) as client:
        yield client
