"""The composition root: builds everything, enters it in order, leaves it in reverse. Leaving is the drain.

The only module that sees all the others.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import structlog
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry

from config.settings import BatchSettings, CameraSettings, ModelSettings, SettingsTree
from worker import __version__
from worker.broker.connection import Client, address, check_keys, check_server, connect
from worker.broker.publisher import Publisher
from worker.broker.settler import Settler
from worker.engine import Engine, ModelInfo, load_engine
from worker.errors import BadFrame, RedisUnavailable
from worker.frames import Frame
from worker.identity import worker_name
from worker.image import prepare
from worker.inference import Inference
from worker.intake import Intake
from worker.ledger import DropReason, Ledger
from worker.mailbox import Mailbox
from worker.metrics import Metrics
from worker.monitor import Monitor
from worker.pipeline import Pipeline
from worker.sources import Source
from worker.sources.camera import Camera
from worker.sources.holdings import Holdings
from worker.sources.queue import QueueSource
from worker.status import Status
from worker.web.app import make_app
from worker.web.server import serve

STALL_AFTER = 60.0  # seconds in the engine after which /healthz says no
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
        on_ready: Callable[[Ready], None] = lambda ready: None,
        load: Callable[[ModelSettings, BatchSettings], Engine] = load_engine,
    ) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._load = load
        self.worker = worker_name()
        self.ledger = Ledger(camera.name for camera in settings.cameras)
        self.status = Status(stall_after=STALL_AFTER)
        self.metrics = Metrics(CollectorRegistry())
        self.reading = False  # True from the first source on: before that there is nothing to drain
        self.drained = False  # True once everything that was read has its outcome
        self._holdings = Holdings()
        self._stuck: list[str] = []
        self._drain_ends = 0.0  # monotonic seconds, from `_begin_drain`
        self._log = structlog.get_logger("service")

    async def run(self, stop: asyncio.Event) -> None:
        """Start, work until `stop` is set, drain. `drained` tells how it went."""
        settings = self._settings
        self._expose()
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(serve(make_app(self.metrics.registry, self.status), settings.http))
            self._log.info("listening", http=f"http://{settings.http.host}:{port}", worker=self.worker)
            await asyncio.to_thread(self._check_redis)
            engine = await asyncio.to_thread(self._load, settings.model, settings.batch)
            engines = stack.enter_context(self._threads(engine.streams, "engine"))
            await self._warm_up(engine, engines)
            stack.enter_context(self._monitored())
            mailbox = Mailbox(settings.batch.max_size, on_replaced=self._replaced)
            pump = await stack.enter_async_context(self._pumping(mailbox, engine, engines))
            intake = await stack.enter_async_context(self._taking_in(mailbox, engine))
            self.status.warm()
            self._log.info("ready", sources=intake.names)
            self._on_ready(Ready(port, engine, self.ledger))
            try:
                await _first(stop.wait(), intake.finished(), asyncio.shield(pump))
            finally:
                self._begin_drain()
        self._log.info("stopped", drained=self.drained, in_flight=self.ledger.total().in_flight)

    def _expose(self) -> None:
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.metrics.registry.register(collector)
        self.metrics.build(version=__version__, worker=self.worker)
        self.metrics.expose(self.ledger, self.status)

    def _check_redis(self) -> None:
        settings = self._settings
        with connect(settings.redis) as client:
            server = check_server(client, settings.redis)
            check_keys(client, settings.queue, settings.results)
        self._redis_up("start")
        self._log.info("redis", server=server, url=address(settings.redis))

    async def _warm_up(self, engine: Engine, engines: ThreadPoolExecutor) -> None:
        started = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(engines, engine.warm_up)
        info = engine.info
        self.metrics.model(info)
        self._log.info(
            "model warm",
            name=info.name,
            weights=info.weights,
            engine=info.engine,
            device=info.device,
            streams=engine.streams,
            seconds=round(time.monotonic() - started, 2),
        )
        if info.weights == "random":
            self._log.warning("the weights are random: the labels mean nothing, this is for load tests only")

    @contextmanager
    def _monitored(self) -> Iterator[None]:
        stop = threading.Event()
        with connect(self._settings.redis) as client:
            monitor = Monitor(
                client,
                self._settings.queue,
                self.metrics,
                on_up=partial(self._redis_up, "monitor"),
                on_down=partial(self._redis_down, "monitor"),
            )
            monitor.look()  # before the first scrape can ask
            thread = threading.Thread(target=monitor.run, args=(stop,), name="monitor", daemon=True)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join(timeout=1.0)

    @asynccontextmanager
    async def _pumping(
        self, mailbox: Mailbox, engine: Engine, engines: ThreadPoolExecutor
    ) -> AsyncIterator[asyncio.Task[None]]:
        with connect(self._settings.redis) as client, self._threads(1, "publish") as publishing:
            publisher = self._publisher(client, engine.info, "pump")
            pipeline = Pipeline(
                mailbox,
                self._inference(engine),
                publisher,
                batch=self._settings.batch,
                slots=engine.streams,
                engines=engines,
                publishing=publishing,
                holdings=self._holdings,
                ledger=self.ledger,
                metrics=self.metrics,
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
        done, _ = await asyncio.wait([pump], timeout=max(0.0, self._drain_ends - time.monotonic()))
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
        intake = Intake(mailbox, self.ledger, self.status)
        self.reading = True
        with connect(settings.redis) as reading, connect(settings.redis) as settling:
            undertaker = self._publisher(settling, engine.info, "queue")
            if settings.queue.enabled:
                intake.add(self._queue(reading, undertaker, engine))
            for camera in settings.cameras:
                intake.add(self._camera(camera, engine))
            try:
                yield intake
            finally:
                self._stuck = await intake.halt(within=settings.drain.timeout * HALT_SHARE)
                undertaker.give_up()
                if self._stuck:
                    self._log.error("sources did not stop and are left behind", sources=self._stuck)

    def _queue(self, client: Client, undertaker: Publisher, engine: Engine) -> Source:
        settings = self._settings
        return QueueSource(
            client,
            settings.queue,
            consumer=self.worker,
            prefetch=settings.queue.prefetch or 2 * settings.batch.max_size,
            block=settings.redis.socket_timeout / 5,
            prepare=partial(prepare, spec=engine.spec),
            undertaker=undertaker,
            holdings=self._holdings,
            ledger=self.ledger,
            observe=self.metrics.observe,
            on_trouble=lambda trouble: self.metrics.redis_errors.inc(),
        )

    def _camera(self, camera: CameraSettings, engine: Engine) -> Source:
        # A camera prepares in BGR and turns the small result, and crop mode `border` pads with the mean.
        mean = engine.spec.mean[::-1]
        return Camera(
            camera,
            prepare=partial(prepare, spec=replace(engine.spec, mean=mean)),
            observe=self.metrics.observe,
            on_bad=partial(self._bad_picture, camera.name),
        )

    def _bad_picture(self, camera: str, bad: BadFrame) -> None:
        self.ledger.received(camera)
        self.ledger.dead(camera, bad.reason)

    def _inference(self, engine: Engine) -> Inference:
        return Inference(
            engine,
            max_age={camera.name: camera.max_age for camera in self._settings.cameras if camera.max_age is not None},
            metrics=self.metrics,
            status=self.status,
        )

    def _publisher(self, client: Client, model: ModelInfo, name: str) -> Publisher:
        settings = self._settings
        settler = Settler(client, settings.queue, settings.results, model=model, worker=self.worker, name=name)
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

    def _redis_up(self, caller: str) -> None:
        if self.status.redis_up(caller) and self.reading:
            self._log.info("Redis is back")

    def _redis_down(self, caller: str, trouble: RedisUnavailable) -> None:
        self.metrics.redis_errors.inc()
        if self.status.redis_down(caller, str(trouble)):
            self._log.warning("Redis is away: finished labels are kept and tried again", trouble=str(trouble))


async def _first(*waits: Awaitable[object]) -> None:
    """Wait for the first of them, drop the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()
