"""The queue entries that this process has read and not yet settled: its leases.

The reader adds, whoever settles removes, the sweep looks for what the server says is ours and nobody here knows.
Called from any thread.
"""

import threading
from collections.abc import Iterable


class Holdings:
    """A set of entry ids."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: set[str] = set()

    def add(self, entry_ids: Iterable[str]) -> None:
        with self._lock:
            self._entries.update(entry_ids)

    def remove(self, entry_ids: Iterable[str]) -> None:
        with self._lock:
            self._entries.difference_update(entry_ids)

    def snapshot(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._entries)

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)
