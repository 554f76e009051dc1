"""Changes to the cameras that all workers share, as the command line and the API make them."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.cameras.fleet.access import registry
from coatstream.cameras.fleet.leases import holders
from coatstream.cameras.fleet.published import published_cameras
from coatstream.cameras.fleet.registry import Content
from coatstream.cameras.fleet.removal import publish_removal
from coatstream.errors import REDIS_TROUBLE, ConfigError, redact
from coatstream.settings.model import CameraSettings, SettingsTree


class FleetChanges:
    """Every method raises RedisUnavailable, and ConfigError for what cannot be done, in one line."""

    def __init__(self, client: Client, settings: SettingsTree, *, warn: Callable[[str], None]) -> None:
        """`warn` is told, in one line, of what did not come about though the change did."""
        self._client = client
        self._settings = settings
        self._warn = warn
        self._own = {camera.name for camera in settings.cameras}
        self._keys = fleet_keys(settings)
        self._registry = registry(client, self._keys, settings.fleet)

    def add(self, camera: CameraSettings, *, replace: bool = False) -> None:
        """Workers may read it from now on."""
        if self._is_in_a_file(camera.name):
            raise ConfigError(
                f"the settings file has a camera {_shown(camera.name)} already: give this one another name"
            )
        if not self._registry.add(camera, replace=replace):
            raise ConfigError(self._why_not(self._registry.read(), camera.name))

    def remove(self, name: str) -> bool:
        """Its worker stops. False: there is none of that name in Redis."""
        if self._is_in_a_file(name) and name not in self._registry.read().cameras:
            raise ConfigError(
                f"the camera {_shown(name)} is in the settings file, where only you can remove it: pause it instead "
                f"(coatstream cameras pause {_shown(name)})"
            )
        unread = name not in holders(self._client, self._keys)
        removed = self._registry.remove(name)
        if removed and unread:
            self._publish_removal(name)
        return removed

    def _is_in_a_file(self, name: str) -> bool:
        """In this program's own settings, or in those of a worker that lives."""
        return name in self._own or name in published_cameras(self._client, self._keys)

    def pause(self, name: str) -> bool:
        """No worker reads it until it is resumed. False: there is none of that name."""
        known = name in self._own or name in self._registry.read().cameras
        if not known and name not in published_cameras(self._client, self._keys):
            return False
        self._registry.pause(name)
        return True

    def resume(self, name: str) -> bool:
        """False: it was not paused."""
        return self._registry.resume(name)

    def _publish_removal(self, name: str) -> None:
        """End its tags. The camera stays removed if that fails: the user may lack the rights to the events stream."""
        try:
            publish_removal(self._client, self._keys, self._settings.events, name)
        except REDIS_TROUBLE as trouble:
            self._warn(f"its tags are not ended: {trouble}")

    def _why_not(self, content: Content, name: str) -> str:
        if name in content.cameras or name in content.faults:
            return f"there is a camera {_shown(name)} already: give --replace to change it"
        return f"there are {self._settings.fleet.max_cameras} cameras in Redis already (fleet.max_cameras)"


def camera_of(values: Mapping[str, Any]) -> CameraSettings:
    """A camera of these settings. Raises ConfigError that begins with the setting's name, and holds no secret."""
    try:
        return CameraSettings.model_validate(values)
    except ValidationError as failure:
        error = failure.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, error["loc"]))
        raise ConfigError(redact(f"{where}: {error['msg']}")) from None


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name[:128])
