"""Asks one queue to take frames, in one call, and has what is in confirmed. Tries nothing again, waits for no room."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal

from coatstream.broker.cluster import Cluster
from coatstream.broker.connection import Client
from coatstream.broker.failures import REDIRECTIONS, RefusedCall, calls
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script
from coatstream.errors import ConfigError, RedisUnavailable
from coatstream.settings.model import QueueSettings

NEWCOMER_LIFE: Final = 30.0  # seconds that a full queue remembers who found no room and has nothing in it
MAX_ENTRIES: Final = 64  # frames of one call: a script holds up the server while it runs
MAX_BYTES: Final = 8 * 1024**2  # of one call's frames; a larger frame goes alone

Confirm = Literal["none", "replicas", "disk"]

_ADMIT: Final = Script("queue/producing/admit", after=("broker/keys", "broker/accounts"))


class Verdict(Enum):
    """What became of a frame."""

    ADMITTED = "1"
    DUPLICATE = "2"  # it was in before
    FULL = "0"
    OUT_OF_MEMORY = "3"  # no room either: the server is at `maxmemory`


@dataclass(frozen=True, slots=True)
class Candidate:
    """A frame that asks to be let in.

    key     where the sequence of its source is kept, and for how many seconds
    fields  names and values in turn; size: their bytes
    """

    source: str
    key: str
    life: float
    sequence: int
    fields: Sequence[bytes]
    size: int


@dataclass(frozen=True, slots=True)
class Confirmation:
    """When a frame counts as safe: as soon as the server has it, or as soon as so many replicas or the disk have."""

    by: Confirm
    replicas: int
    timeout: float  # seconds

    @property
    def command(self) -> Sequence[str | int]:
        milliseconds = max(1, int(self.timeout * 1000))
        return ("WAIT", self.replicas, milliseconds) if self.by == "replicas" else ("WAITAOF", 1, 0, milliseconds)

    def missing(self, reply: Any) -> str:
        """What the server's answer lacks; empty where it lacks nothing."""
        if self.by == "replicas":
            return "" if reply >= self.replicas else f"{reply} of {self.replicas} replicas have them"
        return "" if reply[0] >= 1 else "they are not on its disk"


class Admission:
    """The way into one queue. `counts`: a refused frame is lost, so the queue's books count it."""

    def __init__(
        self, client: Client, queue: Queue, limits: QueueSettings, *, confirmation: Confirmation, counts: bool
    ) -> None:
        self.queue = queue
        self._client = client
        self._limits = limits
        self._confirmation = confirmation
        self._counts = counts

    def check(self) -> None:
        """Raises ConfigError where the server cannot confirm as asked, so that this is known before a frame is sent."""
        if self._confirmation.by == "disk":
            with calls("the server cannot be asked to confirm", self._client):
                self._confirming().ask("PING")

    def ask(self, frames: Sequence[Candidate]) -> list[Verdict]:
        """At most MAX_ENTRIES. Raises RedisUnavailable: then nobody knows, and the same frames may be sent again."""
        keys = [*admission_keys(self.queue), *dict.fromkeys(frame.key for frame in frames)]
        arguments = self._arguments(frames, {key: place for place, key in enumerate(keys, start=1)})
        with calls(f"frames cannot be put into {self.queue.stream}", self._client):
            if self._confirmation.by == "none":
                digits = _ADMIT(self._client, keys=keys, args=arguments)
            else:
                confirming = self._confirming()
                digits = _ADMIT(confirming, keys=keys, args=arguments)
                confirming.check()
        return [Verdict(digit) for digit in digits.decode()]

    def _confirming(self) -> "_Confirming":
        return _Confirming(self._client, self._confirmation, self.queue.stream)

    def _arguments(self, frames: Sequence[Candidate], places: Mapping[str, int]) -> list[str | bytes | int | float]:
        arguments: list[str | bytes | int | float] = [
            *(self._limits.max_length, self._limits.max_total_bytes),
            *(int(self._counts), int(NEWCOMER_LIFE * 1000)),
        ]
        for frame in frames:
            arguments += [places[frame.key], frame.source, frame.sequence, int(frame.life * 1000), frame.size]
            arguments += [len(frame.fields), *frame.fields]
        return arguments


class _Confirming:
    """What the script takes for a client: behind each run, on the same connection, it asks for the confirmation.

    WAIT counts from the last write of its own connection, and may not be used within a script.
    """

    def __init__(self, client: Client, confirmation: Confirmation, stream: str) -> None:
        self._client = client
        self._confirmation = confirmation
        self._stream = stream
        self._reply: Any = None

    def evalsha(self, *arguments: Any) -> Any:
        return self.ask("EVALSHA", *arguments)

    def eval(self, *arguments: Any) -> Any:
        return self.ask("EVAL", *arguments)

    def ask(self, *command: Any) -> Any:
        """The command's reply; that of the confirmation is kept."""
        with self._node().pipeline(transaction=False) as pipe:
            pipe.execute_command(*command)
            pipe.execute_command(*self._confirmation.command)
            reply, self._reply = pipe.execute(raise_on_error=False)
        for answer in (reply, self._reply):
            if isinstance(answer, Exception):
                raise self._meaning(answer)
        return reply

    def check(self) -> None:
        """Raises RedisUnavailable where less was confirmed than asked for."""
        if missing := self._confirmation.missing(self._reply):
            timeout = self._confirmation.timeout
            raise RedisUnavailable(f"frames in {self._stream} were not confirmed within {timeout:g} s: {missing}")

    def _node(self) -> Any:
        """Who has the stream: a cluster's own pipeline has no place for WAIT, which names no key."""
        client = self._client
        return client.node_of(client.slot_of([self._stream])) if isinstance(client, Cluster) else client

    def _meaning(self, error: Exception) -> Exception:
        if isinstance(self._client, Cluster) and isinstance(error, REDIRECTIONS):  # MOVED is an ASK
            self._client.look_around()
            return RedisUnavailable(f"the cluster has moved {self._stream} to another node")
        text = str(error)
        if isinstance(error, RefusedCall) and "unknown command" in text and "WAITAOF" in text:
            return ConfigError("confirmation by the disk needs WAITAOF, which this server lacks: Redis 7.2 or Valkey")
        if isinstance(error, RefusedCall) and "appendonly is disabled" in text:
            return ConfigError(
                "confirmation by the disk needs the append-only file, which is off on this server: "
                "CONFIG SET appendonly yes"
            )
        return error


def admission_keys(queue: Queue) -> Sequence[str]:
    """The fixed keys of one queue that admission reads and writes; those of the sequences come on top."""
    return (queue.stream, queue.books, queue.sources, f"{queue.stream}:newcomer")


def admission_rights(queue: Queue) -> Mapping[str, Sequence[str]]:
    """Commands that admission runs, by key. One that is refused after XADD would let a frame in twice."""
    counters = ("HGET", "HLEN", "HSET", "HINCRBY", "DEL", "TYPE")
    marks = ("GET", "SET", "PEXPIRE", "TYPE")
    kinds = (("XADD", "XLEN", "TYPE"), counters, counters, marks)
    return dict(zip(admission_keys(queue), kinds, strict=True)) | {queue.sequence("source"): marks}


def admission_types(queue: Queue) -> Mapping[str, str]:
    """What each of them must hold, where it is there."""
    return dict(zip(admission_keys(queue), ("stream", "hash", "hash", "string"), strict=True))
