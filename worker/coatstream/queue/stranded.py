"""Stranded entries: in the stream, delivered once, and pending nowhere, so the group gives them to no worker."""

from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script

EVERY: Final = 5.0  # seconds between two looks of all workers of a queue together
LOOKS: Final = 20  # of one count: some milliseconds of the server each

_STRAND: Final = Script("queue/strand", after=("broker/keys",))


def adopt_stranded(client: Client, queue: Queue, *, every: float = EVERY) -> int:
    """Give stranded entries back to the group, for any worker to take like new ones. Returns how many were found.

    One look is bounded (256 entries, 8 MiB), and goes on where the last one of any worker ended. Raises
    RedisUnavailable, RedisRefuses.
    """
    found, _ = _look(client, queue, every=every, adopt=True)
    return found


def count_stranded(client: Client, queue: Queue, *, looks: int = LOOKS) -> int:
    """How many there are among the oldest entries, `looks` times 256 of them at most. Changes nothing.

    Raises RedisUnavailable, RedisRefuses.
    """
    count, place = 0, ""
    for _ in range(looks):
        found, place = _look(client, queue, every=0.0, adopt=False, after=place)
        count += found
        if not place:
            break
    return count


def _look(client: Client, queue: Queue, *, every: float, adopt: bool, after: str = "") -> tuple[int, str]:
    """How many one look found, and where it ended; empty: at the end."""
    arguments: list[str | int] = [queue.group, int(every * 1000), int(adopt), after]
    with calls("stranded entries cannot be looked for", client):
        found, _more, place = _STRAND(client, keys=[queue.stream, queue.gate, queue.books], args=arguments)
    return int(found), place.decode()
