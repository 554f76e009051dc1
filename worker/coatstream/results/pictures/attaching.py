"""Gives events their pictures: makes a JPEG while the picture is there, stores it, and names it in the event.

In this order, so that a worker that is killed in between leaves a picture without an event, never the other way round.
An event never waits for its picture for longer than `PATIENCE`: then it is published without one, and counted.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from coatstream.errors import CoatstreamError, RedisUnavailable
from coatstream.results.events.event import Event, Photo
from coatstream.results.pictures.event_pictures import EventPictures, picture_id
from coatstream.settings.model import PictureSettings

PATIENCE: Final = 10.0  # seconds
REST: Final = 10.0  # seconds after a refusal in which none is stored: a bucket that does not answer takes 8 each time
_LATELY: Final = 64  # pictures whose ids are remembered: tags that start with one frame share its picture
_STORED_FOR: Final = 2.0  # seconds for which a picture that was stored counts as there
_LOG_AGAIN: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class PictureStats:
    """Since the start; and what is there now.

    stored   pictures that this worker has stored
    removed  older ones that it removed: for want of room (`bytes`), or because of their `age`
    missing  events that were published without a picture, by reason: `none` (the camera had delivered none), `refused`
             (Redis or the folder refuses it), `too_large` (for pictures.max_bytes), `unavailable` (for PATIENCE) or
             `failed` (it could not be made)
    total    bytes of all pictures, as far as this worker knows
    """

    stored: int = 0
    removed: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    total: int = 0


class PictureAttacher:
    """One worker's. Used from the thread that publishes events; `stats` from any."""

    def __init__(
        self,
        pictures: EventPictures,
        settings: PictureSettings,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pictures = pictures
        self._settings = settings
        self._monotonic = monotonic
        self._lately: OrderedDict[str, float] = OrderedDict()  # id -> when it was stored
        self._failing_since: float | None = None
        self._resting_until = -float("inf")
        self._logged_at = -float("inf")
        self._counting = threading.Lock()  # guards the next ones
        self._removed: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._stored = self._total = 0
        self._log = structlog.get_logger("pictures")

    def stats(self) -> PictureStats:
        with self._counting:
            return PictureStats(self._stored, dict(self._removed), dict(self._missing), self._total)

    def developed(self, event: Event) -> Event:
        """The event with its picture as a JPEG, while the camera still has it. Waits for nothing."""
        if event.still is None:
            return event
        try:
            still = event.still()
            if still is None:
                return self._without(event, "none")
            name = picture_id(still.frame_id, still.captured_at)
            if self._is_there(name):
                return _named(event, name)
            jpeg = still.jpeg(side=self._settings.max_side, quality=self._settings.quality)
        except Exception as bug:  # of a picture, which must not cost the event
            return self._without(event, "failed", bug)
        return replace(event, still=None, photo=Photo(name, jpeg.data))

    def attached(self, event: Event) -> Event:
        """The event as it is to be published: its picture is stored by then. Raises RedisUnavailable, for PATIENCE."""
        photo = event.photo
        if photo is None:
            return event
        if self._is_there(photo.name):
            return _named(event, photo.name)
        if self._monotonic() < self._resting_until:
            return self._without(event, "refused")
        try:
            stored = self._pictures.put(photo.name, photo.jpeg)
        except RedisUnavailable as trouble:
            now = self._monotonic()
            self._failing_since = now if self._failing_since is None else self._failing_since
            if now - self._failing_since < PATIENCE:
                raise
            return self._without(event, "unavailable", trouble)
        except (CoatstreamError, OSError) as trouble:
            self._resting_until = self._monotonic() + REST
            return self._without(event, "refused", trouble)
        self._failing_since = None
        with self._counting:
            self._stored += stored.place == "stored"
            self._removed["bytes"] += stored.crowded
            self._removed["age"] += stored.aged
            self._total = stored.total
        if stored.place == "too_large":
            return self._without(event, "too_large")
        self._remember(photo.name)
        return _named(event, photo.name)

    def _is_there(self, name: str) -> bool:
        return self._monotonic() - self._lately.get(name, -float("inf")) < _STORED_FOR

    def _remember(self, name: str) -> None:
        self._lately[name] = self._monotonic()
        self._lately.move_to_end(name)
        if len(self._lately) > _LATELY:
            self._lately.popitem(last=False)

    def _without(self, event: Event, reason: str, trouble: Exception | None = None) -> Event:
        with self._counting:
            self._missing[reason] += 1
        now = self._monotonic()
        if trouble is not None and now - self._logged_at > _LOG_AGAIN:
            self._logged_at = now
            self._log.warning("events are published without pictures", trouble=str(trouble))
        return replace(event, still=None, photo=None)


def _named(event: Event, name: str) -> Event:
    return replace(event, detail={**event.detail, "picture": name}, still=None, photo=None)
