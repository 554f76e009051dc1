"""Asks one queue to take frames, in one call, and has what is in confirmed. Does no I/O, tries nothing again.

The protocol, for producers in other languages too, is in docs/admission.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal

from coatstream.broker.failures import RefusedCall
from coatstream.broker.keys import Queue
from coatstream.broker.script import Script
from coatstream.broker.steps import Call, Command, Steps, checked, run_script
from coatstream.errors import ConfigError, RedisUnavailable
from coatstream.settings.model import QueueSettings

NEWCOMER_LIFE: Final = 30.0  # seconds that a full queue remembers the source that found no room and has nothing in it
MAX_ENTRIES: Final = 64  # frames of one call: a script holds up the server while it runs
MAX_BYTES: Final = 8 * 1024**2  # of one call's frames; a larger frame goes alone

Confirm = Literal["none", "replicas", "disk"]

ADMIT: Final = Script("queue/producing/admit", after=("broker/keys", "broker/accounts"))


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
class Answer:
    """What the queue answered for one frame.

    entry_id  of its entry; empty where it was not admitted, and where it is a duplicate of a frame before the last one
    """

    verdict: Verdict
    entry_id: str = ""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """When a frame counts as safe: as soon as the server has it, or as soon as so many replicas or the disk have."""

    by: Confirm
    replicas: int
    timeout: float  # seconds

    @property
    def commands(self) -> Sequence[Command]:
        """What is sent behind the script: WAIT counts from the last write of its own connection."""
        milliseconds = max(1, int(self.timeout * 1000))
        match self.by:
            case "none":
                return ()
            case "replicas":
                return (("WAIT", self.replicas, milliseconds),)
            case "disk":
                return (("WAITAOF", 1, 0, milliseconds),)

    def missing(self, reply: Any) -> str:
        """What the server's answer lacks; empty where it lacks nothing."""
        if self.by == "replicas":
            return "" if reply >= self.replicas else f"{reply} of {self.replicas} replicas have them"
        return "" if reply[0] >= 1 else "they are not on its disk"


class Admission:
    """The way into one queue. `counts`: a refused frame is lost, so the queue's books count it."""

    def __init__(self, queue: Queue, limits: QueueSettings, *, confirmation: Confirmation, counts: bool) -> None:
        self.queue = queue
        self._limits = limits
        self._confirmation = confirmation
        self._counts = counts

    def check(self) -> Steps[None]:
        """Raises ConfigError where the server cannot confirm as asked, so that this is known before a frame is sent."""
        if self._confirmation.by == "disk":
            what = "the server cannot be asked to confirm"
            _, reply = yield Call(what, self.queue.stream, [("PING",), *self._confirmation.commands])
            _confirmed(what, reply)

    def ask(self, frames: Sequence[Candidate]) -> Steps[list[Answer]]:
        """At most MAX_ENTRIES frames. Raises RedisUnavailable: the frames may be in, and may be sent again."""
        what = f"frames cannot be put into {self.queue.stream}"
        keys = [*admission_keys(self.queue), *dict.fromkeys(frame.key for frame in frames)]
        arguments = self._arguments(frames, {key: place for place, key in enumerate(keys, start=1)})
        reply, *confirmations = yield from run_script(
            ADMIT, what, keys=keys, args=arguments, behind=self._confirmation.commands
        )
        digits, *entries = checked(what, reply)
        for confirmation in confirmations:
            if missing := self._confirmation.missing(_confirmed(what, confirmation)):
                timeout = self._confirmation.timeout
                raise RedisUnavailable(
                    f"frames in {self.queue.stream} were not confirmed within {timeout:g} s: {missing}"
                )
        return _answers(digits.decode(), entries)

    def _arguments(self, frames: Sequence[Candidate], places: Mapping[str, int]) -> list[str | bytes | int | float]:
        arguments: list[str | bytes | int | float] = [
            *(self._limits.max_length, self._limits.max_total_bytes),
            *(int(self._counts), int(NEWCOMER_LIFE * 1000)),
        ]
        for frame in frames:
            arguments += [places[frame.key], frame.source, frame.sequence, int(frame.life * 1000), frame.size]
            arguments += [len(frame.fields), *frame.fields]
        return arguments


def _answers(digits: str, entries: Sequence[bytes]) -> list[Answer]:
    new = digits.count(Verdict.ADMITTED.value)
    ids = {Verdict.ADMITTED: iter(entries[:new]), Verdict.DUPLICATE: iter(entries[new:])}
    return [Answer(verdict, next(ids.get(verdict, iter(())), b"").decode()) for verdict in map(Verdict, digits)]


def _confirmed(what: str, reply: Any) -> Any:
    """The reply of WAIT or WAITAOF. Raises ConfigError where the server will never confirm."""
    text = str(reply) if isinstance(reply, RefusedCall) else ""
    if "unknown command" in text and "WAITAOF" in text:
        raise ConfigError("confirmation by the disk needs WAITAOF, which this server lacks: Redis 7.2 or Valkey")
    if "appendonly is disabled" in text:
        raise ConfigError(
            "confirmation by the disk needs the append-only file, which is off on this server: "
            "CONFIG SET appendonly yes"
        )
    return checked(what, reply)


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
