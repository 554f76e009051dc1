import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from coatstream.engine.cache import Cache, Key
from structlog.testing import capture_logs

KEY: Key = {"model": "coat", "sizes": [1, 2], "embeddings": False, "labels": None}
FILES = {"model.bin": bytes(range(256)) * 40, "facts.json": b"{}"}
DAY = 86_400.0

# Stores and loads one entry over and over, and removes it now and then; an entry that is not whole ends it.
HAMMER = """
import sys, time
from pathlib import Path
from coatstream.engine.cache import Cache
cache, turns = Cache(Path(sys.argv[1])), 0
def write(folder):
    for name in "abc":
        (folder / name).write_bytes(name.encode() * 100_000)
until = time.monotonic() + 1.5
while time.monotonic() < until:
    cache.store("shared", {"k": 1}, write)
    cache.write_json("shared", {"k": 1}, ["x" * 10_000])
    files, value = cache.load("shared", {"k": 1}), cache.read_json("shared", {"k": 1})
    assert files is None or files == {name: name.encode() * 100_000 for name in "abc"}, "an entry is not whole"
    assert value in (None, ["x" * 10_000]), "a document is not whole"
    turns += 1
    if turns % 10 == 0:
        cache.discard("shared", {"k": 1}, "a test")
print(turns)
"""

# Is killed while it writes an entry.
KILLED = """
import os, signal, sys
from pathlib import Path
from coatstream.engine.cache import Cache
def write(folder):
    (folder / "model.bin").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
Cache(Path(sys.argv[1])).store("net", {"k": 1}, write)
"""

# May write files of at most 100 kB: a disk that is full.
FULL = """
import resource, sys
from pathlib import Path
from coatstream.engine.cache import Cache
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
Cache(Path(sys.argv[1])).store("net", {"k": 1}, lambda folder: (folder / "big").write_bytes(bytes(200_000)))
"""


def writing(files: dict[str, bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return write


def filled(folder: Path) -> Cache:
    cache = Cache(folder)
    cache.store("net", KEY, writing(FILES))
    return cache


def only(folder: Path) -> Path:
    """The one thing in it; nothing half written lies beside."""
    (path,) = folder.iterdir()
    return path


def child(code: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# ---- entries


def test_an_entry_is_found_as_it_was_written_and_only_under_its_key(tmp_path: Path) -> None:
    cache = filled(tmp_path / "deep" / "cache")

    assert Cache(tmp_path / "deep" / "cache").load("net", dict(sorted(KEY.items(), reverse=True))) == FILES
    assert cache.load("net", {**KEY, "embeddings": True}) is None
    assert cache.load("other", KEY) is None
    assert cache.read_json("net", KEY) is None


def test_others_may_neither_read_nor_change_it(tmp_path: Path) -> None:
    filled(tmp_path / "cache")

    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_what_it_lacks_it_reads_from_a_baked_folder_and_never_writes_there(tmp_path: Path) -> None:
    filled(tmp_path / "baked")
    cache = Cache(tmp_path / "own", baked=tmp_path / "baked")

    cache.write_json("choice", KEY, 1)

    assert cache.load("net", KEY) == FILES
    assert cache.read_json("choice", KEY) == 1
    assert Cache(None, baked=tmp_path / "own").read_json("choice", KEY) == 1
    assert only(tmp_path / "baked").name.startswith("net-")


def test_without_a_folder_nothing_is_found_and_nothing_kept() -> None:
    cache = Cache(None)

    cache.store("net", KEY, writing(FILES))
    cache.write_json("choice", KEY, 1)
    cache.discard("net", KEY, "a test")

    assert cache.load("net", KEY) is None
    assert cache.read_json("choice", KEY) is None


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    filled(Path("~/kept"))

    assert Cache(tmp_path / "kept").load("net", KEY) == FILES


def cut(entry: Path) -> None:
    os.truncate(entry / "model.bin", 5000)


def turned(entry: Path) -> None:
    content = bytearray((entry / "model.bin").read_bytes())
    content[777] ^= 1
    (entry / "model.bin").write_bytes(content)


def lost(entry: Path) -> None:
    (entry / "facts.json").unlink()


def without_manifest(entry: Path) -> None:
    (entry / "manifest.json").unlink()


def cut_manifest(entry: Path) -> None:
    os.truncate(entry / "manifest.json", 30)


def pickled_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_bytes(pickle.dumps({"key": dict(KEY), "files": {}}))


def of_another_key(entry: Path) -> None:
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["key"]["model"] = "another"
    (entry / "manifest.json").write_text(json.dumps(manifest))


def pointing_outside(entry: Path) -> None:
    """A file of the same name lies where the manifest points to."""
    manifest = json.loads((entry / "manifest.json").read_text())
    (entry / "model.bin").rename(entry.parent.parent / "model.bin")
    manifest["files"]["../../model.bin"] = manifest["files"].pop("model.bin")
    (entry / "manifest.json").write_text(json.dumps(manifest))


def emptied(entry: Path) -> None:
    for file in entry.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "damage",
    [cut, turned, lost, without_manifest, cut_manifest, pickled_manifest, of_another_key, pointing_outside, emptied],
)
def test_a_damaged_entry_is_said_once_removed_and_made_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    cache = filled(tmp_path / "cache")
    damage(only(tmp_path / "cache"))

    with capture_logs() as lines:
        assert cache.load("net", KEY) is None
        assert cache.load("net", KEY) is None

    assert [line["event"] for line in lines] == ["a damaged entry of the cache is made again"]
    assert list((tmp_path / "cache").iterdir()) == []
    cache.store("net", KEY, writing(FILES))
    assert cache.load("net", KEY) == FILES


def test_an_entry_that_is_of_no_use_can_be_discarded(tmp_path: Path) -> None:
    cache = filled(tmp_path)

    with capture_logs() as lines:
        cache.discard("net", KEY, "its model cannot be read")

    assert cache.load("net", KEY) is None
    assert [line["why"] for line in lines] == ["its model cannot be read"]


# ---- several processes


def test_the_second_of_two_makers_leaves_the_firsts_entry(tmp_path: Path) -> None:
    def overtaken(folder: Path) -> None:
        writing({"who": b"second"})(folder)
        Cache(tmp_path).store("net", KEY, writing({"who": b"first"}))

    with capture_logs() as lines:
        Cache(tmp_path).store("net", KEY, overtaken)

    assert Cache(tmp_path).load("net", KEY) == {"who": b"first"}
    only(tmp_path)
    assert lines == []


def test_three_processes_at_once_never_see_half_of_anything(tmp_path: Path) -> None:
    children = [child(HAMMER, tmp_path) for _ in range(3)]
    said = [each.communicate(timeout=150)[0] for each in children]

    assert [each.returncode for each in children] == [0, 0, 0], said
    assert all(int(text.splitlines()[-1]) > 10 for text in said)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_process_leaves_is_no_entry_and_goes_after_a_day(tmp_path: Path) -> None:
    child(KILLED, tmp_path).communicate(timeout=150)
    left = only(tmp_path)
    assert (left / "model.bin").read_bytes() == b"half"

    assert Cache(tmp_path).load("net", {"k": 1}) is None
    Cache(tmp_path).store("net", KEY, writing(FILES))
    assert left.exists(), "it might be another process at work"

    Cache(tmp_path, clock=lambda: time.time() + 2 * DAY).store("net", {"k": 2}, writing(FILES))
    assert not left.exists()


# ---- folders that are of no use


def test_a_folder_that_cannot_be_written_is_said_once_and_costs_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = Cache(tmp_path / "file" / "cache")

    with capture_logs() as lines:
        for _ in range(2):
            cache.store("net", KEY, writing(FILES))
            cache.write_json("choice", KEY, 1)
            assert cache.load("net", KEY) is None
            assert cache.read_json("choice", KEY) is None

    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("warning", "the cache cannot be used: nothing is kept there")
    ]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    full = child(FULL, tmp_path)
    said, _ = full.communicate(timeout=150)

    assert full.returncode == 0, said
    assert said.count("the cache cannot be used") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_only_be_read_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "utime", refuse)  # the tests may run as root, whom no mode of a folder stops

    assert Cache(tmp_path).load("net", KEY) == FILES


# ---- how much is kept


def test_what_nobody_has_used_for_a_month_goes(tmp_path: Path) -> None:
    now = time.time()
    cache = Cache(tmp_path, clock=lambda: now)
    for number in range(3):
        cache.store("net", {"n": number}, writing(FILES))
    cache.write_json("choice", {"n": 0}, 1)

    now += 20 * DAY
    assert cache.load("net", {"n": 1}) is not None
    now += 20 * DAY
    cache.store("net", {"n": 3}, writing(FILES))

    assert [cache.load("net", {"n": number}) is not None for number in range(4)] == [False, True, False, True]
    assert cache.read_json("choice", {"n": 0}) is None


def test_of_too_much_the_longest_unused_goes_but_never_the_newest(tmp_path: Path) -> None:
    now = time.time()
    cache = Cache(tmp_path, max_bytes=25_000, clock=lambda: now)  # two entries of 10 kB and their manifests
    for number in range(2):
        cache.store("net", {"n": number}, writing(FILES))
    now += 60
    cache.load("net", {"n": 0})

    cache.store("net", {"n": 2}, writing(FILES))
    assert [cache.load("net", {"n": number}) is not None for number in range(3)] == [True, False, True]

    cache.store("net", {"n": 3}, writing({"large": bytes(30_000)}))
    assert [cache.load("net", {"n": number}) is not None for number in range(4)] == [False, False, False, True]


def test_files_that_are_not_ours_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "net-notes").mkdir()
    os.utime(tmp_path / "notes.txt", (0, 0))
    os.utime(tmp_path / "net-notes", (0, 0))

    Cache(tmp_path, max_bytes=0, max_age=0).store("net", KEY, writing(FILES))

    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "net-notes").exists()


# ---- documents


def test_a_document_is_found_under_its_key_and_replaced(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    cache.write_json("choice", KEY, {"engine": "openvino", "rates": [1.5, None]})
    assert Cache(tmp_path).read_json("choice", KEY) == {"engine": "openvino", "rates": [1.5, None]}
    assert cache.read_json("choice", {**KEY, "model": "other"}) is None

    cache.write_json("choice", KEY, "eager")
    assert cache.read_json("choice", KEY) == "eager"
    only(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'"openvino"', b"\x80\x04K\x01.", None], ids=["empty", "bare", "text", "pickle", "changed"]
)
def test_a_damaged_document_is_said_once_and_removed(content: bytes | None, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write_json("choice", KEY, "openvino")
    path = only(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"openvino", b"eager") if content is None else content)

    with capture_logs() as lines:
        assert cache.read_json("choice", KEY) is None
        assert cache.read_json("choice", KEY) is None

    assert [line["event"] for line in lines] == ["a damaged entry of the cache is made again"]
    assert list(tmp_path.iterdir()) == []
