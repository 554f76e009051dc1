"""Pictures of events in a folder, or in a bucket: whatever fsspec opens (a path, s3://, gs://, memory://).

A file is named by its id in a folder for its day, so reading needs no list. What is there is listed once a minute: of
several workers in one place, each keeps the bound by what it saw then.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import fsspec

from coatstream.errors import ConfigError, first_line
from coatstream.results.pictures.store import ID, Stored
from coatstream.settings.model import PictureSettings

LIST_EVERY: Final = 60.0  # seconds
_S3: Final = {"config_kwargs": {"connect_timeout": 3, "read_timeout": 5, "retries": {"max_attempts": 1}}}


class FilePictures:
    """A `PictureStore`."""

    def __init__(
        self,
        settings: PictureSettings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens `settings.store`. Raises ConfigError where the library for its kind is not installed."""
        place = settings.store if "://" in settings.store else str(Path(settings.store).expanduser().resolve())
        try:
            opened = fsspec.url_to_fs(place, **(_S3 if place.startswith("s3:") else {}))
        except (ImportError, ValueError) as error:
            kind = place.partition("://")[0]
            raise ConfigError(
                f"pictures.store: {kind}:// cannot be opened: {first_line(error)} (for s3:// install coatstream[s3])"
            ) from None
        self._files: Any = opened[0]
        self._root = opened[1].rstrip("/")
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._there: deque[tuple[str, int]] = deque()  # id and bytes, oldest first
        self._total = 0
        self._listed_at = -float("inf")

    def put(self, picture: str, jpeg: bytes) -> Stored:
        with _as_os_errors():
            self._list()
            aged = self._remove(lambda: bool(self._there) and self._is_old(self._there[0][0]))
            if len(jpeg) > self._settings.max_bytes:
                return Stored("too_large", self._total, aged=aged)
            if self._files.exists(self._path(picture)):
                return Stored("there", self._total, aged=aged)
            crowded = self._remove(lambda: bool(self._there) and self._total + len(jpeg) > self._settings.max_bytes)
            path = self._path(picture)
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, jpeg)
        self._there.append((picture, len(jpeg)))
        self._total += len(jpeg)
        return Stored("stored", self._total, crowded, aged)

    def get(self, picture: str) -> bytes | None:
        with _as_os_errors():
            try:
                found: bytes = self._files.cat_file(self._path(picture))
            except FileNotFoundError:
                return None
        return None if self._is_old(picture) else found

    def _path(self, picture: str) -> str:
        day = datetime.fromtimestamp(_moment(picture), UTC)
        return f"{self._root}/{day:%Y-%m-%d}/{picture}.jpg"

    def _is_old(self, picture: str) -> bool:
        return self._clock() - _moment(picture) > self._settings.max_age

    def _remove(self, goes: Callable[[], bool]) -> int:
        """The oldest, while that holds; how many."""
        count = 0
        while goes():
            picture, size = self._there.popleft()
            self._total -= size
            count += 1
            try:
                self._files.rm_file(self._path(picture))
            except FileNotFoundError:  # another worker was faster
                continue
        return count

    def _list(self) -> None:
        now = self._monotonic()
        if now - self._listed_at < LIST_EVERY:
            return
        self._listed_at = now
        self._files.invalidate_cache()
        found = self._files.find(self._root, detail=True) if self._files.exists(self._root) else {}
        names = ((path.rpartition("/")[2].removesuffix(".jpg"), file["size"]) for path, file in found.items())
        there = sorted((name, size) for name, size in names if ID.fullmatch(name))
        self._there = deque(sorted(there, key=lambda one: _moment(one[0])))
        self._total = sum(size for _, size in there)


def _moment(picture: str) -> float:
    """Unix seconds of its capture; in the year 9999 at the latest."""
    return min(int(picture.partition("-")[0]) / 1000, 253_402_000_000.0)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Each kind of place has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"the place for pictures of events fails: {first_line(error)}") from error
