"""What happens to a camera: its state, its picture's health, its tags. Plain data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    """What happened, in the words of the field `event` of the stream `events`."""

    CAMERA_STATE = "camera.state"
    PICTURE_SICK = "picture.sick"
    PICTURE_WELL = "picture.well"
    TAG_STARTED = "tag.started"
    TAG_ENDED = "tag.ended"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one camera.

    at      Unix seconds
    detail  further fields of the JSON document, plain JSON values
    fence   the number of the lease under which it was seen; 0: the camera is not shared
    """

    kind: EventKind
    camera: str
    at: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    fence: int = 0


Publish = Callable[[Event], None]
