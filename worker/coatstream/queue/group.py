"""One worker's place in the consumer group of one queue: join, take over, renew, hand back, tidy up.

Every call is one script, so that whatever happens between two workers happens on the server, in one order. Knows
nothing of threads or retries. Every method raises RedisUnavailable.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script, unix_seconds
from coatstream.queue.stranded import adopt_stranded
from coatstream.settings.model import QueueSettings

Fields = dict[bytes, bytes]
Kind = Literal["new", "begun", "none"]
Missing = Literal["", "group", "stream"]

_MISSING: Final[tuple[Missing, ...]] = ("", "group", "stream")

AT_ONCE: Final = 256  # ids of one call: some microseconds each, in which the server serves no other client
SWEEP_LIMIT: Final = 1000  # entries looked at in one search for orphans
WHOLE_REPLY: Final = 64 * 1024**2  # bytes of entries after which one reply takes no further entry
GATE: Final = 0.2  # seconds that "nothing is idle" holds for all workers

_ACCOUNTS = ("broker/keys", "broker/accounts")
_BEAT, _JOIN, _REAP, _RELEASE = (
    Script("queue/beat"),
    Script("queue/join"),
    Script("queue/reap"),
    Script("queue/release"),
)
_CARRIED = (*_ACCOUNTS, "queue/fetch")
_READ, _RECLAIM, _OUTLINE = (
    Script("queue/read", after=_CARRIED),
    Script("queue/reclaim", after=_CARRIED),
    Script("queue/outline", after=_CARRIED),
)


class RawEntry(NamedTuple):
    """An entry as the server sent it. `left_out`: bytes of a picture that is too large and stayed there, else 0."""

    entry_id: str
    fields: Fields
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What a look at other workers' idle entries brought.

    entries          now mine
    buried           the source of each entry that had been delivered too often
    trimmed          entries that were deleted while a worker had them
    suspects         True: there are entries that must travel alone
    letters_dropped  dead letters that had to go for newer ones
    """

    entries: list[RawEntry]
    buried: list[bytes]
    trimmed: int
    suspects: bool
    letters_dropped: int


class ConsumerGroup:
    """`consumer` is this worker's name in the group."""

    def __init__(
        self,
        client: Client,
        queue: Queue,
        settings: QueueSettings,
        *,
        consumer: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.queue = queue
        self._client = client
        self._settings = settings
        self._consumer = consumer
        self._clock = clock

    @property
    def max_bytes(self) -> int:
        """Of one picture: larger ones are refused."""
        return self._settings.max_bytes

    def join(self) -> Missing:
        """Make the group where it is missing, and the stream with it. Returns what was missing."""
        queue = self.queue
        with calls("the consumer group cannot be joined", self._client):
            return _MISSING[int(_JOIN(self._client, keys=[queue.stream, queue.books], args=[queue.group]))]

    def read(self, most: int, *, room: int) -> list[RawEntry]:
        """New entries that are there now, at most `most`; none after those that hold `room` bytes together."""
        arguments: list[str | int] = [self.queue.group, self._consumer, most, room, self._settings.max_bytes]
        with calls("frames cannot be read", self._client):
            reply = _READ(self._client, keys=[self.queue.stream], args=arguments)
        return [_entry(entry_id, fields, left_out) for entry_id, left_out, fields in reply]

    def wait(self, streams: Sequence[str], block: float) -> list[tuple[str, RawEntry]]:
        """The next new entry of each stream, `block` seconds at most until the first one comes. The streams are this
        queue's or others of the same group. No script can wait, so these entries travel whole, whatever their size.
        """
        return self._read_whole(streams, 1, block=max(1, int(block * 1000)))

    def read_whole(self, most: int) -> list[RawEntry]:
        """New entries that are there now, at most `most`, each whole whatever its size. The server copies the pictures
        once, where `read` copies them three times.
        """
        return [entry for _, entry in self._read_whole([self.queue.stream], most)]

    def _read_whole(self, streams: Sequence[str], most: int, block: int | None = None) -> list[tuple[str, RawEntry]]:
        unread = dict.fromkeys(streams, ">")
        with calls("frames cannot be read", self._client):
            reply = self._client.xreadgroup(self.queue.group, self._consumer, unread, count=most, block=block)
        return [
            (stream.decode(), RawEntry(entry_id.decode(), fields))
            for stream, entries in reply or ()
            for entry_id, fields in entries
        ]

    def outline(self, entry_id: str) -> RawEntry | None:
        """An entry without its picture; None where it is gone."""
        with calls("frames cannot be read", self._client):
            reply = _OUTLINE(self._client, keys=[self.queue.stream], args=[entry_id])
        return _entry(entry_id.encode(), reply[1], reply[0]) if reply else None

    def reclaim(self, want: int, *, alone: bool, room: int = WHOLE_REPLY) -> Reclaimed:
        """Take over entries that have been idle for `min_idle`: up to `want` fresh ones, or else (`alone`) one suspect;
        none after those that hold `room` bytes together. Ask for a suspect only with nothing else in hand.
        """
        queue, limits = self.queue, self._settings
        arguments: list[str | int] = [
            *(queue.group, self._consumer, int(limits.min_idle * 1000), want, int(alone), limits.max_deliveries),
            *(limits.dead_max_length, limits.dead_max_bytes, self._gate_ms(), unix_seconds(self._clock())),
            *(queue.failure_channel(""), room, limits.max_bytes),
        ]
        keys = [queue.stream, queue.dead, queue.gate, queue.books, queue.sources]
        with calls("entries of other workers cannot be looked at", self._client):
            found, buried, trimmed, suspects, letters = _RECLAIM(self._client, keys=keys, args=arguments)
        entries = [_entry(entry_id, flat, left_out) for entry_id, left_out, flat in found]
        return Reclaimed(entries, buried, trimmed, bool(suspects), letters)

    def beat(self, entries: Iterable[str]) -> list[str]:
        """Renew the leases on these. Returns those that other workers have, or that are gone."""
        lost: list[str] = []
        for some in pieces(entries):
            with calls("leases cannot be renewed", self._client):
                reply = _BEAT(self._client, keys=[self.queue.stream], args=[self.queue.group, self._consumer, *some])
            lost += [entry_id.decode() for entry_id in reply]
        return lost

    def release(self, entries: Iterable[str], *, begun: bool) -> int:
        """Hand these back, so that others take them at once. `begun`: a worker has begun to work on them."""
        kind: Kind = "begun" if begun else "new"
        return sum(self._release(self._consumer, kind, some) for some in pieces(entries))

    def take_over_from(self, dead: str) -> int:
        """Hand back everything of a consumer that is certainly dead, so that no worker has to wait for `min_idle`.
        Returns how many entries.
        """
        return self._release(dead, "begun", leave=True)

    def leave(self) -> None:
        """Leave the group, unless this worker still has entries pending in it."""
        self._release(self._consumer, "none", leave=True)

    def orphans(self) -> list[str]:
        """The oldest entries that the server counts as this worker's; the caller knows which of them are in hand."""
        queue = self.queue
        with calls("the entries of this consumer cannot be listed", self._client):
            pending = self._client.xpending_range(
                queue.stream, queue.group, "-", "+", SWEEP_LIMIT, consumername=self._consumer
            )
        return [item["message_id"].decode() for item in pending]

    def adopt_stranded(self) -> int:
        """Give entries back to the group that it would never hand out again. Returns how many."""
        return adopt_stranded(self._client, self.queue)

    def reap(self, silent: float) -> int:
        """Remove consumers that have nothing and were silent for so many seconds."""
        queue = self.queue
        with calls("silent consumers cannot be removed", self._client):
            arguments: list[str | int] = [queue.group, self._consumer, int(silent * 1000)]
            return int(_REAP(self._client, keys=[queue.stream], args=arguments))

    def _release(self, consumer: str, kind: Kind, entries: Sequence[str] = (), *, leave: bool = False) -> int:
        queue = self.queue
        arguments: list[str | int] = [queue.group, consumer, kind, int(leave), *entries]
        with calls("entries cannot be handed back", self._client):
            return int(_RELEASE(self._client, keys=[queue.stream, queue.gate], args=arguments))

    def _gate_ms(self) -> int:
        """No longer than a quarter of `min_idle`, so that a short one stays short."""
        return max(1, int(min(GATE, self._settings.min_idle / 4) * 1000))


def pieces(entries: Iterable[str]) -> Iterable[Sequence[str]]:
    """In pieces that one call can take."""
    ids = list(entries)
    return (ids[first : first + AT_ONCE] for first in range(0, len(ids), AT_ONCE))


def _entry(entry_id: bytes, flat: Sequence[Any], left_out: int) -> RawEntry:
    return RawEntry(entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True)), left_out)
