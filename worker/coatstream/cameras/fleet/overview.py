"""All cameras as a person sees them: address, state, worker, present tags. Reads Redis, changes nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.cameras.address import public_url
from coatstream.cameras.fleet.access import registry
from coatstream.cameras.fleet.leases import Holder, holders
from coatstream.cameras.fleet.published import published_cameras
from coatstream.cameras.fleet.registry import Content
from coatstream.errors import redact
from coatstream.results.events.protocol import CameraSnapshot, EventStore
from coatstream.results.events.tags import PresentTag
from coatstream.settings.model import SettingsTree

_LAST_MOMENT: Final = 2.5e11  # Unix seconds; a later one has no date
_STATE_FIELDS: Final = ("state", "reason", "message", "since", "worker")


@dataclass(frozen=True, slots=True)
class CameraRow:
    """What is known of one camera. Nothing in it is secret.

    origin   `settings` or `redis`
    since    Unix seconds
    fps      pictures a second that are wanted
    """

    camera: str
    url: str
    origin: str
    state: str
    reason: str = ""
    message: str = ""
    since: float | None = None
    worker: str = ""
    fence: int | None = None
    fps: float = 0.0
    tags: Mapping[str, PresentTag] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FleetView:
    """All cameras by name; entries in Redis that cannot be used, with why; how many were beyond fleet.max_cameras."""

    rows: tuple[CameraRow, ...]
    faults: Mapping[str, str] = field(default_factory=dict)
    beyond: int = 0


class FleetOverview:
    """Used from one thread at a time: it remembers the registry, which is large and changes seldom."""

    def __init__(self, client: Client, settings: SettingsTree) -> None:
        self._client = client
        self._own = {camera.name: camera for camera in settings.cameras}
        self._keys = fleet_keys(settings)
        self._registry = registry(client, self._keys, settings.fleet)
        self._store = EventStore(client, self._keys, settings.events, worker="")
        self._content: Content | None = None

    def read(self) -> FleetView:
        """All cameras as they are now. Raises RedisUnavailable and RedisRefuses."""
        self._content = content = self._registry.read(self._content)
        owners = holders(self._client, self._keys)
        cameras = self._cameras(content)
        names = sorted(cameras)
        found = self._store.survey(names)
        rows = (
            _row(cameras[name], found=found[name], holder=owners.get(name), paused=name in content.paused)
            for name in names
        )
        return FleetView(tuple(rows), content.faults, content.beyond)

    def _cameras(self, content: Content) -> dict[str, "_ListedCamera"]:
        """From Redis, from the settings of this program, and from those that live workers have published."""
        published = published_cameras(self._client, self._keys)
        cameras = {
            name: _ListedCamera(name, one.url, "settings", one.shared, one.fps) for name, one in published.items()
        }
        for origin, some in (("redis", content.cameras), ("settings", self._own)):
            for name, one in some.items():
                cameras[name] = _ListedCamera(name, public_url(one), origin, one.shared, one.fps)
        return cameras


@dataclass(frozen=True, slots=True)
class _ListedCamera:
    name: str
    url: str
    origin: str
    shared: bool
    fps: float


def _row(camera: _ListedCamera, *, found: CameraSnapshot, holder: Holder | None, paused: bool) -> CameraRow:
    """A stored state counts only while a worker reads the camera, or after the camera's end."""
    state = _mapping(found.state)
    stored = {key: state.get(key) for key in _STATE_FIELDS}
    if paused:
        stored = {"state": "paused", "since": stored["since"] if stored["state"] == "paused" else None}
    elif holder is None and camera.shared and stored["state"] != "ended":
        stored = {"state": "unread", "message": "no worker reads it"}
    since = stored.get("since")
    return CameraRow(
        camera.name,
        camera.url,
        camera.origin,
        str(stored.get("state") or "unknown"),
        str(stored.get("reason") or ""),
        redact(str(stored.get("message") or "")),
        float(since) if isinstance(since, int | float) and 0 <= since < _LAST_MOMENT else None,
        holder.worker if holder else str(stored.get("worker") or ""),
        holder.fence if holder else None,
        camera.fps,
        {} if paused else found.tags,
    )


def _mapping(text: bytes | None) -> Mapping[str, Any]:
    """An empty mapping where this is no JSON object: other programs may write there."""
    try:
        found = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
