"""Publishes the end of a camera's tags where no worker would: the camera was removed, or the last worker left."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet.leases import holders
from coatstream.cameras.fleet.published import published_cameras
from coatstream.results.events.documents import ended_event
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.protocol import MOST_EVENTS, EventStore, PendingEvent
from coatstream.results.events.tags import Why
from coatstream.settings.model import EventsSettings
from coatstream.telemetry.identity import worker_name

_REMOVED: Final = {"state": "removed", "reason": None, "message": ""}
_UNREAD: Final = {"state": "unread", "reason": "no_worker", "message": "no worker reads it"}


def publish_removal(
    client: Client, keys: FleetKeys, settings: EventsSettings, camera: str, *, clock: Callable[[], float] = time.time
) -> None:
    """Under the camera's newest fence. Raises RedisUnavailable, RedisRefuses."""
    with calls("the number of the camera cannot be read", client):
        number = client.hget(keys.fences, camera) or b""
    store = EventStore(client, keys, settings, worker=worker_name())
    _publish(store, camera, int(number) if number.isdigit() else 0, clock(), why="removed", state=_REMOVED)


def publish_no_worker(
    client: Client,
    keys: FleetKeys,
    settings: EventsSettings,
    fences: Mapping[str, int],
    *,
    clock: Callable[[], float] = time.time,
) -> None:
    """For those of these cameras that no worker reads, under a lease or as an unshared one of its own. Each under the
    fence under which the caller read it: one that was taken over meanwhile has a newer one. Raises RedisUnavailable,
    RedisRefuses.
    """
    if not fences:
        return
    read = {*holders(client, keys), *(one.name for one in published_cameras(client, keys).values() if not one.shared)}
    store = EventStore(client, keys, settings, worker=worker_name())
    for camera, fence in sorted(fences.items()):
        if camera not in read:
            _publish(store, camera, fence, clock(), why="no_worker", state=_UNREAD)


def _publish(
    store: EventStore, camera: str, fence: int, now: float, *, why: Why, state: Mapping[str, str | None]
) -> None:
    tags = store.survey([camera])[camera].tags
    events = [ended_event(camera, tag, tags[tag], at=now, fence=fence, why=why) for tag in sorted(tags)]
    events.append(Event(EventKind.CAMERA_STATE, camera, now, state, fence))
    for first in range(0, len(events), MOST_EVENTS):
        store.publish([PendingEvent(event, fence) for event in events[first : first + MOST_EVENTS]], newest="")
