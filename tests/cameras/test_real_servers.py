"""Cameras that are other people's programs: GStreamer's RTSP server, Motion with digest authentication, and nginx."""

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
    [
        ("h264", (320, 240)),
        ("wide", (640, 360)),
        ("interlaced", (320, 240)),
        ("h265", (320, 240)),
        ("sound-first", (320, 240)),
        ("jpeg", (320, 240)),
        ("vp8", (320, 240)),
    ],
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


# nginx, with files that a camera has left there

NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off; gzip on; gzip_types *; gzip_min_length 1;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    types {{ image/jpeg jpg; image/png png; application/vnd.apple.mpegurl m3u8; video/mp4 mp4 m4s; video/mp2t ts; }}
    server {{
        listen 127.0.0.1:{port};
        root {folder}/files;
        location /closed/ {{ alias {folder}/files/; auth_basic cameras; auth_basic_user_file {folder}/users; }}
        location /motion {{ types {{ }} default_type "multipart/x-mixed-replace; boundary=f"; limit_rate 20k; }}
        location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
    }}
}}
"""
SHADE = np.full((120, 160, 3), (0, 128, 255), np.uint8)


def _files(folder: Path) -> None:
    """A picture of each kind, Motion JPEG, and HLS of each kind, all of 160 x 120."""
    for suffix in (".jpg", ".png"):
        (folder / f"snap{suffix}").write_bytes(cv2.imencode(suffix, SHADE)[1].tobytes())
    jpeg = (folder / "snap.jpg").read_bytes()
    (folder / "motion").write_bytes((b"--f\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n") * 200)
    source = ["-f", "lavfi", "-i", "color=0x0080ff:size=160x120:rate=10:duration=4"]
    coded = ["-c:v", "libx264", "-g", "10", "-pix_fmt", "yuv420p"]
    hls = ["-f", "hls", "-hls_time", "1", "-hls_list_size", "0"]
    for name, options in {
        "segments.m3u8": hls,
        "ranges.m3u8": [*hls, "-hls_flags", "single_file"],
        "fragments.m3u8": [*hls, "-hls_segment_type", "fmp4", "-hls_fmp4_init_filename", "head.mp4"],
        "fragment-ranges.m3u8": [*hls, "-hls_segment_type", "fmp4", "-hls_flags", "single_file"],
    }.items():
        command = ["ffmpeg", "-v", "error", *source, *coded, *options, str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60, cwd=folder)
    media = (folder / "segments.m3u8").read_text().splitlines()
    (folder / "breaks.m3u8").write_text(
        "\n".join(line.replace("#EXTINF", "#EXT-X-DISCONTINUITY\n#EXTINF") for line in media)
    )
    head = '#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9999,RESOLUTION=160x120,CODECS="avc1.42c00a"\n'
    (folder / "master.m3u8").write_text(f"{head}segments.m3u8?token=1\n")


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an nginx that serves the files."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ffmpeg") is None:
        missing("no nginx or ffmpeg command")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    (folder / "files").mkdir()
    _files(folder / "files")
    (folder / "users").write_text("admin:{PLAIN}pa ss@#%/?\n")
    (folder / "nginx.conf").write_text(f"user root;{NGINX}".format(folder=folder, port=port))
    folder.parent.chmod(0o755)
    with running([program, "-c", str(folder / "nginx.conf"), "-p", str(folder)], port):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    "path",
    [
        "snap.jpg", "snap.png", "moved/snap.jpg", "motion", "segments.m3u8",
        "ranges.m3u8", "fragments.m3u8", "fragment-ranges.m3u8", "breaks.m3u8", "master.m3u8", "moved/master.m3u8",
    ],
)  # fmt: skip
def test_what_nginx_serves_of_a_camera_is_read(nginx: str, path: str) -> None:
    count = 1 if path.endswith((".jpg", ".png")) else 5  # the second one has not changed

    heard = hear(f"{nginx}/{path}", count, fps=20, read_timeout=WAIT)

    assert (heard.words, heard.sizes, heard.damage) == (None, [(160, 120)] * count, 0)
    assert all(abs(int(frame.pixels[60, 80, 1]) - 128) < 8 for frame in heard.frames)


@pytest.mark.parametrize("path", ["snap.jpg", "motion", "segments.m3u8", "fragments.m3u8"])
def test_nginx_that_asks_for_a_password_gets_it_for_every_file(nginx: str, path: str) -> None:
    right, wrong = (
        hear(f"{nginx}/closed/{path}", 1, fps=20, username="admin", password=password, read_timeout=WAIT)
        for password in ("pa ss@#%/?", "pa")
    )

    assert (right.words, right.sizes) == (None, [(160, 120)])
    assert wrong.reason is DownReason.AUTH
