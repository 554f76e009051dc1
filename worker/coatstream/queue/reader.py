"""Which queue entries this worker takes next: what silent workers had, then what is new; and what it hands back.

Knows nothing of pictures. Used from the thread of one queue source.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import structlog

from coatstream.broker.keys import Queue
from coatstream.errors import REDIS_TROUBLE
from coatstream.pipeline.holdings import Holdings
from coatstream.queue.decoding import Taken
from coatstream.queue.entry import source_or_default
from coatstream.queue.group import ConsumerGroup, Reclaimed
from coatstream.queue.observer import QueueObserver
from coatstream.queue.shares import Shares

TICK: Final = 0.25  # seconds between two looks at other workers' entries, and the longest wait for anything
SWEEP_EVERY: Final = 5.0  # seconds
MOST_BYTES: Final = 64 * 1024**2  # read and not decoded yet: 64 raw frames of 1080p would be 400 MB
SUPPOSED: Final = 4 * 1024**2  # bytes of an entry before one was seen


class EntryReader:
    """Reads ahead of the model: at most `prefetch` entries that no batch has taken yet.

    groups  this worker's place in each queue; on a cluster all of them lie in one slot
    block   longest wait for new entries in one call, seconds; less than the socket time-out
    """

    def __init__(
        self,
        groups: Sequence[ConsumerGroup],
        holdings: Holdings,
        observer: QueueObserver,
        *,
        prefetch: int,
        block: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._groups = {group.queue: group for group in groups}
        self._streams = tuple(group.queue.stream for group in groups)
        self._shares = Shares(tuple(self._groups))
        self._holdings = holdings
        self._observer = observer
        self._prefetch = prefetch
        self._block = min(block, TICK)
        self._monotonic = monotonic
        self._log = structlog.get_logger("queue")
        self._sweep_at = self._look_at = float("-inf")
        self._largest = SUPPOSED  # bytes of an entry, lately
        self._joined = False  # True: the groups were there
        self._adopting = False  # True: the last look found stranded entries, and it was logged
        self._suspects = False  # True: suspects wait for everything else to leave this process

    def join(self) -> None:
        """Make missing groups, and look at once for what a lost reply has left behind. Raises RedisUnavailable."""
        for queue, group in self._groups.items():
            if group.join() and self._joined:
                self._observer.count("groups_made", 1)
                self._log.warning("the consumer group had vanished and is made again", stream=queue.stream)
        self._joined = True
        self._sweep_at = self._look_at = float("-inf")

    def take(self, *, wait: bool, undecoded: int = 0) -> list[Taken]:
        """What to work on next; may be nothing. `wait`: if so, only after `TICK` at most. Raises RedisUnavailable.

        `undecoded`: bytes that were read before and wait to be decoded. Less is asked for where entries are large.
        """
        if not wait and undecoded + self._largest > MOST_BYTES:
            return []
        if not self._holdings.start_reading(self):
            self._holdings.wait_for_change(TICK if wait else 0.0)
            return []
        try:
            return self._take(max(1, (MOST_BYTES - undecoded) // self._largest), wait=wait)
        finally:
            self._holdings.stop_reading(self)

    def _take(self, most: int, *, wait: bool) -> list[Taken]:
        self._sweep()
        if self._suspects:
            return self._suspect(wait=wait)
        room = self._prefetch - self._holdings.waiting(self._streams)
        if room < self._prefetch / 2:
            if wait:
                self._holdings.wait_until_fewer(self._streams, self._prefetch // 2 + 1, TICK)
            return []
        room = min(room, most)
        found = self._idle(room)
        if found or self._suspects:
            return found
        return self._new(room, wait=wait)

    def hand_back(self, hanging: Collection[tuple[str, str]] = ()) -> None:
        """What no batch has taken goes to the other workers, at once. What was begun is finished here.

        `hanging`: streams and entries whose decoding does not end. Those are suspects: this delivery counts.
        """
        try:
            for queue, group in self._groups.items():
                unbegun = self._holdings.give_up(queue.stream)
                stuck = [entry_id for entry_id in unbegun if (queue.stream, entry_id) in hanging]
                self._observer.count("released", group.release(set(unbegun) - set(stuck), begun=False))
                self._observer.count("released", group.release(stuck, begun=True))
        except REDIS_TROUBLE as trouble:
            self._log.warning("entries could not be handed back: others take them later", trouble=str(trouble))

    def close(self) -> None:
        """Let others read, if they waited for this reader's suspects."""
        self._suspects = False
        self._holdings.open_to_others(self)

    # ---- new entries

    def _new(self, room: int, *, wait: bool) -> list[Taken]:
        if len(self._groups) == 1:
            return self._read(self._streams, room, wait=wait)
        found: list[Taken] = []

        def read(queue: Queue, most: int) -> int:
            entries = self._read((queue.stream,), most, wait=False)
            found.extend(entries)
            return len(entries)

        self._shares.fill(room, read)
        if not found and wait:  # one call for all of them, which returns with the first entry of any
            found = self._read(self._streams, max(1, room // len(self._streams)), wait=True)
        return found

    def _read(self, streams: Sequence[str], most: int, *, wait: bool) -> list[Taken]:
        """At most so many of each stream."""
        any_group = next(iter(self._groups.values()))
        found = any_group.read(streams, most, block=self._block if wait else None)
        return self._hold(Taken(stream, entry_id, fields) for stream, entry_id, fields in found)

    # ---- entries of workers that are silent

    def _idle(self, room: int) -> list[Taken]:
        """Fresh entries of silent workers. Where there are suspects, nothing more is read until they are done."""
        if self._monotonic() < self._look_at:
            return []
        found: list[Taken] = []
        for group in self._groups.values():
            if len(found) < room:
                reclaimed = self._reclaim(group, room - len(found), alone=False)
                found += self._taken(group, reclaimed)
                self._suspects |= reclaimed.suspects
        if self._suspects:
            self._suspects = self._holdings.close_to_others(self)
        if not found:
            self._look_at = self._monotonic() + TICK
        return found

    def _suspect(self, *, wait: bool) -> list[Taken]:
        """One entry that may be what killed its worker, once nothing else is in hand that it could take with it."""
        if not wait or not self._holdings.wait_until_alone(self, TICK):
            return []
        for group in self._groups.values():
            found = self._taken(group, self._reclaim(group, 1, alone=True))
            if found:
                return found
        self.close()
        return []

    def _reclaim(self, group: ConsumerGroup, want: int, *, alone: bool) -> Reclaimed:
        reclaimed = group.reclaim(want, alone=alone)
        for source in reclaimed.buried:
            self._observer.gave_up(source_or_default({b"source": source}))
        self._observer.letters_dropped(reclaimed.letters_dropped)
        if reclaimed.trimmed:
            stream = group.queue.stream
            self._log.error("entries were trimmed before they had a label", stream=stream, entries=reclaimed.trimmed)
        return reclaimed

    def _taken(self, group: ConsumerGroup, reclaimed: Reclaimed) -> list[Taken]:
        self._observer.count("redelivered", len(reclaimed.entries))
        return self._hold(Taken(group.queue.stream, entry_id, fields) for entry_id, fields in reclaimed.entries)

    # ---- entries that the server counts as this worker's and that are not held here

    def _sweep(self) -> None:
        """Hand back what was delivered in a reply that never arrived, and what was delivered to no worker."""
        if self._monotonic() < self._sweep_at:
            return
        stranded = 0
        for queue, group in self._groups.items():
            known = self._holdings.entries(queue.stream)
            lost = [entry_id for entry_id in group.orphans() if entry_id not in known]
            self._observer.count("orphaned", group.release(lost, begun=False))
            stranded += self._adopt_stranded(group)
        self._sweep_at = self._monotonic() + (0.0 if stranded else SWEEP_EVERY)  # one look is bounded

    def _adopt_stranded(self, group: ConsumerGroup) -> int:
        found = group.adopt_stranded()
        if found and not self._adopting:
            self._log.warning(
                "entries were neither new nor in work, so no worker would have had them: they are handed out now "
                "(XACK, XGROUP DELCONSUMER or SETID by hand, or a group that was made at $)",
                stream=group.queue.stream,
                entries=found,
            )
        self._adopting = found > 0
        return found

    def _hold(self, taken: Iterable[Taken]) -> list[Taken]:
        entries = list(taken)
        if entries:  # halved at most: one small picture between large ones proves nothing
            self._largest = max(1, self._largest // 2, *(entry.size for entry in entries))
        for stream in {entry.stream for entry in entries}:
            self._holdings.add(stream, (entry.entry_id for entry in entries if entry.stream == stream))
        return entries
