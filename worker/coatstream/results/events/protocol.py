"""Publishes events on the server, and reads present tags and states: each in one call. Knows no threads, no retries.

A call that failed may be made again as it is: each event is published once (publish.lua explains why).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.broker.script import Script
from coatstream.results.events.documents import encode, flat, parse_present, present_of, state_of
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.tags import PresentTag
from coatstream.settings.model import EventsSettings

MOST_EVENTS: Final = 128  # of one call; some 100 kB
MOST_SURVEYED: Final = 256  # cameras of one call

_PUBLISH = Script("results/events/publish", after=("broker/keys", "broker/accounts"))
_SURVEY, _SEEN = Script("results/events/survey"), Script("results/events/seen")

STALE_AFTER: Final = 120.0  # seconds after which tags and states expire that no worker looks after

_LETTERS: Final = {EventKind.TAG_STARTED: "s", EventKind.TAG_ENDED: "e", EventKind.CAMERA_STATE: "t"}

_Arguments = list[str | bytes | int | float]


@dataclass(frozen=True, slots=True)
class SeenTags:
    """The present tags of one camera, and the moment (Unix seconds) of the frame at which they still were."""

    tags: tuple[str, ...]
    at: float
    fence: int


class ForgottenError(Exception):
    """The server has forgotten its newest events: it was killed, or a replica took over. Nothing was done."""


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An event on its way.

    fence     under which it is published now: that of the event, or a newer one of the same worker
    entry     its entry in the stream, where that is known: it is published again only if the stream has forgotten it
    restores  whether its tag or state is written again in any case
    insists   its tag was not there to end, although its start was confirmed: one more try is enough
    """

    event: Event
    fence: int
    entry: str = ""
    restores: bool = False
    insists: bool = False


class EventOutcome(StrEnum):
    """What came of it."""

    PUBLISHED = "published"  # now, or by an earlier try
    SAME = "same"  # the tag was there already: nothing was published
    ABSENT = "absent"  # no such tag was there to end: nothing was published
    FENCED = "fenced"  # another worker has the camera's lease: nothing was published


@dataclass(frozen=True, slots=True)
class EventReply:
    """What the server replies to one event.

    entry    of an event that is in the stream
    present  the tag that was there already
    """

    outcome: EventOutcome
    entry: str = ""
    present: PresentTag | None = None


@dataclass(frozen=True, slots=True)
class CameraSnapshot:
    """What clients read of one camera now."""

    state: bytes | None = field(repr=False)
    tags: dict[str, PresentTag]


class EventStore:
    """One worker's; used from one thread."""

    def __init__(self, client: Client, keys: FleetKeys, settings: EventsSettings, *, worker: str) -> None:
        self._client = client
        self._keys = keys
        self._settings = settings
        self._worker = worker
        self._floor = ""  # the entry after which those of a call that failed would lie

    def publish(self, pendings: Sequence[PendingEvent], *, newest: str) -> list[EventReply]:
        """All of them, atomically, in order. `newest`: the last entry that a reply named, or empty.

        Raises ForgottenError, RedisRefuses, and RedisUnavailable: then it may have been published, and the same call
        again has its effect once.
        """
        if not self._floor:
            self._call((), newest)
        return self._call(pendings, newest)

    def _call(self, pendings: Sequence[PendingEvent], newest: str) -> list[EventReply]:
        keys = self._keys
        tags = list(dict.fromkeys(keys.tags(one.event.camera) for one in pendings if "tag" in one.event.detail))
        arguments: _Arguments = [self._settings.max_length, keys.channel(""), newest, self._floor]
        for one in pendings:
            arguments += self._block(one, tags)
        with calls("events could not be published", self._client):
            reply = _PUBLISH(self._client, keys=[keys.events, keys.fences, keys.states, *tags], args=arguments)
        if reply == [b"lost"]:
            self._floor = ""
            raise ForgottenError
        self._floor = reply[0].decode()
        return [_reply(text) for text in reply[1:]]

    def _block(self, pending: PendingEvent, tags: Sequence[str]) -> _Arguments:
        event, detail = pending.event, pending.event.detail
        letter, values = _LETTERS.get(event.kind, "o"), flat(event)
        own: _Arguments = []
        if letter in "se":
            key = 4 + tags.index(self._keys.tags(event.camera))
            own = [key, detail["tag"], present_of(detail) if letter == "s" else repr(float(detail["started_at"]))]
        elif letter == "t":
            own = [state_of(event, worker=self._worker)]
        return [
            letter.upper() if pending.restores else letter,
            event.camera,
            pending.fence,
            pending.entry,
            encode(event, worker=self._worker),
            len(values),
            *values,
            *own,
        ]

    def keep(self, cameras: Sequence[str], seen: Mapping[str, SeenTags]) -> None:
        """Let the tags and states of these cameras live on, and note when their tags were `seen`. Raises
        RedisUnavailable, RedisRefuses.
        """
        for first in range(0, len(cameras), MOST_SURVEYED):
            some = cameras[first : first + MOST_SURVEYED]
            arguments: _Arguments = [int(STALE_AFTER * 1000)]
            for place, camera in enumerate(some, start=3):
                if (own := seen.get(camera)) is not None:
                    for tag in own.tags:
                        arguments += [place, camera, own.fence, tag, f"{own.at:.6f}"]
            keys = [self._keys.fences, self._keys.states, *map(self._keys.tags, some)]
            with calls("present tags cannot be kept", self._client):
                _SEEN(self._client, keys=keys, args=arguments)

    def survey(self, cameras: Sequence[str]) -> dict[str, CameraSnapshot]:
        """What clients read of these cameras. Raises RedisUnavailable, RedisRefuses."""
        found: dict[str, CameraSnapshot] = {}
        for first in range(0, len(cameras), MOST_SURVEYED):
            some = cameras[first : first + MOST_SURVEYED]
            with calls("present tags cannot be read", self._client):
                reply = _SURVEY(self._client, keys=[self._keys.states, *map(self._keys.tags, some)], args=some)
            for camera, state, tags in zip(some, reply[: len(some)], reply[len(some) :], strict=True):
                found[camera] = CameraSnapshot(state or None, _tags(tags))
        return found


def _reply(text: bytes) -> EventReply:
    if text.startswith(b"same"):
        return EventReply(EventOutcome.SAME, present=parse_present(text[4:]))
    if text in (b"absent", b"fenced"):
        return EventReply(EventOutcome(text.decode()))
    return EventReply(EventOutcome.PUBLISHED, entry=text.decode())


def _tags(pairs: Sequence[bytes]) -> dict[str, PresentTag]:
    names = (name.decode(errors="replace") for name in pairs[::2])
    return {name: parse_present(value) for name, value in zip(names, pairs[1::2], strict=True)}
