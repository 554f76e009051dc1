"""What a producer wrote into one entry of the frames stream, checked. Never touches the network, decodes no picture."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast

from pydantic_core import from_json

from coatstream.errors import BadFrame, DeadReason

DEFAULT_SOURCE: Final = "queue"
MAX_SOURCE, MAX_FRAME_ID = 128, 256  # characters
MAX_META = 4096  # bytes
EARLIEST_MOMENT: Final = 946_684_800.0  # Unix seconds: the year 2000; before it a camera has lost its clock
LATEST_MOMENT: Final = 10_000_000_000.0  # Unix seconds: the year 2286; what is beyond it is milliseconds

PixelFormat = Literal["bgr24", "rgb24", "gray8"]
_DECIMAL = re.compile(rb"\d{1,12}(\.\d{0,20})?")
_FINER = re.compile(rb"\d{11,19}(\.\d{0,20})?")  # than seconds: what other languages' clocks give
_COUNT = re.compile(rb"\d{1,6}")
_BYTES = re.compile(rb"\d{1,12}")


@dataclass(frozen=True, slots=True)
class RawPixels:
    """Unencoded pixels, row-major, no padding."""

    data: bytes = field(repr=False)
    width: int
    height: int
    format: PixelFormat


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """One frame as its producer describes it. `picture` is encoded or raw pixels, `meta` the text of a JSON object."""

    entry_id: str
    source: str
    frame_id: str
    captured_at: float
    expires_at: float | None
    meta: str | None
    picture: bytes | RawPixels = field(repr=False)


def parse(entry_id: str, fields: Mapping[bytes, bytes]) -> FrameEntry:
    """The entry's fields by the contract; unknown ones are ignored. Raises BadFrame (invalid)."""
    captured_at = _unix_seconds(fields, b"captured_at")
    return FrameEntry(
        entry_id=entry_id,
        source=source_of(fields),
        frame_id=_text(fields, b"frame_id", MAX_FRAME_ID) or entry_id,
        captured_at=milliseconds_of(entry_id) / 1000 if captured_at is None else captured_at,
        expires_at=_unix_seconds(fields, b"expires_at"),
        meta=_meta(fields.get(b"meta")),
        picture=_picture(fields),
    )


def believable(moment: float, *, now: float, max_skew: float) -> bool:
    """Whether a frame can be of that time. One id in microseconds puts every later id of its stream 55,000 years ahead,
    since the server continues from the highest. All in Unix seconds, `max_skew` in seconds.
    """
    return EARLIEST_MOMENT <= moment <= now + max_skew


def source_of(fields: Mapping[bytes, bytes]) -> str:
    """The frame's source. Raises BadFrame where that is no text or too long."""
    return _text(fields, b"source", MAX_SOURCE) or DEFAULT_SOURCE


def source_or_default(fields: Mapping[bytes, bytes]) -> str:
    """The account that a bad entry is booked on: its own name if that much can be read."""
    try:
        return source_of(fields)
    except BadFrame:
        return DEFAULT_SOURCE


def frame_id_or_default(fields: Mapping[bytes, bytes]) -> str:
    """The producer's own name for a bad frame; empty where it gave none that can be read."""
    try:
        return _text(fields, b"frame_id", MAX_FRAME_ID)
    except BadFrame:
        return ""


def admitted_of(fields: Mapping[bytes, bytes]) -> int:
    """The entry's bytes as admission counted them; 0 for a plain XADD."""
    text = fields.get(b"admitted", b"")
    return int(text) if _BYTES.fullmatch(text) else 0


def milliseconds_of(entry_id: str) -> int:
    """Unix milliseconds in the id that the server gave an entry."""
    return int(entry_id.partition("-")[0])


def _text(fields: Mapping[bytes, bytes], name: bytes, longest: int) -> str:
    try:
        text = fields.get(name, b"").decode()
    except UnicodeDecodeError:
        raise _invalid(f"{name.decode()} is not UTF-8") from None
    if len(text) > longest:
        raise _invalid(f"{name.decode()} has {len(text)} characters, at most {longest} are allowed")
    return text


def _unix_seconds(fields: Mapping[bytes, bytes], name: bytes) -> float | None:
    text = fields.get(name, b"").strip()
    if not text:
        return None
    moment = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not moment < LATEST_MOMENT:
        hint = f": {_unit_of(text)}, perhaps" if _FINER.fullmatch(text) else ""
        raise _invalid(f"{name.decode()} is {_quoted(text)}, not Unix seconds as a decimal number{hint}")
    return moment


def _unit_of(text: bytes) -> str:
    """Of a moment of our time, by its number of digits."""
    digits = len(text.partition(b".")[0])
    return "milliseconds" if digits < 15 else "microseconds" if digits < 18 else "nanoseconds"


def _meta(text: bytes | None) -> str | None:
    if not text:
        return None
    if len(text) > MAX_META:
        raise _invalid(f"meta has {len(text)} bytes, at most {MAX_META} are allowed")
    try:
        meta = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise _invalid(f"meta is not JSON: {str(error)[:80]}") from None
    if not isinstance(meta, dict):
        raise _invalid("meta is JSON, but not an object")
    return text.decode()


def _picture(fields: Mapping[bytes, bytes]) -> bytes | RawPixels:
    if b"image" in fields:
        return fields[b"image"]
    if b"pixels" not in fields:
        raise _invalid("neither the field image nor the field pixels is there")
    pixel_format = fields.get(b"format", b"bgr24").decode("ascii", "replace")
    if pixel_format not in ("bgr24", "rgb24", "gray8"):
        raise _invalid(f"format is {_quoted(pixel_format.encode())}, not bgr24, rgb24 or gray8")
    return RawPixels(
        fields[b"pixels"], _count(fields, b"width"), _count(fields, b"height"), cast("PixelFormat", pixel_format)
    )


def _count(fields: Mapping[bytes, bytes], name: bytes) -> int:
    text = fields.get(name, b"")
    if not _COUNT.fullmatch(text) or int(text) == 0:
        raise _invalid(f"{name.decode()} is {_quoted(text)}, not a number of pixels (pixels need width and height)")
    return int(text)


def _quoted(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))


def _invalid(message: str) -> BadFrame:
    return BadFrame(DeadReason.INVALID, message)
