"""The queue entries that this process has read and not yet settled: its leases.

The reader adds entries, the pump begins them, the caller of the publisher removes them, the heartbeat renews them, and
a drain hands back those that no batch has begun. Readers also agree here that a suspect travels alone. Called from any
thread.
"""

import threading
from collections import Counter
from collections.abc import Iterable

from coatstream.frames.frame import Receipt


class Holdings:
    """Entry ids per stream, each waiting or begun."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards all below; notified when something leaves or is begun
        self._begun: dict[str, dict[str, bool]] = {}  # stream -> entry id -> True once a batch has taken it
        self._waiting: Counter[str] = Counter()  # of each stream, those that no batch has taken
        self._alone: object | None = None  # the reader that lets a suspect travel alone
        self._reading: set[object] = set()  # readers that have asked the server and may get entries

    def add(self, stream: str, entries: Iterable[str]) -> None:
        """These were read."""
        with self._changed:
            held = self._begun.setdefault(stream, {})
            for entry_id in entries:
                self._waiting[stream] += held.get(entry_id, True)  # it may be here: delivered a second time
                held[entry_id] = False

    def begin(self, receipts: Iterable[Receipt | None]) -> list[bool]:
        """A batch takes these entries. False: it is held no longer, and work on it would be for nothing.

        What has no receipt can always be taken.
        """
        with self._changed:
            answers = [receipt is None or self._take(receipt) for receipt in receipts]
            self._changed.notify_all()
            return answers

    def _take(self, receipt: Receipt) -> bool:
        held = self._begun.get(receipt.stream, {})
        begun = held.get(receipt.entry_id)
        if begun is None:
            return False
        self._waiting[receipt.stream] -= not begun
        held[receipt.entry_id] = True
        return True

    def remove(self, stream: str, entries: Iterable[str]) -> None:
        """These are settled, handed back, or lost to another worker."""
        with self._changed:
            for entry_id in entries:
                self._drop(stream, entry_id)
            self._changed.notify_all()

    def settled(self, receipts: Iterable[Receipt | None]) -> None:
        """As `remove`, for what receipts name."""
        with self._changed:
            for receipt in receipts:
                if receipt is not None:
                    self._drop(receipt.stream, receipt.entry_id)
            self._changed.notify_all()

    def _drop(self, stream: str, entry_id: str) -> None:
        begun = self._begun.get(stream, {}).pop(entry_id, True)
        self._waiting[stream] -= not begun

    def entries(self, stream: str) -> frozenset[str]:
        """All of one stream."""
        with self._changed:
            return frozenset(self._begun.get(stream, {}))

    def give_up(self, stream: str) -> list[str]:
        """Those of one stream that no batch has taken, which from now on none can take."""
        with self._changed:
            held = self._begun.get(stream, {})
            unbegun = [entry_id for entry_id, begun in held.items() if not begun]
            for entry_id in unbegun:
                del held[entry_id]
            self._waiting[stream] = 0
            self._changed.notify_all()
            return unbegun

    def waiting(self, streams: Iterable[str]) -> int:
        """How many of these streams no batch has taken."""
        with self._changed:
            return sum(self._waiting[stream] for stream in streams)

    @property
    def unbegun(self) -> int:
        """How many of all streams no batch has taken."""
        with self._changed:
            return self._waiting.total()

    def wait_for_change(self, timeout: float) -> None:
        """Until something leaves or is begun, at most `timeout` seconds."""
        with self._changed:
            self._changed.wait(timeout)

    def wait_until_fewer(self, streams: Iterable[str], limit: int, timeout: float) -> None:
        """Until fewer than `limit` of these streams wait, at most `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.waiting(streams) < limit, timeout)

    def __len__(self) -> int:
        with self._changed:
            return sum(len(held) for held in self._begun.values())

    # ---- one suspect at a time in the whole process

    def close_to_others(self, reader: object) -> bool:
        """From now on only this reader may read. False: another one has the turn."""
        with self._changed:
            if self._alone is None:
                self._alone = reader
            return self._alone is reader

    def open_to_others(self, reader: object) -> None:
        """The suspects are dealt with, or this reader ends."""
        with self._changed:
            if self._alone is reader:
                self._alone = None
                self._changed.notify_all()

    def start_reading(self, reader: object) -> bool:
        """This reader asks the server for entries now. False: another one's suspects come first."""
        with self._changed:
            if self._alone is not None and self._alone is not reader:
                return False
            self._reading.add(reader)
            return True

    def stop_reading(self, reader: object) -> None:
        """What it got, if anything, is held now."""
        with self._changed:
            self._reading.discard(reader)
            self._changed.notify_all()

    def wait_until_alone(self, reader: object, timeout: float) -> bool:
        """Until nothing is held and no other reader may be about to hold something, at most `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not len(self) and self._reading <= {reader}, timeout)
