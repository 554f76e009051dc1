"""The last pictures of a camera in shared memory: found by frame, whole, also of a process that was killed."""

import fcntl
import os
import sys
import threading
from contextlib import closing

import numpy as np
import pytest
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.cameras.process.shelf import LEAST, SLOTS, PictureShelf, ShelfWriter
from coatstream.cameras.process.source import CameraProcess
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.still import reduced
from coatstream.settings.model import CameraSettings
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pictures import CLIP

if sys.platform != "linux":
    pytest.skip("Linux only", allow_module_level=True)

SPEC = InputSpec(64, 64, 1.0, "squash", "area", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2 * LEAST
        return self.now


def pair() -> tuple[PictureShelf, ShelfWriter]:
    shelf = PictureShelf()
    shelf.want(True)
    return shelf, ShelfWriter(os.dup(shelf.descriptor), Clock())


def grey(value: int, width: int = 320, height: int = 180) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def test_the_picture_of_a_frame_is_found_by_its_name_else_the_nearest_in_time() -> None:
    shelf, writer = pair()
    assert shelf.newest() is shelf.find("door-0", 0.0) is None

    for number in range(SLOTS + 2):
        writer.put(f"door-{number}", 100.0 + number, grey(number))

    exact, gone, newest = shelf.find("door-3", 0.0), shelf.find("door-0", 100.0), shelf.newest()
    assert exact is not None
    assert gone is not None
    assert newest is not None
    assert (exact.pixels[0, 0, 0], exact.captured_at) == (3, 103.0)
    assert gone.captured_at == 102.0  # the oldest that is left
    assert newest.pixels.shape == (180, 320, 3)
    assert newest.captured_at == 105.0


def test_nothing_is_kept_unless_it_is_wanted_and_not_more_often_than_of_use() -> None:
    shelf, writer = pair()
    shelf.want(False)
    writer.put("door-0", 1.0, grey(1))
    assert shelf.newest() is None

    slow = ShelfWriter(os.dup(shelf.descriptor), lambda: 5.0)
    shelf.want(True)
    slow.put("door-1", 1.0, grey(1))
    slow.put("door-2", 2.0, grey(2))
    newest = shelf.newest()
    assert newest is not None
    assert newest.captured_at == 1.0


def test_the_next_process_goes_on_where_a_killed_one_was_cut_off() -> None:
    shelf, writer = pair()
    for number in range(3):
        writer.put(f"door-{number}", float(number), grey(number))

    ShelfWriter(os.dup(shelf.descriptor), Clock()).put("door-3", 3.0, grey(3))

    newest, earlier = shelf.newest(), shelf.find("door-2", 0.0)
    assert newest is not None
    assert earlier is not None
    assert (newest.captured_at, earlier.captured_at) == (3.0, 2.0)


def test_the_process_cannot_take_the_memory_away_from_under_the_worker() -> None:
    shelf = PictureShelf()

    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(shelf.descriptor, 0)
    with pytest.raises(OSError, match="not permitted"):
        fcntl.fcntl(shelf.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@given(st.binary(min_size=44, max_size=44))
def test_what_a_strangers_process_writes_is_no_picture_or_one_of_bounded_size(head: bytes) -> None:
    shelf = PictureShelf()
    os.pwrite(shelf.descriptor, head, 4096)

    still = shelf.newest()

    assert still is None or max(still.pixels.shape) <= 640


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_a_picture_of_any_size_fits(width: int, height: int) -> None:
    small = reduced(np.zeros((height, width, 3), np.uint8))

    assert max(small.shape[:2]) == min(640, max(width, height))
    assert min(small.shape[:2]) >= 1


def test_a_mirrored_view_fits_too() -> None:
    assert reduced(grey(7, 1920, 1080)[::-1, ::-1, ::-1]).shape == (360, 640, 3)


def test_a_cameras_process_fills_the_shelf_and_leaves_it_behind() -> None:
    shelf = PictureShelf.wanted(True)
    assert shelf is not None
    camera = CameraSettings.model_validate({"name": "clip", "url": str(CLIP), "fps": 5, "realtime": True})
    with ForkServer(SPEC) as fork_server:
        source = CameraProcess(camera, SPEC, fork_server=fork_server, lease=CameraLease.unshared(), shelf=shelf)
        with closing(source.frames(threading.Event())) as frames:
            frame = next(frames)

    found = shelf.find(frame.frame_id, 0.0)
    assert found is not None
    assert found.captured_at == pytest.approx(frame.captured_at)
    assert found.pixels.shape == (360, 640, 3)
