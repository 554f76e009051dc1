"""`coatstream enqueue` as a person runs it: what goes into the frames stream, and what is said about the rest."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from coatstream import cli
from coatstream.broker.connection import Client
from coatstream.commands import enqueue as command
from coatstream.frames.decoding import decode
from coatstream.frames.encoding import encode_jpeg
from coatstream.queue.entry import FrameEntry, parse
from coatstream.queue.producing.admission import MAX_ENTRIES

from tests.support.cameras.http import HttpCamera
from tests.support.paths import ASSETS
from tests.support.photos import CLIP
from tests.support.redis_servers import tcp_server

PATIENCE = 20.0  # seconds
CLIP_FRAMES = 280  # of 640 x 360, 20 a second
Result = tuple[int, str, str]


@pytest.fixture
def enqueue(redis_url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> Result:
        code = cli.run(["enqueue", "--redis", redis_url, *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def jpeg() -> bytes:
    return encode_jpeg(np.full((24, 32, 3), (255, 0, 0), np.uint8))


PASSED_OVER = "coatstream: passed over 1 file, neither pictures nor clips: notes.txt\n"


@pytest.fixture
def folder(tmp_path: Path, jpeg: bytes) -> Path:
    """Two pictures, one of them deeper, and what is neither picture nor clip."""
    root = tmp_path / "door.2"
    (root / "night").mkdir(parents=True)
    (root / "night" / "b.PNG").write_bytes(b"png")
    (root / "a.jpg").write_bytes(jpeg)
    (root / "notes.txt").write_text("no picture")
    return root


def entries(client: Client) -> list[FrameEntry]:
    return [parse(entry_id.decode(), fields) for entry_id, fields in client.xrange("frames")]


@contextmanager
def ctrl_c_when(condition: Callable[[], bool]) -> Iterator[None]:
    """SIGINT to this process as soon as it is so, in any case after PATIENCE."""

    def run() -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(2 * PATIENCE)


def test_a_picture_goes_in_as_its_file_is(client: Client, enqueue: Callable[..., Result]) -> None:
    before = time.time()

    code, out, err = enqueue(ASSETS / "coffee.png")

    assert (code, out, err) == (0, "enqueued 1 frame into frames\n", "")
    [entry] = entries(client)
    assert entry.picture == (ASSETS / "coffee.png").read_bytes()
    assert (entry.source, entry.frame_id) == ("coffee", "coffee.png")
    assert before - 0.001 <= entry.captured_at <= time.time()


def test_a_folder_stands_for_the_pictures_in_it_and_below(
    client: Client, enqueue: Callable[..., Result], folder: Path
) -> None:
    assert enqueue(folder)[:2] == (0, "enqueued 2 frames into frames\n")

    assert [(entry.source, entry.frame_id) for entry in entries(client)] == [
        ("door.2", "a.jpg"),
        ("door.2", "night/b.PNG"),
    ]


def test_the_present_folder_is_called_by_its_name(
    client: Client, enqueue: Callable[..., Result], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)

    enqueue(".")

    assert {entry.source for entry in entries(client)} == {"door.2"}


def test_a_source_of_ones_own_is_everyones(client: Client, enqueue: Callable[..., Result], folder: Path) -> None:
    enqueue(folder, ASSETS / "coffee.png", "--source", "Türe 1")

    assert [entry.source for entry in entries(client)] == ["Türe 1"] * 3


def test_another_stream_can_be_named(client: Client, enqueue: Callable[..., Result]) -> None:
    assert enqueue(ASSETS / "coffee.png", "--stream", "mine")[1] == "enqueued 1 frame into mine\n"

    assert client.xlen("mine") == 1


def test_a_clip_goes_in_frame_by_frame_in_full_size(client: Client, enqueue: Callable[..., Result]) -> None:
    code, out, err = enqueue(CLIP, "--fps", "1")

    assert (code, out, err) == (0, "enqueued 14 frames into frames\n", "")
    found = entries(client)
    assert [entry.frame_id for entry in found] == [f"cockatoo_360p.mp4#{number}" for number in range(14)]
    assert {entry.source for entry in found} == {"cockatoo_360p"}
    assert isinstance(found[0].picture, bytes)
    assert decode(found[0].picture, max_bytes=1_000_000, max_pixels=1_000_000).shape == (360, 640, 3)


def test_every_frame_of_a_clip_goes_in_unless_asked_otherwise(client: Client, enqueue: Callable[..., Result]) -> None:
    assert enqueue(CLIP)[0] == 0

    assert client.xlen("frames") == CLIP_FRAMES


def test_a_jpeg_has_its_colours_and_orientation() -> None:
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :16] = (250, 10, 10)

    again = decode(encode_jpeg(picture, quality=90), max_bytes=10_000, max_pixels=10_000)

    assert again.shape == (16, 32, 3)
    assert np.abs(again.astype(int) - picture).mean() < 5


@pytest.mark.parametrize("name", ["rtsp:clip.avi", "100% wörd #1?.avi"])
def test_a_clips_name_is_never_taken_for_a_url(
    client: Client, enqueue: Callable[..., Result], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(CLIP, tmp_path / name)
    monkeypatch.chdir(tmp_path)

    assert enqueue(name, "--fps", "0.1")[0] == 0

    assert entries(client)[0].frame_id == f"{name}#0"


def test_a_file_can_be_named_by_a_url(client: Client, enqueue: Callable[..., Result]) -> None:
    assert enqueue(CLIP.as_uri(), (ASSETS / "coffee.png").as_uri(), "--fps", "0.1")[0] == 0

    assert [entry.frame_id for entry in entries(client)] == ["cockatoo_360p.mp4#0", "cockatoo_360p.mp4#1", "coffee.png"]


def test_what_cannot_be_read_is_a_line_each_and_the_rest_goes_in(
    client: Client, enqueue: Callable[..., Result], tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    os.mkfifo(tmp_path / "pipe.jpg")
    paths = [tmp_path / name for name in ("none.jpg", "empty", "broken.mp4", "pipe.jpg")]

    code, out, err = enqueue(*paths, folder / "notes.txt", "x" * 300, folder / "a.jpg")

    assert (code, out) == (1, "enqueued 1 frame into frames; 0 damaged, 6 skipped\n")
    assert [entry.frame_id for entry in entries(client)] == ["a.jpg"]
    assert sorted(err.splitlines()) == sorted(
        [
            f"coatstream: {paths[0]}: there is no such file or folder",
            f"coatstream: {paths[1]}: no pictures or clips in it",
            "coatstream: camera 'broken.mp4' cannot be opened: it is not a video that can be read",
            f"coatstream: {paths[3]}: not a plain file",
            f"coatstream: {folder / 'notes.txt'}: neither a picture nor a clip",
            f"coatstream: {'x' * 300}: file name too long",
        ]
    )


def test_a_picture_that_a_worker_would_refuse_for_its_size_is_skipped(
    client: Client, enqueue: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "fits.jpg").write_bytes(b"x" * 100)
    (tmp_path / "large.jpg").write_bytes(b"x" * 101)

    code, out, err = enqueue(tmp_path, "--set", "queue.max_bytes=100")

    assert (code, out) == (1, "enqueued 1 frame into frames; 0 damaged, 1 skipped\n")
    assert err == f"coatstream: {tmp_path / 'large.jpg'}: skipped, it is larger than queue.max_bytes (100)\n"


def test_names_that_are_not_utf8_or_too_long_become_names_that_the_worker_takes(
    client: Client, enqueue: Callable[..., Result], tmp_path: Path
) -> None:
    odd = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / odd).write_bytes(b"x")
    (tmp_path / f"{'y' * 250}.jpg").write_bytes(b"x")

    assert enqueue(tmp_path / odd, tmp_path / f"{'y' * 250}.jpg")[0] == 0

    assert [(entry.source, entry.frame_id) for entry in entries(client)] == [
        ("caf\N{REPLACEMENT CHARACTER}", "caf\N{REPLACEMENT CHARACTER}.jpg"),
        ("y" * 128, "y" * 250 + ".jpg"),
    ]


def test_a_clip_whose_name_is_not_utf8_is_enqueued_under_a_readable_name(
    client: Client, enqueue: Callable[..., Result], tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(CLIP, odd)

    code, _, err = enqueue(odd, "--fps", "1")

    assert (code, err) == (0, "")
    found = entries(client)
    assert {entry.source for entry in found} == {"caf\N{REPLACEMENT CHARACTER}"}
    assert [entry.frame_id for entry in found] == [f"caf\N{REPLACEMENT CHARACTER}.mp4#{n}" for n in range(len(found))]


def test_a_files_name_cannot_steer_the_terminal(enqueue: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J[red]\n.txt").write_text("no picture")

    _, _, err = enqueue(tmp_path / "\x1b[2J[red]\n.txt")

    assert err == f"coatstream: {tmp_path}/\\x1b[2J[red]\\n.txt: neither a picture nor a clip\n"


def test_a_camera_runs_until_ctrl_c_and_each_frame_goes_in_at_once(
    client: Client, enqueue: Callable[..., Result], jpeg: bytes
) -> None:
    with HttpCamera(jpeg, credentials="me:secret") as camera, ctrl_c_when(lambda: client.xlen("frames") >= 3):
        code, out, err = enqueue(camera.url().replace("//", "//me:secret@"), "--fps", "10")

    assert (code, err) == (0, "")
    found = entries(client)
    assert out == f"enqueued {len(found)} frames into frames\n"
    assert 3 <= len(found) < MAX_ENTRIES
    assert {entry.source for entry in found} == {"127.0.0.1"}
    assert len({entry.frame_id for entry in found}) == len(found)
    assert isinstance(found[0].picture, bytes)
    assert decode(found[0].picture, max_bytes=10_000, max_pixels=10_000).shape == (24, 32, 3)


def test_a_camera_that_is_lost_is_a_fault(client: Client, enqueue: Callable[..., Result], jpeg: bytes) -> None:
    with HttpCamera(jpeg) as camera:
        code, out, err = enqueue(camera.url("?die=2"), "--source", "yard")

    assert code == 1
    assert out == f"enqueued {client.xlen('frames')} frames into frames; 0 damaged, 1 skipped\n"
    assert err == "coatstream: camera 'yard' was lost: its stream ended\n"


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://me:sec'ret@127.0.0.1:1/x",
        "ftp://me:secret@host/x",
        "rtsp:/me:secret@host",
        "me:secret@host",
        "rtsp://me:secret@[x",
    ],
)
def test_a_cameras_password_is_never_shown(enqueue: Callable[..., Result], url: str) -> None:
    code, out, err = enqueue(url)

    assert (code, out) == (1, "enqueued 0 frames into frames; 0 damaged, 1 skipped\n")
    assert re.fullmatch(r"coatstream: camera '.*\n", err)
    assert "ret" not in err


def test_ctrl_c_in_a_clip_sends_what_was_read_and_says_that_it_was_cut_short(
    client: Client, enqueue: Callable[..., Result]
) -> None:
    with ctrl_c_when(lambda: client.xlen("frames") >= MAX_ENTRIES):
        code, out, err = enqueue(CLIP, CLIP, CLIP)

    sent = client.xlen("frames")
    assert (code, err) == (1, "coatstream: interrupted before everything was enqueued\n")
    assert out == f"enqueued {sent} frames into frames\n"
    assert MAX_ENTRIES <= sent < 3 * CLIP_FRAMES


def test_ctrl_c_at_a_camera_says_so_if_files_were_still_to_come(
    client: Client, enqueue: Callable[..., Result], jpeg: bytes
) -> None:
    with HttpCamera(jpeg) as camera, ctrl_c_when(lambda: client.xlen("frames") >= 1):
        code, _, err = enqueue(camera.url(), CLIP)

    assert (code, err) == (1, "coatstream: interrupted before everything was enqueued\n")
    assert {entry.source for entry in entries(client)} == {"127.0.0.1"}


def test_ctrl_c_is_pythons_own_again_afterwards(enqueue: Callable[..., Result]) -> None:
    before = signal.getsignal(signal.SIGINT)

    enqueue(ASSETS / "coffee.png")

    assert signal.getsignal(signal.SIGINT) is before


def test_a_terminal_gets_a_progress_bar_on_stderr(
    enqueue: Callable[..., Result], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")

    _, out, err = enqueue(folder)

    assert out == "enqueued 2 frames into frames\n"
    assert "2 frames" in err
    assert "━" in err


@pytest.mark.parametrize("source", ["", "x" * 129])
def test_a_source_that_the_worker_would_refuse_is_wrong_usage(enqueue: Callable[..., Result], source: str) -> None:
    code, out, err = enqueue(ASSETS / "coffee.png", "--source", source)

    assert (code, out) == (2, "")
    assert err.startswith("coatstream: --source has")


def test_a_stream_that_is_none_is_wrong_usage(client: Client, enqueue: Callable[..., Result]) -> None:
    client.set("frames", "something else")

    code, out, err = enqueue(ASSETS / "coffee.png")

    assert (code, out) == (2, "")
    assert "the key frames holds a string" in err


@contextmanager
def room_when(condition: Callable[[], bool], make: Callable[[], object]) -> Iterator[None]:
    """Room in the queue as soon as it is so, in any case after PATIENCE."""

    def run() -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        make()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(2 * PATIENCE)


def tries(client: Client) -> int:
    """How often somebody has asked to put frames in."""
    found: dict[str, dict[str, int]] = client.info("commandstats")
    return found.get("cmdstat_evalsha", {"calls": 0})["calls"]


def test_a_full_queue_is_waited_for_and_all_goes_in(
    client: Client, enqueue: Callable[..., Result], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PATIENCE", 0.0)
    client.xadd("frames", {"image": b"of somebody else"})
    before = tries(client)  # the first one lets a picture in; the second finds no room
    with room_when(lambda: tries(client) > before + 2, lambda: client.xtrim("frames", maxlen=0, approximate=False)):
        code, out, err = enqueue(folder, "--set", "queue.max_length=2")

    assert (code, out) == (0, "enqueued 2 frames into frames\n")
    assert err == f"coatstream: the queue frames is full: waiting for workers to make room\n{PASSED_OVER}"
    assert [entry.frame_id for entry in entries(client)] == ["night/b.PNG"]


def test_a_terminal_is_shown_that_the_queue_is_full(
    client: Client, enqueue: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(command, "PATIENCE", 0.0)
    client.xadd("frames", {"image": b"of somebody else"})
    before = tries(client)
    # so many, with ever longer waits between, last longer than the bar takes to be drawn anew
    with room_when(lambda: tries(client) > before + 9, lambda: client.delete("frames")):
        code, _, err = enqueue(ASSETS / "coffee.png", "--set", "queue.max_length=1")

    assert code == 0
    assert "waiting: the queue frames is full" in err
    assert "coatstream:" not in err


def test_ctrl_c_ends_the_wait_for_room(client: Client, enqueue: Callable[..., Result], folder: Path) -> None:
    with ctrl_c_when(lambda: client.xlen("frames") == 1):
        code, out, err = enqueue(folder, "--set", "queue.max_length=1")

    assert (code, out) == (1, "enqueued 1 frame into frames\n")
    assert err == "coatstream: interrupted before everything was enqueued\n"


def test_with_drop_nothing_waits_and_what_was_dropped_is_counted(
    client: Client, enqueue: Callable[..., Result]
) -> None:
    code, out, err = enqueue(CLIP, "--fps", "1", "--drop", "--set", "queue.max_length=5")

    assert (code, out, err) == (0, "enqueued 5 frames into frames, refused 9: it was full\n", "")
    assert [entry.frame_id for entry in entries(client)] == [f"cockatoo_360p.mp4#{number}" for number in range(5)]


def test_a_camera_drops_what_finds_no_room_and_counts_it(
    client: Client, enqueue: Callable[..., Result], jpeg: bytes
) -> None:
    with (
        HttpCamera(jpeg) as camera,
        ctrl_c_when(lambda: int(client.hget("frames:books", "refused") or 0) >= 2),
    ):
        code, out, err = enqueue(camera.url(), "--fps", "20", "--set", "queue.max_length=3")

    assert (code, err, client.xlen("frames")) == (0, "", 3)
    assert re.fullmatch(r"enqueued 3 frames into frames, refused \d+: it was full\n", out)


def test_pictures_before_a_camera_do_not_wait_for_its_end(
    client: Client, enqueue: Callable[..., Result], jpeg: bytes
) -> None:
    with HttpCamera(jpeg) as camera, ctrl_c_when(lambda: client.xlen("frames") >= 2):
        enqueue(ASSETS / "coffee.png", camera.url())

    assert entries(client)[0].frame_id == "coffee.png"


def test_the_same_files_go_in_again_with_every_run(
    client: Client, enqueue: Callable[..., Result], folder: Path
) -> None:
    for _ in range(2):
        assert enqueue(folder)[:2] == (0, "enqueued 2 frames into frames\n")

    assert [entry.frame_id for entry in entries(client)] == ["a.jpg", "night/b.PNG"] * 2


def test_a_server_at_its_maxmemory_is_a_full_queue(
    client: Client, enqueue: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PATIENCE", 0.0)
    client.config_set("maxmemory", 1)
    before = tries(client)
    try:
        dropped = enqueue(ASSETS / "coffee.png", "--drop")
        with room_when(lambda: tries(client) > before + 2, lambda: client.config_set("maxmemory", 0)):
            waited = enqueue(ASSETS / "coffee.png")
    finally:
        client.config_set("maxmemory", 0)

    assert dropped == (0, "enqueued 0 frames into frames, refused 1: it was full\n", "")
    assert waited[:2] == (0, "enqueued 1 frame into frames\n")
    assert waited[2] == "coatstream: Redis is at its maxmemory: waiting for workers to make room\n"


def test_a_picture_larger_than_the_whole_queue_is_a_line_and_the_rest_goes_in(
    client: Client, enqueue: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "fits.jpg").write_bytes(b"x" * 100)
    (tmp_path / "large.jpg").write_bytes(b"x" * 1000)

    code, out, err = enqueue(tmp_path, "--set", "queue.max_total_bytes=1000")

    assert (code, out) == (1, "enqueued 1 frame into frames; 0 damaged, 1 skipped\n")
    assert re.fullmatch(r"coatstream: large.jpg: it has \d+ bytes, more than queue.max_total_bytes \(1000\).*\n", err)


def test_one_of_several_queues_can_be_named(client: Client, enqueue: Callable[..., Result]) -> None:
    queues = ("--set", "queues=[{stream: urgent}, {stream: later}]")

    assert enqueue(ASSETS / "coffee.png", *queues)[1] == "enqueued 1 frame into urgent\n"
    assert enqueue(ASSETS / "coffee.png", *queues, "--stream", "later")[1] == "enqueued 1 frame into later\n"

    assert (client.xlen("urgent"), client.xlen("later")) == (1, 1)
    code, out, err = enqueue(ASSETS / "coffee.png", *queues, "--stream", "frames")
    assert (code, out) == (2, "")
    assert err == "coatstream: there is no queue frames: the settings have urgent, later (queues, queue.stream)\n"


def test_a_disk_that_cannot_confirm_is_wrong_usage(client: Client, enqueue: Callable[..., Result]) -> None:
    code, out, err = enqueue(ASSETS / "coffee.png", "--confirm", "disk")

    assert (code, out, client.exists("frames")) == (2, "enqueued 0 frames into frames\n", 0)
    assert re.fullmatch(r"coatstream: confirmation by the disk needs .*\n", err)


def test_what_no_replica_has_is_in_doubt(client: Client, enqueue: Callable[..., Result]) -> None:
    with ctrl_c_when(lambda: client.xlen("frames") == 1):
        code, out, err = enqueue(ASSETS / "coffee.png", "--confirm", "replicas", "--set", "redis.socket_timeout=0.4")

    assert (code, out) == (4, "enqueued 0 frames into frames, 1 in doubt\n")
    assert err == "coatstream: frames in frames were not confirmed within 0.2 s: 0 of 1 replicas have them\n"


def test_a_disk_that_confirms_makes_no_difference_to_see(enqueue: Callable[..., Result], folder: Path) -> None:
    with tcp_server("--appendonly", "yes", "--appendfsync", "always") as server:
        assert enqueue(folder, "--confirm", "disk", "--redis", server.url) == (
            0,
            "enqueued 2 frames into frames\n",
            PASSED_OVER,
        )


def test_without_redis_there_is_one_line_and_exit_code_4(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["enqueue", str(ASSETS / "coffee.png"), "--redis", "unix://user:secret@/nowhere/socket"])

    out, err = capsys.readouterr()
    assert (code, out) == (4, "")
    assert len(err.splitlines()) == 1
    assert "secret" not in err
