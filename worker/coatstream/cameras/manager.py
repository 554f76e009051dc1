"""The camera half of a worker: its events, its cameras and its part in the fleet, entered and left in their order.

Puts together the parts that decide, and decides nothing itself.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import structlog

from coatstream.broker.connection import Client, connect
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.active import ActiveCameras
from coatstream.cameras.camera import ActiveCamera, CameraContext
from coatstream.cameras.capacity import ADMIT, admit, demand, overload_warning
from coatstream.cameras.fleet.access import brisk, reachable
from coatstream.cameras.fleet.member import Fleet
from coatstream.cameras.fleet.metrics import FleetCollector
from coatstream.cameras.fleet.removal import publish_no_worker
from coatstream.cameras.metrics import CameraCollector
from coatstream.cameras.previews import CameraPreviews
from coatstream.cameras.process.conversation import CameraStats
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.engine.protocol import Engine
from coatstream.errors import REDIS_TROUBLE, CoatstreamError, RedisRefuses, RedisUnavailable
from coatstream.frames.frame import InputSpec, PictureFault, Prediction
from coatstream.pipeline.inference import FramePolicy
from coatstream.pipeline.intake import Intake
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.pump import WarmEngine
from coatstream.pipeline.threads import in_thread
from coatstream.results.events.metrics import EventCollector
from coatstream.results.events.publisher import EventPublisher
from coatstream.results.events.tag_classes import tag_classes
from coatstream.results.pictures import EventPictures
from coatstream.results.pictures.attaching import PictureAttacher
from coatstream.results.pictures.metrics import PictureCollector
from coatstream.settings.model import ModelSettings, SettingsTree
from coatstream.telemetry.telemetry import Telemetry

TAGGED: Final = 50  # labels that tags look at: a group of classes sums more of them than are published
TICK: Final = 1.0  # seconds


class LeasedCameras:
    """This worker's part in reading cameras, from the first lease to the last label.

    policies  how the inference shall treat the frames of each camera; they come and go
    """

    def __init__(self, cameras: ActiveCameras, fleet: Fleet) -> None:
        self.policies: Mapping[str, FramePolicy] = cameras.policies
        self._cameras = cameras
        self._fleet = fleet
        self._log = structlog.get_logger("service")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Cameras are read from here on. On leaving they are read until other workers have opened them."""
        self._fleet.begin()
        try:
            yield
        finally:
            if not await asyncio.to_thread(self._fleet.retire):
                self._log.warning("some cameras were not taken over in time: others open them now")

    async def leave(self) -> None:
        """Give up the leases that no other worker has taken over."""
        if not await asyncio.to_thread(self._fleet.leave):
            self._log.warning("the fleet could not be left: others take the cameras over after the lease")

    def go_on(self) -> bool:
        """Whether any camera may deliver again."""
        return not self._fleet.finished

    async def ticking(self) -> None:
        """What happens to cameras by time alone."""
        while True:
            self._cameras.tick()
            await asyncio.sleep(TICK)

    def published(self, prediction: Prediction) -> None:
        """A label of a camera was published."""
        self._cameras.published(prediction)


class EventsHealth:
    """The `RedisHealth` of events. A right that only they need is no outage: labels are published without it. Nor is a
    server that is full: it still takes labels, whose frames make room.

    refused  Redis refuses events for want of a right: waiting is no use
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self.refused = self._full = False
        self._health = telemetry.outages.of("events")
        self._errors = telemetry.metrics.redis_errors
        self._log = structlog.get_logger("service")

    def up(self) -> None:
        if self._full:
            self._log.info("Redis has room again: the events that waited are written")
        self.refused = self._full = False
        self._health.up()

    def down(self, trouble: CoatstreamError) -> None:
        full = isinstance(trouble, RedisUnavailable) and trouble.full
        if not full and not isinstance(trouble, RedisRefuses):
            self._health.down(trouble)
            return
        self._health.up()
        self._errors.inc()
        if full and not self._full:
            self._full = True
            self._log.warning("Redis is full: events wait until it has room, labels go on", trouble=str(trouble))
        elif not full and not self.refused:
            self.refused = True
            self._log.error("events cannot be written: tags and states are not up to date", trouble=str(trouble))


class CameraManager:
    """The cameras of one worker: before there is a model, it knows none. `time_left`: seconds of the drain."""

    def __init__(
        self,
        settings: SettingsTree,
        telemetry: Telemetry,
        metrics: PipelineMetrics,
        keys: FleetKeys,
        *,
        time_left: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._metrics = metrics
        self._keys = keys
        self._time_left = time_left
        self._active: dict[str, ActiveCamera] = {}  # by name; those that are read now
        self.previews = CameraPreviews(self._active, always=settings.pictures.enabled)
        self._log = structlog.get_logger("service")

    # ---- before the model is warm

    def model(self) -> ModelSettings:
        """Tags look at more labels than are published."""
        model, settings = self._settings.model, self._settings
        tagging = settings.tags.enabled or any(camera.tags and camera.tags.enabled for camera in settings.cameras)
        return model.model_copy(update={"top_k": max(model.top_k, TAGGED)}) if tagging else model

    def room(self, rate: float) -> float | None:
        """Frames a second that shared cameras may ask of this worker; None: any number. Logs which ones will not fit.

        `rate`: what the engine did when it was measured.
        """
        settings = self._settings
        live = [camera for camera in settings.cameras if demand(camera)]
        if settings.fleet.overload == "refuse":
            spare = max(0.0, rate - sum(demand(camera) for camera in live if not camera.shared) / ADMIT)
            if left_out := [camera.name for camera in admit((one for one in live if one.shared), spare)[1]]:
                self._log.warning("no room in this worker for all cameras", left_out=left_out, engine_rate=round(rate))
            return ADMIT * spare
        if (warning := overload_warning(live, rate)) is not None:
            self._log.warning("too many cameras for one worker", what=warning)
        return None

    @contextmanager
    def processes(self, spec: InputSpec) -> Iterator[ForkServer]:
        """Where cameras' processes come from, started so early that it is ready when the model is warm."""
        with ForkServer(spec) as fork_server:
            if self._settings.cameras:
                fork_server.prepare()
            yield fork_server

    def reports(self) -> Iterator[tuple[str, CameraStats, Collection[PictureFault], str]]:
        """Each camera that this worker reads, what its process has counted, what is wrong with its picture, and why its
        change gate saves nothing, if so.
        """
        return (
            (one.name, one.process.stats(), one.health.stats().sick, one.gates.why if one.gates else "")
            for one in self._cameras()
        )

    def _cameras(self) -> list[ActiveCamera]:
        """A snapshot, for any thread."""
        return list(self._active.values())

    # ---- while it works

    @asynccontextmanager
    async def leases(self, engine: WarmEngine, fork_server: ForkServer, intake: Intake) -> AsyncIterator[LeasedCameras]:
        """Cameras may be leased while this is entered; `reading` begins to. Leases that no other worker has taken over
        are kept until all labels are published, since the server refuses labels without a lease. The events that the
        last labels bring about are written before the leases are given up.
        """
        settings, registry, health = self._settings, self._telemetry.metrics.registry, EventsHealth(self._telemetry)
        with connect(brisk(settings.redis, settings.fleet.lease)) as client, connect(settings.redis) as events_client:
            worker = self._telemetry.worker
            pictures = PictureAttacher(EventPictures.of(settings, events_client), settings.pictures)
            events = EventPublisher(
                *(events_client, self._keys, settings.events),
                worker=worker,
                health=health,
                model=engine.engine.info.name,
                pictures=pictures,
            )
            cameras = ActiveCameras(self._active, self._context(engine.engine, fork_server, events), intake)
            fleet = await self._fleet(client, cameras, rate=engine.policy.stats().cost.rate)
            registry.register(EventCollector(events.stats))
            registry.register(PictureCollector(pictures.stats))
            registry.register(CameraCollector(self._cameras))
            registry.register(FleetCollector(fleet.stats))
            leased = LeasedCameras(cameras, fleet)
            with in_thread(fleet.run, "fleet"):
                try:
                    with in_thread(events.run, "events"), self._flushing(cameras, events, health):
                        yield leased
                finally:
                    read = cameras.fences()
                    await leased.leave()
                    await asyncio.to_thread(self._end_unread, events_client, read, health)

    def _end_unread(self, client: Client, read: Mapping[str, int], health: EventsHealth) -> None:
        """Of the cameras that this worker has read until now, those that no worker reads: their tags end."""
        if health.refused or not self._telemetry.status.redis_is_up():
            return
        try:
            publish_no_worker(client, self._keys, self._settings.events, read)
        except REDIS_TROUBLE as trouble:
            self._log.warning("tags of cameras that no worker reads are not ended yet", trouble=str(trouble))

    @contextmanager
    def _flushing(self, cameras: ActiveCameras, events: EventPublisher, health: EventsHealth) -> Iterator[None]:
        try:
            yield
        finally:
            cameras.end_tags_of_ended()
            if not events.flush(within=0.0 if health.refused else self._time_left()):
                self._log.warning("events were not written", count=events.stats().buffered)

    def _context(self, engine: Engine, fork_server: ForkServer, events: EventPublisher) -> CameraContext:
        return CameraContext(
            self._settings,
            engine.spec,
            tuple(engine.labels),
            tag_classes(self._settings.tags, engine.labels),
            fork_server,
            events,
            self._telemetry,
            self._metrics,
            asyncio.get_running_loop(),
        )

    async def _fleet(self, client: Client, cameras: ActiveCameras, *, rate: float) -> Fleet:
        connected = await asyncio.to_thread(self._may_share, client)
        room = self.room(rate)
        return Fleet(client, self._keys, self._settings, self._telemetry, cameras, room=room, connected=connected)

    def _may_share(self, client: Client) -> bool:
        """Redis may have gone away while the model was loaded: then the fleet waits for it, like all others."""
        try:
            return reachable(client, self._keys, self._settings, worker=self._telemetry.worker)
        except RedisUnavailable as trouble:
            self._telemetry.outages.down("fleet", trouble)
            return True
