"""The queues that this worker serves, and the names of all keys of each. Connects to no server.

A queue is one frames stream with all keys that one script call needs beside it. On a cluster all of them must lie in
one slot, so their names share a hash tag: `{door}frames`, `{door}frames:dead`, `{door}labels`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from redis.crc import key_slot  # of the client library: CRC16 mod 16384

from coatstream.errors import ConfigError
from coatstream.settings.model import QueueEntry, SettingsTree

_TAG: Final = re.compile(r"\{([^{}]+)\}")

# Commands that scripts and clients run on each kind of key, and that the Redis user must be allowed to run.
_ON_FRAMES: Final = (
    *("XREADGROUP", "XACK", "XDEL", "XCLAIM", "XPENDING", "XRANGE", "XREVRANGE", "XADD", "XLEN", "XGROUP|CREATE"),
    *("XGROUP|DELCONSUMER", "XINFO|STREAM", "XINFO|GROUPS", "XINFO|CONSUMERS", "TYPE", "EXISTS"),
)
_ON_DEAD: Final = ("XADD", "XDEL", "XLEN", "XRANGE", "XREVRANGE", "TYPE")
_ON_LABELS: Final = ("XADD", "TYPE")
_ON_LATEST: Final = ("HGET", "HSET", "HLEN", "TYPE")
_ON_BOOKS: Final = ("HGET", "HMGET", "HSET", "HSETNX", "HINCRBY", "HDEL", "HLEN", "HGETALL", "DEL", "TYPE")
ON_NEIGHBOURS: Final = ("TYPE", "EVALSHA")  # only named to a script; the server asks for all rights still
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
        """Hash of the audit's counters: what became of all entries of the stream."""
        return f"{self.stream}:books"

    @property
    def sources(self) -> str:
        """Hash of each source's admitted entries that are unfinished; sources without any are not in it."""
        return f"{self.stream}:sources"

    @property
    def gate(self) -> str:
        """A mark, set for a moment when a worker has looked for idle entries and found none."""
        return f"{self.stream}:gate"

    def memo(self, worker: str, caller: str) -> str:
        """The last settlement of one caller."""
        return f"{self.stream}:settled:{worker}:{caller}"

    def sequence(self, source: str) -> str:
        """The last sequence number that was admitted from one source."""
        return f"{self.stream}:sequence:{source}"

    @property
    def keys(self) -> tuple[str, ...]:
        """One key of each kind: on a cluster they must share a slot."""
        return (
            *(self.stream, self.dead, self.labels, self.latest, self.books, self.sources, self.gate),
            *(self.memo("worker", "caller"), self.sequence("source")),
        )

    @property
    def types(self) -> Mapping[str, str]:
        """The type that each fixed key must have, if it exists."""
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
        """The same for a worker that reads no queue: it only looks at the types of the keys beside its labels."""
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
    """The queues grouped by their slot on a cluster."""
    slots: dict[int, list[Queue]] = {}
    for queue in queues:
        slots.setdefault(key_slot(queue.stream.encode()), []).append(queue)
    return [tuple(together) for together in slots.values()]


def _check_names(queues: Sequence[Queue]) -> None:
    """Refuse one key for two kinds of things, which would be noticed late, and as damage. Raises ConfigError."""
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
