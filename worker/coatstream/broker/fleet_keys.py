"""The names of all keys that cameras need beside the queue's. Connects to no server.

On a cluster all of them must lie in the slot of the labels' stream. If that has a hash tag, as in `{door}labels`, names
without one get it: `{door}cameras`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coatstream.broker.keys import ON_NEIGHBOURS, queues_of
from coatstream.settings.model import SettingsTree

_ON_RECORDS: Final = ("HGETALL", "HGET", "HSET", "HDEL", "TYPE")
_TAG: Final = re.compile(r"\{[^{}]+\}")


@dataclass(frozen=True, slots=True)
class FleetKeys:
    """Keys by what they hold. The three fields are settings (with `redis.prefix`), the other names follow from them."""

    key: str = "cameras"
    events: str = "events"
    tags_prefix: str = "tags"

    @property
    def registry(self) -> str:
        """Hash of the cameras that were added at run time: name -> settings as JSON, passwords included."""
        return self.key

    @property
    def paused(self) -> str:
        """Set of the names of cameras that no worker may read for now."""
        return f"{self.key}:paused"

    @property
    def version(self) -> str:
        """A number that rises with each change of the registry, the paused set, the members or the leases."""
        return f"{self.key}:version"

    @property
    def members(self) -> str:
        """Hash of live workers."""
        return f"{self.key}:members"

    @property
    def leases(self) -> str:
        """Hash of which worker reads which camera until when."""
        return f"{self.key}:leases"

    @property
    def fences(self) -> str:
        """Hash of each camera's newest lease number. It only rises, so that labels of a former owner are refused."""
        return f"{self.key}:fences"

    @property
    def states(self) -> str:
        """Hash of each camera's last known state as JSON."""
        return f"{self.key}:states"

    @property
    def reports(self) -> str:
        """Hash of what each worker reports of itself every two seconds: worker -> JSON."""
        return f"{self.key}:reports"

    def tags(self, camera: str) -> str:
        """Hash of the present tags of one camera: tag -> JSON."""
        return f"{self.tags_prefix}:{camera}"

    @property
    def rights(self) -> Mapping[str, Sequence[str]]:
        """Commands that a worker runs, by key."""
        return {
            self.registry: ("HKEYS", "HSTRLEN", "HGET", "TYPE"),
            self.paused: ("SMEMBERS", "TYPE"),
            self.version: ("GET", "SET", "INCR", "TYPE"),
            self.members: _ON_RECORDS,
            self.leases: _ON_RECORDS,
            self.fences: ("HGET", "HSET", "TYPE"),
            self.states: ("HGET", "HMGET", "HSET", "HDEL", "TYPE"),
            self.events: ("XADD", "XLEN", "XRANGE", "XREVRANGE", "XINFO|STREAM", "EXISTS", "TYPE"),
            self.tags("camera"): ("HGET", "HGETALL", "HSETNX", "HDEL", "TYPE"),
        }

    @property
    def rights_unshared(self) -> Mapping[str, Sequence[str]]:
        """The same for a worker that shares no camera: it publishes events, and other workers never do so for it."""
        used = {key: self.rights[key] for key in (self.states, self.events, self.tags("camera"))}
        return used | {self.fences: ON_NEIGHBOURS}

    @property
    def types(self) -> Mapping[str, str]:
        """The type that each fixed key must have, if it exists."""
        hashes = (self.registry, self.members, self.leases, self.fences, self.states)
        return dict.fromkeys(hashes, "hash") | {self.paused: "set", self.version: "string", self.events: "stream"}

    def channel(self, camera: str) -> str:
        """The Pub/Sub channel of one camera's events."""
        return f"{self.events}:{camera}"


def fleet_keys(settings: SettingsTree) -> FleetKeys:
    """The keys beside the labels of the first queue, where labels of cameras go. Raises ConfigError."""
    beside = beside_labels(settings)
    return FleetKeys(beside(settings.fleet.key), beside(settings.events.stream), beside(settings.events.tags))


def beside_labels(settings: SettingsTree) -> Callable[[str], str]:
    """What makes a name that lies in the slot of the first queue's labels. Raises ConfigError."""
    prefix, tag = settings.redis.prefix, _TAG.search(queues_of(settings)[0].labels)

    def beside(name: str) -> str:
        whole = prefix + name
        if tag is None:
            return whole
        if _TAG.search(prefix):
            return _TAG.sub(lambda _: tag[0], whole, count=1)  # the number of the first partition
        return whole if _TAG.search(name) else f"{prefix}{tag[0]}{name}"

    return beside
