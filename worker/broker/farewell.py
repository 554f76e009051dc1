"""Says of a removed camera that its tags are over and that it is gone, where no worker reads it that would."""

import time
from collections.abc import Callable
from typing import Final

from config.settings import EventsSettings
from worker.broker.announcements import MOST_EVENTS, Announcements, Saying
from worker.broker.connection import Client
from worker.broker.event_documents import ended_event
from worker.broker.failures import calls
from worker.broker.fleet_keys import FleetKeys
from worker.events import Event, EventKind
from worker.identity import worker_name

_GONE: Final = {"state": "removed", "reason": None, "message": ""}


def farewell(
    client: Client, keys: FleetKeys, settings: EventsSettings, camera: str, *, clock: Callable[[], float] = time.time
) -> None:
    """Under the camera's newest number. Raises RedisUnavailable, RedisRefuses."""
    announcements = Announcements(client, keys, settings, worker=worker_name())
    with calls("the number of the camera cannot be read", client):
        number = client.hget(keys.fences, camera) or b""
    fence, now = int(number) if number.isdigit() else 0, clock()
    tags = announcements.survey([camera])[camera].tags
    events = [ended_event(camera, tag, tags[tag], at=now, fence=fence, why="removed") for tag in sorted(tags)]
    events.append(Event(EventKind.CAMERA_STATE, camera, now, _GONE, fence))
    for first in range(0, len(events), MOST_EVENTS):
        announcements.say([Saying(event, fence) for event in events[first : first + MOST_EVENTS]], newest="")
