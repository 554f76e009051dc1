"""Publishes that the tags of a removed camera have ended and that it is gone, where no worker reads it that would."""

import time
from collections.abc import Callable
from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.results.events.documents import ended_event
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.protocol import MOST_EVENTS, EventStore, PendingEvent
from coatstream.settings.model import EventsSettings
from coatstream.telemetry.identity import worker_name

_REMOVED: Final = {"state": "removed", "reason": None, "message": ""}


def publish_removal(
    client: Client, keys: FleetKeys, settings: EventsSettings, camera: str, *, clock: Callable[[], float] = time.time
) -> None:
    """Under the camera's newest fence. Raises RedisUnavailable, RedisRefuses."""
    event_store = EventStore(client, keys, settings, worker=worker_name())
    with calls("the number of the camera cannot be read", client):
        number = client.hget(keys.fences, camera) or b""
    fence, now = int(number) if number.isdigit() else 0, clock()
    tags = event_store.survey([camera])[camera].tags
    events = [ended_event(camera, tag, tags[tag], at=now, fence=fence, why="removed") for tag in sorted(tags)]
    events.append(Event(EventKind.CAMERA_STATE, camera, now, _REMOVED, fence))
    for first in range(0, len(events), MOST_EVENTS):
        event_store.publish([PendingEvent(event, fence) for event in events[first : first + MOST_EVENTS]], newest="")
