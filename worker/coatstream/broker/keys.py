"""The queues that this worker serves, and the names of all keys that belong to each. Touches no server.

A queue is one frames stream with everything that one script call needs beside it. On a cluster all of that must lie in
one slot, which a hash tag in the names brings about: `{door}frames`, `{door}frames:dead`, `{door}labels`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from redis.crc import key_slot  # of the client library: CRC16 mod 16384

from coatstream.errors import ConfigError
from coatstream.settings.model import QueueEntry, SettingsTree

_TAG: Final = re.compile(r"\{([^{}]+)\}")

# Commands that our scripts and clients run on each kind of key: what the Redis user must be allowed.
_ON_FRAMES: Final = (
    *("XREADGROUP", "XACK", "XDEL", "XCLAIM", "XPENDING", "XRANGE", "XREVRANGE", "XADD", "XLEN", "XGROUP|CREATE"),
    *("XGROUP|DELCONSUMER", "XINFO|STREAM", "XINFO|GROUPS", "XINFO|CONSUMERS", "TYPE", "EXISTS"),
)
_ON_DEAD: Final = ("XADD", "XDEL", "XLEN", "XRANGE", "XREVRANGE", "TYPE")
_ON_LABELS: Final = ("XADD", "TYPE")
_ON_LATEST: Final = ("HGET", "HSET", "HLEN", "TYPE")
_ON_BOOKS: Final = ("HGET", "HMGET", "HSET", "HSETNX", "HINCRBY", "HDEL", "HLEN", "HGETALL", "DEL", "TYPE")
ON_NEIGHBOURS: Final = ("TYPE", "EVALSHA")  # only named to a script: yet the user must have all rights to the key
_ON_MARKS: Final = ("GET", "SET", "EXISTS", "DEL", "PEXPIRE", "TYPE")


@dataclass(frozen=True, slots=True)
class Queue:
    """One frames stream and the keys beside it. All names are as Redis sees them, `redis.prefix` included.

    priority  lower ones are read first, strictly; within one priority by `weight`
    labels    the stream that its labels go to; its `latest` is the hash of each source's newest label
    prefix    `redis.prefix`
    name      `queue.stream`, or the name in `queues`: without the prefix and the number of the partition
    channels  the beginning of the Pub/Sub channels' names, the same for all partitions; empty: `<labels>:`
    """

    stream: str
    group: str
    dead: str
    labels: str
    priority: int = 0
    weight: int = 1
    prefix: str = field(default="", compare=False)
    name: str = field(default="", compare=False)
    channels: str = field(default="", compare=False)

    def is_called(self, name: str) -> bool:
        """Whether `name` is its frames stream or its dead letters, with or without the prefix."""
        return name in (self.stream, self.dead, self.name) or self.prefix + name in (self.stream, self.dead)

    def channel(self, source: str) -> str:
        """The Pub/Sub channel of one source's labels."""
        return f"{self.channels or f'{self.labels}:'}{source}"

    def failure_channel(self, source: str) -> str:
        """The Pub/Sub channel that tells which frames of one source got no label, and why."""
        return f"{self.prefix}failures:{source}"

    @property
    def latest(self) -> str:
        return f"{self.labels}:latest"

    @property
    def books(self) -> str:
        """Hash of what became of all entries of the stream: the audit's counters."""
        return f"{self.stream}:books"

    @property
    def sources(self) -> str:
        """Hash of admitted entries per source that are still unfinished; a source without any is not in it."""
        return f"{self.stream}:sources"

    @property
    def gate(self) -> str:
        """Set for a moment when somebody looked for idle entries and found none."""
        return f"{self.stream}:gate"

    def memo(self, worker: str, caller: str) -> str:
        """What one caller settled last."""
        return f"{self.stream}:settled:{worker}:{caller}"

    def sequence(self, source: str) -> str:
        """The last sequence number that was admitted from one source."""
        return f"{self.stream}:sequence:{source}"

    @property
    def keys(self) -> tuple[str, ...]:
        """One of each kind: on a cluster they must share a slot."""
        return (
            *(self.stream, self.dead, self.labels, self.latest, self.books, self.sources, self.gate),
            *(self.memo("worker", "caller"), self.sequence("source")),
        )

    @property
    def types(self) -> Mapping[str, str]:
        """What each fixed key must hold, where it is there."""
        streams = dict.fromkeys((self.stream, self.dead, self.labels), "stream")
        return streams | dict.fromkeys((self.latest, self.books, self.sources), "hash") | {self.gate: "string"}

    @property
    def rights(self) -> Mapping[str, Sequence[str]]:
        """Commands that a worker runs, by key."""
        return {
            self.stream: _ON_FRAMES,
            self.dead: _ON_DEAD,
            self.labels: _ON_LABELS,
            self.latest: _ON_LATEST,
            self.books: _ON_BOOKS,
            self.sources: _ON_BOOKS,
            self.gate: _ON_MARKS,
            self.memo("worker", "caller"): _ON_MARKS,
        }

    @property
    def rights_of_cameras(self) -> Mapping[str, Sequence[str]]:
        """The same of a worker that reads no queue: of what lies beside its labels it looks at the types only."""
        labels = {self.labels, self.latest, self.memo("worker", "caller")}
        return {
            key: rights if key in labels else ON_NEIGHBOURS for key, rights in self.rights.items() if key != self.gate
        }


def queues_of(settings: SettingsTree) -> tuple[Queue, ...]:
    """Every queue of the settings, each partition apart, in order of priority. Raises ConfigError.

    Without `queues` there is one, from `queue.stream` and `queue.dead_stream`.
    """
    section = settings.queue
    entries = settings.queues or (QueueEntry(stream=section.stream, dead_stream=section.dead_stream),)
    found = [part for entry in entries for part in partitions(_queue(settings, entry), section.partitions)]
    _check_names(found)
    return tuple(sorted(found, key=lambda queue: queue.priority))


def _queue(settings: SettingsTree, entry: QueueEntry) -> Queue:
    prefix, labels = settings.redis.prefix, settings.redis.prefix + settings.results.stream
    return Queue(
        prefix + entry.stream,
        settings.queue.group,
        prefix + (entry.dead_stream or f"{entry.stream}:dead"),
        labels,
        entry.priority,
        entry.weight,
        prefix,
        entry.stream,
        f"{labels}:",
    )


def partitions(queue: Queue, count: int) -> list[Queue]:
    """The queue itself, or `count` of it: the tag `{door}` in each name becomes `{door:0}`, `{door:1}`, ..."""
    if count == 1:
        return [queue]
    for name in (queue.stream, queue.dead, queue.labels):
        if not _TAG.search(name):
            raise ConfigError(
                f"queue.partitions is {count}, and the name {name} has no hash tag to number: "
                "name the streams {door}frames, {door}frames:dead and {door}labels, for instance"
            )

    def numbered(name: str, number: int) -> str:
        return _TAG.sub(lambda tag: f"{{{tag[1]}:{number}}}", name, count=1)

    return [
        replace(
            queue,
            stream=numbered(queue.stream, number),
            dead=numbered(queue.dead, number),
            labels=numbered(queue.labels, number),
        )
        for number in range(count)
    ]


def by_slot(queues: Sequence[Queue]) -> list[tuple[Queue, ...]]:
    """Those that lie in one slot of a cluster together."""
    slots: dict[int, list[Queue]] = {}
    for queue in queues:
        slots.setdefault(key_slot(queue.stream.encode()), []).append(queue)
    return [tuple(together) for together in slots.values()]


def _check_names(queues: Sequence[Queue]) -> None:
    """Two kinds of things in one key would be seen late, and as damage."""
    seen: dict[str, str] = {}
    for queue in queues:
        own = {queue.stream: "frames", queue.dead: "dead letters", queue.books: "counters", queue.sources: "counters"}
        own[queue.gate] = "a mark"
        if len(own) < 5 or queue.labels in own or queue.latest in own:
            raise ConfigError(
                f"frames, dead letters and labels of the queue {queue.stream} need three different streams "
                "(queue.stream, queue.dead_stream, results.stream)"
            )
        for key, what in own.items():
            if key in seen:
                raise ConfigError(
                    f"two queues use the key {key}, for {seen[key]} and for {what}: give one another name"
                )
            seen[key] = what
