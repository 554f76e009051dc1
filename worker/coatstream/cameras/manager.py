"""The camera half of a worker: its events, its cameras and its part in the fleet, entered and left in their order.

Puts together what decides, and decides nothing itself.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

import structlog

from coatstream.broker.connection import Client, connect
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.active import TAGGED, Cameras, demand
from coatstream.cameras.capacity import ADMIT, admit, overload_warning
from coatstream.cameras.fleet.access import brisk, reachable
from coatstream.cameras.fleet.member import Fleet
from coatstream.cameras.fleet.metrics import FleetCollector
from coatstream.cameras.metrics import CameraCollector
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.engine.protocol import Engine
from coatstream.errors import CoatstreamError, DownReason, RedisRefuses, RedisUnavailable
from coatstream.frames.frame import Prediction
from coatstream.pipeline.inference import FramePolicy
from coatstream.pipeline.intake import Intake
from coatstream.pipeline.threads import in_thread
from coatstream.results.events.metrics import EventCollector
from coatstream.results.events.publisher import EventPublisher
from coatstream.settings.model import ModelSettings
from coatstream.telemetry.status import State
from coatstream.telemetry.telemetry import Telemetry

TICK: Final = 1.0  # seconds


class CameraManager:
    """`speaking` is entered before anything is published, `sharing` when there is an intake to read cameras into.

    policies      how the inference shall treat the frames of each camera; they come and go
    time_left  seconds of the drain
    """

    def __init__(self, telemetry: Telemetry, keys: FleetKeys, *, time_left: Callable[[], float]) -> None:
        self.policies: dict[str, FramePolicy] = {}
        self._settings = telemetry.settings
        self._worker = telemetry.worker
        self._lineage = telemetry.lineage
        self._ledger = telemetry.ledger
        self._status = telemetry.status
        self._metrics = telemetry.metrics
        self._outages = telemetry.outages
        self._keys = keys
        self._time_left = time_left
        self._leases = ExitStack()  # what the fleet needs until all is published
        self._cameras: Cameras | None = None  # these two from the first moment of sharing on
        self._fleet: Fleet | None = None
        self._events_refused = False  # for want of a right: waiting is no use
        self._log = structlog.get_logger("service")

    # ---- before the model is warm

    def model(self) -> ModelSettings:
        """Tags look at more labels than are published."""
        model, settings = self._settings.model, self._settings
        tagging = settings.tags.enabled or any(camera.tags and camera.tags.enabled for camera in settings.cameras)
        return model.model_copy(update={"top_k": max(model.top_k, TAGGED)}) if tagging else model

    def room(self, rate: float) -> float | None:
        """Frames a second that shared cameras may ask of this worker, None: any number. Says what will not fit.

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

    # ---- while it works

    @asynccontextmanager
    async def speaking(self) -> AsyncIterator[EventPublisher]:
        """Leases of cameras that nobody has taken over are kept until all is published: what is left would be refused,
        were they another's. What the last labels bring about is said before that.
        """
        with self._leases:
            try:
                with self._publishing_events() as event_publisher:
                    yield event_publisher
            finally:
                if self._fleet is not None and not await asyncio.to_thread(self._fleet.leave):
                    self._log.warning("the fleet could not be left: others take the cameras over after the lease")

    @contextmanager
    def _publishing_events(self) -> Iterator[EventPublisher]:
        with connect(self._settings.redis) as client:
            event_publisher = EventPublisher(
                client,
                self._keys,
                self._settings.events,
                worker=self._worker,
                on_trouble=self._events_held_up,
                on_success=self._events_flow,
            )
            self._metrics.registry.register(EventCollector(event_publisher.stats))
            with in_thread(event_publisher.run, "events"):
                try:
                    yield event_publisher
                finally:
                    if self._cameras is not None:
                        self._cameras.conclude()
                    if not event_publisher.flush(within=0.0 if self._events_refused else self._time_left()):
                        self._log.warning("events were not written", count=event_publisher.stats().buffered)

    @asynccontextmanager
    async def sharing(
        self,
        event_publisher: EventPublisher,
        intake: Intake,
        engine: Engine,
        fork_server: ForkServer,
        *,
        room: float | None,
    ) -> AsyncIterator[Fleet]:
        """Cameras are read from here on. At the end they are kept until other workers have opened them."""
        self._cameras = self._build(engine, fork_server, intake, event_publisher)
        client = self._leases.enter_context(connect(brisk(self._settings.redis, self._settings.fleet.lease)))
        connected = await asyncio.to_thread(self._may_share, client)
        shared = self._fleet = self._member(client, self._cameras, intake, room=room, connected=connected)
        self._metrics.registry.register(FleetCollector(shared.stats))
        self._leases.enter_context(in_thread(shared.run, "fleet"))
        try:
            yield shared
        finally:
            if not await asyncio.to_thread(shared.retire):
                self._log.warning("some cameras were not taken over in time: others open them now")

    def _build(
        self, engine: Engine, fork_server: ForkServer, intake: Intake, event_publisher: EventPublisher
    ) -> Cameras:
        cameras = Cameras(
            self._settings,
            spec=engine.spec,
            labels=engine.labels,
            fork_server=fork_server,
            intake=intake,
            event_publisher=event_publisher,
            ledger=self._ledger,
            status=self._status,
            metrics=self._metrics,
            policies=self.policies,
        )
        self._metrics.registry.register(CameraCollector(cameras.views))
        return cameras

    def _member(
        self, client: Client, cameras: Cameras, intake: Intake, *, room: float | None, connected: bool
    ) -> Fleet:
        loop = asyncio.get_running_loop()

        def on_finished() -> None:
            loop.call_soon_threadsafe(intake.look)

        return Fleet(
            client,
            self._keys,
            self._settings,
            worker=self._worker,
            start=cameras.start,
            stop=cameras.stop,
            predecessors=self._lineage.predecessors,
            room=lambda: room,
            rate=demand,
            on_finished=on_finished,
            connected=connected,
            **self._outages.of("fleet"),
        )

    def _may_share(self, client: Client) -> bool:
        """Redis may have gone away while the model was loaded: then the fleet waits for it, as everybody does."""
        try:
            return reachable(client, self._keys, self._settings, worker=self._worker)
        except RedisUnavailable as trouble:
            self._outages.down("fleet", trouble)
            return True

    async def ticking(self) -> None:
        """What happens to cameras by time alone."""
        while self._cameras is not None:
            self._cameras.tick()
            await asyncio.sleep(TICK)

    # ---- what others tell and ask; before there are cameras nobody has anything to tell

    def published(self, prediction: Prediction) -> None:
        if self._cameras is not None:
            self._cameras.published(prediction)

    def on_state(self, name: str, state: State, reason: DownReason | None, message: str) -> None:
        if self._cameras is not None:
            self._cameras.on_state(name, state, reason, message)

    def on_ended(self, name: str) -> None:
        if self._fleet is not None:
            self._fleet.ended(name)

    def documents(self) -> Sequence[Mapping[str, Any]]:
        """What /api/cameras says."""
        return () if self._cameras is None else self._cameras.documents()

    # ---- what becomes of events

    def _events_held_up(self, trouble: CoatstreamError) -> None:
        """A right that only events need is no outage: labels go out, and at the end entries are handed back."""
        if not isinstance(trouble, RedisRefuses):
            self._outages.down("events", trouble)
            return
        self._outages.up("events")
        self._metrics.redis_errors.inc()
        if not self._events_refused:
            self._events_refused = True
            self._log.error("events cannot be written: tags and states are not up to date", trouble=str(trouble))

    def _events_flow(self) -> None:
        self._events_refused = False
        self._outages.up("events")
