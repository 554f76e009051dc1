"""Puts encoded pictures into the frames stream, many in one round trip. Decodes nothing, tries nothing again."""

from dataclasses import dataclass, field
from typing import Final

from worker.broker.connection import Client
from worker.broker.failures import calls
from worker.broker.settler import unix_seconds

MAX_ENTRIES: Final = 64  # of one pipeline
MAX_BYTES: Final = 8 * 1024**2  # of one pipeline's pictures; a larger picture goes alone


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame for the queue, as the contract has it. `captured_at` is in Unix seconds."""

    image: bytes = field(repr=False)
    source: str
    frame_id: str
    captured_at: float


class Producer:
    """Collects pictures and sends them when a pipeline is full; whoever ends, or has a live source, flushes.

    sent    pictures that the server has confirmed
    """

    def __init__(self, client: Client, stream: str) -> None:
        self.sent = 0
        self._client = client
        self._stream = stream
        self._held: list[Picture] = []
        self._bytes = 0

    def put(self, picture: Picture) -> None:
        """Raises RedisUnavailable, as `flush`; then what was held is forgotten."""
        if self._held and self._bytes + len(picture.image) > MAX_BYTES:
            self.flush()
        self._held.append(picture)
        self._bytes += len(picture.image)
        if len(self._held) >= MAX_ENTRIES or self._bytes >= MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is held. Raises RedisUnavailable: then a part of it may have arrived, and nothing is sent again."""
        held, self._held, self._bytes = self._held, [], 0
        if not held:
            return
        with calls(f"frames cannot be put into {self._stream}"):
            pipe = self._client.pipeline(transaction=False)
            for picture in held:
                pipe.xadd(self._stream, _fields(picture))
            replies = pipe.execute(raise_on_error=False)
            refused = [reply for reply in replies if isinstance(reply, Exception)]
            self.sent += len(replies) - len(refused)
            if refused:  # a full server refuses one entry and may take the next
                raise refused[0]


def _fields(picture: Picture) -> dict[str, str | bytes]:
    return {
        "image": picture.image,
        "source": picture.source,
        "frame_id": picture.frame_id,
        "captured_at": unix_seconds(picture.captured_at),
    }
