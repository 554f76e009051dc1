"""The composition root: builds everything, enters it in order, leaves it in reverse. Leaving is the drain.

The only module that sees all the others.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count

import structlog
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry

from coatstream import __version__
from coatstream.broker.connection import Client, address, connect
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.keys import queues_of
from coatstream.broker.preflight import check_server, check_usage
from coatstream.cameras.manager import CameraManager
from coatstream.cameras.process.forkserver import ForkServer
from coatstream.engine.loading import load_engine
from coatstream.engine.memory import return_what_is_free
from coatstream.engine.protocol import Engine
from coatstream.errors import SLOW_RETRY, RedisUnavailable
from coatstream.frames.frame import Frame
from coatstream.frames.model import ModelInfo
from coatstream.pipeline.cost import BatchCost, measure_costs
from coatstream.pipeline.inference import Inference
from coatstream.pipeline.intake import Intake
from coatstream.pipeline.mailbox import Mailbox
from coatstream.pipeline.metrics import BatchCollector, EngineCollector
from coatstream.pipeline.policy import BatchPolicy
from coatstream.pipeline.pump import Pipeline
from coatstream.queue.consumer import QueueConsumer
from coatstream.results.publisher import RETRY, Publisher
from coatstream.results.settler import Settler
from coatstream.settings.model import BatchSettings, ModelSettings, SettingsTree
from coatstream.telemetry.identity import FIRST, Lineage, worker_name
from coatstream.telemetry.ledger import DropReason, Ledger
from coatstream.telemetry.metrics import Metrics
from coatstream.telemetry.outages import Outages
from coatstream.telemetry.status import Status
from coatstream.telemetry.telemetry import Telemetry
from coatstream.web.app import make_app
from coatstream.web.server import link, serve

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
        self._queues, keys = queues_of(settings), fleet_keys(settings)
        self._fences = keys.fences
        self.ledger = Ledger(camera.name for camera in settings.cameras)
        self.status = Status(stall_after=settings.batch.timeout)
        self.metrics = Metrics(CollectorRegistry())
        self.reading = False  # True from the first source on: before that there is nothing to drain
        self.drained = False  # True once everything that was read has its outcome
        self._stuck: list[str] = []
        self._drain_ends = 0.0  # monotonic seconds, from `_begin_drain`
        self._log = structlog.get_logger("service")
        self._outages = Outages(self.status, self.metrics, reading=lambda: self.reading)
        telemetry = Telemetry(settings, self.worker, lineage, self.ledger, self.status, self.metrics, self._outages)
        self.cameras = CameraManager(telemetry, keys, time_left=self._time_left)
        self.queue = QueueConsumer(telemetry, self._queues, publisher=self._publisher)

    async def run(self, stop: asyncio.Event) -> None:
        """Start, work until `stop` is set, drain. `drained` tells how it went."""
        settings = self._settings
        self._expose()
        async with AsyncExitStack() as stack:
            app = make_app(self.metrics.registry, self.status, cameras=self.cameras.documents)
            port = await stack.enter_async_context(serve(app, settings.http, port_before=self._lineage.port))
            self._log.info("listening", http=link(settings.http.host, port), worker=self.worker)
            await self._reach_redis()
            engine = await asyncio.to_thread(self._load, self.cameras.model(), settings.batch)
            fork_server = stack.enter_context(ForkServer(engine.spec))
            if settings.cameras:
                fork_server.start()  # so early that it is ready when the model is warm
            engines = stack.enter_context(self._threads(engine.streams, "engine"))
            policy = await self._warm_up(engine, engines)
            room = self.cameras.room(policy.stats().cost.rate)
            stack.enter_context(self.queue.monitored())
            stack.enter_context(self.queue.leasing())
            event_publisher = await stack.enter_async_context(self.cameras.speaking())
            # Room for all that the queues read ahead, so that what waits there is in turn among all their sources.
            mailbox = Mailbox(max(settings.batch.max_size, self.queue.prefetch), on_replaced=self._replaced)
            pump = await stack.enter_async_context(self._pumping(mailbox, engine, engines, policy))
            self._on_warm(port)
            intake = await stack.enter_async_context(self._taking_in(mailbox, engine))
            queues = intake.names
            sharing = self.cameras.sharing(event_publisher, intake, engine, fork_server, room=room)
            shared = await stack.enter_async_context(sharing)
            self.status.warm()
            self._log.info("ready", queues=len(queues), cameras=len(settings.cameras))
            self._on_ready(Ready(port, engine, self.ledger))
            try:
                await _first(
                    stop.wait(),
                    intake.finished(more=lambda: not shared.finished),
                    asyncio.shield(pump),
                    self.cameras.ticking(),
                )
            finally:
                self._begin_drain()
                for name in queues:  # cameras go on until others have them
                    intake.remove(name)
        self._log.info("stopped", drained=self.drained, in_flight=self.ledger.total().in_flight)

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
                self._outages.down("start", trouble)
                await asyncio.sleep(max(RETRY.delay(attempt, rng), SLOW_RETRY if trouble.slow else 0.0))
            else:
                return

    def _check_redis(self) -> None:
        settings = self._settings
        with connect(settings.redis) as client:
            server = check_server(client, settings.redis)
            silent = check_usage(client, settings)
            self.queue.succeed(client)
        if silent:
            self._log.warning("the Redis user may not publish to the channels of labels: only the streams are written")
        self._outages.up("start")
        self._log.info("redis", server=server, url=address(settings.redis))

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
        self.metrics.registry.register(BatchCollector(policy.stats))
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
                holdings=self.queue.holdings,
                ledger=self.ledger,
                metrics=self.metrics,
                on_published=self.cameras.published,
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
        intake = Intake(
            mailbox, self.ledger, self.status, on_state=self.cameras.on_state, on_ended=self.cameras.on_ended
        )
        self.reading = True
        with ExitStack() as connections:
            settlers = self.queue.take_in(intake, engine, connections)
            try:
                yield intake
            finally:
                self._stuck = await intake.halt(within=settings.drain.timeout * HALT_SHARE)
                for settler in settlers:
                    settler.give_up()
                if self._stuck:
                    self._log.error("sources did not stop and are left behind", sources=self._stuck)

    def _time_left(self) -> float:
        """Seconds of the drain."""
        return max(0.0, self._drain_ends - time.monotonic())

    def _inference(self, engine: Engine) -> Inference:
        return Inference(
            engine,
            policies=self.cameras.policies,
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
            fences=self._fences,
        )
        return Publisher(settler, **self._outages.of(name))

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


async def _first(*waits: Awaitable[object]) -> None:
    """Wait for the first of them, drop the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()
