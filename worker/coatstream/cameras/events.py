"""What one camera publishes: its state, the faults of its picture and its tags, each only under its lease's fence.

Keeps no label and sees no picture. `published`, `tick`, `end` and `end_tags` are called on the loop, the rest in the
camera's intake thread.
"""

import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.process.shelf import PictureShelf
from coatstream.errors import REDIS_TROUBLE, DownReason, RedisUnavailable, redact
from coatstream.frames.frame import Prediction
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.protocol import SeenTags
from coatstream.results.events.publisher import EventPublisher
from coatstream.results.events.region_tags import CameraTags
from coatstream.results.events.tags import PresentTag, Why
from coatstream.telemetry.status import SourceStatus

_PICTURED: Final = (EventKind.TAG_STARTED, EventKind.TAG_ENDED, EventKind.PICTURE_SICK)
_LOST: Final = ("stalled", "down")  # states
_ASK_AGAIN: Final = 1.0  # seconds until present tags that could not be read are asked for again


class CameraEvents:
    """Of one camera. `published_under`: the newest fence under which its state was published."""

    def __init__(
        self,
        camera: str,
        lease: CameraLease,
        tagger: CameraTags,
        publisher: EventPublisher,
        *,
        loop: AbstractEventLoop,
        shelf: PictureShelf | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.published_under: int | None = None
        self._camera = camera
        self._lease = lease
        self._tagger = tagger
        self._publisher = publisher
        self._shelf = shelf
        self._clock = clock
        self._monotonic = monotonic
        self._loop = loop
        self._tags_of: int | None = None  # the fence under which its tags were taken over
        self._asked_at = float("-inf")  # monotonic seconds
        self._seen_at = 0.0  # Unix seconds, of the last frame that was labelled
        self._log = structlog.get_logger("cameras")

    @property
    def tags(self) -> tuple[str, ...]:
        """Those that are present now."""
        return tuple(self._tagger.present)

    def state(self, state: str, reason: DownReason | None, message: str) -> None:
        """The camera's state has changed, or is still this under a new lease."""
        if (fence := self._lease.fence) is not None:
            self.published_under = fence
            self._publish_state(state, reason, message, fence)

    def picture(self, event: Event) -> None:
        """A fault of its picture has begun or ended."""
        if (fence := self._lease.fence) is not None:
            self._publish(replace(event, fence=fence))

    def published(self, prediction: Prediction, *, ended: bool) -> None:
        """A label was published. Of a camera that has `ended` the lease is gone, so its last fence counts."""
        if prediction.fence == (self.published_under if ended else self._lease.fence):
            self._seen_at = prediction.captured_at
            self._publish(*self._tagger.seen(prediction), frame_id=prediction.frame_id)

    def tick(self, status: SourceStatus | None, *, redis_is_up: bool) -> None:
        """Once a second: what time alone changes."""
        fence = self._lease.fence
        if status is not None and fence is not None and fence != self.published_under:
            self.state(status.state, status.reason, status.message)  # what its last owner published may be out of date
        if not redis_is_up:
            self._tagger.excuse()
        elif fence is not None:
            self._publish(*self._tagger.tick())
            self._publisher.saw(self._camera, SeenTags(self.tags, self._seen_at, fence))

    def end_tags(self, why: Why) -> None:
        """All its tags are over."""
        self._publish(*self._tagger.end(why))

    def end(self, state: str) -> None:
        """No worker reads the camera any more: it was paused or removed. Its tags end, if they were this worker's."""
        if self.published_under is not None:
            self.end_tags("removed")
            self._publish_state(state, None, "", self.published_under)

    def release(self) -> None:
        """Once all of this is published: another worker's camera from now on, or none's."""
        self._publisher.release(self._camera)

    def opening(self, status: SourceStatus | None) -> None:
        """The camera is opened again. One that is down may stay so, and its tags must end."""
        fence = self._lease.fence
        if fence is not None and status is not None and status.state == "down":
            self.take_tags_over(fence)

    def take_tags_over(self, fence: int) -> None:
        """Go on with the tags that were present when this worker got the lease. May wait for Redis."""
        now, present = self._monotonic(), dict[str, PresentTag]()
        if fence == self._tags_of or now < self._asked_at + _ASK_AGAIN:
            return
        self._asked_at = now
        try:
            present = self._publisher.take_over(self._camera, fence=fence)
        except REDIS_TROUBLE as trouble:
            self._log.warning("present tags cannot be read", source=self._camera, trouble=str(trouble))
            if isinstance(trouble, RedisUnavailable):
                return
        self._tags_of = fence
        self._loop.call_soon_threadsafe(partial(self._tagger.resume, present, fence=fence))

    def _publish_state(self, state: str, reason: DownReason | None, message: str, fence: int) -> None:
        detail = {"state": state, "reason": reason.value if reason else None, "message": redact(message)}
        self._publish(Event(EventKind.CAMERA_STATE, self._camera, self._clock(), detail, fence))

    def _publish(self, *events: Event, frame_id: str = "") -> None:
        """With the picture of this frame, or the one that is nearest in time."""
        for event in events:
            pictured = event.kind in _PICTURED or event.detail.get("state") in _LOST
            find = partial(self._shelf.find, frame_id, event.at) if pictured and self._shelf is not None else None
            self._publisher.publish(replace(event, still=find))
