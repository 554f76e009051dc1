"""Video files of all kinds: as many frames as the ffmpeg command shows, and the same pictures."""

import shutil
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from coatstream.cameras.capture.camera import Camera
from coatstream.errors import DownReason
from coatstream.frames.frame import Pixels
from coatstream.settings.model import CameraSettings

from tests.cameras.clips import Clip, clips, frames_of
from tests.cameras.heic import tiled
from tests.support.absence import missing
from tests.support.cameras.heard import hear

CLIPS = list(clips())
LEVEL = 2.0  # grey levels that a picture may be off ffmpeg's on average


def read(path: Path) -> tuple[list[Pixels], int]:
    """All pictures, and all damage."""
    camera = Camera(CameraSettings(name="clip", url=str(path), fps=0), prepare=lambda picture: picture)
    with closing(camera.frames(threading.Event())) as source:
        return [frame.pixels for frame in source], camera.damaged


def compared(clip: Clip, folder: Path) -> tuple[int, int, list[float], int]:
    """Frames of ffmpeg, frames of ours, the mean differences in order of size, and all damage."""
    path = clip.make(folder)
    theirs, (ours, damage) = frames_of(path, clip.size), read(path)
    assert all(picture.shape == (clip.size[1], clip.size[0], 3) for picture in ours)
    off = sorted(float(np.abs(own.astype(int) - other).mean()) for own, other in zip(ours, theirs, strict=False))
    return len(theirs), len(ours), off, damage


def test_there_are_at_least_60_files() -> None:
    assert len({clip.name for clip in CLIPS}) == len(CLIPS) >= 60


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
def test_a_file_is_read_as_the_ffmpeg_command_shows_it(clip: Clip, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        missing("no ffmpeg command")

    theirs, ours, off, damage = compared(clip, tmp_path)

    assert theirs == ours > 0
    if clip.name.startswith(("damaged", "cut-off")):  # each release of FFmpeg conceals in its own way
        assert off[len(off) // 2] <= LEVEL
    else:
        assert off[-1] <= LEVEL
        assert damage == 0


@pytest.mark.parametrize("name", ["damaged-lost-key-frame.265", "damaged-lost-picture.265"])
def test_pictures_that_lack_the_one_they_build_on_are_shown_and_counted(name: str, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        missing("no ffmpeg command")
    path = next(clip for clip in CLIPS if clip.name == name).make(tmp_path)

    pictures, damage = read(path)

    assert len(pictures) == 9
    assert 0 < damage < 9


def test_of_a_picture_of_tiles_no_tile_is_taken_for_the_whole(tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        missing("no ffmpeg command")

    whole, parts = hear(tiled(tmp_path, 1)), hear(tiled(tmp_path, 2))

    assert whole.sizes == [(64, 64)]
    assert (parts.sizes, parts.reason) == ([], DownReason.CODEC)
    assert "made of tiles" in (parts.words or "")


def test_a_file_whose_size_changes_shows_each_part_at_its_own(tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        missing("no ffmpeg command")
    lying, standing = (clip for clip in CLIPS if clip.name in ("h264-b.ts", "sar-12-11.ts"))
    path = tmp_path / "both.ts"
    parts = [clip.make(tmp_path) for clip in (lying, standing)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))

    pictures, _ = read(path)

    expected = [
        picture for part, clip in zip(parts, (lying, standing), strict=True) for picture in frames_of(part, clip.size)
    ]
    assert [picture.shape for picture in pictures] == [picture.shape for picture in expected]
    for own, other in zip(pictures, expected, strict=True):
        assert np.abs(own.astype(int) - other).mean() <= LEVEL
