"""Cameras in processes of their own, against real servers: frames, deadlines, deaths, stops, and who outlives whom."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coatstream.cameras.capture.steps import Step
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.process.conversation import CameraCounts, Conversation, Traits, Unobserved
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.cameras.process.source import CameraProcess
from coatstream.cameras.process.wire import Inbox, Message, Tally
from coatstream.errors import BadFrame, ConfigError, DownReason, SourceLost
from coatstream.frames.frame import Frame, InputSpec, PictureFault
from coatstream.frames.opencv import cv2
from coatstream.frames.resizing import prepare
from coatstream.pipeline.source import Source
from coatstream.settings.model import CameraSettings

from tests.cameras.test_fork_server import descriptors
from tests.support.cameras.http import HttpCamera
from tests.support.cameras.rtsp import FPS, LENGTH, RtspCamera, number_of
from tests.support.load import slack
from tests.support.paths import ASSETS, ROOT
from tests.support.pictures import clip_frames
from tests.support.processes import ended, state
from tests.support.workers import eventually

if sys.platform != "linux":
    pytest.skip("Linux only", allow_module_level=True)

COCKATOO = ASSETS / "cockatoo_360p.mp4"  # 280 frames of 640 x 360, 20 a second
SPEC = InputSpec(240, 320, 1.0, "squash", "area", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # the test camera's own size


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer(SPEC) as made:
        yield made


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    return cv2.imencode(".jpg", np.zeros((120, 160, 3), np.uint8))[1].tobytes()


def camera(
    fork_server: ForkServer, url: str | Path, *, more: dict[str, Any] | None = None, **given: Any
) -> CameraProcess:
    settings = {"name": "door", "url": str(url), "fps": 0, "open_timeout": 5.0, "read_timeout": 2.0} | given
    arguments: dict[str, Any] = {"fork_server": fork_server, "lease": CameraLease.unshared()} | (more or {})
    return CameraProcess(CameraSettings.model_validate(settings), SPEC, **arguments)


class Observer(Unobserved):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.costs: list[tuple[str, float]] = []
        self.gave_way = 0
        self.flow: list[bool] = []
        self.seen: list[Frame] = []
        self.bad: list[BadFrame] = []
        self.faults: tuple[PictureFault, ...] = ()

    def judged(self, frame: Frame) -> Frame:
        self.seen.append(frame)
        return replace(frame, faults=self.faults)

    def spent(self, stage: str, seconds: float) -> None:
        self.costs.append((stage, seconds))

    def unusable(self, bad: BadFrame) -> None:
        self.bad.append(bad)

    def replaced(self, count: int) -> None:
        self.gave_way += count

    def flows(self, flowing: bool) -> None:
        self.flow.append(flowing)


def opened(source: CameraProcess) -> Generator[Frame, None, None]:
    return source.frames(threading.Event())


def first_of(source: CameraProcess) -> Frame:
    with closing(opened(source)) as frames:
        return next(frames)


def pid_of(source: CameraProcess) -> int:
    pid = source.stats().pid
    assert pid is not None
    return pid


def why_lost(frames: Iterator[Frame]) -> SourceLost:
    with pytest.raises(SourceLost) as caught:
        list(frames)
    return caught.value


class Reading:
    """A camera that is read in a thread, as the intake does."""

    def __init__(self, source: CameraProcess) -> None:
        self.source = source
        self.stop = threading.Event()
        self.frames: list[tuple[float, Frame]] = []
        self.lost: SourceLost | None = None
        self.lost_at = 0.0
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Reading":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def _run(self) -> None:
        try:
            for frame in self.source.frames(self.stop):
                self.frames.append((time.monotonic(), frame))
        except SourceLost as lost:
            self.lost, self.lost_at = lost, time.monotonic()

    def lose(self) -> SourceLost:
        eventually(lambda: self.lost is not None, "the camera is lost")
        assert self.lost is not None
        return self.lost


# Frames


def test_a_live_camera_gives_its_newest_pictures_in_order(fork_server: ForkServer) -> None:
    source: Source
    with RtspCamera() as server:
        source = camera(fork_server, server.url())
        numbers, lags = [], []
        with closing(source.frames(threading.Event())) as frames:
            for frame in islice(frames, 20):
                numbers.append(number_of(frame.pixels))
                lags.append((server.now_showing - numbers[-1]) % LENGTH)

    assert source.live
    assert [(b - a) % LENGTH for a, b in pairwise(numbers)] == [1] * 19
    assert max(lags) < FPS / 2


def test_a_camera_that_is_faster_than_its_worker_gives_some_pictures_all_the_same() -> None:
    """Each message takes the worker longer than the next one takes to come, so there is always a newer picture."""
    ours, theirs = socket.socketpair()
    frame = Frame("door", "door-1", 1.0, np.zeros((240, 320, 3), np.uint8), 320, 240)
    stop, counts = threading.Event(), CameraCounts()
    enough = threading.Timer(5, stop.set)

    class Faster(Inbox):
        def receive(self, within: float) -> Message | None:
            time.sleep(0.01)
            return Message(Tally(grabbed=1), frame=frame)

    with ours, theirs:
        inbox, traits = Faster(ours, source="door", spec=SPEC), Traits(True, False, 5.0, 2.0)
        conversation = Conversation(inbox, traits, CameraLease.unshared(), observer=Unobserved(), counts=counts)
        enough.start()
        found = [conversation.next(stop) for _ in range(5)]
        enough.cancel()

    assert None not in found
    assert counts.stats.replaced >= 5 * 5


def test_a_file_loses_nothing_however_slowly_it_is_taken(fork_server: ForkServer) -> None:
    source = camera(fork_server, COCKATOO, fps=5, read_timeout=0.2)
    with closing(opened(source)) as frames:
        first = next(frames)
        eventually(lambda: state(pid_of(source)) == "S", "its process waits for room")
        until = time.monotonic() + 1.5  # longer than a silence may be
        while time.monotonic() < until:
            assert not ended(pid_of(source))
            time.sleep(0.05)
        rest = list(frames)

    captured = [frame.captured_at for frame in (first, *rest)]
    assert len({frame.frame_id for frame in (first, *rest)}) == 70
    assert captured == sorted(captured)
    assert source.stats().replaced == 0


def test_a_folder_in_which_nothing_happens_is_no_hang(fork_server: ForkServer, jpeg: bytes, tmp_path: Path) -> None:
    source = camera(fork_server, tmp_path, read_timeout=0.2)
    with Reading(source) as reading:
        eventually(lambda: source.stats().step is Step.READING, "the folder is watched")
        until = time.monotonic() + 1.5  # longer than a silence may be
        while time.monotonic() < until:
            assert reading.lost is None
            time.sleep(0.05)
        (tmp_path / "one.jpg").write_bytes(jpeg)
        eventually(lambda: len(reading.frames) == 1, "its picture is read")

    assert source.stats().started == 1


def test_a_frame_says_where_and_when_and_has_vitals(fork_server: ForkServer) -> None:
    before = time.time()
    frame = first_of(camera(fork_server, COCKATOO))

    assert (frame.source, frame.width, frame.height, frame.fence) == ("door", 640, 360, 0)
    assert frame.vitals is not None
    assert frame.vitals.thumbnail.std() > 5
    assert frame.pixels.shape == (240, 320, 3)
    assert before < frame.captured_at < time.time()


def test_costs_and_counts_are_told(fork_server: ForkServer) -> None:
    observer = Observer()
    source = camera(fork_server, COCKATOO, fps=5, more={"observer": observer})

    assert len(list(opened(source))) == 70

    stats = source.stats()
    assert {stage for stage, _ in observer.costs} == {"decode", "prepare"}
    assert sum(seconds for _, seconds in observer.costs) == pytest.approx(stats.cpu)
    assert stats.grabbed == 280
    assert time.time() - 60 < stats.last_picture < time.time()
    assert (stats.started, stats.killed, stats.crashed, stats.pid) == (1, 0, 0, None)


def test_an_address_of_no_known_kind_is_refused_before_any_process(fork_server: ForkServer) -> None:
    with pytest.raises(ConfigError):
        camera(fork_server, "gopher://cam")


def test_pictures_are_prepared_as_the_model_wants_them_with_torch_too() -> None:
    spec = InputSpec(224, 224, 0.9, "border", "bicubic", (0.1, 0.5, 0.9), (0.5, 0.5, 0.5))
    settings = CameraSettings.model_validate({"name": "clip", "url": str(COCKATOO), "fps": 1})
    with ForkServer(spec) as fork_server:
        source = CameraProcess(settings, spec, fork_server=fork_server, lease=CameraLease.unshared())
        theirs = first_of(source)
        tasks = list(Path(f"/proc/{fork_server.pid}/task").iterdir())

    (picture,) = clip_frames(1)
    assert np.array_equal(theirs.pixels, prepare(picture[:, :, ::-1], spec))  # the clip's frames are BGR
    assert len(tasks) == 1  # or its forks would not be safe


# Leases, faults


def test_while_another_worker_has_the_camera_its_pictures_are_held_back(fork_server: ForkServer) -> None:
    lease, observer = CameraLease(), Observer()
    source = camera(fork_server, COCKATOO, realtime=True, more={"lease": lease, "observer": observer})
    with Reading(source) as reading:
        eventually(lambda: source.stats().held_back >= 3, "pictures are held back")
        assert lease.warm
        assert not any((reading.frames, observer.seen, observer.bad))

        lease.grant(7, until=time.monotonic() + 60)
        eventually(lambda: bool(reading.frames), "the lease is used")
        lease.end()
        held, seen = source.stats().held_back, len(reading.frames)
        eventually(lambda: source.stats().held_back > held + 2, "held back again")

    assert len(reading.frames) <= seen + 1  # one was on its way
    assert {frame.fence for _, frame in reading.frames} == {7}
    assert not lease.warm


def test_a_file_waits_where_its_worker_may_not_speak_for_it_for_a_while_and_loses_nothing(
    fork_server: ForkServer,
) -> None:
    lease = CameraLease()
    lease.grant(7, until=float("inf"))
    source = camera(fork_server, COCKATOO, more={"lease": lease})
    with Reading(source) as reading:
        eventually(lambda: len(reading.frames) >= 20, "it is read")
        lease.end()
        time.sleep(0.3)
        count = len(reading.frames)
        time.sleep(0.3)
        assert len(reading.frames) == count < 280
        lease.grant(8, until=float("inf"))

        eventually(lambda: len(reading.frames) == 280, "it is read to its end")

    assert {frame.fence for _, frame in reading.frames} == {7, 8}
    assert source.stats().held_back == 0


def test_a_frame_bears_the_faults_that_were_found(fork_server: ForkServer) -> None:
    observer = Observer()
    observer.faults = (PictureFault.BLACK,)

    frame = first_of(camera(fork_server, COCKATOO, more={"observer": observer}))

    assert frame.faults == (PictureFault.BLACK,)
    assert [seen.captured_at for seen in observer.seen] == [frame.captured_at]
    assert observer.seen[0].vitals is not None


# Deadlines


def test_a_silent_camera_is_lost_within_its_deadline_and_others_keep_their_rate(fork_server: ForkServer) -> None:
    with (
        RtspCamera(silent=True) as silent,
        RtspCamera() as server,
        Reading(camera(fork_server, server.url(), name="well")) as well,
    ):
        eventually(lambda: len(well.frames) > 5, "the other one is read")
        before = time.monotonic()
        with Reading(camera(fork_server, silent.url(), open_timeout=1)) as mute:
            mute.lose()
        during = [at for at, _ in well.frames if before <= at <= mute.lost_at]

    assert mute.lost_at - before < 2.5
    assert len(during) == pytest.approx((mute.lost_at - before) * FPS, abs=5)


def test_a_process_that_hangs_while_it_opens_is_killed_by_its_deadline(fork_server: ForkServer) -> None:
    with RtspCamera(silent=True) as server:
        source = camera(fork_server, server.url(), open_timeout=1)
        before = time.monotonic()
        with Reading(source) as reading:
            eventually(lambda: source.stats().step is Step.OPENING, "it opens")
            pid = pid_of(source)
            os.kill(pid, signal.SIGSTOP)
            lost = reading.lose()

    assert lost.reason is DownReason.TIMEOUT
    assert str(lost).startswith("camera 'door' was lost: the process that read it was killed: no picture after 2.")
    assert str(lost).endswith(", still opening")
    assert reading.lost_at - before < 3
    assert source.stats().killed == 1
    eventually(lambda: ended(pid), "it is dead")


def test_a_process_that_freezes_while_it_reads_is_noticed_then_killed(fork_server: ForkServer) -> None:
    observer = Observer()
    lease = CameraLease.unshared()
    with RtspCamera() as server:
        source = camera(fork_server, server.url(), read_timeout=1, more={"observer": observer, "lease": lease})
        with Reading(source) as reading:
            eventually(lambda: len(reading.frames) > 3, "it is read")
            pid = pid_of(source)
            os.kill(pid, signal.SIGSTOP)
            before = time.monotonic()
            eventually(lambda: observer.flow == [False], "it is stalled")
            assert not lease.warm
            assert 0.9 < time.monotonic() - before < 2.5 + slack()
            lost = reading.lose()

    assert lost.reason is DownReason.TIMEOUT
    assert "killed: no sign of it for 2." in str(lost)
    assert 1.8 < reading.lost_at - before < 3
    assert (source.stats().killed, source.stats().crashed) == (1, 0)
    eventually(lambda: ended(pid), "it is dead")


def test_a_process_that_was_frozen_for_a_while_is_live_again(fork_server: ForkServer) -> None:
    observer = Observer()
    with RtspCamera() as server:
        source = camera(fork_server, server.url(), read_timeout=4, more={"observer": observer})
        with Reading(source) as reading:
            eventually(lambda: len(reading.frames) > 3, "it is read")
            os.kill(pid_of(source), signal.SIGSTOP)
            eventually(lambda: observer.flow == [False], "it is stalled")
            os.kill(pid_of(source), signal.SIGCONT)
            eventually(lambda: observer.flow == [False, True], "it is live again")

    assert source.stats().killed == 0


@pytest.mark.parametrize(("sent", "words"), [(signal.SIGKILL, "Killed"), (signal.SIGSEGV, "Segmentation fault")])
def test_a_process_that_dies_is_a_lost_camera_at_once(
    fork_server: ForkServer, sent: signal.Signals, words: str
) -> None:
    with RtspCamera() as server:
        source = camera(fork_server, server.url())
        with Reading(source) as reading:
            eventually(lambda: len(reading.frames) > 3, "it is read")
            os.kill(pid_of(source), sent)
            before = time.monotonic()
            lost = reading.lose()

            assert reading.lost_at - before < 1
            assert lost.reason is DownReason.CRASHED
            assert str(lost) == f"camera 'door' was lost: the process that read it died (signal {sent:d} ({words}))"
            assert source.stats().crashed == 1
        first_of(source)  # and the next one works


def test_why_it_was_lost_comes_through_without_a_password(fork_server: ForkServer) -> None:
    with RtspCamera(user="jo", password="right") as server:
        lost = why_lost(opened(camera(fork_server, server.url(credentials="jo:hunter2"))))

    assert "camera 'door'" in str(lost)
    assert "hunter2" not in str(lost)


def test_a_camera_that_dies_is_a_loss_at_once(fork_server: ForkServer) -> None:
    with RtspCamera() as server, Reading(camera(fork_server, server.url())) as reading:
        eventually(lambda: len(reading.frames) > 3, "it is read")
        server.close()
        before = time.monotonic()
        reading.lose()

    assert reading.lost_at - before < 1.5


# Freshness


def test_a_worker_that_was_away_finds_the_newest_picture(fork_server: ForkServer) -> None:
    observer = Observer()
    with RtspCamera() as server:
        source = camera(fork_server, server.url(), more={"observer": observer})
        with closing(opened(source)) as frames:
            last = number_of(next(frames).pixels)
            eventually(lambda: (server.now_showing - last) % LENGTH > 60, "time passes")
            newest = number_of(next(frames).pixels)
            lag = (server.now_showing - newest) % LENGTH

    assert lag < 8
    assert observer.gave_way >= 40
    assert source.stats().replaced == observer.gave_way


def test_time_in_which_the_worker_was_stopped_kills_nobody(fork_server: ForkServer) -> None:
    jumped = [0.0]
    with RtspCamera() as server:
        source = camera(fork_server, server.url(), more={"monotonic": lambda: time.monotonic() + jumped[0]})
        with closing(opened(source)) as frames:
            for _ in range(3):
                next(frames)
                jumped[0] += 100.0

    assert source.stats().killed == 0


# Stopping


def test_a_camera_stops_soon_whatever_it_does(fork_server: ForkServer) -> None:
    with RtspCamera() as server, RtspCamera(silent=True) as silent:
        running, opening = camera(fork_server, server.url()), camera(fork_server, silent.url(), name="mute")
        stops = []
        with Reading(running) as one, Reading(opening) as other:
            eventually(lambda: len(one.frames) > 3 and opening.stats().pid is not None, "both are read")
            pids = [pid_of(running), pid_of(opening)]
            for reading in (one, other):
                before = time.monotonic()
                reading.stop.set()
                reading.thread.join(5)
                stops.append(time.monotonic() - before)

    assert max(stops) < 0.8
    for pid in pids:
        assert ended(pid)


def test_a_frozen_process_delays_no_stop(fork_server: ForkServer) -> None:
    with RtspCamera() as server:
        source = camera(fork_server, server.url())
        with Reading(source) as reading:
            eventually(lambda: len(reading.frames) > 3, "it is read")
            pid = pid_of(source)
            os.kill(pid, signal.SIGSTOP)
            before = time.monotonic()
            reading.stop.set()
            reading.thread.join(5)

    assert time.monotonic() - before < 0.7 + slack()
    eventually(lambda: ended(pid), "it is dead")


def test_files_and_threads_end_where_they_began(fork_server: ForkServer, jpeg: bytes) -> None:
    with HttpCamera(jpeg) as server:
        source = camera(fork_server, server.url())
        first_of(source)
        threads, open_files = _threads(), len(descriptors())
        theirs = _open_files_of(fork_server)
        for _ in range(20):
            first_of(source)

        assert _threads() == threads
        eventually(lambda: _open_files_of(fork_server) <= theirs, "the fork server has let go")
    # The server's own connections come and go in the same process.
    eventually(lambda: len(descriptors()) <= open_files, "no file is left open")
    assert source.stats().started == 21


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if not thread.name.endswith(("(_serve)", "(_accept)"))}


def _open_files_of(fork_server: ForkServer) -> int:
    return len(list(Path(f"/proc/{fork_server.pid}/fd").iterdir()))


# Secrets; the worker's own death


def test_a_password_is_in_no_command_line_and_no_environment(
    fork_server: ForkServer, jpeg: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with HttpCamera(jpeg, credentials="jo:hunter2") as server:
        source = camera(fork_server, server.url(), username="jo", password="hunter2")
        with closing(opened(source)) as frames:
            next(frames)
            for pid in (fork_server.pid, pid_of(source)):
                for name in ("cmdline", "environ", "comm"):
                    assert b"hunter2" not in Path(f"/proc/{pid}/{name}").read_bytes()

    assert capfd.readouterr() == ("", "")


_WORKER = """
import sys, threading
from tests.cameras.test_process import SPEC, camera, pid_of
from coatstream.cameras.process.forkserver import ForkServer
with ForkServer(SPEC) as fork_server:
    source = camera(fork_server, sys.argv[1], read_timeout=1)
    for number, frame in enumerate(source.frames(threading.Event())):
        if number == 3:
            print(fork_server.pid, pid_of(source), flush=True)
"""


def _worker(url: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", _WORKER, url], stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_that_is_killed_leaves_no_process(stopped: bool) -> None:
    with RtspCamera() as server, _worker(server.url()) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        if stopped:
            os.kill(pids[1], signal.SIGSTOP)

        process.kill()
        process.wait(timeout=10)

        eventually(lambda: all(map(ended, pids)), "its processes are dead")


def test_a_worker_that_was_stopped_goes_on_with_the_same_process() -> None:
    with RtspCamera() as server, _worker(server.url()) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        os.kill(process.pid, signal.SIGSTOP)
        began = server.now_showing
        eventually(lambda: (server.now_showing - began) % LENGTH > 2.5 * FPS, "time passes")  # beyond all time-outs
        os.kill(process.pid, signal.SIGCONT)

        before = time.monotonic()
        while time.monotonic() < before + 1:
            assert not any(map(ended, pids))
            time.sleep(0.05)
        process.kill()
