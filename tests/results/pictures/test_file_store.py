"""Pictures of events in a folder or a bucket: the same bounds, by files that any program can open."""

from itertools import count
from pathlib import Path

import pytest
from coatstream.errors import ConfigError
from coatstream.results.pictures import EventPictures, picture_id
from coatstream.results.pictures.file_store import FilePictures
from coatstream.results.pictures.store import Stored
from coatstream.settings.model import PictureSettings, SettingsTree

NOW = 1_764_000_000.0
JPEG = b"\xff\xd8\xff" + bytes(997)


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "pictures") if request.param == "folder" else f"memory://{tmp_path.name}"


def store(place: str, *, now: float = NOW, **settings: object) -> FilePictures:
    ticks = count(step=100)  # each look comes a minute after the one before
    tree = PictureSettings.model_validate({"store": place, **settings})
    return FilePictures(tree, clock=lambda: now, monotonic=lambda: next(ticks))


def named(number: int) -> str:
    return picture_id(f"door-{number}", NOW + number)


def test_a_picture_is_a_file_in_the_folder_of_its_day(tmp_path: Path) -> None:
    settings = SettingsTree.model_validate({"pictures": {"store": str(tmp_path), "max_age": 1e8}})

    EventPictures.of(settings, None).put(named(0), JPEG)

    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg")] == [f"2025-11-24/{named(0)}.jpg"]
    assert EventPictures.of(settings, None).get(named(0)) == JPEG


def test_the_oldest_go_first_also_those_of_an_earlier_start(place: str) -> None:
    for number in range(5):
        store(place, max_bytes=5000).put(named(number), JPEG)

    assert store(place, max_bytes=5000).put(named(5), JPEG) == Stored("stored", 5000, crowded=1)

    found = [store(place).get(named(number)) is not None for number in range(6)]
    assert found == [False, True, True, True, True, True]


def test_old_ones_go_by_their_age(place: str) -> None:
    store(place).put(named(0), JPEG)

    later = store(place, now=NOW + 100, max_age=50)

    assert later.get(named(0)) is None
    assert later.put(named(90), JPEG) == Stored("stored", 1000, aged=1)


def test_what_is_there_or_too_large_is_not_stored(place: str) -> None:
    one = store(place, max_bytes=1500)
    one.put(named(0), JPEG)

    assert one.put(named(0), JPEG).place == "there"
    assert one.put(named(1), JPEG * 2).place == "too_large"
    assert one.get(named(1)) is None


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x" * 5000)
    for number in range(3):
        store(str(tmp_path), max_bytes=1500).put(named(number), JPEG)

    assert (tmp_path / "mine.txt").exists()
    assert len(list(tmp_path.rglob("*.jpg"))) == 1


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError):
        store(str(tmp_path / "file" / "below")).put(named(0), JPEG)


def test_a_kind_of_place_that_no_library_knows_is_a_fault_of_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"pictures\.store: nosuch://"):
        store("nosuch://bucket")
