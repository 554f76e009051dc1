"""The cache: a folder of what is dear to make again, such as converted models and measured choices.

Each thing is kept under a key of all that it depends on. What is read is what was written: sizes and sha256 are
checked, and what is torn or changed is removed and made again. Several processes may share a folder. A folder that
cannot be used costs time, never a start. Nothing in it is ever unpickled or run.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

Key = Mapping[str, JsonValue]
T = TypeVar("T")

_FORMAT: Final = 1  # part of each name: another layout of the folder finds none of these
_MANIFEST: Final = "manifest.json"
_ENTRY: Final = re.compile(r"[a-z0-9_]+-[0-9a-f]{32}(\.json)?")
_PASSING: Final = re.compile(r"\.(new|gone)-[0-9a-f]{32}")  # being written, or being removed
_DAY: Final = 86_400.0


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class _Manifest(BaseModel):
    """What an entry holds, and for what key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: dict[str, JsonValue]
    files: dict[str, _File]


class _KeptValue(BaseModel):
    """A small value, with the sha256 of its JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: dict[str, JsonValue]
    sha256: str
    value: JsonValue


class _DamagedError(Exception):
    """Not what was written."""


@dataclass(frozen=True, slots=True)
class _OnDisk:
    """An entry or a document on disk."""

    path: Path
    size: int
    used: float


class Cache:
    """A folder of entries and documents, or none (`folder` is None: nothing is ever found, nothing kept).

    An entry is a folder of files that appears at once, by a rename. Of two processes that make the same one, the
    second finds the first one's in its place and leaves it. A document is a JSON value in one file, replaced at once.
    No locks: no process waits, and at worst a thing is made twice. `baked` is a second folder that is only read, for
    what the first one lacks: one that an image brings along, perhaps.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        baked: Path | None = None,
        max_bytes: int = 4 * 1024**3,
        max_age: float = 30 * _DAY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._clock = clock
        self._warned = False
        self._log = structlog.get_logger("cache")
        self._folder = None if folder is None else self._at_home(folder)
        self._baked = None if baked is None else self._at_home(baked)

    def _at_home(self, folder: Path) -> Path | None:
        try:
            return expanded(folder)
        except OSError as error:
            self._warn(folder, error)
            return None

    def usable(self) -> bool:
        """Whether what is stored will be found again, as far as can be known before."""
        if self._folder is None:
            return False
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (probe := self._folder / f".new-{uuid.uuid4().hex}").touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            self._warn(self._folder, error)
            return False
        return True

    # ---- entries

    def load(self, kind: str, key: Key) -> dict[str, bytes] | None:
        """The files of an entry, by name, as they were written; None where there is no such entry.

        As bytes and not as paths: what has been checked cannot change or vanish any more.
        """
        return self._found(kind, key, "", lambda path: _entry_files(path, key))

    def store(self, kind: str, key: Key, write: Callable[[Path], None]) -> None:
        """Keep what `write` writes into the empty folder that it is given. It may raise OSError."""
        path = self._path(kind, key)
        if path is not None:
            self._write(path, lambda new: _make_entry(new, path, key, write))

    def discard(self, kind: str, key: Key, why: str) -> None:
        """Remove an entry that is as it was written, and of no use."""
        path = self._path(kind, key)
        if path is not None:
            self._discard(path, why)

    # ---- documents

    def read_json(self, kind: str, key: Key) -> JsonValue:
        """The value of a document; None where there is no such document."""
        return self._found(kind, key, ".json", lambda path: _document_value(path, key))

    def write_json(self, kind: str, key: Key, value: JsonValue) -> None:
        """Keep a small value in place of the one before."""
        path = self._path(kind, key, ".json")
        if path is not None:
            self._write(path, lambda new: _make_document(new, path, key, value))

    # ---- both

    def _path(self, kind: str, key: Key, suffix: str = "") -> Path | None:
        return None if self._folder is None else self._folder / _name(kind, key, suffix)

    def _found(self, kind: str, key: Key, suffix: str, read: Callable[[Path], T]) -> T | None:
        for folder in filter(None, (self._folder, self._baked)):
            if (content := self._read(folder / _name(kind, key, suffix), read)) is not None:
                return content
        return None

    def _read(self, path: Path, read: Callable[[Path], T]) -> T | None:
        try:
            if not path.exists():
                return None
            content = read(path)
        except (_DamagedError, ValidationError) as error:
            self._discard(path, "its manifest is damaged" if isinstance(error, ValidationError) else str(error))
            return None
        except OSError as error:
            self._warn(path.parent, error)
            return None
        with suppress(OSError):  # a folder that we may only read serves as well
            os.utime(path, (self._clock(), self._clock()))
        return content

    def _discard(self, path: Path, why: str) -> None:
        self._log.warning("a damaged entry of the cache is made again", entry=str(path), why=why)
        _remove(path)

    def _write(self, path: Path, make: Callable[[Path], None]) -> None:
        new = path.parent / f".new-{uuid.uuid4().hex}"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            make(new)
            _sync_folder(path.parent)
            self._tidy(path)
        except OSError as error:
            self._warn(path.parent, error)
        finally:
            _delete(new)

    def _warn(self, folder: Path, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            why = error.strerror or str(error)
            self._log.warning("the cache cannot be used: nothing is kept there", folder=str(folder), why=why)

    def _tidy(self, newest: Path) -> None:
        """Remove what has not been used for long, the longest unused ones where there is too much, and left-overs."""
        total = 0
        for kept in sorted(_kept(newest.parent), key=lambda kept: (kept.path == newest, kept.used), reverse=True):
            total += kept.size
            if kept.path != newest and (kept.used < self._clock() - self._max_age or total > self._max_bytes):
                _remove(kept.path)
        for path in newest.parent.iterdir():
            if _PASSING.fullmatch(path.name) and _used(path) < self._clock() - _DAY:
                _delete(path)


# ---- on disk


def expanded(folder: Path) -> Path:
    """With the home folder for `~`. Raises OSError where this user has none."""
    try:
        return folder.expanduser()
    except RuntimeError:
        raise OSError(errno.ENOENT, "this user has no home folder: set HOME, or model.cache") from None


def _name(kind: str, key: Key, suffix: str) -> str:
    digest = hashlib.sha256(_canonical([_FORMAT, kind, dict(key)])).hexdigest()
    return f"{kind}-{digest[:32]}{suffix}"


def _kept(folder: Path) -> Iterator[_OnDisk]:
    """What is ours in the folder, the user's own files left out."""
    for path in folder.iterdir():
        if _ENTRY.fullmatch(path.name):
            with suppress(OSError):  # another process has just removed it
                files = list(path.iterdir()) if path.is_dir() else [path]
                yield _OnDisk(path, sum(file.stat().st_size for file in files), path.stat().st_mtime)


def _entry_files(path: Path, key: Key) -> dict[str, bytes]:
    manifest = _Manifest.model_validate_json(_content(path / _MANIFEST))
    if manifest.key != dict(key):
        raise _DamagedError("it is of another key")
    return {name: _checked(path / Path(name).name, file) for name, file in manifest.files.items()}


def _checked(path: Path, file: _File) -> bytes:
    content = _content(path)
    if len(content) != file.size or hashlib.sha256(content).hexdigest() != file.sha256:
        raise _DamagedError(f"{path.name} is not as it was written")
    return content


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _DamagedError(f"{path.name} is missing") from None


def _make_entry(new: Path, path: Path, key: Key, write: Callable[[Path], None]) -> None:
    new.mkdir(mode=0o700)
    write(new)
    files = {file.name: _File(size=file.stat().st_size, sha256=_digest(file)) for file in new.iterdir()}
    (new / _MANIFEST).write_text(_Manifest(key=dict(key), files=files).model_dump_json(indent=1), "utf-8")
    for file in new.iterdir():
        _sync(file)
    _sync_folder(new)
    try:
        new.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        # another process was first: its entry is as good


def _document_value(path: Path, key: Key) -> JsonValue:
    document = _KeptValue.model_validate_json(_content(path))
    if document.key != dict(key):
        raise _DamagedError("it is of another key")
    if hashlib.sha256(_canonical(document.value)).hexdigest() != document.sha256:
        raise _DamagedError("its value is not as it was written")
    return document.value


def _make_document(new: Path, path: Path, key: Key, value: JsonValue) -> None:
    digest = hashlib.sha256(_canonical(value)).hexdigest()
    new.write_text(_KeptValue(key=dict(key), sha256=digest, value=value).model_dump_json(indent=1), "utf-8")
    _sync(new)
    new.replace(path)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make names durable. Not every file system takes it, and an entry that is lost is only made again."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def _remove(path: Path) -> None:
    """At once for all who look, by a rename; those who have read it keep what they have."""
    gone = path.parent / f".gone-{uuid.uuid4().hex}"
    with suppress(OSError):
        path.rename(gone)
        _delete(gone)


def _delete(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
