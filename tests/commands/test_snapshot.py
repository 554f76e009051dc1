"""`coatstream cameras snapshot` as a person runs it, beside a worker's own publisher of previews."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from coatstream import cli
from coatstream.broker.connection import Client
from coatstream.broker.picture_keys import PictureKeys
from coatstream.commands import snapshot
from coatstream.frames.decoding import decode
from coatstream.results.showing import PreviewPublisher

from tests.results.test_previews import Pictures
from tests.support.servers import ON_ONE_SERVER

pytestmark = ON_ONE_SERVER


@pytest.fixture
def _worker(client: Client, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("COATSTREAM_REDIS__URL", redis_url)
    monkeypatch.chdir(tmp_path)
    publisher = PreviewPublisher(client, PictureKeys(), [Pictures("door/1")])
    stop = threading.Event()
    thread = threading.Thread(target=publisher.run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join(20)


@pytest.mark.usefixtures("_worker")
def test_a_picture_of_the_camera_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["cameras", "snapshot", "door/1"]) == 0

    assert "door_1.jpg: 640 x 360, taken " in capsys.readouterr().out
    assert decode((tmp_path / "door_1.jpg").read_bytes(), max_bytes=10**6, max_pixels=10**6).shape == (360, 640, 3)
    assert cli.run(["cameras", "snapshot", "door/1"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.run(["cameras", "snapshot", "door/1", "--force"]) == 0


@pytest.mark.usefixtures("_worker")
def test_a_camera_that_no_worker_reads_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "PATIENCE", 0.5)

    assert cli.run(["cameras", "snapshot", "yard", "--file", "x.jpg"]) == 1

    assert "no worker has sent a picture of yard in 0.5 s" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
