"""The pictures of events, wherever the settings put them."""

import hashlib

from coatstream.broker.connection import Client
from coatstream.broker.picture_keys import picture_keys
from coatstream.results.pictures.file_store import FilePictures
from coatstream.results.pictures.redis_store import RedisPictures
from coatstream.results.pictures.store import ID, PictureStore, Stored
from coatstream.settings.model import SettingsTree


class EventPictures:
    """Reads and stores pictures by the id that an event's `picture` names. Each thread that writes needs its own."""

    def __init__(self, store: PictureStore) -> None:
        self._store = store

    @classmethod
    def of(cls, settings: SettingsTree, client: Client) -> "EventPictures":
        """Those of these settings. `client` is used where they are in Redis. Raises ConfigError."""
        if settings.pictures.store == "redis":
            return cls(RedisPictures(client, picture_keys(settings), settings.pictures))
        return cls(FilePictures(settings.pictures))

    def get(self, picture: str) -> bytes | None:
        """The JPEG with this id; None for one that is gone, and for what is no id.

        Blocks. Raises RedisUnavailable, RedisRefuses, OSError.
        """
        return self._store.get(picture) if ID.fullmatch(picture) else None

    def put(self, picture: str, jpeg: bytes) -> Stored:
        """Store a JPEG; on return it can be read. Blocks and raises as `get`."""
        return self._store.put(picture, jpeg)


def picture_id(frame_id: str, captured_at: float) -> str:
    """The id of the picture of one frame: events of the same frame name one picture, which is stored once."""
    digest = hashlib.blake2b(frame_id.encode("utf-8", "replace"), digest_size=6).hexdigest()
    return f"{max(0, round(captured_at * 1000))}-{digest}"
