"""HTTP cameras with the oddities that people report: pictures all the same, or words that are true."""

import shutil
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from coatstream.cameras.capture.parts import PartSplitter, WholeBody, boundary_of
from coatstream.errors import DeadReason, DownReason
from coatstream.frames.opencv import cv2
from hypothesis import given
from hypothesis import strategies as st

from tests.support.absence import missing
from tests.support.cameras.heard import hear
from tests.support.cameras.odd import PARTS, PASSWORD, USER, OddCamera
from tests.support.paths import ASSETS
from tests.support.ports import free_port

BROKEN = {"text": b"<html>busy</html>" * 20, "empty": b"", "zeros": b"\0" * 3000, "half": b"\xff\xd8\xff\xe0\x00\x10JF"}


def jpeg(shade: int = 120, size: tuple[int, int] = (160, 120), *, grey: bool = False) -> bytes:
    picture = np.full((size[1], size[0], 3), (0, shade, 255), np.uint8)
    return cv2.imencode(".jpg", picture[:, :, 1] if grey else picture)[1].tobytes()


PLAIN = jpeg()


@pytest.mark.parametrize("kind", [*PARTS, "no-initial", "preamble", "no-boundary", "bare"])
def test_pictures_come_whatever_is_written_between_them(kind: str) -> None:
    with OddCamera([PLAIN, jpeg(30), jpeg(200)]) as server:
        heard = hear(server.url(kind), 12)

    assert heard.sizes == [(160, 120)] * 12
    assert (heard.damage, heard.bads) == (0, [])
    shades = [int(frame.pixels[60, 80, 1]) // 10 for frame in heard.frames]
    assert set(shades) == {12, 3, 20}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_part_is_one_counted_picture_and_reading_goes_on(kind: str) -> None:
    with OddCamera([PLAIN] * 6 + [BROKEN[kind]]) as server:
        heard = hear(server.url("plain"), 20)

    assert len(heard.sizes) == 20
    assert len(heard.bads) == heard.damage == 3
    assert {bad.reason for bad in heard.bads} == {DeadReason.UNDECODABLE}
    assert heard.steps.count(heard.steps[-1]) == 1  # one session


def test_a_picture_that_is_cut_off_is_marked_as_damaged() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)
    whole = cv2.imencode(".jpg", noise)[1].tobytes()
    with OddCamera([whole, whole[: len(whole) // 2] + b"\xff\xd9"]) as server:
        heard = hear(server.url("plain"), 8)

    assert heard.marked + len(heard.bads) == heard.damage == pytest.approx(4, abs=1)


def test_a_camera_that_switches_between_kinds_of_jpeg_loses_nothing() -> None:
    with OddCamera([PLAIN, jpeg(grey=True), PLAIN, jpeg(grey=True)]) as server:
        heard = hear(server.url("plain"), 12)

    assert heard.sizes == [(160, 120)] * 12
    assert heard.reason is None


@pytest.mark.parametrize("algorithm", ["MD5", "md5", '"MD5"', "MD5-sess", "SHA-256", "sha-256", "SHA-256-sess"])
def test_digest_authentication_of_each_algorithm_opens_a_camera(algorithm: str) -> None:
    with OddCamera([PLAIN]) as server:
        heard = hear(server.url(f"digest/{algorithm}"), 3, username=USER, password=PASSWORD)
        wrong = hear(server.url(f"digest/{algorithm}"), 1, username=USER, password="hunter2")

    assert heard.sizes == [(160, 120)] * 3
    assert wrong.reason is DownReason.AUTH


def test_an_algorithm_that_is_not_known_is_named_and_is_no_wrong_password() -> None:
    with OddCamera([PLAIN]) as server:
        heard = hear(server.url("digest/SHA3-512"), 1, username=USER, password=PASSWORD)

    assert heard.reason is DownReason.REFUSED
    assert "SHA3-512" in (heard.words or "")


@pytest.mark.parametrize("scheme", ["NTLM", "Negotiate", 'Bearer realm="cam"'])
def test_a_scheme_that_is_not_known_is_named_and_is_no_wrong_password(scheme: str) -> None:
    with OddCamera([PLAIN]) as server:
        heard = hear(server.url(f"asks/{quote(scheme)}"), 1, username=USER, password=PASSWORD)

    assert heard.reason is DownReason.REFUSED
    assert f"it asks for {scheme.split(maxsplit=1)[0]!r} authentication, which is not known here" in (heard.words or "")


def test_of_two_challenges_in_one_line_the_digest_is_seen() -> None:
    challenge = 'Negotiate, Digest realm="cam", nonce="n", algorithm=SHA3-512'
    with OddCamera([PLAIN]) as server:
        heard = hear(server.url(f"asks/{quote(challenge)}"), 1, username=USER, password=PASSWORD)

    assert "SHA3-512" in (heard.words or "")


def test_a_redirect_within_the_host_is_followed_and_one_that_leaves_it_is_not() -> None:
    with OddCamera([PLAIN]) as server:
        within = hear(server.url("redirect/plain"), 2)
        leaving = hear(server.url("redirect/http://192.0.2.1/plain"), 2)

        elsewhere = hear(server.url(f"redirect/http://127.0.0.1:{free_port()}/plain"), 2)

    assert within.sizes == [(160, 120)] * 2
    assert elsewhere.reason is DownReason.REFUSED  # another port may be another program: it gets no password
    assert leaving.reason is DownReason.REFUSED
    assert "redirects to another address (302)" in (leaving.words or "")


# Snapshots


def test_a_snapshot_is_asked_for_at_its_rate() -> None:
    with OddCamera([PLAIN, jpeg(30)]) as server:
        before = time.monotonic()
        heard = hear(server.url("snap.jpg"), 6, fps=10)
        took = time.monotonic() - before

    assert heard.sizes == [(160, 120)] * 6
    assert 6 <= len(server.requests) <= 7
    assert took >= 0.5


def test_a_snapshot_that_has_not_changed_is_not_sent_again() -> None:
    with OddCamera([PLAIN]) as server:
        server.etag = '"1"'
        threading.Timer(0.6, lambda: setattr(server, "etag", '"2"')).start()
        heard = hear(server.url("snap.jpg"), 2, fps=20)

    assert len(heard.sizes) == 2
    assert {headers.get("if-none-match") for _, headers in server.requests[1:]} == {'"1"'}
    assert len(server.requests) > 3


def test_a_snapshot_that_is_refused_now_and_then_is_damage_and_not_the_end() -> None:
    with OddCamera([PLAIN]) as server:
        server.statuses = iter([200, 503, 200, 503, 200])
        heard = hear(server.url("snap.jpg"), 3, fps=20)

    assert (len(heard.sizes), heard.damage, heard.reason) == (3, 2, None)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp"])
def test_a_snapshot_of_another_kind_than_jpeg_is_asked_for_again_too(suffix: str) -> None:
    picture = cv2.imencode(suffix, np.full((120, 160, 3), (0, 120, 255), np.uint8))[1].tobytes()
    with OddCamera([picture, PLAIN]) as server:
        heard = hear(server.url("snap.jpg"), 4, fps=20)

    assert heard.sizes == [(160, 120)] * 4
    assert len(server.requests) == 4
    assert {int(frame.pixels[60, 80, 1]) // 10 for frame in heard.frames} == {12} or suffix == ".webp"


def test_a_snapshot_that_is_larger_than_any_picture_may_be_is_one_damaged_picture() -> None:
    body = WholeBody(max_bytes=10)

    assert list(body.feed(bytes(8))) == []
    assert list(body.feed(bytes(8))) == [b""]
    assert (body.rest(), body.rest()) == (None, None)


def test_a_snapshot_that_is_refused_for_good_is_lost_after_the_read_timeout() -> None:
    with OddCamera([PLAIN]) as server:
        server.statuses = iter([200] + [503] * 1000)
        heard = hear(server.url("snap.jpg"), 3, fps=20, read_timeout=0.5)

    assert heard.reason is DownReason.TIMEOUT


def test_a_picture_that_is_wanted_is_asked_for_at_once() -> None:
    with OddCamera([PLAIN]) as server:
        heard = hear(server.url("snap.jpg"), 1, fps=0.01)

    assert heard.sizes == [(160, 120)]


# HLS


@pytest.mark.parametrize("playlist", ["live.m3u8", "live"])
@pytest.mark.parametrize("name", ["segment%d", "segment%d.jpg", "segment%d.ts"])
def test_playlist_and_segments_of_hls_have_any_name(tmp_path: Path, playlist: str, name: str) -> None:
    if shutil.which("ffmpeg") is None:
        missing("no ffmpeg command")
    arguments = ["-c:v", "libx264", "-g", "10", "-pix_fmt", "yuv420p", "-f", "hls", "-hls_time", "1"]
    source = f"movie={ASSETS / 'cockatoo_360p.mp4'},fps=10,scale=176:144,setsar=1,trim=duration=3"
    files = ["-hls_segment_filename", str(tmp_path / name), str(tmp_path / playlist)]
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, *arguments, *files]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)
    with OddCamera([], tmp_path) as server:
        heard = hear(server.url(f"hls/{playlist}"), 5)

    assert heard.sizes == [(176, 144)] * 5


# The splitter alone


@given(st.binary(max_size=4000), st.integers(1, 500), st.sampled_from([None, b"f", b"next"]))
def test_whatever_the_bytes_the_splitter_ends_and_holds_little(data: bytes, step: int, boundary: bytes | None) -> None:
    splitter = PartSplitter(boundary, max_bytes=1000)
    parts = [part for at in range(0, len(data), step) for part in splitter.feed(data[at : at + step])]
    rest = splitter.rest()

    assert all(len(part) <= 1000 + step for part in parts)
    assert sum(map(len, parts)) + len(rest or b"") <= len(data)


@given(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=6), st.integers(1, 3000))
def test_however_a_stream_is_cut_up_its_pictures_are_whole(kinds: list[str], step: int) -> None:
    stream = b"".join(PARTS[kind](PLAIN) for kind in kinds) + b"--f--\r\n"
    splitter = PartSplitter(b"f", max_bytes=10**8)

    parts = [part for at in range(0, len(stream), step) for part in splitter.feed(stream[at : at + step])]
    parts += filter(None, [splitter.rest()])  # one that said to be longer

    assert [part.startswith(b"\xff\xd8") and part[: len(PLAIN)] == PLAIN for part in parts] == [True] * len(kinds)


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        ("multipart/x-mixed-replace; boundary=f", b"f"),
        ('multipart/x-mixed-replace;boundary = "--my boundary"', b"my"),
        ("multipart/mixed; BOUNDARY=--next; x=1", b"next"),
        ("image/jpeg", None),
        ("multipart/x-mixed-replace; boundary=--", None),
    ],
)
def test_a_boundary_is_found_in_the_content_type(kind: str, boundary: bytes | None) -> None:
    assert boundary_of(kind) == boundary
