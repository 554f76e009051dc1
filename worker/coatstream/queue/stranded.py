"""Stranded entries: in the stream, delivered once, and pending nowhere, so the group gives them to no worker."""

from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script

EVERY: Final = 5.0  # seconds between two looks of all workers of a queue together

_STRAND: Final = Script("queue/strand", after=("broker/keys",))


def adopt_stranded(client: Client, queue: Queue, *, every: float = EVERY) -> int:
    """Give stranded entries back to the group, for any worker to take like new ones. Returns how many were found.

    One look is bounded (256 entries, 8 MiB), and goes on where the last one of any worker ended. Raises
    RedisUnavailable, RedisRefuses.
    """
    return _look(client, queue, every=every, adopt=True)


def count_stranded(client: Client, queue: Queue) -> int:
    """How many there are among the oldest 256 entries. Changes nothing. Raises RedisUnavailable, RedisRefuses."""
    return _look(client, queue, every=0.0, adopt=False)


def _look(client: Client, queue: Queue, *, every: float, adopt: bool) -> int:
    with calls("stranded entries cannot be looked for", client):
        found, _more = _STRAND(
            client, keys=[queue.stream, queue.gate, queue.books], args=[queue.group, int(every * 1000), int(adopt)]
        )
    return int(found)
