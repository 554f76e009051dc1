"""A camera's life against real servers and real files: reading, sampling, losing it, stopping."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import trustme
from coatstream.cameras.capture.camera import Camera
from coatstream.errors import BadFrame, DeadReason, DownReason, SourceLost
from coatstream.frames.encoding import encode_jpeg
from coatstream.frames.frame import Frame, Pixels
from coatstream.frames.opencv import cv2
from coatstream.pipeline.source import Source
from coatstream.settings.model import CameraSettings

from tests.support.cameras.heard import Heard, hear
from tests.support.cameras.hls import HlsCamera, play_stream, send_stream
from tests.support.cameras.http import HttpCamera
from tests.support.cameras.listener import Listener
from tests.support.cameras.rtsp import CLIP, FPS, LENGTH, RtspCamera, RtspProcess, number_of
from tests.support.load import slack
from tests.support.paths import ASSETS, STREAMS

COCKATOO = ASSETS / "cockatoo_360p.mp4"  # 280 frames of 640 x 360, 20 a second
AV1 = STREAMS / "av1.webm"  # 64 x 64, 2 seconds
NASTY = "p@ss:/?#%&+ wörd"


def whole(picture: Pixels) -> Pixels:
    return picture


def camera(url: str | Path, **settings: Any) -> Camera:
    defaults = {"name": "door", "url": str(url), "fps": 0, "open_timeout": 5.0, "read_timeout": 2.0}
    return Camera(CameraSettings(**(defaults | settings)), prepare=whole)


def read(source: Camera, count: int | None = None) -> list[Frame]:
    """The first `count` frames of a source, or all of them."""
    with closing(source.frames(threading.Event())) as frames:
        return list(islice(frames, count))


def why_lost(source: Camera) -> str:
    with pytest.raises(SourceLost) as caught:
        read(source)
    return str(caught.value)


def red_picture() -> Pixels:
    picture = np.zeros((120, 160, 3), np.uint8)
    picture[:] = (0, 0, 255)  # BGR
    return picture


@pytest.fixture(scope="module")
def red_jpeg() -> bytes:
    return cv2.imencode(".jpg", red_picture())[1].tobytes()


@pytest.fixture
def red_clip(tmp_path: Path) -> Path:
    """A second of red, ten pictures."""
    path = tmp_path / "red.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 120))
    for _ in range(10):
        writer.write(red_picture())
    writer.release()
    return path


def is_red(pixels: Pixels) -> bool:
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    return bool(red > 230 and green < 25 and blue < 25)


class Hourglass(threading.Event):
    """A stop event that never waits: time passes at once, and adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


# A live stream


def test_a_live_camera_gives_its_newest_pictures_in_order() -> None:
    with RtspCamera() as server:
        lags, numbers = [], []
        with closing(camera(server.url()).frames(threading.Event())) as frames:
            for frame in islice(frames, 20):
                numbers.append(number_of(frame.pixels))
                lags.append((server.now_showing - numbers[-1]) % LENGTH)

    assert [(b - a) % LENGTH for a, b in pairwise(numbers)] == [1] * 19
    assert max(lags) < FPS / 2


def test_a_live_camera_is_sampled_at_the_rate_asked() -> None:
    with RtspCamera() as server:
        numbers = [number_of(frame.pixels) for frame in read(camera(server.url(), fps=10), 16)]

    assert (numbers[-1] - numbers[0]) % LENGTH / 15 == pytest.approx(FPS / 10, rel=0.15)


def test_a_frame_says_where_and_when_it_was_taken() -> None:
    before = time.time()
    with RtspCamera() as server:
        first, second = read(camera(server.url()), 2)

    assert (first.source, first.width, first.height) == ("door", 320, 240)
    assert before < first.captured_at < second.captured_at < time.time()
    assert first.frame_id.startswith("door-")
    assert first.frame_id != second.frame_id


def test_lost_and_damaged_packets_do_not_end_a_stream() -> None:
    with RtspCamera() as server:
        assert len(read(camera(server.url("?drop=0.05&corrupt=0.05")), 15)) == 15


def test_a_motion_jpeg_camera_is_read_over_http_in_the_right_colours(red_jpeg: bytes) -> None:
    with HttpCamera(red_jpeg, credentials=f"jo:{NASTY}") as server:
        (frame,) = read(camera(server.url(), username="jo", password=NASTY), 1)

    assert is_red(frame.pixels)


def test_a_raw_stream_is_read_over_tcp() -> None:
    def serve(connection: socket.socket, closing: threading.Event) -> None:
        clip = CLIP.read_bytes()
        for start in range(0, len(clip), 2000):
            connection.sendall(clip[start : start + 2000])
            closing.wait(0.02)

    with Listener(serve) as server:
        assert len(read(camera(f"tcp://127.0.0.1:{server.port}"), 5)) == 5


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_a_password_with_special_characters_opens_the_camera(scheme: Literal["basic", "digest"]) -> None:
    with RtspCamera(user="jo@home", password=NASTY, scheme=scheme) as server:
        assert read(camera(server.url(), username="jo@home", password=NASTY), 1)


# Losing it


def test_a_camera_that_refuses_the_connection_is_a_loss() -> None:
    with Listener(lambda *_: None) as gone:
        pass

    why = why_lost(camera(f"rtsp://jo:hunter2@127.0.0.1:{gone.port}/cam"))

    assert why == "camera 'door' cannot be opened: it cannot be reached (connection refused)"


def test_a_camera_that_never_answers_is_a_loss_after_the_open_timeout() -> None:
    with RtspCamera(silent=True) as server:
        before = time.monotonic()
        why = why_lost(camera(server.url(), open_timeout=0.5))

    assert why == "camera 'door' cannot be opened: no answer within 0.5 s"
    assert time.monotonic() - before < 2 + slack()


def test_a_camera_that_does_not_answer_holds_up_no_other(red_clip: Path) -> None:
    asked = threading.Event()

    def keep_waiting(_: socket.socket, closing: threading.Event) -> None:
        asked.set()
        closing.wait()

    with Listener(keep_waiting) as server:
        waiting = threading.Thread(target=why_lost, args=[camera(f"rtsp://127.0.0.1:{server.port}/cam")])
        waiting.start()
        assert asked.wait(5)

        assert read(camera(red_clip), 1)
        assert waiting.is_alive()
    waiting.join(timeout=5)


def test_a_camera_that_dies_is_a_loss_at_once() -> None:
    with RtspCamera() as server, closing(camera(server.url()).frames(threading.Event())) as frames:
        next(frames)

        server.close()
        before = time.monotonic()
        with pytest.raises(SourceLost, match=r"camera 'door' was lost: its stream ended"):
            list(frames)

    assert time.monotonic() - before < 1 + slack()


def test_a_camera_that_falls_silent_is_a_loss_after_the_read_timeout_and_gives_no_stale_frame() -> None:
    arrivals: list[float] = []
    with RtspCamera() as server:
        frames = camera(server.url("?hang=1"), read_timeout=1).frames(threading.Event())
        with pytest.raises(SourceLost, match=r"camera 'door' stalled: no picture for 1\.\d s"):
            arrivals.extend(time.monotonic() for _ in frames)
        silence = time.monotonic() - arrivals[-1]

    assert max(b - a for a, b in pairwise(arrivals)) < 0.9
    assert 0.9 <= silence < 2


def test_an_http_camera_that_hangs_up_is_a_loss(red_jpeg: bytes) -> None:
    with HttpCamera(red_jpeg) as server:
        assert "its stream ended" in why_lost(camera(server.url("?die=1")))


def test_a_camera_that_came_back_is_read_anew_under_new_frame_ids(red_jpeg: bytes) -> None:
    with HttpCamera(red_jpeg) as server:
        source = camera(server.url())

        once, again = read(source, 2), read(source, 2)

    assert len({frame.frame_id for frame in once + again}) == 4


def test_a_device_that_is_not_there_is_a_loss() -> None:
    assert why_lost(camera("250")) == (
        "camera 'door' cannot be opened: there is no such device, or another program holds it"
    )


# Stopping


def test_a_reader_that_waits_for_a_silent_camera_stops_within_the_read_timeout() -> None:
    with RtspCamera() as server:
        stop, source = threading.Event(), camera(server.url("?hang=1"), read_timeout=1.5)
        reader = threading.Thread(target=lambda: list(source.frames(stop)))
        reader.start()
        assert server.hung.wait(10)

        stop.set()
        reader.join(timeout=2.5)

        assert not reader.is_alive()


def test_a_running_camera_stops_at_its_next_picture(red_jpeg: bytes) -> None:
    stop = threading.Event()
    with HttpCamera(red_jpeg) as server:
        frames = camera(server.url()).frames(stop)
        next(frames)

        stop.set()

        assert list(frames) == []


# Files


@pytest.mark.parametrize(("fps", "count"), [(0, 280), (5, 70), (8, 112)])
def test_a_file_gives_every_frame_that_was_asked_for_and_ends(fps: float, count: int) -> None:
    frames = read(camera(COCKATOO, fps=fps))

    assert len(frames) == count
    assert len({frame.frame_id for frame in frames}) == count


def test_a_file_without_timestamps_is_sampled_by_its_rate() -> None:
    numbers = [number_of(frame.pixels) for frame in read(camera(CLIP, fps=5))]

    assert numbers == list(range(0, LENGTH, 5))


def test_a_file_waits_for_its_reader_and_a_stream_does_not() -> None:
    source: Source = camera(COCKATOO)

    assert not source.live
    assert camera(COCKATOO, realtime=True).live
    assert camera("rtsp://cam/main").live


def test_a_frame_is_what_prepare_made_of_it_in_rgb_with_the_original_size(red_clip: Path) -> None:
    heard = Heard()
    source = Camera(
        CameraSettings(name="clip", url=str(red_clip), fps=1),
        prepare=lambda picture: picture[10:42, 20:84],
        clock=lambda: 1_700_000_000.25,
        observer=heard,
    )

    (frame,) = read(source)

    assert frame.pixels.shape == (32, 64, 3)
    assert frame.pixels.dtype == np.uint8
    assert frame.pixels.flags.c_contiguous
    assert frame.pixels.base is None
    assert is_red(frame.pixels)
    assert (frame.width, frame.height, frame.captured_at) == (160, 120, 1_700_000_000.25)
    assert heard.stages == ["decode", "prepare"]


def test_a_picture_that_cannot_be_prepared_is_counted_and_passed_over(red_clip: Path) -> None:
    seen: Iterator[int] = iter(range(100))

    def refuse_the_third(picture: Pixels) -> Pixels:
        if next(seen) == 2:
            raise BadFrame(DeadReason.TOO_LARGE, "too large")
        return picture

    settings = CameraSettings(name="clip", url=str(red_clip), fps=0)
    source = Camera(settings, prepare=refuse_the_third)

    assert len(read(source)) == 9
    assert source.lost == 1


def test_a_file_in_real_time_takes_as_long_as_it_lasts() -> None:
    stop = Hourglass()
    settings = CameraSettings(name="clip", url=str(COCKATOO), fps=5, realtime=True)
    source = Camera(settings, prepare=whole, monotonic=lambda: stop.now, clock=lambda: stop.now)

    frames = list(source.frames(stop))

    assert stop.now - 100.0 == pytest.approx(13.95)
    assert np.diff([frame.captured_at for frame in frames]) == pytest.approx(np.full(69, 0.2))


def test_a_file_in_real_time_stops_while_it_waits() -> None:
    stop = threading.Event()
    frames = camera(COCKATOO, fps=0.1, realtime=True).frames(stop)
    next(frames)

    threading.Timer(0.2, stop.set).start()
    before = time.monotonic()

    assert list(frames) == []
    assert time.monotonic() - before < 2 + slack()


def test_a_file_that_loops_begins_again_for_ever_with_new_frame_ids(red_clip: Path) -> None:
    frames = read(camera(red_clip, loop=True), 35)

    assert len({frame.frame_id for frame in frames}) == 35


def test_a_file_that_loops_ends_when_told_to_stop(red_clip: Path) -> None:
    stop = threading.Event()
    frames = camera(red_clip, loop=True).frames(stop)
    list(islice(frames, 15))

    stop.set()

    assert list(frames) == []


def test_an_empty_file_is_lost_as_that(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()

    assert why_lost(camera(tmp_path / "empty.mp4")) == "camera 'door' cannot be opened: it is empty"


def test_a_file_that_is_not_there_is_a_loss(tmp_path: Path) -> None:
    assert why_lost(camera(tmp_path / "none.mp4")) == "camera 'door' cannot be opened: no such file or directory"


def test_what_is_no_plain_file_is_a_loss_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert "not a plain file" in why_lost(camera(tmp_path / "pipe"))


@pytest.mark.parametrize("name", ["list.mp4", "list.ffconcat", "list.m3u8"])
def test_a_playlist_of_local_files_is_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.mp4").write_bytes(COCKATOO.read_bytes())
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:20\n#EXTINF:14,\nsecret.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / name).write_text(hls if name.endswith("m3u8") else "ffconcat version 1.0\nfile secret.mp4\n")

    assert "not a video that can be read" in why_lost(camera(tmp_path / name, loop=True))


def test_a_file_that_is_cut_short_gives_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "cut.h264").write_bytes(CLIP.read_bytes()[: CLIP.stat().st_size // 2])

    assert 100 < len(read(camera(tmp_path / "cut.h264"))) < 150


# Why it is lost: FFmpeg's own words, heard by a process of the camera's own


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ("401 Unauthorized", DownReason.AUTH, "user or password are wrong or missing (401)"),
        ("403 Forbidden", DownReason.AUTH, "this user may not see it (403)"),
        ("404 Not Found", DownReason.REFUSED, "there is no such path on it (404)"),
        ("453 Not Enough Bandwidth", DownReason.REFUSED, "it has no room for another viewer (453)"),
        ("503 Service Unavailable", DownReason.REFUSED, "it is busy"),
        ("500 Internal Server Error", DownReason.REFUSED, "it refuses with status 500"),
    ],
)
def test_what_a_camera_answers_is_the_reason(status: str, reason: DownReason, words: str) -> None:
    with RtspCamera() as server:
        server.faults.status = status
        heard = hear(server.url())

    assert heard.reason == reason
    assert f"cannot be opened: {words}" in (heard.words or "")


@pytest.mark.parametrize("status", ["401 Unauthorized", "302 Found", "404 Not Found"])
def test_what_a_web_camera_answers_is_the_reason(red_jpeg: bytes, status: str) -> None:
    with HttpCamera(red_jpeg) as server:
        server.status = status
        heard = hear(server.url())

    expected = {"401": DownReason.AUTH, "302": DownReason.REFUSED, "404": DownReason.REFUSED}
    assert heard.reason == expected[status[:3]]
    assert status[:3] in (heard.words or "")


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_a_wrong_password_is_the_reason_and_is_never_printed(
    scheme: Literal["basic", "digest"], capfd: pytest.CaptureFixture[str]
) -> None:
    with RtspCamera(user="jo", password="right", scheme=scheme) as server:
        heard = hear(server.url(credentials="jo:hunter2"))

    assert (heard.reason, heard.words) == (
        DownReason.AUTH,
        "camera 'door' cannot be opened: user or password are wrong or missing (401)",
    )
    assert "hunter2" not in repr(heard)
    assert capfd.readouterr() == ("", "")


def test_a_camera_without_video_says_so() -> None:
    with RtspCamera() as server:
        heard = hear(server.url("?audio=1"), open_timeout=1)

    assert (heard.reason, heard.words) == (DownReason.NO_VIDEO, "camera 'door' cannot be opened: it offers no video")


def test_a_web_page_is_no_video() -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>camera</html>")

    with Listener(serve) as server:
        heard = hear(f"http://127.0.0.1:{server.port}/")

    assert heard.reason == DownReason.NO_VIDEO
    assert "is no video that can be read" in (heard.words or "")


def test_pictures_that_nobody_here_can_decode_are_a_matter_of_the_codec() -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(4096)
        connection.sendall(
            b"HTTP/1.0 200 OK\r\nContent-Type: video/webm\r\n\r\n" + AV1.read_bytes().replace(b"V_AV1", b"V_XV9")
        )

    with Listener(serve) as server:
        heard = hear(f"http://127.0.0.1:{server.port}/")

    assert heard.reason == DownReason.CODEC
    assert "of a kind that cannot be decoded here" in (heard.words or "")


def test_a_camera_that_is_silent_is_timed_out() -> None:
    with RtspCamera(silent=True) as server:
        heard = hear(server.url(), open_timeout=0.5)

    assert (heard.reason, heard.words) == (
        DownReason.TIMEOUT,
        "camera 'door' cannot be opened: no answer within 0.5 s",
    )


def test_a_camera_that_shows_nothing_is_timed_out() -> None:
    with RtspCamera() as server:
        server.faults.frozen = True
        before = time.monotonic()
        heard = hear(server.url(), open_timeout=1)

    assert heard.reason == DownReason.TIMEOUT
    assert time.monotonic() - before < 4 + slack()


def test_a_name_that_nobody_knows_is_unreachable() -> None:
    heard = hear("rtsp://jo:hunter2@camera.invalid/main")

    assert heard.reason == DownReason.UNREACHABLE
    assert "cannot be reached (" in (heard.words or "")
    assert heard.steps == ["resolving"]


def test_a_camera_where_nothing_listens_is_unreachable() -> None:
    with Listener(lambda *_: None) as gone:
        pass

    heard = hear(f"rtsp://127.0.0.1:{gone.port}/cam")

    assert (heard.reason, heard.words) == (
        DownReason.UNREACHABLE,
        "camera 'door' cannot be opened: it cannot be reached (connection refused)",
    )


@pytest.mark.parametrize("acceleration", ["auto", "vaapi", "qsv"])
def test_hardware_that_is_not_there_leaves_the_work_to_the_cpu(acceleration: str) -> None:
    with RtspCamera() as server:
        heard = hear(server.url(), acceleration=acceleration)

    assert (heard.sizes, heard.by_cpu) == ([(320, 240)], True)


def test_without_a_wish_for_hardware_it_is_not_missed() -> None:
    with RtspCamera() as server:
        assert not hear(server.url()).by_cpu


def test_each_step_is_told() -> None:
    with RtspCamera() as server:
        heard = hear(server.url())

    assert heard.steps == ["resolving", "opening", "waiting", "reading"]


def test_a_jump_of_the_clock_neither_stops_nor_bursts_the_sampling() -> None:
    jumps = iter([0.0, 3600.0, -3600.0, 86_400.0] * 100)
    with RtspCamera() as server:
        settings = CameraSettings(name="door", url=server.url(), fps=5)
        source = Camera(settings, prepare=whole, clock=lambda: time.time() + next(jumps))
        numbers = [number_of(frame.pixels) for frame in read(source, 6)]

    assert (numbers[-1] - numbers[0]) % LENGTH == pytest.approx(25, abs=3)


# What changes while it runs


def test_pictures_of_another_size_come_at_their_own_size_in_the_same_session() -> None:
    with RtspCamera() as server:
        threading.Timer(0.9, lambda: setattr(server.faults, "small", True)).start()
        heard = hear(server.url(), 60)

    assert heard.reason is None
    assert heard.sizes == sorted(heard.sizes, reverse=True)
    assert set(heard.sizes) == {(320, 240), (160, 128)}


def test_jpeg_pictures_of_another_size_come_at_their_own_size(red_jpeg: bytes) -> None:
    large = cv2.imencode(".jpg", np.zeros((240, 320, 3), np.uint8))[1].tobytes()
    with HttpCamera(red_jpeg) as server:
        threading.Timer(1.0, lambda: setattr(server, "jpeg", large)).start()
        heard = hear(server.url(), 40)

    assert heard.reason is None
    assert set(heard.sizes) == {(160, 120), (320, 240)}


def test_damage_is_counted_with_the_picture_and_a_sound_stream_has_none() -> None:
    with RtspCamera() as server:
        sound = hear(server.url(), 25)
        server.faults.corrupt = 0.3
        damaged = hear(server.url(), 25)

    assert (sound.damage, sound.marked) == (0, 0)
    assert damaged.damage >= damaged.marked >= 3
    assert len(damaged.sizes) == 25


def test_a_frozen_process_is_a_stall_and_is_read_again_when_it_goes_on() -> None:
    with RtspProcess() as server:
        frames = camera(server.url(), read_timeout=1).frames(threading.Event())
        next(frames)
        server.freeze()
        before = time.monotonic()
        with pytest.raises(SourceLost) as caught:
            list(frames)
        took = time.monotonic() - before
        server.thaw()

        assert read(camera(server.url()), 1)

    assert caught.value.reason is DownReason.TIMEOUT
    assert took < 2.5 + slack()


def test_a_killed_camera_is_back_on_its_port_under_the_same_url() -> None:
    with RtspProcess() as server:
        frames = camera(server.url()).frames(threading.Event())
        next(frames)
        server.kill()
        with pytest.raises(SourceLost) as caught:
            list(frames)
        server.start()

        assert read(camera(server.url()), 1)

    assert caught.value.reason is DownReason.ENDED


def test_a_password_file_is_read_at_each_opening(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    with RtspCamera(user="jo", password="old") as server:
        source = camera(server.url(), username="jo", password_file=str(secret))
        missing = why_lost(source)
        secret.write_text("old\n")
        assert read(source, 1)

        server.password = NASTY
        secret.write_text(NASTY)
        assert read(source, 1)

    assert missing == f"camera 'door' cannot be opened: password_file {secret}: no such file or directory"


# Kinds and options


def test_rtsp_is_opened_without_learning_its_rate() -> None:
    with RtspCamera() as server:
        before = time.monotonic()
        read(camera(server.url("?nosdp=1")), 1)

    assert time.monotonic() - before < 1.9  # with up to a second until the next key frame


def test_rtsp_over_udp_is_read_when_asked_for() -> None:
    with RtspCamera() as server:
        numbers = [number_of(frame.pixels) for frame in read(camera(server.url(), transport="udp"), 10)]

    assert [(b - a) % LENGTH for a, b in pairwise(numbers)] == [1] * 9


def test_key_frames_only_are_one_a_second_here_and_waited_for_long_enough() -> None:
    with RtspCamera() as server:
        source = camera(server.url(), keyframes_only=True, read_timeout=0.5)
        numbers = [number_of(frame.pixels) for frame in read(source, 2)]

    assert [number % FPS for number in numbers] == [0, 0]
    assert source.read_timeout == 12


def test_hls_comes_in_bursts_and_is_sampled_evenly_without_a_gap() -> None:
    arrivals, numbers = [], []
    with HlsCamera() as server, closing(camera(server.url(), fps=5).frames(threading.Event())) as frames:
        for frame in islice(frames, 15):
            arrivals.append(time.monotonic())
            numbers.append(number_of(frame.pixels))

    assert [b - a for a, b in pairwise(numbers)] == [5] * 14
    gaps = sorted(b - a for a, b in pairwise(arrivals))
    assert gaps[len(gaps) // 10] > 0.1
    assert gaps[len(gaps) * 3 // 4] < 0.3


@pytest.mark.parametrize("kind", [RtspCamera, HlsCamera])
def test_a_picture_that_is_wanted_is_taken_due_or_not(kind: type[RtspCamera | HlsCamera]) -> None:
    wanted = threading.Event()
    with kind() as server:
        settings = CameraSettings.model_validate({"name": "door", "url": server.url(), "fps": 0.01})
        with closing(Camera(settings, prepare=whole, wanted=wanted).frames(threading.Event())) as frames:
            next(frames)
            wanted.set()
            before = time.monotonic()
            next(frames)

    assert time.monotonic() - before < 5 + slack()
    assert not wanted.is_set()


@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_an_mpeg_ts_stream_is_read(scheme: str) -> None:
    with Listener(play_stream) as server:
        frames = read(camera(f"{scheme}://127.0.0.1:{server.port}"), 30)

    numbers = [number_of(frame.pixels) for frame in frames]
    assert [b - a for a, b in pairwise(numbers)] == [1] * 29


def test_an_mpeg_ts_stream_is_read_over_udp() -> None:
    closing = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:

        def send(packet: bytes) -> None:
            sender.sendto(packet, ("127.0.0.1", port))

        thread = threading.Thread(target=send_stream, args=(send, closing))
        thread.start()
        try:
            assert len(read(camera(f"udp://@127.0.0.1:{port}"), 10)) == 10
        finally:
            closing.set()
            thread.join()


def test_nothing_over_udp_is_a_timeout() -> None:
    assert "no answer within 0.5 s" in why_lost(camera("udp://@127.0.0.1:9", open_timeout=0.5))


@pytest.mark.parametrize("kind", ["https", "rtsps", "hls"])
def test_a_certificate_that_nobody_vouches_for_is_refused_unless_its_authority_is_named(
    tls: ssl.SSLContext,
    authority: trustme.CA,
    red_jpeg: bytes,
    tmp_path: Path,
    kind: str,
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    makes: dict[str, Callable[[], HttpCamera | RtspCamera | HlsCamera]] = {
        "https": lambda: HttpCamera(red_jpeg, tls=tls),
        "rtsps": lambda: RtspCamera(tls=tls),
        "hls": lambda: HlsCamera(tls=tls),
    }
    with makes[kind]() as server:
        refused = hear(server.url())
        vouched_for = hear(server.url(), tls_ca=tmp_path / "ca.pem")
        unverified = hear(server.url(), tls_verify=False)

    assert refused.reason == DownReason.REFUSED
    assert "its certificate is not trusted; set tls_ca or tls_verify: false" in (refused.words or "")
    assert len(vouched_for.sizes) == len(unverified.sizes) == 1


def test_an_authority_that_is_not_there_is_a_loss() -> None:
    assert "tls_ca: there is no file /none.pem" in why_lost(camera("https://127.0.0.1:1/", tls_ca="/none.pem"))


# Folders


def test_a_folder_gives_each_picture_with_the_time_at_which_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", red_picture())[1].tobytes())
    os.utime(tmp_path / "a.png", (1_700_000_000, 1_700_000_000))
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "c.jpg").write_bytes(cv2.imencode(".jpg", red_picture())[1].tobytes())

    heard = hear(tmp_path, 2, backlog=True)

    assert not camera(tmp_path).live
    assert heard.sizes == [(160, 120)] * 2
    assert heard.frames[0].captured_at == 1_700_000_000
    assert all(is_red(frame.pixels) and frame.vitals is not None for frame in heard.frames)
    assert [fault.reason for fault in heard.bads] == [DeadReason.UNDECODABLE]


def test_a_picture_of_a_folder_that_lacks_a_part_is_counted_and_marked(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)
    whole = encode_jpeg(noise, quality=90)
    (tmp_path / "a.jpg").write_bytes(whole)
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    for path in tmp_path.iterdir():
        os.utime(path, (1e9, 1e9))

    heard = hear(tmp_path, 2, backlog=True)

    assert [frame.vitals.damage for frame in heard.frames if frame.vitals] == [0, 1]
    assert heard.damage == 1


def test_a_folder_that_is_quiet_stops_at_once(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    before = time.monotonic()

    assert list(camera(tmp_path).frames(stop)) == []
    assert time.monotonic() - before < 2 + slack()


def test_a_folder_that_is_gone_is_a_loss(tmp_path: Path) -> None:
    source = camera(f"{tmp_path}/none/")

    with pytest.raises(SourceLost, match=r"its folder cannot be read: no such file or directory") as caught:
        read(source)

    assert caught.value.reason is DownReason.UNREACHABLE
