"""A folder of pictures that grows: finds each new one once, when it is complete. Decodes nothing, changes nothing.

New is what came after the newest picture that was given out (by the time at which its name or its contents last
changed, which no program can set back), and is not among the last 10,000. So memory does not grow with the folder.
"""

import heapq
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from coatstream.errors import BadFrame, DeadReason
from coatstream.frames.files import is_picture

POLL: Final = 0.25  # seconds between two looks
_FULL_LOOK = 5.0  # seconds: where the folder itself tells of no change, as some network file systems do
_FRESH = 2.0  # seconds for which a change of the folder may hide another one of the same tick of its clock
_AT_ONCE = 1000  # pictures found in one look; the others are found in the next
_REMEMBERED = 10_000
_CLOCK_SET_BACK = 2.0  # seconds
_OVERLAP = 5_000_000_000  # nanoseconds before the mark: a look that takes a while may see the later of two files only
_QUIET = 1.0  # seconds without a change, after which a picture is complete at the first look

Identity = tuple[str, int, int]  # name, time of writing, size


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """One picture in the folder, ordered by arrival, then name."""

    arrived: int  # nanoseconds, the file system's clock
    name: str
    written: int = field(compare=False)  # nanoseconds
    size: int = field(compare=False)

    @property
    def identity(self) -> Identity:
        """A chmod is an arrival too, but it makes no other picture."""
        return self.name, self.written, self.size


class Folder:
    """Gone is an OSError. One Folder outlives its camera's reopenings, and so gives nothing out twice.

    backlog  also the pictures that are there at the first look
    """

    def __init__(
        self,
        path: str,
        *,
        backlog: bool,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path)
        self._clock = clock
        self._monotonic = monotonic
        self._mark = 0 if backlog else None  # arrival of the newest picture given out; None: before the first look
        self._given: OrderedDict[Identity, None] = OrderedDict()
        self._growing: dict[str, Identity] = {}  # new, and perhaps not complete; of the last look only
        self._more = False  # than one look can find
        self._looked_at = float("-inf")
        self._changed = -1  # nanoseconds: the folder's own time of change at the last look

    def pictures(self, stop: threading.Event) -> Iterator[Found]:
        """Each new picture, until `stop` is set. Raises OSError where the folder is gone."""
        while not stop.is_set():
            complete = self.look()
            for found in complete:
                self.give(found)
                yield found
                if stop.is_set():
                    return
            if not (complete and self._more) and stop.wait(POLL):
                return

    def look(self) -> list[Found]:
        """The new pictures that are complete, in order; the others are looked at again."""
        changed = self._path.stat().st_mtime_ns
        if not self._worth_a_look(changed):
            return []
        self._changed, self._looked_at = changed, self._monotonic()
        self._follow_the_clock()
        if self._mark is None:
            self._pass_over()
            return []
        new = heapq.nsmallest(_AT_ONCE, self._new())
        self._more = len(new) == _AT_ONCE
        complete = [found for found in new if self._is_complete(found)]
        done = {found.name for found in complete}
        self._growing = {found.name: found.identity for found in new if found.name not in done}
        return complete

    def _is_complete(self, found: Found) -> bool:
        """Its last write was a while ago."""
        quiet = self._clock() - max(found.arrived, found.written) / 1e9
        return quiet >= _QUIET or self._growing.get(found.name) == found.identity

    def give(self, found: Found) -> None:
        """Remember a picture as given out."""
        self._mark = max(self._mark or 0, found.arrived)
        self._remember(found)

    def read(self, found: Found, *, max_bytes: int) -> bytes | None:
        """Its bytes, or None if it has gone. Raises BadFrame if it has more, or cannot be read."""
        try:
            file = os.open(self._path / found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadFrame(DeadReason.UNDECODABLE, f"the picture cannot be opened: {error.strerror}") from None
        with os.fdopen(file, "rb") as stream:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            try:
                data = stream.read(max_bytes + 1)
            except OSError as error:
                raise BadFrame(DeadReason.UNDECODABLE, f"the picture cannot be read: {error.strerror}") from None
        if len(data) > max_bytes:
            raise BadFrame(DeadReason.TOO_LARGE, f"the picture has more than the {max_bytes} bytes allowed")
        return data

    def _worth_a_look(self, changed: int) -> bool:
        if self._growing or self._more or changed != self._changed:
            return True
        now = self._monotonic()
        return now - self._looked_at >= _FULL_LOOK or abs(self._clock() - changed / 1e9) < _FRESH

    def _follow_the_clock(self) -> None:
        """Where the clock was set back, what comes now looks older than the mark."""
        now = self._clock()
        if self._mark is not None and self._mark / 1e9 > now + _CLOCK_SET_BACK:
            self._mark = int(now * 1e9)

    def _pass_over(self) -> None:
        """Take what is there at the first look as given out."""
        self._mark = 0
        for found in heapq.nlargest(_REMEMBERED, self._new()):
            self.give(found)

    def _new(self) -> Iterator[Found]:
        since = (self._mark or 0) - _OVERLAP
        for entry in _entries(self._path):
            if not is_picture(Path(entry.name)):
                continue
            try:
                if not entry.is_file(follow_symlinks=False):  # a link may lead anywhere
                    continue
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found = Found(status.st_ctime_ns, entry.name, status.st_mtime_ns, status.st_size)
            # An empty one is a beginning: it changes once more.
            if found.size and found.arrived >= since and found.identity not in self._given:
                yield found

    def _remember(self, found: Found) -> None:
        self._given[found.identity] = None
        while len(self._given) > _REMEMBERED:
            self._given.popitem(last=False)


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        yield from entries
