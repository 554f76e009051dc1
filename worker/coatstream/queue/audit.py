"""The audit of one queue: does the sum of all outcomes come out, or has an entry vanished? Changes nothing."""

import re
from dataclasses import dataclass, field
from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script
from coatstream.queue.entry import milliseconds_of

_AUDIT: Final = Script("queue/audit")
_FIELDS: Final = (  # of the books, as they are named there
    *("published", "dropped", "dead", "trimmed"),
    *("dead_bytes", "dead_dropped", "refused", "admitted_bytes", "stranded"),
)
_NUMBER: Final = re.compile(rb"-?\d{1,18}")


@dataclass(frozen=True, slots=True)
class Audit:
    """All of one moment. Without `base` no worker has kept books yet, and what vanished is unknown.

    entries_added   by the stream's own count, which no worker keeps
    base            how many of them were gone before the books were opened
    waiting         entries that no worker has taken
    in_work         entries that a worker has taken and not settled
    published, dropped, dead    outcomes that workers gave
    trimmed         entries that were deleted while a worker was to label them, as workers found out
    letters         dead letters that are there now; of all that died, less what was replayed, deleted or had to go
    dead_bytes      of those, by the books
    dead_dropped    dead letters that had to go, or lost their picture, for dead_max_length or dead_max_bytes
    refused         frames that admission turned away
    admitted_bytes  of admitted entries that are unfinished
    newest_at       Unix seconds in the newest id that the stream has ever given
    stranded        entries that workers found neither new nor in work, and handed out
    """

    stream: str
    entries_added: int
    base: int | None
    waiting: int
    in_work: int
    published: int
    dropped: int
    dead: int
    trimmed: int
    letters: int
    dead_bytes: int
    dead_dropped: int
    refused: int
    admitted_bytes: int
    stranded: int
    newest_at: float = field(compare=False)

    @property
    def added(self) -> int:
        """Entries that the books must account for."""
        return self.entries_added - (self.base or 0)

    @property
    def unaccounted(self) -> int:
        """Entries that vanished without any worker: a producer's MAXLEN, XTRIM or XDEL by hand. Below 0 there were more
        outcomes than entries: the stream, or its books, are from elsewhere or were made anew.
        """
        if self.base is None:
            return 0
        outcomes = self.published + self.dropped + self.dead + self.trimmed
        return self.added - self.waiting - self.in_work - outcomes

    @property
    def balanced(self) -> bool:
        """Whether the sum comes out."""
        return self.unaccounted == 0

    @property
    def gone(self) -> int:
        """Entries that vanished without an outcome, whether or not a worker has noticed."""
        return self.trimmed + self.unaccounted


def audit(client: Client, queue: Queue) -> Audit:
    """One call of the server. Raises RedisUnavailable."""
    with calls(f"the queue {queue.stream} cannot be audited", client):
        added, entries, pending, letters, values, newest = _AUDIT(
            client, keys=[queue.stream, queue.dead, queue.books], args=[queue.group, "base", *_FIELDS]
        )
    base, *counts = (_number(value) for value in values)
    books = {name: count or 0 for name, count in zip(_FIELDS, counts, strict=True)}
    if not letters:
        books["dead_bytes"] = 0  # as the next burial puts it right: XTRIM by hand keeps no books
    in_work = min(pending, entries)  # the group also remembers entries that were deleted meanwhile
    return Audit(
        stream=queue.stream,
        entries_added=added,
        base=base,
        waiting=entries - in_work,
        in_work=in_work,
        letters=letters,
        newest_at=milliseconds_of(newest.decode()) / 1000,
        **books,
    )


def _number(value: bytes | None) -> int | None:
    """A field of the books. What is no number counts as nothing, and then the sum does not come out."""
    return int(value) if value is not None and _NUMBER.fullmatch(value) else None
