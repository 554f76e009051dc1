"""What every place for pictures of events has in common."""

import re
from dataclasses import dataclass
from typing import Final, Protocol

ID: Final = re.compile(r"[0-9]{1,16}-[0-9a-f]{12}")  # Unix milliseconds of its capture, and a hash of its frame's name


@dataclass(frozen=True, slots=True)
class Stored:
    """What came of storing one picture.

    place     stored, there (it was, already) or too_large (for the bound: it was not stored)
    total     bytes of all pictures there now
    crowded   older pictures that were removed to make room for it
    aged      older pictures that were removed because of their age
    """

    place: str
    total: int
    crowded: int = 0
    aged: int = 0


class PictureStore(Protocol):
    """Bounded in bytes and in age; the oldest go first. Called from one thread at a time."""

    def put(self, picture: str, jpeg: bytes) -> Stored:
        """Store a JPEG under its id; on return it can be read. Raises RedisUnavailable, RedisRefuses, OSError."""

    def get(self, picture: str) -> bytes | None:
        """The JPEG; None where it is gone. Raises as `put`."""
