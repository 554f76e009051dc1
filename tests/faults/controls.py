"""Consumers with protocols that look right and are not: the harness must catch each of them, else it proves nothing.

One file that is both sides: `running_control` starts a process, `python -m tests.faults.controls` is that process.
What differs from the worker's protocol is the order of commands, their atomicity, or how tries are counted; reading,
reclaiming and the troubles inside are the same for all.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from tests.faults.frames import KEYS
from tests.faults.inside.sitecustomize import Misbehaviour

BATCH = 32
DELAY = 0.002  # seconds that a batch takes

# What the worker's protocol comes down to, for the control that differs only in how tries are counted, and for the
# one that differs only in the script's first line.
COMMIT = f"""
for i = 1, #ARGV, 2 do
  if redis.call('XACK', KEYS[1], '{KEYS.group}', ARGV[i]) == 1 then
    redis.call('XDEL', KEYS[1], ARGV[i])
    redis.call('XADD', KEYS[2], '*', 'frame_id', ARGV[i + 1], 'entry_id', ARGV[i], 'published_at', '0')
  end
end
"""


class Protocol(StrEnum):
    ACK_FIRST = "ack, then publish"
    PUBLISH_FIRST = "publish, then ack"
    PIPELINE = "one pipeline"
    MULTI = "MULTI/EXEC"
    WHOLE_BATCH = "whole batch tried again"
    HEADER = "script with a #!lua header"

    @property
    def retries(self) -> bool:
        """Whether the client sends a command again by itself, as redis-py does unless told otherwise."""
        return self not in (Protocol.WHOLE_BATCH, Protocol.HEADER)


@dataclass(frozen=True, slots=True)
class Item:
    """One entry that was read."""

    entry: bytes
    frame_id: bytes
    grey: int
    deliveries: int = 1


def main() -> None:
    """Consume until SIGTERM."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("url")
    options.add_argument("protocol", type=Protocol)
    options.add_argument("--batch", type=int, default=BATCH)
    options.add_argument("--min-idle", type=float, default=0.5)
    options.add_argument("--max-deliveries", type=int, default=3)
    chosen = options.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    consumer = Consumer(chosen.url, chosen.protocol, chosen.min_idle, chosen.max_deliveries, chosen.batch)
    print("ready", flush=True)
    consumer.run(stop, Misbehaviour(json.loads(os.environ["FAULTS"])))


class Consumer:
    """Reads, pretends to classify, and settles in its protocol's way."""

    def __init__(self, url: str, protocol: Protocol, min_idle: float, max_deliveries: int, batch: int) -> None:
        place = urlsplit(url)  # not Redis.from_url(): that is without redis-py's own retries
        own: dict[str, Any] = {} if protocol.retries else {"retry": Retry(NoBackoff(), 0)}
        self._client: Any = redis.Redis(place.hostname or "", place.port or 0, protocol=2, socket_timeout=5, **own)
        self._protocol = protocol
        self._min_idle = int(min_idle * 1000)
        self._max_deliveries = max_deliveries
        self._batch = batch
        self._name = f"control-{os.getpid()}-0"

    def run(self, stop: threading.Event, troubles: Misbehaviour) -> None:
        while not stop.is_set():
            try:
                self._join()
                while not stop.is_set():
                    self._once(troubles)
            except (ConnectionLost, RedisError, OSError):
                stop.wait(0.05)

    def _once(self, troubles: Misbehaviour) -> None:
        batch = self._reclaim() or self._read()
        if not batch:
            return
        if self._protocol is Protocol.ACK_FIRST:
            self._pipe(batch, publish=False, ack=True, delete=True)
        troubles.of_batch({item.grey for item in batch})
        threading.Event().wait(DELAY)
        self._settle(batch)

    def _settle(self, batch: Sequence[Item]) -> None:
        match self._protocol:
            case Protocol.ACK_FIRST:
                self._pipe(batch, publish=True, ack=False)
            case Protocol.PUBLISH_FIRST:
                self._pipe(batch, publish=True, ack=False)
                self._pipe(batch, publish=False, ack=True, delete=True)
            case Protocol.PIPELINE:
                self._pipe(batch, publish=True, ack=True, delete=True)
            case Protocol.MULTI:
                self._pipe(batch, publish=True, ack=True, delete=True, transaction=True)
            case Protocol.WHOLE_BATCH | Protocol.HEADER:
                header = "#!lua\n" if self._protocol is Protocol.HEADER else ""
                values = [value for item in batch for value in (item.entry, item.frame_id)]
                self._client.eval(header + COMMIT, 2, KEYS.stream, KEYS.labels, *values)

    def _pipe(
        self, batch: Sequence[Item], *, publish: bool, ack: bool, delete: bool = False, transaction: bool = False
    ) -> None:
        pipe = self._client.pipeline(transaction=transaction)
        for item in batch:
            if ack:
                pipe.xack(KEYS.stream, KEYS.group, item.entry)
            if publish:
                pipe.xadd(KEYS.labels, {"frame_id": item.frame_id, "entry_id": item.entry, "published_at": "0"})
            if delete:
                pipe.xdel(KEYS.stream, item.entry)
        pipe.execute()

    def _join(self) -> None:
        try:
            self._client.xgroup_create(KEYS.stream, KEYS.group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _read(self) -> list[Item]:
        reply = self._client.xreadgroup(KEYS.group, self._name, {KEYS.stream: ">"}, count=self._batch, block=50)
        return [_item(entry, fields) for _, entries in reply or [] for entry, fields in entries]

    def _reclaim(self) -> list[Item]:
        """A whole batch of what no consumer has touched for a while, its tries counted for every frame in it."""
        rows = self._client.xpending_range(KEYS.stream, KEYS.group, "-", "+", self._batch, idle=self._min_idle)
        tried = {row["message_id"]: row["times_delivered"] for row in rows}
        for entry in [entry for entry, tries in tried.items() if tries >= self._max_deliveries]:
            self._bury(entry)
            del tried[entry]
        if not tried:
            return []
        claimed = self._client.xclaim(KEYS.stream, KEYS.group, self._name, self._min_idle, list(tried))
        return [_item(entry, fields, tried[entry] + 1) for entry, fields in claimed]

    def _bury(self, entry: bytes) -> None:
        if self._protocol is not Protocol.WHOLE_BATCH:
            return
        found = self._client.xrange(KEYS.stream, entry, entry)
        if found and self._client.xack(KEYS.stream, KEYS.group, entry):
            self._client.xadd(KEYS.dead, {**found[0][1], "reason": "delivery_limit", "entry_id": entry})
            self._client.xdel(KEYS.stream, entry)


def _item(entry: bytes, fields: Mapping[bytes, bytes], deliveries: int = 1) -> Item:
    return Item(entry, fields.get(b"frame_id", entry), fields.get(b"pixels", b"\0")[0], deliveries)


@contextmanager
def running_control(
    url: str, protocol: Protocol, batch: int, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """One such process, consuming."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.controls", url, protocol.value, "--batch", str(batch)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)
        process.stdout.close()


if __name__ == "__main__":
    main()
