"""The cameras that this worker reads now: each with its process, its picture's health, its gate and its tags.

Starts and stops them as the fleet says; decides nothing about who reads what. `start` and `stop` are called by the
fleet's thread, `published` and `tick` on the loop, the rest of a camera's life is in its intake thread.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from coatstream.cameras.address import Kind, parse
from coatstream.cameras.capacity import demand_of
from coatstream.cameras.fleet.assignments import Departure
from coatstream.cameras.fleet.tenure import Tenure
from coatstream.cameras.health import PictureHealth
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.cameras.process.source import CameraProcess
from coatstream.errors import REDIS_TROUBLE, BadFrame, DownReason, RedisUnavailable, redact
from coatstream.frames.frame import Frame, InputSpec, Label, Prediction
from coatstream.pipeline.inference import FramePolicy
from coatstream.pipeline.intake import Intake
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.reuse import Gate
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.publisher import EventPublisher
from coatstream.results.events.tag_classes import TagClasses, tag_classes
from coatstream.results.events.tags import PresentTag, Tagger
from coatstream.settings.model import CameraSettings, SettingsTree
from coatstream.telemetry.ledger import DropReason
from coatstream.telemetry.status import SourceStatus, State, Status
from coatstream.telemetry.telemetry import Telemetry

TAGGED = 50  # labels that tags look at: a group of classes sums more of them than are published
_SAY_AGAIN = 10.0  # seconds between two lines about bad pictures of one camera
_ASK_AGAIN = 1.0  # seconds until present tags are asked for again that could not be read


def demand(camera: CameraSettings) -> float:
    """Frames a second that a camera asks of the model; 0 for a file that waits for it. Raises ConfigError."""
    kind = parse(camera).kind
    waits = kind in (Kind.FILE, Kind.FOLDER) if camera.realtime is None else not camera.realtime
    return 0.0 if waits else demand_of(camera)


@dataclass(slots=True)
class Ward:
    """One camera and everything that is known of it here."""

    settings: CameraSettings
    tenure: Tenure
    source: CameraProcess
    health: PictureHealth
    gate: Gate | None
    tagger: Tagger
    fence: int | None = None  # under which its tags were taken over; its intake thread's
    spoke_under: int | None = None  # the newest fence under which its state was said
    asked_at: float = 0.0  # monotonic seconds
    ended: bool = False  # by itself: a file was read


class Watched:
    """A camera as a Source that takes its tags over from whoever had them, before its first frame.

    reopens  told of each opening, before it
    """

    def __init__(
        self,
        ward: Ward,
        take_over: Callable[[Ward, int], None],
        reopens: Callable[[Ward], None],
        changed: Callable[[Ward, State, DownReason | None, str], None],
    ) -> None:
        self.name = ward.settings.name
        self.live = ward.source.live
        self._ward = ward
        self._take_over = take_over
        self._reopens = reopens
        self._changed = changed

    def on_state(self, state: State, reason: DownReason | None, message: str) -> None:
        """As its intake found it (`coatstream.pipeline.source.SourceObserver`)."""
        self._changed(self._ward, state, reason, message)

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        self._reopens(self._ward)
        frames = self._ward.source.frames(stop)
        try:
            for frame in frames:
                if frame.fence != self._ward.fence:
                    self._take_over(self._ward, frame.fence)
                yield frame
        finally:
            frames.close()


@dataclass(frozen=True, slots=True)
class CameraView:
    """One camera for metrics and the API."""

    ward: Ward
    status: SourceStatus | None
    tags: tuple[str, ...] = field(default=())


class Cameras:
    """All of them. `wards` holds those that are read now, `policies` tells the inference how to treat their frames."""

    def __init__(
        self,
        settings: SettingsTree,
        *,
        spec: InputSpec,
        labels: Sequence[Label],
        fork_server: ForkServer,
        intake: Intake,
        event_publisher: EventPublisher,
        telemetry: Telemetry,
        metrics: PipelineMetrics,
        wards: dict[str, Ward],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError for tags that this model cannot have."""
        self._settings = settings
        self._spec = spec
        self._labels = labels
        self._nursery = fork_server
        self._intake = intake
        self._event_publisher = event_publisher
        self.policies: dict[str, FramePolicy] = {}
        self._ledger = telemetry.ledger
        self._status = telemetry.status
        self._metrics = metrics
        self._clock = clock
        self._monotonic = monotonic
        self._loop = asyncio.get_running_loop()
        self._say_bad_at: dict[str, float] = {}  # monotonic seconds, by camera
        self._wards = wards  # changed on the loop only
        self._ending: dict[str, Ward] = {}  # read to their end, and perhaps not all labelled yet; likewise
        self._log = structlog.get_logger("cameras")
        self._classes = tag_classes(settings.tags, labels)
        for camera in settings.cameras:
            self._classes_of(camera)

    def start(self, camera: CameraSettings, tenure: Tenure) -> None:
        """Read a camera from now on; it speaks as its tenure says. Raises ConfigError for what cannot be a camera."""
        ward = self._ward(camera, tenure)
        self._loop.call_soon_threadsafe(self._enter, ward)

    def stop(self, name: str, departure: Departure) -> None:
        """Read it no longer. Where nobody else will either, its tags end."""
        self._loop.call_soon_threadsafe(self._leave, name, departure)

    def published(self, prediction: Prediction) -> None:
        """A label has gone out."""
        ward = self._wards.get(prediction.source) or self._ending.get(prediction.source)
        if ward is not None and prediction.fence == (ward.spoke_under if ward.ended else ward.tenure.fence):
            self._announce_all(ward.tagger.seen(prediction))

    def tick(self) -> None:
        """Once a second: what time alone changes."""
        can_publish, states = self._status.redis_is_up(), self._status.sources()
        for name, ward in self._wards.items():
            if ward.tenure.fence not in (None, ward.spoke_under) and (now := states.get(name)) is not None:
                self.on_state(name, now.state, now.reason, now.message)  # what its last owner said may be long past
            if not can_publish:
                ward.tagger.excuse()
            elif ward.tenure.fence is not None:
                self._announce_all(ward.tagger.tick())
        self.conclude()

    def conclude(self) -> None:
        """What was read to its end has no tags any more once its last label is out."""
        for name, ward in [*self._wards.items(), *self._ending.items()]:
            if ward.ended and not self._ledger.in_flight(name):
                self._announce_all(ward.tagger.end("camera_lost"))
                if self._ending.pop(name, None) is not None:
                    self._event_publisher.release(name)

    def on_state(self, name: str, state: State, reason: DownReason | None, message: str) -> None:
        """A source's state has changed; called in its intake thread."""
        ward = self._wards.get(name)
        if ward is None:
            return
        ward.ended = state == "ended"
        if (fence := ward.tenure.fence) is None:
            return
        ward.spoke_under = fence
        detail = {"state": state, "reason": reason.value if reason else None, "message": redact(message)}
        self._event_publisher.announce(Event(EventKind.CAMERA_STATE, name, self._clock(), detail, fence))

    def _ward(self, camera: CameraSettings, tenure: Tenure) -> Ward:
        settings, name = self._settings, camera.name
        reuse = camera.reuse or settings.reuse
        health = PictureHealth(camera.health or settings.health, name, announce=partial(self._announce_own, tenure))
        source = CameraProcess(
            camera,
            self._spec,
            fork_server=self._nursery,
            tenure=tenure,
            examine=health.look,
            observe=self._metrics.observe,
            on_bad=partial(self._bad_picture, name),
            on_replaced=partial(self._replaced, name),
            on_flow=partial(self._flows, name),
        )
        return Ward(
            camera,
            tenure,
            source,
            health,
            Gate(reuse, rng=random.Random(), monotonic=self._monotonic) if reuse.enabled else None,
            self._tagger(camera),
        )

    def _tagger(self, camera: CameraSettings) -> Tagger:
        """One without any tags ends those that earlier settings have left."""
        tags = camera.tags or self._settings.tags
        classes = self._classes_of(camera) if tags.enabled else TagClasses({})
        return Tagger(camera.name, tags, classes, fps=camera.fps)

    def _classes_of(self, camera: CameraSettings) -> TagClasses:
        if camera.tags is None:
            return self._classes
        return tag_classes(camera.tags, self._labels, where=f"tags of camera {camera.name}")

    def _enter(self, ward: Ward) -> None:
        name = ward.settings.name
        if name in self._wards:  # a bug of the fleet would else end the worker
            self._leave(name, "moved")
        if (earlier := self._ending.pop(name, None)) is not None:
            self._announce_all(earlier.tagger.end("camera_lost"))
        self._wards[name] = ward
        self._ledger.name(name)
        self.policies[name] = FramePolicy(ward.settings.max_age, ward.gate)
        watched = Watched(ward, self._take_over, self._reopens, self._changed)
        self._intake.add(watched, weight=ward.settings.priority, observer=watched)

    def _leave(self, name: str, departure: Departure) -> None:
        ward = self._wards.pop(name, None)
        if ward is None:
            return
        self._intake.remove(name)
        self.policies.pop(name, None)
        self._say_bad_at.pop(name, None)
        if not ward.ended:
            self._status.forget(name)
        if departure == "removed":
            self._ledger.gone(name)
        if departure == "moved" and ward.ended:
            self._ending[name] = ward
            return
        if departure != "moved" and ward.spoke_under is not None:
            self._announce_all(ward.tagger.end("removed"))
            detail = {"state": departure, "reason": None, "message": ""}
            self._event_publisher.announce(Event(EventKind.CAMERA_STATE, name, self._clock(), detail, ward.spoke_under))
        self._event_publisher.release(name)

    def _changed(self, ward: Ward, state: State, reason: DownReason | None, message: str) -> None:
        """In its intake thread. What came to its own end is told to the fleet even if another worker has it by now."""
        if self._wards.get(ward.settings.name) is ward:
            self.on_state(ward.settings.name, state, reason, message)
        if state == "ended":
            ward.tenure.read_out()

    def _reopens(self, ward: Ward) -> None:
        """What is down may stay so, and its tags must end. In its intake thread."""
        fence, status = ward.tenure.fence, self._status.sources().get(ward.settings.name)
        if fence is not None and status is not None and status.state == "down" and ward.fence != fence:
            self._take_over(ward, fence)

    def _take_over(self, ward: Ward, fence: int) -> None:
        """Go on with the tags that were present when the camera came to us. In its intake thread, which may wait."""
        now, present = self._monotonic(), dict[str, PresentTag]()
        if now < ward.asked_at + _ASK_AGAIN:
            return
        ward.asked_at = now
        try:
            present = self._event_publisher.take_over(ward.settings.name, fence=fence)
        except REDIS_TROUBLE as trouble:
            self._log.warning("present tags cannot be read", source=ward.settings.name, trouble=str(trouble))
            if isinstance(trouble, RedisUnavailable):
                return
        ward.fence = fence
        self._loop.call_soon_threadsafe(partial(ward.tagger.resume, present, fence=fence))

    def _bad_picture(self, camera: str, bad: BadFrame) -> None:
        self._ledger.received(camera)
        self._ledger.dead(camera, bad.reason)
        now = self._monotonic()
        if now >= self._say_bad_at.get(camera, 0.0):  # a broken stream has many
            self._say_bad_at[camera] = now + _SAY_AGAIN
            trouble = redact(str(bad))
            self._log.warning("a picture cannot be used", source=camera, reason=bad.reason.value, trouble=trouble)

    def _replaced(self, camera: str, count: int) -> None:
        for _ in range(count):
            self._ledger.received(camera)
            self._ledger.dropped(camera, DropReason.REPLACED)

    def _flows(self, camera: str, flows: bool) -> None:
        state: State = "live" if flows else "stalled"
        if camera not in self._wards:  # it has gone meanwhile
            return
        if self._status.source(camera, state, None if flows else DownReason.TIMEOUT):
            self._log.info("source up" if flows else "source stalled", source=camera)
            self.on_state(camera, state, None if flows else DownReason.TIMEOUT, "")

    def _announce_own(self, tenure: Tenure, event: Event) -> None:
        """What was seen on a picture, if we may speak for its camera."""
        fence = tenure.fence
        if fence is not None:
            self._event_publisher.announce(replace(event, fence=fence))

    def _announce_all(self, events: Sequence[Event]) -> None:
        for event in events:
            self._event_publisher.announce(event)


def views(wards: Mapping[str, Ward], status: Status) -> list[CameraView]:
    """A snapshot, for any thread."""
    states = status.sources()
    return [CameraView(ward, states.get(name), tuple(ward.tagger.present)) for name, ward in list(wards.items())]


def document(view: CameraView) -> Mapping[str, Any]:
    camera, stats, status = view.ward.settings, view.ward.source.stats(), view.status
    return {
        "name": camera.name,
        "url": redact(camera.url.get_secret_value()),
        "state": status.state if status else None,
        "reason": status.reason.value if status and status.reason else None,
        "message": redact(status.message) if status else None,
        "since": status.since if status else None,
        "fence": view.ward.tenure.fence,
        "fps": camera.fps,
        "priority": camera.priority,
        "pictures": stats.grabbed,
        "last_picture": stats.last_picture or None,
        "picture": sorted(fault.value for fault in view.ward.health.stats().sick),
        "tags": sorted(view.tags),
    }
