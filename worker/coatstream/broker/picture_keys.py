"""The names of all keys and channels that hold pictures: wishes for previews, previews, pictures of events.

Connects to no server. On a cluster they lie in the slot of the labels' stream, like the keys of cameras.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coatstream.broker.fleet_keys import beside_labels
from coatstream.settings.model import SettingsTree


@dataclass(frozen=True, slots=True)
class PictureKeys:
    """Keys by what they hold. Both fields are fixed beginnings, with `redis.prefix` and the labels' hash tag."""

    preview: str = "preview"
    picture: str = "picture"

    def wish(self, source: str) -> str:
        """A string that expires: while it is there, the source's owner publishes previews. It is the wished size."""
        return f"{self.preview}:wish:{source}"

    def turn(self, source: str) -> str:
        """A mark, set for a moment by the worker that publishes the next preview of a queue's source."""
        return f"{self.preview}:turn:{source}"

    def previews(self, source: str) -> str:
        """The Pub/Sub channel of one source's previews."""
        return f"{self.preview}:{source}"

    def event(self, picture: str) -> str:
        """A string that expires: the JPEG with this id."""
        return f"{self.picture}:{picture}"

    @property
    def order(self) -> str:
        """List of the pictures of events, oldest first."""
        return f"{self.picture}s:order"

    @property
    def size(self) -> str:
        """A number: the bytes that all of them take."""
        return f"{self.picture}s:bytes"

    @property
    def rights(self) -> Mapping[str, Sequence[str]]:
        """Commands that a worker runs, by key. A worker that lacks them labels without pictures."""
        return {
            self.wish("source"): ("MGET",),
            self.turn("source"): ("SET",),
            self.event("id"): ("SET", "DEL", "EXISTS", "TYPE"),
            self.order: ("LINDEX", "LRANGE", "LPOP", "RPUSH", "TYPE"),
            self.size: ("GET", "SET", "TYPE"),
        }


def picture_keys(settings: SettingsTree) -> PictureKeys:
    """Beside the labels of the first queue. Raises ConfigError."""
    beside = beside_labels(settings)
    return PictureKeys(beside("preview"), beside("picture"))
