"""Dead letters of any queue: frames that a worker has read and buried, on a server under test."""

from coatstream.broker.connection import Client
from coatstream.broker.keys import Queue
from coatstream.errors import DeadReason
from coatstream.frames.frame import Receipt
from coatstream.results.outcomes import Buried, Outcome
from coatstream.settings.model import QueueSettings

from tests.support.settled import NOW, member, read, settler

LIMITS = QueueSettings()

Pair = tuple[str | bytes, str | bytes | int]


def queue(stream: str = "frames") -> Queue:
    return Queue(stream, "coatstream", f"{stream}:dead", "labels")


def add(client: Client, *pairs: Pair, stream: str = "frames") -> str:
    """A frame in the queue, its fields in this order, doubles and all; the id of its entry."""
    flat = [value for pair in pairs for value in pair]
    return str(client.execute_command("XADD", stream, "*", *flat).decode())


def take(client: Client, *, stream: str = "frames", count: int = 1000) -> list[str]:
    """Ids of what waits there: a worker that joined the group has read it."""
    member(client, queue=queue(stream)).join()
    return read(client, count=count, queue=queue(stream))


def settle(
    client: Client, outcome: Outcome, *, name: str, stream: str = "frames", limits: QueueSettings = LIMITS
) -> None:
    """`name` is the caller's: a new one for each call."""
    settler(client, name, queues=[queue(stream)], **limits.model_dump()).settle([outcome], now=NOW)


def bury(
    client: Client,
    *pairs: Pair,
    stream: str = "frames",
    error: str = "no picture",
    admitted: int = 0,
    limits: QueueSettings = LIMITS,
) -> str:
    """A frame with these fields that a worker read and buried; the id of its dead letter."""
    entry_id = add(client, *pairs, stream=stream)
    take(client, stream=stream)
    grave = Buried("door", DeadReason.UNDECODABLE, error, Receipt(stream, entry_id, admitted))
    settle(client, grave, name=f"burial {entry_id}", stream=stream, limits=limits)
    [(letter, _)] = client.xrevrange(queue(stream).dead, count=1)
    return str(letter.decode())
