"""Which queue entries this worker takes next: what silent workers had, then what is new; and what it hands back.

Knows nothing of pictures. Used from the thread of one queue source.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import structlog

from coatstream.broker.keys import Queue
from coatstream.errors import REDIS_TROUBLE, RedisUnavailable
from coatstream.pipeline.holdings import Holdings
from coatstream.queue.decoding import Taken
from coatstream.queue.entry import source_or_default
from coatstream.queue.group import ConsumerGroup, Missing, RawEntry
from coatstream.queue.observer import QueueObserver
from coatstream.queue.reply_size import RecentSizes, ReplySize
from coatstream.queue.shares import Shares

TICK: Final = 0.25  # seconds between two looks at other workers' entries, and the longest wait for anything
SWEEP_EVERY: Final = 5.0  # seconds
MOST_BYTES: Final = 64 * 1024**2  # read and not decoded yet: 64 raw frames of 1080p would be 400 MB
_VANISHED: Final[Mapping[Missing, str]] = {
    "group": "the consumer group had vanished and is made again",
    "stream": "the server has lost the stream and all that waited in it: it was emptied, or came back without its data "
    "(appendonly yes keeps it); stream and group are made again",
}
MOST_CUTS: Final = 3  # times that the reply with one entry alone is cut off before the entry is given up


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
        self._max_bytes = max(group.max_bytes for group in groups)
        self._block = min(block, TICK)
        self._monotonic = monotonic
        self._log = structlog.get_logger("queue")
        self._sweep_at = self._look_at = float("-inf")
        self._reply = ReplySize(prefetch)
        self._sizes = RecentSizes(MOST_BYTES // 64)
        self._room = 0  # bytes that this look may still read
        self._cut_alone = False  # True: the reply that was cut off last was to carry one entry
        self._uncarried = ("", "")  # stream and entry whose reply, alone, was cut off last
        self._cuts = 0  # times in a row
        self._joined = False  # True: the groups were there
        self._adopting = False  # True: the last look found stranded entries, and it was logged
        self._suspects = False  # True: suspects wait for everything else to leave this process

    def join(self) -> None:
        """Make missing groups, and look at once for what a lost reply has left behind. Raises RedisUnavailable."""
        for queue, group in self._groups.items():
            missing = group.join()
            if missing and self._joined:
                self._observer.count("groups_made", 1)
                self._log.warning(_VANISHED[missing], stream=queue.stream)
        self._joined = True
        self._sweep_at = self._look_at = float("-inf")

    def take(self, *, wait: bool, undecoded: int = 0) -> list[Taken]:
        """What to work on next; may be nothing. `wait`: if so, only after `TICK` at most. Raises RedisUnavailable.

        `undecoded`: bytes that were read before and wait to be decoded. They stay below MOST_BYTES and one entry.
        """
        self._room = MOST_BYTES - undecoded
        if self._room <= 0:
            return []
        if not self._holdings.start_reading(self):
            self._holdings.wait_for_change(TICK if wait else 0.0)
            return []
        found: list[Taken] = []
        try:
            self._take(found, wait=wait)
        except REDIS_TROUBLE:
            self._sweep_at = float("-inf")  # for what the lost reply held
            if not found:  # else they go first, and the trouble shows again
                raise
        finally:
            self._holdings.stop_reading(self)
        return found

    def _take(self, found: list[Taken], *, wait: bool) -> None:
        self._sweep(found)
        if found:
            return
        if self._suspects:
            self._suspect(found, wait=wait)
            return
        room = self._prefetch - self._holdings.waiting(self._streams)
        if room < self._prefetch / 2:
            if wait:
                self._holdings.wait_until_fewer(self._streams, self._prefetch // 2 + 1, TICK)
            return
        self._idle(found, room)
        if not found and not self._suspects:
            self._new(found, room, wait=wait)

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

    def give_back(self, stream: str, entry_id: str) -> None:
        """This entry found no memory here. The delivery counts, so that it does not go back for ever."""
        group = next(group for queue, group in self._groups.items() if queue.stream == stream)
        self._holdings.remove(stream, [entry_id])
        try:
            self._observer.count("no_memory", group.release([entry_id], begun=True))
        except REDIS_TROUBLE as trouble:
            self._sweep_at = float("-inf")
            self._log.warning("an entry could not be handed back yet", trouble=str(trouble))

    def close(self) -> None:
        """Let others read, if they waited for this reader's suspects."""
        self._suspects = False
        self._holdings.open_to_others(self)

    # ---- new entries

    def _new(self, found: list[Taken], room: int, *, wait: bool) -> None:
        def read(queue: Queue, most: int) -> int:
            group = self._groups[queue]
            return self._read_all(found, group, most, partial(self._read, group))

        self._shares.fill(room, read)
        if not found and wait:  # one call for all of them, which returns with the first entry of any
            group = next(iter(self._groups.values()))
            with self._reading(1):
                came = group.wait(self._streams, self._block)
            for stream, entry in came:
                self._hold(found, stream, [entry])

    def _read(self, group: ConsumerGroup, most: int) -> Sequence[RawEntry]:
        return group.read_whole(most) if self._unseen else group.read(most, room=self._room)

    @property
    def _unseen(self) -> int:
        """How many new entries may come without a look at their sizes: all but the last fit, even if each has
        `queue.max_bytes`. 0: look first.
        """
        return -(-self._room // self._max_bytes) if self._sizes.alike else 0

    def _read_all(
        self, found: list[Taken], group: ConsumerGroup, most: int, read: Callable[[int], Sequence[RawEntry]]
    ) -> int:
        """Call `read` with as many entries as a reply may carry, until there are `most` or no more. How many came."""
        came = 0
        while came < most and self._room > 0:
            asked = min(self._reply.entries, most - came, self._unseen or most)
            with self._reading(asked):
                entries = read(asked)
            self._reply.arrived(len(entries))
            self._hold(found, group.queue.stream, entries)
            came += len(entries)
            if len(entries) < asked:
                break
        return came

    @contextmanager
    def _reading(self, entries: int) -> Iterator[None]:
        """A call whose reply carries so many entries."""
        try:
            yield
        except RedisUnavailable:
            self._cut_alone = entries == 1
            self._reply.cut_off()
            raise

    # ---- entries of workers that are silent

    def _idle(self, found: list[Taken], room: int) -> None:
        """Fresh entries of silent workers. Where there are suspects, nothing more is read until they are done."""
        if self._monotonic() < self._look_at:
            return
        for group in self._groups.values():
            if len(found) < room:
                self._read_all(found, group, room - len(found), partial(self._reclaim, group, alone=False))
        if self._suspects:
            self._suspects = self._holdings.close_to_others(self)
        if not found:
            self._look_at = self._monotonic() + TICK

    def _suspect(self, found: list[Taken], *, wait: bool) -> None:
        """One entry that may be what killed its worker, once nothing else is in hand that it could take with it."""
        if not wait or not self._holdings.wait_until_alone(self, TICK):
            return
        for group in self._groups.values():
            if self._read_all(found, group, 1, partial(self._reclaim, group, alone=True)):
                return
        self.close()

    def _reclaim(self, group: ConsumerGroup, want: int, *, alone: bool) -> list[RawEntry]:
        reclaimed = group.reclaim(want, alone=alone, room=self._room)
        self._suspects |= reclaimed.suspects
        for source in reclaimed.buried:
            self._observer.gave_up(source_or_default({b"source": source}))
        self._observer.letters_dropped(reclaimed.letters_dropped)
        if reclaimed.trimmed:
            stream = group.queue.stream
            self._log.error("entries were trimmed before they had a label", stream=stream, entries=reclaimed.trimmed)
        self._observer.count("redelivered", len(reclaimed.entries))
        return reclaimed.entries

    # ---- entries that the server counts as this worker's and that are not held here

    def _sweep(self, found: list[Taken]) -> None:
        """Hand back what was delivered in a reply that never arrived, and what was delivered to no worker."""
        if self._monotonic() < self._sweep_at:
            return
        lost: dict[ConsumerGroup, list[str]] = {}
        for queue, group in self._groups.items():
            known = self._holdings.entries(queue.stream)
            lost[group] = [entry_id for entry_id in group.orphans() if entry_id not in known]
        if self._cut_alone and sum(map(len, lost.values())) == 1:
            self._give_up_uncarried(found, lost)
        self._cut_alone = False
        stranded = 0
        for group, entries in lost.items():
            self._observer.count("orphaned", group.release(entries, begun=False))
            stranded += self._adopt_stranded(group)
        self._sweep_at = self._monotonic() + (0.0 if stranded else SWEEP_EVERY)  # one look is bounded

    def _give_up_uncarried(self, found: list[Taken], lost: dict[ConsumerGroup, list[str]]) -> None:
        """An entry whose reply is cut off again and again, even alone, is taken without its picture."""
        ((group, entry_id),) = [(group, entry_id) for group, entries in lost.items() for entry_id in entries]
        stream = group.queue.stream
        self._cuts = self._cuts + 1 if self._uncarried == (stream, entry_id) else 1
        self._uncarried = (stream, entry_id)
        if self._cuts < MOST_CUTS or not (entry := group.outline(entry_id)):
            return
        lost[group].clear()
        self._hold(found, stream, [entry])

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

    def _hold(self, found: list[Taken], stream: str, entries: Sequence[RawEntry]) -> None:
        self._holdings.add(stream, [entry.entry_id for entry in entries])
        for entry in entries:
            taken = Taken(stream, entry.entry_id, entry.fields, entry.left_out)
            size = taken.size
            self._room -= size
            self._sizes.add(size + taken.left_out)
            found.append(taken)
