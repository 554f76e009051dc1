"""The names of all keys that cameras need beside the queue's. Touches no server.

On a cluster all of them must lie in one slot, with the labels' stream: give `fleet.key`, `events.stream` and
`events.tags` its hash tag.
"""

from dataclasses import dataclass

from config.settings import SettingsTree


@dataclass(frozen=True, slots=True)
class FleetKeys:
    """Keys by what they hold. `key`, `events` and `tags` are settings, the rest follows."""

    key: str = "cameras"
    events: str = "events"
    tags_prefix: str = "tags"

    @property
    def registry(self) -> str:
        """Hash of the cameras that were added at run time: name -> settings as JSON, secrets included."""
        return self.key

    @property
    def paused(self) -> str:
        """Set of the names that nobody shall read for now."""
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
        """Hash of who reads which camera until when."""
        return f"{self.key}:leases"

    @property
    def fences(self) -> str:
        """Hash of the newest number granted per camera. Never lowered, so that a late owner is refused for ever."""
        return f"{self.key}:fences"

    @property
    def states(self) -> str:
        """Hash of each camera's last known state as JSON."""
        return f"{self.key}:states"

    def tags(self, camera: str) -> str:
        """Hash of the present tags of one camera: tag -> JSON."""
        return f"{self.tags_prefix}:{camera}"

    def channel(self, camera: str) -> str:
        """The Pub/Sub channel of one camera's events."""
        return f"{self.events}:{camera}"


def fleet_keys(settings: SettingsTree) -> FleetKeys:
    return FleetKeys(settings.fleet.key, settings.events.stream, settings.events.tags)
