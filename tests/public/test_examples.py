"""Each example runs, against real servers and workers."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from coatstream.broker.connection import Client

from tests.service.test_story import settings, working
from tests.support.absence import missing
from tests.support.doubles import FixedEngine
from tests.support.paths import ASSETS, ROOT
from tests.support.pictures import grey_jpeg
from tests.support.redis_servers import TcpServer, tcp_server
from tests.support.servers import ON_ONE_SERVER
from tests.support.workers import eventually

EXAMPLES = ROOT / "examples"


# ---- the web service


@ON_ONE_SERVER
async def test_the_web_service_classifies_uploads_through_the_queue(
    client: Client, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("REDIS_URL", redis_url)
    import upload_service  # type: ignore[import-not-found, unused-ignore]

    monkeypatch.setattr(upload_service, "REDIS_URL", redis_url)
    service = upload_service.app
    async with (
        working(settings(redis_url), FixedEngine(poison=13)),
        service.router.lifespan_context(service),
        httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://service") as browser,
    ):
        good = await browser.post("/classify", files={"picture": grey_jpeg(42)})
        bad = await browser.post("/classify", files={"picture": b"no picture"})
        monkeypatch.setattr(upload_service, "TIMEOUT", 0.3)
        client.client_pause(1500, all=False)  # no worker can settle
        late = await browser.post("/classify", files={"picture": grey_jpeg(42)})
        client.client_unpause()

    assert (good.status_code, good.json()["labels"][0]["label"]) == (200, "class 42")
    assert bad.status_code == 422
    assert "no picture that can be read" in bad.json()["detail"]
    assert late.status_code in (503, 504)


# ---- Node


@pytest.fixture(params=["valkey", "redis"])
def tcp(request: pytest.FixtureRequest) -> Iterator[TcpServer]:
    binary = shutil.which("redis-server") if request.param == "redis" else None
    if request.param == "redis" and binary is None:
        missing("no redis-server on this machine (apt-get install redis-server)")
    with tcp_server(binary=binary) as server:
        yield server


@contextmanager
def node(folder: Path, server: TcpServer, *words: str, **environ: str) -> Iterator["subprocess.Popen[str]"]:
    environ = {**os.environ, "REDIS_URL": server.url, **environ}
    pipe = subprocess.PIPE
    with subprocess.Popen(["node", *words], cwd=folder, env=environ, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_node_puts_pictures_and_reads_labels_failures_and_events(
    node_examples: Path, tcp: TcpServer, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    good.write_bytes(grey_jpeg(42))
    bad.write_bytes(b"no picture")
    tcp.admin.xadd("events", {"json": '{"event": "camera.state"}'})
    with node(node_examples, tcp, "read.js", "2", SINCE="0-0") as reader:
        assert reader.stderr is not None
        assert reader.stderr.readline() == "reading\n"

        with node(node_examples, tcp, "produce.js", str(bad), str(good), str(good)) as producer:
            put = producer.communicate(timeout=60)
        assert producer.returncode == 0, put[1]
        async with working(settings(tcp.url), FixedEngine()):
            out, _ = await asyncio.to_thread(reader.communicate, timeout=60)

    documents: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert [json.loads(line)["frame_id"] for line in put[0].splitlines()] == ["bad.jpg", "good.jpg", "good.jpg"]
    assert {"event": "camera.state"} in documents
    assert [(d["status"], d["reason"]) for d in documents if "status" in d] == [("dead", "undecodable")]
    assert [d["labels"][0]["label"] for d in documents if "labels" in d] == ["class 42", "class 42"]
    assert tcp.admin.xlen("frames") == 0
    assert int(tcp.admin.hget("frames:books", "admitted_bytes") or -1) == 0


def test_node_reads_as_many_labels_as_were_wanted_where_more_are_there(node_examples: Path, tcp: TcpServer) -> None:
    for number in range(3):
        tcp.admin.xadd("labels", {"json": f'{{"number": {number}}}'})

    with node(node_examples, tcp, "read.js", "2", SINCE="0-0") as reader:
        out, problems = reader.communicate(timeout=60)

    assert reader.returncode == 0, problems
    assert [json.loads(line)["number"] for line in out.splitlines()] == [0, 1]


def test_node_waits_while_the_queue_is_full_and_then_goes_on(
    node_examples: Path, tcp: TcpServer, tmp_path: Path
) -> None:
    picture = tmp_path / "good.jpg"
    picture.write_bytes(grey_jpeg(42))
    script = node_examples / "produce.js"
    (node_examples / "small.js").write_text(script.read_text().replace("MAX_ENTRIES = 10_000", "MAX_ENTRIES = 1"))
    waiting = tcp.admin.xadd("frames", {"image": b"x"})

    with node(node_examples, tcp, "small.js", str(picture)) as producer:
        eventually(lambda: tcp.admin.exists("frames:newcomer") == 1, "it was turned away")
        tcp.admin.xdel("frames", waiting)
        _, problems = producer.communicate(timeout=60)

    assert producer.returncode == 0, problems
    assert tcp.admin.xlen("frames") == 1


# ---- embeddings


@pytest.mark.slow
def test_the_embeddings_of_photos_and_which_are_alike() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "embeddings.py"), str(ASSETS)],
        env={**os.environ, "WEIGHTS": "random"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "(512,) float32" in done.stdout
    assert "(50, 512) float32" in done.stdout
    assert done.stdout.count("looks most like") == 3
