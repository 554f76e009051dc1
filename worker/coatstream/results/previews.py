"""Previews: small pictures of a source that its owner publishes while a watcher wishes for them.

A wish is a key that expires, so a watcher that vanishes costs nothing more. Its value is the wished size in pixels.
A preview is a Pub/Sub message: one line of JSON, then a JPEG.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from coatstream.frames.still import LARGEST, Jpeg

EVERY: Final = 0.5  # seconds at least between two previews of one source
SIDE: Final = 320  # pixels, where the wish names no size
QUALITY: Final = 70
LARGEST_MESSAGE: Final = 512 * 1024  # bytes; a preview of the worst noise has 300 KB


class _PreviewHead(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    source: str
    captured_at: float = Field(ge=0)
    width: int = Field(ge=1, le=LARGEST)
    height: int = Field(ge=1, le=LARGEST)


@dataclass(frozen=True, slots=True)
class Preview:
    """One preview.

    captured_at    Unix seconds
    width, height  of the JPEG, in pixels
    """

    source: str
    captured_at: float
    width: int
    height: int
    jpeg: bytes = field(repr=False)


def preview_message(source: str, captured_at: float, jpeg: Jpeg) -> bytes:
    """A preview as it is published."""
    head = {"source": source, "captured_at": captured_at, "width": jpeg.width, "height": jpeg.height}
    return to_json(head) + b"\n" + jpeg.data


def parse_preview(message: bytes) -> Preview | None:
    """None for what is no preview."""
    head, newline, jpeg = message.partition(b"\n")
    if not newline or len(message) > LARGEST_MESSAGE or not jpeg.startswith(b"\xff\xd8\xff"):
        return None
    try:
        found = _PreviewHead.model_validate_json(head)
    except ValidationError:
        return None
    return Preview(found.source, found.captured_at, found.width, found.height, jpeg)


def wished_side(value: bytes | None) -> int:
    """Pixels of the longer side that a wish asks for; 0 where there is none."""
    if value is None:
        return 0
    return min(LARGEST, int(value)) if value.isdigit() and len(value) < 6 and int(value) >= 16 else SIDE


def wish(client: Any, key: str, *, side: int = SIDE, seconds: float = 5.0) -> None:
    """Wish for previews of a source, whose key this is, for some seconds. Raises what the client raises."""
    client.set(key, side, px=round(seconds * 1000))
