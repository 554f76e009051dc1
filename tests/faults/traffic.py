"""A producer that goes on at a steady rate, in a thread, whatever happens to the server. It sends no frame twice.

A frame counts as accepted when the server has answered and, where the test asks for it, a replica or the disk has it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from coatstream.broker.connection import Client
from redis.exceptions import RedisError

from tests.faults import frames
from tests.support.threads import in_background

EVERY = 0.02  # seconds between two round trips


class Until(Enum):
    """When a frame counts as accepted."""

    ANSWERED = ()
    REPLICATED = ("WAIT", 1, 300)
    ON_DISK = ("WAITAOF", 1, 0, 1500)


@dataclass(slots=True)
class Traffic:
    """What was sent so far.

    accepted  frame ids that must have an outcome in the end
    doubtful  frame ids whose reply was lost: they may have one
    """

    connect: Callable[[], Client]
    rate: float
    until: Until
    keys: frames.Keys = frames.KEYS
    accepted: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number, began = 0, time.monotonic()
        client: Client = None
        while not self._stop.wait(EVERY):
            due = int((time.monotonic() - began) * self.rate) - number
            some = [f"t{number + index}" for index in range(max(0, min(due, frames.PAGE)))]
            number += max(0, due)  # a server that was away is not flooded afterwards
            if not some:
                continue
            try:
                client = client or self.connect()
                accepted = self._send(client, some)
            except (RedisError, OSError):
                client, accepted = None, False  # and the next one may be another server's
            (self.accepted if accepted else self.doubtful).extend(some)

    def _send(self, client: Client, some: list[str]) -> bool:
        pipe = client.pipeline(transaction=False)
        for name in some:
            pipe.xadd(self.keys.stream, frames.fields(name))
        if self.until.value:
            pipe.execute_command(*self.until.value)
        reply = pipe.execute()[-1]
        match self.until:
            case Until.REPLICATED:
                return bool(reply >= 1)
            case Until.ON_DISK:
                return bool(reply[0] >= 1)
        return True

    def stop(self) -> None:
        self._stop.set()

    @property
    def sent(self) -> list[str]:
        return self.accepted + self.doubtful


@contextmanager
def running_traffic(traffic: Traffic) -> Iterator[Traffic]:
    """Sends until the block ends."""
    with in_background(traffic.run, stop=traffic.stop, name="traffic"):
        yield traffic
