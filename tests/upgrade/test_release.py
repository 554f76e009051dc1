"""The last release comes out of this clone's history; where it cannot, one line tells why."""

from pathlib import Path

import pytest

from tests.support.absence import missing
from tests.upgrade import release


@pytest.fixture(autouse=True)
def _clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(release, "FOLDER", tmp_path)
    try:
        release.program("HEAD")
    except release.NotHere as error:
        missing(str(error))


def test_a_release_is_unpacked_once_and_started_from_its_own_folder() -> None:
    first, again = release.program("HEAD"), release.program("HEAD")

    assert first == again
    assert first.package == "coatstream"
    assert first.folder is not None
    assert (first.folder / "coatstream" / "__main__.py").is_file()
    assert first.environment({"PYTHONPATH": "more"})["PYTHONPATH"].split(":") == [str(first.folder), "more"]


def test_a_commit_that_this_clone_lacks_is_reported_in_one_line() -> None:
    with pytest.raises(release.NotHere, match=r"^git rev-parse .*no-such-release") as raised:
        release.program("no-such-release")

    assert "\n" not in str(raised.value)
