"""One worker's leases on cameras: its beat, and what the server replies. Every call is one script.

Knows nothing of threads, retries or reading cameras. Every method raises RedisUnavailable or RedisRefuses.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Literal

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.broker.script import Script

Mode = Literal["stay", "leaving", "gone"]
Why = Literal["granted", "handed_over", "taken_over"]

_PRELUDE: Final = ("broker/keys", "cameras/fleet/fleet")
_LEASE, _LEASED = Script("cameras/fleet/lease", after=_PRELUDE), Script("cameras/fleet/leased", after=_PRELUDE)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One camera as the server must know it to assign it.

    digest  of all its settings: what has ended is read again when they change
    rate    frames a second that it asks of a worker
    cold    it cannot be opened twice, or would begin anew: no standby opens it beforehand
    added   it comes from Redis, and ends when it is removed there
    url     where it is, without credentials or path: for people
    """

    name: str
    digest: str
    priority: float = 1.0
    rate: float = 0.0
    cold: bool = False
    added: bool = False
    url: str = ""


@dataclass(frozen=True)
class Catalogue:
    """All cameras that one worker can read. Sent when the server does not have it, else named by its digest."""

    entries: tuple[CatalogueEntry, ...] = ()

    @cached_property
    def text(self) -> str:
        rows = [
            [entry.name, entry.digest, entry.priority, entry.rate, int(entry.cold), int(entry.added), entry.url]
            for entry in sorted(self.entries, key=lambda entry: entry.name)
        ]
        return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Grant:
    """The server's grant of one camera's lease: its fence, and how it came here."""

    fence: int
    why: Why


@dataclass(frozen=True, slots=True)
class BeatReply:
    """What the server replies to one beat.

    before   the version that it found, `version` the one that it left behind
    held     by camera
    open     cameras to open without publishing for them
    next_in  seconds until something may happen without a new version: a member falls silent, for example
    members  live workers
    standbys of the cameras that are held: how many have a standby that is about to take them
    ended    cameras that have come to their own end, here or in another worker
    refused  cameras for which no worker has room
    """

    before: bytes
    version: bytes
    held: Mapping[str, Grant] = field(default_factory=dict)
    open: frozenset[str] = frozenset()
    next_in: float = 0.0
    members: int = 0
    standbys: int = 0
    ended: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Holder:
    """Which worker reads a camera, and which takes it over next. `since` in Unix seconds of the server."""

    worker: str
    fence: int
    since: float
    standby: str = ""


class Leases:
    """`worker` is this one's name, `lease` the seconds that its rights last without a beat."""

    def __init__(self, client: Client, keys: FleetKeys, *, worker: str, lease: float) -> None:
        self._client = client
        self._keys = keys
        self._worker = worker
        self._lease = lease

    def beat(
        self,
        catalogue: Catalogue,
        *,
        warm: Iterable[str] = (),
        ended: Iterable[str] = (),
        room: float | None = None,
        mode: Mode = "stay",
        predecessors: Collection[str] = (),
        unshared: Mapping[str, str] = MappingProxyType({}),
        server_time: float | None = None,
    ) -> BeatReply:
        """Report that this worker lives and can read these cameras.

        warm          cameras whose pictures come in
        mode          `leaving` keeps the cameras until others are ready, `gone` drops them
        room          frames a second that this worker accepts; None: any number
        predecessors  workers that are certainly dead: their cameras are this one's
        unshared      cameras that only this worker reads, with their addresses: for people
        server_time   Unix seconds, instead of the server's clock: for tests of the script
        """
        report: dict[str, Any] = {"warm": list(warm), "ended": list(ended), "predecessors": list(predecessors)}
        report["unshared"] = list(map(list, unshared.items()))
        arguments: list[str | int | float] = [
            *(self._worker, int(self._lease * 1000), mode, "" if room is None else repr(float(room)), catalogue.digest),
            *("", json.dumps(report, ensure_ascii=False), "" if server_time is None else round(server_time * 1000)),
        ]
        reply = self._run(arguments)
        if reply[0] == b"catalogue":
            arguments[5] = catalogue.text
            reply = self._run(arguments)
        return _reply(reply)

    def version(self) -> bytes:
        """Another value than before means that a worker or a person changed something."""
        with calls("the version of the cameras cannot be read", self._client):
            return self._client.get(self._keys.version) or b""

    def _run(self, arguments: Sequence[str | int | float]) -> list[object]:
        keys = self._keys
        names = [keys.members, keys.leases, keys.fences, keys.registry, keys.paused, keys.version]
        with calls("cameras cannot be shared", self._client):
            return list(_LEASE(self._client, keys=names, args=arguments))


def holders(client: Client, keys: FleetKeys) -> dict[str, Holder]:
    """Which worker reads which camera now. Raises RedisUnavailable."""
    with calls("the leases of the cameras cannot be read", client):
        flat = _LEASED(client, keys=[keys.members, keys.leases], args=[])
    rows = zip(*(iter(flat),) * 5, strict=True)
    return {
        _text(name): Holder(_text(owner), int(fence), float(since) / 1000, _text(standby))
        for name, owner, fence, since, standby in rows
        if fence.isdigit()
    }


def _reply(reply: Sequence[object]) -> BeatReply:
    _, before, version, held, opened, wake, members, standbys, ended, refused = reply
    rows = zip(*(iter(held),) * 3, strict=True)  # type: ignore[call-overload]
    return BeatReply(
        before=before,  # type: ignore[arg-type]
        version=version,  # type: ignore[arg-type]
        held={_text(name): Grant(int(fence), why.decode()) for name, fence, why in rows},
        open=_names(opened),
        next_in=int(wake) / 1000,  # type: ignore[call-overload]
        members=int(members),  # type: ignore[call-overload]
        standbys=int(standbys),  # type: ignore[call-overload]
        ended=_names(ended),
        refused=_names(refused),
    )


def _names(found: object) -> frozenset[str]:
    return frozenset(map(_text, found))  # type: ignore[call-overload]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
