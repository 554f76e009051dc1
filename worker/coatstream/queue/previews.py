"""The newest pictures of those of the queue's sources that are wished for. Of the others only names are kept."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Final

from coatstream.frames.frame import Pixels
from coatstream.frames.still import Still, reduced
from coatstream.results.previews import EVERY

MOST_SOURCES: Final = 256  # the newest names: strangers choose them


class QueuePreviews:
    """A `PreviewSource`. `look` is called from all decode threads."""

    shared = True

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()  # guards all below
        self._names: OrderedDict[str, None] = OrderedDict()
        self._wished: frozenset[str] = frozenset()
        self._stills: dict[str, tuple[float, Still]] = {}  # source -> when it was kept, and the picture

    def look(self, source: str, frame_id: str, captured_at: float, picture: Pixels) -> None:
        """A picture was decoded, uint8 [height, width, 3] RGB. It is kept, small, if it is wished for."""
        now = self._monotonic()
        with self._lock:
            self._names[source] = None
            self._names.move_to_end(source)
            if len(self._names) > MOST_SOURCES:
                self._names.popitem(last=False)
            kept = self._stills.get(source)
            if source not in self._wished or (kept is not None and now - kept[0] < EVERY / 2):
                return
        small = reduced(picture)
        still = Still(frame_id, captured_at, small if small is not picture else picture.copy())
        with self._lock:
            if source in self._wished:
                self._stills[source] = now, still

    def names(self) -> Iterable[str]:
        with self._lock:
            return list(self._names)

    def wished(self, names: Collection[str]) -> None:
        with self._lock:
            self._wished = frozenset(names)
            self._stills = {name: kept for name, kept in self._stills.items() if name in self._wished}

    def newest(self, name: str) -> Still | None:
        with self._lock:
            kept = self._stills.get(name)
        return kept[1] if kept else None
