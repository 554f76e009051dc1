"""What the README prints is run: against a server and a worker without a model, no network, the page's own text."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from coatstream.settings.loading import load
from coatstream.settings.model import SettingsTree

from tests.support.absence import missing
from tests.support.paths import ROOT
from tests.support.pictures import jpeg
from tests.support.redis_servers import TcpServer, tcp_server
from tests.support.workers import run_worker

README = (ROOT / "README.md").read_text("utf-8")
URL = "redis://localhost:6379/0"  # as the pages print it
PATIENCE = 60.0  # seconds, of one snippet


def snippets(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[TcpServer]:
    """With a worker that labels whatever comes."""
    with tcp_server() as server, run_worker(server.url):
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a newcomer stands: with a photo."""
    (tmp_path / "photo.jpg").write_bytes(jpeg(320, 240))
    return tmp_path


def test_the_cameras_of_the_readme_are_settings(tmp_path: Path) -> None:
    [text] = snippets("yaml")
    file = tmp_path / "cameras.yaml"
    file.write_text(text)

    settings = load(config=file, environ={})

    assert isinstance(settings, SettingsTree)
    assert [camera.name for camera in settings.cameras] == ["door", "desk", "clip"]


def test_the_readme_puts_a_frame_in_with_redis_cli_and_finds_its_label(server: TcpServer) -> None:
    if shutil.which("redis-cli") is None:
        missing("no redis-cli on this machine (apt-get install redis-tools)")
    put, ask = re.findall(r"^    (redis-cli .*?)(?: {2,}#.*)?$", README, re.MULTILINE)
    put, ask = (line.replace("redis-cli ", f"redis-cli -p {server.port} ") for line in (put, ask))

    entry = subprocess.run(put, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    server.admin.xread({"labels": "0-0"}, block=int(PATIENCE * 1000))
    label = subprocess.run(ask, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)

    assert entry.stdout.strip() in label.stdout
    assert "door-1" in label.stdout


def test_the_python_snippet_of_the_readme_labels_a_photo(server: TcpServer, folder: Path) -> None:
    [code] = snippets("python")

    done = subprocess.run(
        [sys.executable, "-c", code.replace(URL, server.url)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"class \d+ [\d.e-]+\n", done.stdout)


def test_the_node_snippet_of_the_readme_puts_a_frame_in(server: TcpServer, folder: Path, node_examples: Path) -> None:
    [code] = snippets("js")
    (folder / "put.mjs").write_text(code.replace(URL, server.url))
    (folder / "node_modules").symlink_to(node_examples / "node_modules")

    done = subprocess.run(
        ["node", "put.mjs"], cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False
    )

    assert done.returncode == 0, done.stderr


def test_the_rights_in_the_documents_are_enough_for_a_worker(folder: Path) -> None:
    lines = re.findall(r"^    (ACL SETUSER .*)$", (ROOT / "docs/operating.md").read_text("utf-8"), re.MULTILINE)
    with tcp_server() as server:
        for line in lines:
            server.admin.execute_command(*line.split())

        url = f"redis://worker:SECRET@127.0.0.1:{server.port}/0"
        with run_worker(url, cameras=f'[{{"name": "door", "url": "{folder}/"}}]'):
            with redis.Redis(port=server.port, username="camera-door", password="SECRET") as producer:
                producer.xadd("frames", {"image": jpeg(64, 64), "source": "door-1"})
            with redis.Redis(port=server.port, username="reader", password="SECRET", decode_responses=True) as reader:
                [[_, [[_, label]]]] = reader.xread({"labels": "0-0"}, block=int(PATIENCE * 1000))

    assert label["source"] == "door-1"
