"""What happens to a camera: its state, its picture's health, its tags. Plain data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it brings OpenCV, which readers of events do without
    from coatstream.frames.still import Still


class EventKind(StrEnum):
    """What happened, in the words of the field `event` of the stream `events`."""

    CAMERA_STATE = "camera.state"
    PICTURE_SICK = "picture.sick"
    PICTURE_WELL = "picture.well"
    TAG_STARTED = "tag.started"
    TAG_ENDED = "tag.ended"


@dataclass(frozen=True, slots=True)
class Photo:
    """The picture of an event, before it is stored."""

    name: str
    jpeg: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one camera.

    at      Unix seconds
    detail  further fields of the JSON document, plain JSON values
    fence   the number of the lease under which it was seen; 0: the camera is not shared
    still   what finds its picture, any thread's; None: it shall have none, or has it already
    photo   the picture as a JPEG
    """

    kind: EventKind
    camera: str
    at: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    fence: int = 0
    still: "Callable[[], Still | None] | None" = field(default=None, compare=False, repr=False)
    photo: Photo | None = field(default=None, compare=False, repr=False)


Publish = Callable[[Event], None]
