"""The queue entries that this process has read and not yet settled: its leases.

The reader adds, the pump begins, whoever settles removes, the heartbeat renews, a drain hands back what nobody has
begun. Also the one place where readers agree that a suspect must travel alone. Called from any thread.
"""

import threading
from collections.abc import Iterable

from worker.frames import Receipt


class Holdings:
    """Entry ids per stream, each waiting or begun."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards all below; notified when something leaves or is begun
        self._begun: dict[str, dict[str, bool]] = {}  # stream -> entry id -> True once a batch has taken it
        self._alone: object | None = None  # the reader that lets a suspect travel alone
        self._reading: set[object] = set()  # readers that have asked the server and may get entries

    def add(self, stream: str, entries: Iterable[str]) -> None:
        """These were read."""
        with self._changed:
            self._begun.setdefault(stream, {}).update(dict.fromkeys(entries, False))

    def begin(self, receipt: Receipt) -> bool:
        """A batch takes this entry. False: it is ours no longer, and work on it would be for nothing."""
        with self._changed:
            held = self._begun.get(receipt.stream, {})
            if receipt.entry_id not in held:
                return False
            held[receipt.entry_id] = True
            self._changed.notify_all()
            return True

    def remove(self, stream: str, entries: Iterable[str]) -> None:
        """These are settled, handed back, or lost to another worker."""
        with self._changed:
            held = self._begun.get(stream, {})
            for entry_id in entries:
                held.pop(entry_id, None)
            self._changed.notify_all()

    def settled(self, receipts: Iterable[Receipt | None]) -> None:
        """As `remove`, for what receipts name."""
        for receipt in receipts:
            if receipt is not None:
                self.remove(receipt.stream, (receipt.entry_id,))

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
            self._changed.notify_all()
            return unbegun

    def waiting(self, streams: Iterable[str]) -> int:
        """How many of these streams no batch has taken."""
        with self._changed:
            return sum(not begun for stream in streams for begun in self._begun.get(stream, {}).values())

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
