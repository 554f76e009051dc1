"""A folder of pictures that grows, on a real file system."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from coatstream.cameras.capture import folder as module
from coatstream.cameras.capture.folder import Folder
from coatstream.errors import BadFrame, DeadReason

from tests.support.workers import eventually


def taken(folder: Folder) -> list[str]:
    """The names that one look gives out."""
    complete = folder.look()
    for found in complete:
        folder.give(found)
    return [found.name for found in complete]


def tick(path: Path) -> None:
    """Wait until the file system's clock has moved on: some milliseconds."""

    def now() -> int:
        (path / "clock").touch()
        return (path / "clock").stat().st_mtime_ns

    began = now()
    eventually(lambda: now() > began, "the clock moved on")


@pytest.fixture
def watched(tmp_path: Path) -> Folder:
    (tmp_path / "old.jpg").write_bytes(b"old")
    folder = Folder(str(tmp_path), backlog=False)
    assert taken(folder) == []
    return folder


def test_only_what_is_new_is_given_out_once_and_in_the_order_of_arrival(watched: Folder, tmp_path: Path) -> None:
    names = ["c.jpg", "a.png", "b.webp"]
    for name in names:
        (tmp_path / name).write_bytes(b"new")
        tick(tmp_path)

    assert [taken(watched), taken(watched), taken(watched)] == [[], names, []]


def test_with_its_backlog_a_folder_gives_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "old.jpg").write_bytes(b"old")
    folder = Folder(str(tmp_path), backlog=True, clock=lambda: time.time() + 60)

    assert [taken(folder), taken(folder)] == [["old.jpg"], []]


def test_a_picture_that_grows_is_given_out_when_it_is_complete(watched: Folder, tmp_path: Path) -> None:
    with (tmp_path / "slow.jpg").open("wb") as file:
        looks = []
        for piece in (b"", b"one", b"two", b"three"):
            file.write(piece)
            file.flush()
            looks.append(taken(watched))
            tick(tmp_path)

    assert looks == [[]] * 4
    assert [taken(watched), taken(watched)] == [["slow.jpg"], []]


def test_a_picture_that_was_moved_in_with_an_old_date_is_new(watched: Folder, tmp_path: Path) -> None:
    hidden = tmp_path / "new.jpg.part"
    hidden.write_bytes(b"new")
    os.utime(hidden, (1, 1))
    assert [taken(watched), taken(watched)] == [[], []]

    hidden.rename(tmp_path / "new.jpg")

    assert taken(watched) + taken(watched) == ["new.jpg"]


def test_a_chmod_makes_no_new_picture_and_a_new_content_does(watched: Folder, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"new")
    assert taken(watched) + taken(watched) == ["a.jpg"]

    (tmp_path / "a.jpg").chmod(0o600)
    assert taken(watched) + taken(watched) == []

    (tmp_path / "a.jpg").write_bytes(b"newer")
    assert taken(watched) + taken(watched) == ["a.jpg"]


def test_links_folders_pipes_and_other_files_are_ignored(watched: Folder, tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside.jpg"
    outside.write_bytes(b"secret")
    (tmp_path / "link.jpg").symlink_to(outside)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "below.jpg").write_bytes(b"below")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "notes.txt").write_bytes(b"text")

    assert taken(watched) + taken(watched) == []


def test_a_clock_that_was_set_back_hides_no_picture(tmp_path: Path) -> None:
    now = time.time()
    ahead = [3600.0]
    folder = Folder(str(tmp_path), backlog=True, clock=lambda: now + ahead[0])
    folder._mark = int((now + 3600) * 1e9)  # given out an hour ahead
    ahead[0] = 0.0

    (tmp_path / "a.jpg").write_bytes(b"new")

    assert taken(folder) + taken(folder) == ["a.jpg"]


def test_memory_does_not_grow_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 50)
    monkeypatch.setattr(module, "_OVERLAP", 0)
    monkeypatch.setattr(module, "_AT_ONCE", 40)
    folder = Folder(str(tmp_path), backlog=True)
    given: list[str] = []
    for number in range(300):
        (tmp_path / f"{number:04}.jpg").write_bytes(b"new")
        if number % 10 == 9:
            given += taken(folder)
            tick(tmp_path)
    for _ in range(10):
        given += taken(folder)

    assert given == [f"{number:04}.jpg" for number in range(300)]
    assert len(folder._given) <= 50
    assert folder._growing == {}


def test_a_folder_that_is_gone_is_an_error(watched: Folder, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)

    with pytest.raises(FileNotFoundError):
        watched.look()


def test_a_picture_is_read_within_bounds_and_may_have_gone(watched: Folder, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"0123456789")
    watched.look()
    (found,) = watched.look()

    assert watched.read(found, max_bytes=10) == b"0123456789"
    with pytest.raises(BadFrame) as caught:
        watched.read(found, max_bytes=9)
    (tmp_path / "a.jpg").unlink()

    assert caught.value.reason is DeadReason.TOO_LARGE
    assert watched.read(found, max_bytes=10) is None


def test_a_link_that_took_a_pictures_place_is_not_followed(watched: Folder, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"new")
    watched.look()
    (found,) = watched.look()
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").symlink_to("/etc/passwd")

    with pytest.raises(BadFrame, match="cannot be opened"):
        watched.read(found, max_bytes=10_000)


def test_pictures_come_as_they_arrive_until_told_to_stop(watched: Folder, tmp_path: Path) -> None:
    stop = threading.Event()
    names: list[str] = []

    def read() -> None:
        names.extend(found.name for found in watched.pictures(stop))

    thread = threading.Thread(target=read)
    thread.start()
    (tmp_path / "a.jpg").write_bytes(b"new")
    eventually(lambda: names == ["a.jpg"], "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"new")
    eventually(lambda: names == ["a.jpg", "b.jpg"], "b.jpg")
    stop.set()
    thread.join(timeout=2)

    assert names == ["a.jpg", "b.jpg"]
