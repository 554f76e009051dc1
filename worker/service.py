"""The composition root: builds everything, enters it in order, leaves it in reverse. Leaving is the drain.

The only module that sees all the others.
"""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import structlog
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry

from config.settings import BatchSettings, HttpSettings, ModelSettings, RedisSettings, SettingsTree
from worker import __version__, fleet
from worker.allocator import return_what_is_free
from worker.batch_cost import BatchCost, measure_costs
from worker.batch_policy import BatchPolicy
from worker.broker.announcer import Announcer
from worker.broker.connection import Client, address, channel, connect
from worker.broker.fleet_keys import fleet_keys
from worker.broker.group import ConsumerGroup
from worker.broker.location import location
from worker.broker.preflight import check_keys, check_queues, check_server
from worker.broker.publisher import RETRY, Publisher
from worker.broker.queues import Queue, by_slot, queues_of
from worker.broker.settler import Settler
from worker.camera_metrics import CameraCollector, EventCollector, FleetCollector
from worker.cameras import TAGGED, Cameras, demand
from worker.capacity import ADMIT, admit, overload_warning
from worker.engine import Engine, ModelInfo, load_engine
from worker.errors import (
    REDIS_TROUBLE,
    SLOW_RETRY,
    CoatstreamError,
    DeadReason,
    DownReason,
    EngineBroken,
    RedisRefuses,
    RedisUnavailable,
)
from worker.fleet import Fleet
from worker.frames import Frame, Prediction
from worker.identity import FIRST, Lineage, worker_name
from worker.inference import Inference, Lane
from worker.intake import Intake
from worker.ledger import DropReason, Ledger
from worker.mailbox import Mailbox
from worker.metrics import BatchCollector, EngineCollector, Metrics
from worker.monitor import Monitor
from worker.pipeline import Pipeline
from worker.resizing import prepare
from worker.sources import Source
from worker.sources.heartbeat import BEATS_A_LEASE, Heartbeat
from worker.sources.holdings import Holdings
from worker.sources.nursery import Nursery
from worker.sources.queue import QueueSource
from worker.sources.reader import EntryReader
from worker.status import State, Status
from worker.web.app import make_app
from worker.web.server import serve

TICK = 1.0  # seconds
HALT_SHARE = 0.5  # of the drain's time for sources to stop; the pump publishes meanwhile and has the rest


@dataclass(frozen=True, slots=True)
class Ready:
    """What a service tells whoever waits for it to be up."""

    port: int
    engine: Engine
    ledger: Ledger


class Service:
    """One worker. `run` returns when it has drained after `stop`, or when every source has ended.

    Raises ConfigError, RedisUnavailable (at start only) and EngineError.
    """

    def __init__(
        self,
        settings: SettingsTree,
        *,
        worker: str | None = None,
        lineage: Lineage = FIRST,
        on_warm: Callable[[int], None] = lambda port: None,
        on_ready: Callable[[Ready], None] = lambda ready: None,
        load: Callable[[ModelSettings, BatchSettings], Engine] = load_engine,
    ) -> None:
        self._settings = settings
        self._on_warm = on_warm  # told the port of HTTP, just before the first frame can be read
        self._on_ready = on_ready
        self._load = load
        self.worker = worker or worker_name()
        self._lineage = lineage
        self._queues = queues_of(settings)
        self._fleet_keys = fleet_keys(settings)
        self.ledger = Ledger(camera.name for camera in settings.cameras)
        self.status = Status(stall_after=settings.batch.timeout)
        self.metrics = Metrics(CollectorRegistry())
        self.reading = False  # True from the first source on: before that there is nothing to drain
        self.drained = False  # True once everything that was read has its outcome
        self._holdings = Holdings()
        self._lanes: dict[str, Lane] = {}  # cameras come and go
        self._cameras: Cameras | None = None  # these two from the first moment of reading on
        self._fleet: Fleet | None = None
        self._events_refused = False  # for want of a right: waiting is no use
        self._stuck: list[str] = []
        self._drain_ends = 0.0  # monotonic seconds, from `_begin_drain`
        self._log = structlog.get_logger("service")

    async def run(self, stop: asyncio.Event) -> None:
        """Start, work until `stop` is set, drain. `drained` tells how it went."""
        settings = self._settings
        self._expose()
        async with AsyncExitStack() as stack:
            app = make_app(self.metrics.registry, self.status, cameras=self._camera_documents)
            port = await stack.enter_async_context(serve(app, self._place()))
            self._log.info("listening", http=f"http://{settings.http.host}:{port}", worker=self.worker)
            await self._reach_redis()
            engine = await asyncio.to_thread(self._load, self._model(), settings.batch)
            nursery = stack.enter_context(Nursery(engine.spec))
            if settings.cameras:
                nursery.start()  # so early that it is ready when the model is warm
            engines = stack.enter_context(self._threads(engine.streams, "engine"))
            policy = await self._warm_up(engine, engines)
            room = self._room(policy.figures().cost.rate)
            stack.enter_context(self._monitored())
            stack.enter_context(self._leasing())
            leases = await stack.enter_async_context(self._leaving())
            announcer = stack.enter_context(self._announcing())  # what the last labels bring about is said too
            # Room for all that the queues read ahead, so that what waits there is in turn among all their sources.
            mailbox = Mailbox(max(settings.batch.max_size, self._prefetch()), on_replaced=self._replaced)
            pump = await stack.enter_async_context(self._pumping(mailbox, engine, engines, policy))
            self._on_warm(port)
            intake = await stack.enter_async_context(self._taking_in(mailbox, engine))
            queues = intake.names
            self._cameras = self._camera_desk(engine, nursery, intake, announcer)
            shared = await stack.enter_async_context(self._sharing(self._cameras, intake, room, leases))
            self.status.warm()
            self._log.info("ready", queues=len(queues), cameras=len(settings.cameras))
            self._on_ready(Ready(port, engine, self.ledger))
            try:
                await _first(
                    stop.wait(),
                    intake.finished(more=lambda: not shared.finished),
                    asyncio.shield(pump),
                    self._ticking(),
                )
            finally:
                self._begin_drain()
                for name in queues:  # cameras go on until others have them
                    intake.remove(name)
        self._log.info("stopped", drained=self.drained, in_flight=self.ledger.total().in_flight)

    def _place(self) -> HttpSettings:
        """Any free port means: the one that the worker before this one had, if there was one."""
        http = self._settings.http
        return http if http.port else http.model_copy(update={"port": self._lineage.port})

    def _expose(self) -> None:
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.metrics.registry.register(collector)
        self.metrics.build(version=__version__, worker=self.worker)
        self.metrics.restarts.set(self._lineage.restarts)
        self.metrics.expose(self.ledger, self.status)

    async def _reach_redis(self) -> None:
        """At the very start Redis must be there. A worker that was started again after a crash waits for it, as the one
        before it would have.
        """
        rng = random.Random()
        for attempt in count():
            try:
                await asyncio.to_thread(self._check_redis)
            except RedisUnavailable as trouble:
                if self._lineage.restarts == 0:
                    raise
                self._redis_down("start", trouble)
                await asyncio.sleep(max(RETRY.delay(attempt, rng), SLOW_RETRY if trouble.slow else 0.0))
            else:
                return

    def _check_redis(self) -> None:
        settings = self._settings
        with connect(settings.redis) as client:
            server = check_server(client, settings.redis)
            silent = check_queues(client, self._queues, channels=(channel(settings.results, "source"),))
            if settings.cameras:
                check_keys(client, self._fleet_keys.keys, rights=self._fleet_keys.rights, types=self._fleet_keys.types)
            if settings.queue.enabled:
                self._succeed(self._groups(client, self._queues))
        if silent:
            self._log.warning("the Redis user may not publish to the channels of labels: only the streams are written")
        self._redis_up("start")
        self._log.info("redis", server=server, url=address(settings.redis))

    def _succeed(self, groups: Sequence[ConsumerGroup]) -> None:
        """Join, and hand back what workers held that are dead for certain: others need not wait for `min_idle`, nor for
        this one's model.
        """
        for group in groups:
            group.join()
        for dead in self._lineage.predecessors:
            handed_back = sum(group.inherit(dead) for group in groups)
            self._log.info("entries of a worker that crashed can be taken", worker=dead, entries=handed_back)

    async def _warm_up(self, engine: Engine, engines: ThreadPoolExecutor) -> BatchPolicy:
        """Warm, measured, and hence how large its batches shall be."""
        started = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(engines, engine.warm_up)
        cost = await asyncio.to_thread(self._costs, engine, engines)
        policy = BatchPolicy.from_settings(self._settings.batch, cost)
        return_what_is_free()
        info = engine.info
        self.metrics.model(info)
        self.metrics.engine_rate.set(cost.rate)
        self.metrics.registry.register(BatchCollector(policy.figures))
        self.metrics.registry.register(EngineCollector(engine))
        self._log.info(
            "model warm",
            name=info.name,
            weights=info.weights,
            engine=info.engine,
            precision=info.precision,
            device=info.device,
            streams=engine.streams,
            frames_per_s=round(cost.rate, 1),
            full_batch=policy.cap,
            seconds=round(time.monotonic() - started, 2),
        )
        if info.weights == "random":
            self._log.warning("the weights are random: the labels mean nothing, this is for load tests only")
        return policy

    def _costs(self, engine: Engine, engines: ThreadPoolExecutor) -> BatchCost:
        """Measured; but what a noop engine sleeps for is known, and may be a minute."""
        delay = self._settings.model.noop_delay
        if self._settings.model.engine == "noop" and delay:
            return BatchCost.of(dict.fromkeys(engine.prepared, delay), prepared=engine.prepared, streams=engine.streams)
        return measure_costs(engine, pool=engines)

    def _room(self, rate: float) -> float | None:
        """Frames a second that shared cameras may ask of this worker, None: any number. Says what will not fit.

        `rate`: what the engine did when it was measured.
        """
        settings = self._settings
        refuse = settings.fleet.overload == "refuse"
        live = [camera for camera in settings.cameras if demand(camera)]
        if refuse:
            spare = max(0.0, rate - sum(demand(camera) for camera in live if not camera.shared) / ADMIT)
            if left_out := [camera.name for camera in admit((one for one in live if one.shared), spare)[1]]:
                self._log.warning("no room in this worker for all cameras", left_out=left_out, engine_rate=round(rate))
            return ADMIT * spare
        if (warning := overload_warning(live, rate)) is not None:
            self._log.warning("too many cameras for one worker", what=warning)
        return None

    @contextmanager
    def _monitored(self) -> Iterator[None]:
        with connect(self._settings.redis) as client:
            monitor = Monitor(
                client,
                self._queues,
                self.metrics,
                on_up=partial(self._redis_up, "monitor"),
                on_down=partial(self._redis_down, "monitor"),
            )
            monitor.look()  # before the first scrape can ask
            with _in_thread(monitor.run, "monitor"):
                yield

    @contextmanager
    def _leasing(self) -> Iterator[None]:
        """Leases are renewed until all that was read has its outcome; then this worker leaves its groups."""
        if not self._settings.queue.enabled:
            yield
            return
        blameless = False
        with connect(self._brisk()) as client:
            groups = self._groups(client, self._queues)
            heartbeat = Heartbeat(
                groups,
                self._holdings,
                min_idle=self._settings.queue.min_idle,
                stalled=self.status.unhealthy_because,
                count=self.metrics.count,
                on_trouble=partial(self._redis_down, "leases"),
                on_success=partial(self._redis_up, "leases"),
            )
            try:
                with _in_thread(heartbeat.run, "leases"):
                    yield
            except (EngineBroken, RedisRefuses):
                blameless = True
                raise
            finally:
                self._leave(groups, blameless=blameless)

    def _brisk(self) -> RedisSettings:
        """For the heartbeat: one node of a cluster that hangs must not cost the others' leases their renewal."""
        redis, longest = self._settings.redis, self._settings.queue.min_idle / BEATS_A_LEASE / 2
        timeouts = {"socket_timeout": redis.socket_timeout, "connect_timeout": redis.connect_timeout}
        return redis.model_copy(update={name: min(seconds, longest) for name, seconds in timeouts.items()})

    def _leave(self, groups: Sequence[ConsumerGroup], *, blameless: bool) -> None:
        """What is unfinished now, this worker will never finish. `blameless`: and that is no frame's doing."""
        if not self.status.redis_is_up():
            self._log.warning("Redis is away: what this worker still held is taken over by others after queue.min_idle")
            return
        try:
            for group in groups:
                group.release(self._holdings.entries(group.queue.stream), begun=not blameless)
                group.leave()
        except REDIS_TROUBLE as trouble:
            self._log.warning("the consumer group could not be left", trouble=str(trouble))

    @asynccontextmanager
    async def _pumping(
        self, mailbox: Mailbox, engine: Engine, engines: ThreadPoolExecutor, policy: BatchPolicy
    ) -> AsyncIterator[asyncio.Task[None]]:
        with connect(self._settings.redis) as client, self._threads(1, "publish") as publishing:
            publisher = self._publisher(client, engine.info, "pump")
            pipeline = Pipeline(
                mailbox,
                self._inference(engine),
                publisher,
                policy=policy,
                slots=engine.streams,
                engines=engines,
                publishing=publishing,
                holdings=self._holdings,
                ledger=self.ledger,
                metrics=self.metrics,
                on_published=self._on_published,
            )
            pump = asyncio.create_task(pipeline.pump(), name="pump")
            pump.add_done_callback(lambda _: mailbox.close())  # whoever waits for room would wait for ever
            try:
                yield pump
            finally:
                mailbox.close()
                await self._empty(pump, publisher)

    async def _empty(self, pump: asyncio.Task[None], publisher: Publisher) -> None:
        """Let the pump publish what is in the mailbox, for as long as the drain may take."""
        done, _ = await asyncio.wait([pump], timeout=self._time_left())
        if not done:
            publisher.give_up()
            pump.cancel()
            await asyncio.wait([pump], timeout=1.0)
            self._log.error(
                "the drain's time is over: frames from the queue that are not published stay there",
                seconds=self._settings.drain.timeout,
                in_flight=self.ledger.total().in_flight,
            )
        elif pump.exception() is None:
            self.drained = self.ledger.total().in_flight == 0 and not self._stuck

    @asynccontextmanager
    async def _taking_in(self, mailbox: Mailbox, engine: Engine) -> AsyncIterator[Intake]:
        settings = self._settings
        intake = Intake(mailbox, self.ledger, self.status, on_state=self._on_state, on_ended=self._on_ended)
        self.reading = True
        with ExitStack() as connections:
            undertakers = self._take_in_queues(intake, engine, connections) if settings.queue.enabled else []
            try:
                yield intake
            finally:
                self._stuck = await intake.halt(within=settings.drain.timeout * HALT_SHARE)
                for undertaker in undertakers:
                    undertaker.give_up()
                if self._stuck:
                    self._log.error("sources did not stop and are left behind", sources=self._stuck)

    def _take_in_queues(self, intake: Intake, engine: Engine, connections: ExitStack) -> list[Publisher]:
        """One source for all queues; on a cluster one for each slot, since one read cannot span two."""
        together = by_slot(self._queues) if location(self._settings.redis).kind == "cluster" else [self._queues]
        undertakers = []
        for number, queues in enumerate(together):
            name = f"queue/{number}" if number else "queue"
            reading, settling = (connections.enter_context(connect(self._settings.redis)) for _ in range(2))
            undertaker = self._publisher(settling, engine.info, name)
            reader = self._reader(reading, queues, prefetch=max(1, self._prefetch() // len(together)))
            intake.add(self._queue(name, reader, undertaker, engine))
            undertakers.append(undertaker)
        return undertakers

    def _prefetch(self) -> int:
        return self._settings.queue.prefetch or 2 * self._settings.batch.max_size

    def _groups(self, client: Client, queues: Sequence[Queue]) -> list[ConsumerGroup]:
        return [ConsumerGroup(client, queue, self._settings.queue, consumer=self.worker) for queue in queues]

    def _reader(self, client: Client, queues: Sequence[Queue], *, prefetch: int) -> EntryReader:
        return EntryReader(
            client,
            self._groups(client, queues),
            consumer=self.worker,
            prefetch=prefetch,
            block=self._settings.redis.socket_timeout / 5,
            holdings=self._holdings,
            count=self.metrics.count,
            on_buried=self._delivered_too_often,
        )

    def _queue(self, name: str, reader: EntryReader, undertaker: Publisher, engine: Engine) -> Source:
        return QueueSource(
            reader,
            self._settings.queue,
            name=name,
            prepare=partial(prepare, spec=engine.spec),
            spec=engine.spec,
            undertaker=undertaker,
            holdings=self._holdings,
            ledger=self.ledger,
            at_work=partial(self.status.at_work, "a picture"),
            observe=self.metrics.observe,
            count=self.metrics.count,
            on_trouble=partial(self._redis_down, f"{name} reader"),
            on_success=partial(self._redis_up, f"{name} reader"),
        )

    def _delivered_too_often(self, source: str) -> None:
        self._log.error("a frame that no worker could finish is a dead letter now", source=source)
        self.ledger.received(source)
        self.ledger.dead(source, DeadReason.DELIVERY_LIMIT)

    def _model(self) -> ModelSettings:
        """Tags look at more labels than are published."""
        model, settings = self._settings.model, self._settings
        tagging = settings.tags.enabled or any(camera.tags and camera.tags.enabled for camera in settings.cameras)
        return model.model_copy(update={"top_k": max(model.top_k, TAGGED)}) if tagging else model

    @contextmanager
    def _announcing(self) -> Iterator[Announcer]:
        settings = self._settings
        with connect(settings.redis) as client:
            announcer = Announcer(
                client,
                self._fleet_keys,
                settings.events,
                worker=self.worker,
                on_trouble=self._events_held_up,
                on_success=self._events_flow,
            )
            self.metrics.registry.register(EventCollector(announcer.figures))
            with _in_thread(announcer.run, "events"):
                try:
                    yield announcer
                finally:
                    if self._cameras is not None:
                        self._cameras.conclude()
                    if not announcer.flush(within=0.0 if self._events_refused else self._time_left()):
                        self._log.warning("events were not written", count=announcer.figures().buffered)

    def _camera_desk(self, engine: Engine, nursery: Nursery, intake: Intake, announcer: Announcer) -> Cameras:
        cameras = Cameras(
            self._settings,
            spec=engine.spec,
            labels=engine.labels,
            nursery=nursery,
            intake=intake,
            announcer=announcer,
            ledger=self.ledger,
            status=self.status,
            metrics=self.metrics,
            lanes=self._lanes,
        )
        self.metrics.registry.register(CameraCollector(cameras.views))
        return cameras

    @asynccontextmanager
    async def _leaving(self) -> AsyncIterator[ExitStack]:
        """Leases of cameras that nobody has taken over are kept until all is published: what is left would be refused,
        were they another's. The stack is for what the fleet needs till then.
        """
        with ExitStack() as leases:
            try:
                yield leases
            finally:
                if self._fleet is not None and not await asyncio.to_thread(self._fleet.leave):
                    self._log.warning("the fleet could not be left: others take the cameras over after the lease")

    @asynccontextmanager
    async def _sharing(
        self, cameras: Cameras, intake: Intake, room: float | None, leases: ExitStack
    ) -> AsyncIterator[Fleet]:
        """Cameras are read from here on. At the end they are kept until other workers have opened them."""
        settings, loop = self._settings, asyncio.get_running_loop()

        def on_finished() -> None:
            loop.call_soon_threadsafe(intake.look)

        client = leases.enter_context(connect(fleet.brisk(settings.redis, settings.fleet.lease)))
        shared = self._fleet = Fleet(
            client,
            self._fleet_keys,
            settings,
            worker=self.worker,
            start=cameras.start,
            stop=cameras.stop,
            predecessors=self._lineage.predecessors,
            room=lambda: room,
            rate=demand,
            on_trouble=partial(self._redis_down, "fleet"),
            on_success=partial(self._redis_up, "fleet"),
            on_finished=on_finished,
            connected=await asyncio.to_thread(self._may_share, client),
        )
        self.metrics.registry.register(FleetCollector(shared.figures))
        leases.enter_context(_in_thread(shared.run, "fleet"))
        try:
            yield shared
        finally:
            if not await asyncio.to_thread(shared.retire):
                self._log.warning("some cameras were not taken over in time: others open them now")

    def _may_share(self, client: Client) -> bool:
        """Redis may have gone away while the model was loaded: then the fleet waits for it, as everybody does."""
        try:
            return fleet.reachable(client, self._fleet_keys, self._settings, worker=self.worker)
        except RedisUnavailable as trouble:
            self._redis_down("fleet", trouble)
            return True

    def _on_published(self, prediction: Prediction) -> None:
        if self._cameras is not None:
            self._cameras.published(prediction)

    def _on_state(self, name: str, state: State, reason: DownReason | None, message: str) -> None:
        if self._cameras is not None:
            self._cameras.on_state(name, state, reason, message)

    def _on_ended(self, name: str) -> None:
        if self._fleet is not None:
            self._fleet.ended(name)

    def _camera_documents(self) -> Sequence[Mapping[str, Any]]:
        return () if self._cameras is None else self._cameras.documents()

    async def _ticking(self) -> None:
        """What happens to cameras by time alone."""
        while self._cameras is not None:
            self._cameras.tick()
            await asyncio.sleep(TICK)

    def _time_left(self) -> float:
        """Seconds of the drain."""
        return max(0.0, self._drain_ends - time.monotonic())

    def _inference(self, engine: Engine) -> Inference:
        return Inference(
            engine,
            lanes=self._lanes,
            shown=self._settings.model.top_k,
            metrics=self.metrics,
            status=self.status,
        )

    def _publisher(self, client: Client, model: ModelInfo, name: str) -> Publisher:
        settings = self._settings
        settler = Settler(
            client,
            self._queues,
            limits=settings.queue,
            results=settings.results,
            model=model,
            worker=self.worker,
            name=name,
            fences=self._fleet_keys.fences,
        )
        return Publisher(settler, on_trouble=partial(self._redis_down, name), on_success=partial(self._redis_up, name))

    @contextmanager
    def _threads(self, count: int, name: str) -> Iterator[ThreadPoolExecutor]:
        """A pool whose threads are waited for only where they are known to come back."""
        pool = ThreadPoolExecutor(count, name)
        try:
            yield pool
        finally:
            pool.shutdown(wait=self.drained, cancel_futures=True)

    def _begin_drain(self) -> None:
        self.status.draining()
        self._drain_ends = time.monotonic() + self._settings.drain.timeout
        self._log.info("draining", in_flight=self.ledger.total().in_flight, at_most=self._settings.drain.timeout)

    def _replaced(self, frame: Frame) -> None:
        self.ledger.dropped(frame.source, DropReason.REPLACED)

    def _events_held_up(self, trouble: CoatstreamError) -> None:
        """A right that only events need is no outage: labels go out, and at the end entries are handed back."""
        if not isinstance(trouble, RedisRefuses):
            self._redis_down("events", trouble)
            return
        self._redis_up("events")
        self.metrics.redis_errors.inc()
        if not self._events_refused:
            self._events_refused = True
            self._log.error("events cannot be written: tags and states are not up to date", trouble=str(trouble))

    def _events_flow(self) -> None:
        self._events_refused = False
        self._redis_up("events")

    def _redis_up(self, caller: str) -> None:
        if self.status.redis_up(caller) and self.reading:
            self._log.info("Redis is back")

    def _redis_down(self, caller: str, trouble: CoatstreamError) -> None:
        self.metrics.redis_errors.inc()
        if self.status.redis_down(caller, str(trouble)):
            self.metrics.redis_outages.inc()
            self._log.warning("Redis is away: finished labels are kept and tried again", trouble=str(trouble))


@contextmanager
def _in_thread(run: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """`run` until the end of the block; a call that hangs then is not waited for. A bug is said, and it runs again."""
    stop = threading.Event()

    def keep_running() -> None:
        while not stop.is_set():
            try:
                run(stop)
            except Exception as bug:  # the edge of the thread: without leases a worker only looks well
                structlog.get_logger(name).error("a bug: the thread starts again", error=repr(bug)[:300])
                stop.wait(1.0)

    thread = threading.Thread(target=keep_running, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=1.0)


async def _first(*waits: Awaitable[object]) -> None:
    """Wait for the first of them, drop the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()
