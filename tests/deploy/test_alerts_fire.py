"""Alerts of a real Prometheus over real workers, with faults that are really made. Minutes are played as seconds."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.absence import missing
from tests.support.paths import ROOT
from tests.support.pictures import jpeg
from tests.support.ports import HOST, free_port
from tests.support.redis_servers import TcpServer, tcp_server
from tests.support.workers import Worker, run_worker

pytestmark = pytest.mark.slow

RULES = ROOT / "deploy" / "monitoring" / "alerts.yaml"
DASHBOARD = json.loads((ROOT / "deploy" / "monitoring" / "coatstream.json").read_text("utf-8"))
WITHIN = 90.0  # seconds for an alert to fire
FASTER = {"5m": "15s", "15m": "40s", "30m": "60s", "1h": "15s", "6h": "15s"}
DOWN = '[{"name": "gate", "url": "rtsp://127.0.0.1:1/", "shared": false}]'


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server that scrapes what it is told, each second."""

    port: int
    targets: Path

    def scrape(self, *workers: Worker) -> None:
        """From now on these and no others. A file that is replaced at once is read at once."""
        new = self.targets.with_suffix(".new")
        new.write_text(json.dumps([{"targets": [f"{HOST}:{worker.port}" for worker in workers]}]))
        new.replace(self.targets)

    def firing(self) -> set[str]:
        alerts = httpx.get(f"http://{HOST}:{self.port}/api/v1/alerts", timeout=10).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def wait_for(self, *alerts: str) -> None:
        ends = time.monotonic() + WITHIN
        while not (firing := self.firing()).issuperset(alerts):
            assert time.monotonic() < ends, f"{set(alerts) - firing} did not fire, these did: {firing}"
            time.sleep(0.5)

    def query(self, expression: str) -> list[object]:
        asked = {"query": expression}
        answer = httpx.get(f"http://{HOST}:{self.port}/api/v1/query", params=asked, timeout=10).json()
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    if (tool := shutil.which("prometheus")) is None:
        missing("no prometheus on this machine (apt-get install prometheus)")
    rules = re.sub(r"\[(\w+)\]", lambda window: f"[{FASTER[window[1]]}]", RULES.read_text("utf-8"))
    rules = (
        re.sub(r"for: \w+", "for: 1s", rules)
        .replace("interval: 30s", "interval: 1s")
        .replace("> 60", "> 5")
        .replace("offset 15m", "offset 40s")
    )
    (folder / "rules.yaml").write_text(rules)
    (folder / "targets.json").write_text("[]")
    (folder / "prometheus.yaml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [rules.yaml]\nscrape_configs:\n"
        "  - {job_name: coatstream, file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]}\n"
    )
    port = free_port()
    options = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [tool, *options, f"--web.listen-address={HOST}:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_ready(port, process)
        yield Prometheus(port, folder / "targets.json")
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends and process.poll() is None:
        try:
            if httpx.get(f"http://{HOST}:{port}/-/ready", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError("prometheus did not start")


def put(server: TcpServer, count: int, picture: bytes, **more: str) -> list[Any]:
    fields: dict[Any, Any] = {"image": picture, "source": "door", **more}
    return [server.admin.xadd("frames", fields) for _ in range(count)]


def test_eleven_alerts_fire_on_faults_that_are_made_and_every_panel_has_data(tmp_path: Path) -> None:
    with prometheus(tmp_path) as watch, tcp_server() as server:
        late: dict[str, Any] = {"model__engine": "noop", "model__noop_delay": 3, "queue__prefetch": 8}
        with run_worker(server.url, **late, cameras=DOWN) as worker:
            watch.scrape(worker)
            watch.wait_for("CoatstreamRandomWeights", "CoatstreamCameraDown")
            put(server, 10, b"no picture")
            put(server, 2, jpeg(64, 64), expires_at="1")
            put(server, 40, jpeg(64, 64))
            watch.wait_for("CoatstreamDeadLettersGrow", "CoatstreamLatencyBurnsFast", "CoatstreamLatencyBurnsSlowly")
            empty = [query for query in panels() if not watch.query(query)]
            assert empty == []

            server.process.send_signal(signal.SIGSTOP)
            watch.wait_for("CoatstreamRedisAway")
            server.process.send_signal(signal.SIGCONT)

            for _ in range(4):
                os.kill(worker.child, signal.SIGKILL)
                worker.wait_for("ready")
                time.sleep(2.5)  # so that a scrape sees each
            watch.wait_for("CoatstreamRestarts")
            worker.stop(signal.SIGKILL)

        with run_worker(server.url, model__engine="noop", model__noop_delay=3600, queue__prefetch=8) as worker:
            watch.scrape(worker)
            entries = put(server, 60, jpeg(64, 64))
            watch.wait_for("CoatstreamNoLabels", "CoatstreamQueueOld")
            server.admin.xdel("frames", *entries[-10:])
            watch.wait_for("CoatstreamFramesVanish")
            worker.stop(signal.SIGKILL)
        watch.wait_for("CoatstreamNoWorker")


def panels() -> list[str]:
    """The dashboard's queries, with its variables filled in, but for those of cameras that are well and shared."""
    texts = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    windows = re.compile(r"\[(\w+)\]")
    filled = [windows.sub("[15s]", text.replace("$namespace", ".*")) for text in texts]
    return [text for text in filled if not re.search(r"fleet|replaced|picture_sick|process_|events_dropped", text)]


def test_what_a_worker_exports_passes_promtools_lint() -> None:
    if (tool := shutil.which("promtool")) is None:
        missing("no promtool on this machine (apt-get install prometheus)")
    with tcp_server() as server, run_worker(server.url, model__engine="noop") as worker:
        text = worker.get("/metrics").text

    done = subprocess.run(
        [tool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )

    assert list(text_string_to_metric_families(text))
    assert not [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("coatstream_")]
