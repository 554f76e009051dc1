"""Cameras that are other people's programs: GStreamer's RTSP server, and Motion with digest authentication."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from coatstream.errors import DownReason
from coatstream.frames.opencv import cv2

from tests.support.absence import missing
from tests.support.cameras.heard import Heard, hear
from tests.support.cameras.odd import OddCamera

SYSTEM_PYTHON = "/usr/bin/python3"
GSTREAMER = Path(__file__).parents[1] / "support" / "cameras" / "gstreamer.py"
WAIT = 30.0  # seconds until a server must answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """A server that listens on this port within some seconds."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + WAIT
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < until
                    time.sleep(0.1)
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module")
def gstreamer() -> Iterator[str]:
    """The address of its RTSP server."""
    try:
        check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
        subprocess.run([SYSTEM_PYTHON, "-c", check], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        missing("no RTSP server of GStreamer (gir1.2-gst-rtsp-server-1.0)")
    port = free_port()
    with running([SYSTEM_PYTHON, str(GSTREAMER), str(port)], port):
        yield f"rtsp://127.0.0.1:{port}"


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("path", "size"),
    [("h264", (320, 240)), ("wide", (640, 360)), ("interlaced", (320, 240)), ("jpeg", (320, 240)), ("vp8", (320, 240))],
)
def test_each_kind_of_stream_of_gstreamers_is_read(
    gstreamer: str, path: str, size: tuple[int, int], transport: str
) -> None:
    heard = hear(f"{gstreamer}/{path}", 5, transport=transport, open_timeout=WAIT, read_timeout=WAIT)

    assert (heard.words, heard.sizes) == (None, [size] * 5)
    assert all(frame.pixels.max() > 200 and frame.pixels.mean() < 60 for frame in heard.frames)  # a ball in the dark


def test_motion_is_read_with_digest_authentication(tmp_path: Path) -> None:
    if shutil.which("motion") is None:
        missing("no motion command")
    picture = np.full((480, 640, 3), (0, 128, 255), np.uint8)
    port = free_port()
    with OddCamera([cv2.imencode(".jpg", picture)[1].tobytes()]) as camera:
        settings = {
            "daemon": "off", "log_level": "5", "target_dir": tmp_path, "netcam_url": camera.url("plain"), "width": 640,
            "height": 480, "framerate": 10, "picture_output": "off", "movie_output": "off", "webcontrol_port": 0,
            "stream_port": port, "stream_localhost": "on", "stream_maxrate": 10, "stream_auth_method": 2,
            "stream_authentication": "admin:pass1",
        }  # fmt: skip
        (tmp_path / "motion.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        with running(["motion", "-c", str(tmp_path / "motion.conf")], port):
            right, wrong = (_read(port, password) for password in ("pass1", "pass2"))

    assert (right.words, right.sizes) == (None, [(640, 480)] * 5)
    assert wrong.reason is DownReason.AUTH


def _read(port: int, password: str) -> Heard:
    """As often as it takes until Motion has pictures: it hangs up before."""
    until = time.monotonic() + WAIT
    while True:
        url = f"http://127.0.0.1:{port}/"
        heard = hear(url, 5, username="admin", password=password, open_timeout=WAIT, read_timeout=WAIT)
        if heard.reason is not DownReason.ENDED or time.monotonic() > until:
            return heard
        time.sleep(0.5)
