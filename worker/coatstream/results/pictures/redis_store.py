"""Pictures of events in Redis, a key each: they are where the events are, and need no further service."""

from typing import Any, Final

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.picture_keys import PictureKeys
from coatstream.broker.script import Script
from coatstream.results.pictures.store import Stored
from coatstream.settings.model import PictureSettings

_STORE: Final = Script("results/pictures/store", after=("broker/keys",))
_ATTEMPTS: Final = 1000  # calls for one picture, each of which may remove 32 older ones
_KEY: Final = 200  # bytes that a key, its time to live and its place in the list take besides


class RedisPictures:
    """A `PictureStore`. Several workers may share it."""

    def __init__(self, client: Client, keys: PictureKeys, settings: PictureSettings) -> None:
        self._client = client
        self._keys = keys
        self._settings = settings
        self._oldest: tuple[str, ...] = ()  # ids, as the last reply named them

    def put(self, picture: str, jpeg: bytes) -> Stored:
        crowded = aged = 0
        with calls("the picture of an event cannot be stored", self._client):
            for _ in range(_ATTEMPTS):
                word, total, more_crowded, more_aged, *oldest = self._call(picture, jpeg)
                crowded, aged = crowded + int(more_crowded), aged + int(more_aged)
                self._oldest = tuple(entry.split(b" ")[0].decode() for entry in oldest)
                if word != b"look":
                    return Stored(word.decode(), int(total), crowded, aged)
        return Stored("too_large", int(total), crowded, aged)

    def _call(self, picture: str, jpeg: bytes) -> Any:
        keys, settings, oldest = self._keys, self._settings, self._oldest
        names = [keys.event(picture), keys.order, keys.size, *map(keys.event, oldest)]
        age = round(settings.max_age * 1000)
        return _STORE(
            self._client, keys=names, args=[jpeg, footprint(len(jpeg)), settings.max_bytes, age, picture, *oldest]
        )

    def get(self, picture: str) -> bytes | None:
        with calls("the picture of an event cannot be read", self._client):
            found: bytes | None = self._client.get(self._keys.event(picture))
        return found


def footprint(length: int) -> int:
    """Bytes of memory that a string of this length takes: jemalloc has four sizes between two powers of two."""
    step = max(16, 1 << max(0, (length + 32).bit_length() - 3))
    return -(-(length + 32) // step) * step + _KEY
