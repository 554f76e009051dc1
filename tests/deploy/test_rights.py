"""The Redis users of components/redis-dev/users.acl: each program works with its own, and may do no more."""

from collections.abc import Iterator

import httpx
import pytest
import redis
from coatstream import Picture, Producer
from coatstream.settings.loading import load
from coatstream.web.app import serve_alone

from tests.support.paths import ROOT
from tests.support.pictures import jpeg
from tests.support.ports import HOST
from tests.support.redis_servers import TcpServer, tcp_server
from tests.support.workers import run_worker

USERS = (ROOT / "deploy/k8s/components/redis-dev/users.acl").read_text("utf-8").splitlines()
PASSWORD = "for-development-only"
READ = ("/api/overview", "/api/queues", "/api/ledger", "/api/cameras", "/api/events", "/api/labels", "/api/dead")


@pytest.fixture(scope="module")
def server() -> Iterator[TcpServer]:
    with tcp_server() as server:
        for line in USERS:
            if " default " not in line:
                server.admin.execute_command("ACL", "SETUSER", *line.split()[1:])
        yield server


def url(server: TcpServer, user: str) -> str:
    return f"redis://{user}:{PASSWORD}@{HOST}:{server.port}/0"


def test_a_worker_and_a_producer_need_no_more_than_their_users_have(server: TcpServer) -> None:
    with (
        run_worker(url(server, "coatstream-worker")) as worker,
        Producer.connect(url(server, "coatstream-producer")) as producer,
    ):
        label = producer.classify(Picture(jpeg(64, 64), source="door"), timeout=60)
        refused = [line for line in worker.log if "NOPERM" in str(line)]

    assert label.source == "door"
    assert refused == []


async def test_the_page_reads_everything_and_changes_cameras_and_dead_letters(server: TcpServer) -> None:
    server.admin.xadd("frames:dead", {"image": b"x", "reason": "invalid", "source": "door"}, id="1-1")
    settings = load(
        environ={"COATSTREAM_REDIS__URL": url(server, "coatstream-page"), "COATSTREAM_HTTP__PORT": "0"},
        secrets_dir=None,
    )
    camera = {"name": "gate", "url": "rtsp://10.0.0.7/stream1"}
    async with serve_alone(settings) as port, httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=30) as client:
        answers = {path: (await client.get(path)).status_code for path in READ}
        added = await client.post("/api/cameras", json=camera)
        removed = await client.delete("/api/cameras", params={"name": "gate"})
        dropped = await client.post("/api/dead/drop", json={"letters": [{"entry": "1-1"}]})

    assert answers == dict.fromkeys(READ, 200)
    assert (added.status_code // 100, removed.status_code // 100) == (2, 2), (added.text, removed.text)
    assert "NOPERM" not in dropped.text


def test_kedas_user_may_ask_for_the_length_and_nothing_else(server: TcpServer) -> None:
    with redis.Redis(HOST, server.port, username="coatstream-keda", password=PASSWORD) as keda:
        assert keda.xlen("frames") >= 0
        with pytest.raises(redis.exceptions.NoPermissionError):
            keda.xrange("frames")
        with pytest.raises(redis.exceptions.NoPermissionError):
            keda.xlen("labels")
