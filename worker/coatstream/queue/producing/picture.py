"""What a producer puts into the queue, as the fields of an entry. Decodes nothing, touches no server.

What a worker would refuse for its text is refused here, where the program that made it can still mend it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from coatstream.broker.script import unix_seconds
from coatstream.errors import BadFrame, DeadReason

# As the worker checks them (coatstream.queue.entry; a test holds the two together).
MAX_SOURCE: Final = 128  # characters
MAX_FRAME_ID: Final = 256
MAX_META: Final = 4096  # bytes
LATEST_MOMENT: Final = 10_000_000_000.0  # Unix seconds
MAX_SEQUENCE: Final = 2**53 - 1  # the server's scripts count in floating point


@dataclass(frozen=True, slots=True)
class RawPicture:
    """Unencoded pixels, row-major, no padding: `array.tobytes()` of uint8 [height, width, 3], or of [height, width]."""

    data: bytes = field(repr=False)
    width: int
    height: int
    format: Literal["bgr24", "rgb24", "gray8"] = "bgr24"


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame for the queue. Moments are Unix seconds.

    image        the bytes of a JPEG, PNG, WebP, BMP or TIFF file, or raw pixels
    source       the camera or program that the frame comes from
    frame_id     your own name for it; empty: the entry's id
    captured_at  None: the time at which it entered the queue
    sequence     rises with each frame of a source, over restarts as well: what is not above the last one has been here,
                 and is not taken again. None: the producer counts, so that its own repetitions do no harm
    expires_at   after that its label is worthless, and the worker drops it
    meta         a JSON object that comes back with the label
    """

    image: bytes | RawPicture = field(repr=False)
    source: str
    frame_id: str = ""
    captured_at: float | None = None
    sequence: int | None = None
    expires_at: float | None = None
    meta: Mapping[str, Any] | None = None


def fields_of(picture: Picture) -> Sequence[bytes]:
    """Names and values in turn. Raises BadFrame."""
    if not 0 < len(picture.source) <= MAX_SOURCE:
        raise _invalid(f"source has {len(picture.source)} characters; give 1 to {MAX_SOURCE}")
    if len(picture.frame_id) > MAX_FRAME_ID:
        raise _invalid(f"frame_id has {len(picture.frame_id)} characters, at most {MAX_FRAME_ID} are allowed")
    if picture.sequence is not None and not 0 <= picture.sequence <= MAX_SEQUENCE:
        raise _invalid(f"sequence is {picture.sequence}; give 0 to {MAX_SEQUENCE}")
    texts = {
        "source": picture.source,
        "frame_id": picture.frame_id,
        "captured_at": _moment("captured_at", picture.captured_at),
        "expires_at": _moment("expires_at", picture.expires_at),
        "meta": _meta(picture.meta),
    }
    found = _image(picture.image)
    for name, text in texts.items():
        if text:
            found += [name.encode(), _bytes(name, text)]
    return found


def _image(image: bytes | RawPicture) -> list[bytes]:
    if not isinstance(image, RawPicture):
        return [b"image", image]
    about = {"width": str(image.width), "height": str(image.height), "format": image.format}
    return [b"pixels", image.data, *(part.encode() for pair in about.items() for part in pair)]


def _moment(name: str, moment: float | None) -> str:
    if moment is None:
        return ""
    if not 0 <= moment < LATEST_MOMENT:
        raise _invalid(f"{name} is {moment}, not Unix seconds")
    return unix_seconds(moment)


def _meta(meta: Mapping[str, Any] | None) -> str:
    if meta is None:
        return ""
    try:
        text = json.dumps(dict(meta), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise _invalid(f"meta is not JSON: {error}") from None
    if len(_bytes("meta", text)) > MAX_META:
        raise _invalid(f"meta has {len(_bytes('meta', text))} bytes, at most {MAX_META} are allowed")
    return text


def _bytes(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _invalid(f"{name} is not UTF-8") from None


def _invalid(message: str) -> BadFrame:
    return BadFrame(DeadReason.INVALID, message)
