"""The composition root: builds everything, enters it in order, leaves it in reverse. Leaving is the drain.

The only module that sees all the others.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog

from coatstream import __version__
from coatstream.broker.connection import address, connect
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.keys import queues_of
from coatstream.broker.picture_keys import picture_keys
from coatstream.broker.preflight import check, dangers, server_infos
from coatstream.cameras.manager import CameraManager, LeasedCameras
from coatstream.engine.cache import Cache
from coatstream.engine.loading import load_engine
from coatstream.engine.memory import return_what_is_free
from coatstream.engine.protocol import Engine
from coatstream.errors import RedisUnavailable, Retries
from coatstream.pipeline.accounting import Accounting
from coatstream.pipeline.cost import BatchCost, measure_costs
from coatstream.pipeline.inference import Inference, Keep
from coatstream.pipeline.intake import Intake
from coatstream.pipeline.mailbox import Mailbox
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.policy import BatchPolicy
from coatstream.pipeline.pump import Pump, WarmEngine
from coatstream.pipeline.remembered import RememberedCosts
from coatstream.pipeline.threads import OBSERVERS, in_thread
from coatstream.queue.consumer import QueueConsumer
from coatstream.queue.source import QueueSource
from coatstream.results.metrics import SettlementMetrics
from coatstream.results.publisher import Publisher
from coatstream.results.settler import Settler, SettlingTerms
from coatstream.results.showing import PreviewPublisher
from coatstream.results.training.folder import TrainingFolder
from coatstream.results.training.metrics import TrainingCollector
from coatstream.settings.model import BatchSettings, ModelSettings, SettingsTree
from coatstream.telemetry.identity import FIRST, Lineage
from coatstream.telemetry.telemetry import Telemetry
from coatstream.web.app import serve_all
from coatstream.web.reporting import WorkerFacts, reporting
from coatstream.web.server import link

HALT_SHARE = 0.5  # of the drain's time for sources to stop; the pump publishes meanwhile and has the rest


@dataclass(frozen=True, slots=True)
class Ready:
    """What a service tells its caller once it works. `port` is HTTP's."""

    port: int
    engine: Engine


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
        """`on_warm` is told HTTP's port just before the first source is opened, `on_ready` once all of them are."""
        self.telemetry = Telemetry.of(settings, worker, lineage)
        self.drained = False  # True once everything that was read has its outcome
        self._settings = settings
        self._on_warm = on_warm
        self._on_ready = on_ready
        self._load = load
        self._stuck: list[str] = []  # sources that did not stop
        self._drain_ends = 0.0  # monotonic seconds, once the drain has begun
        self._log = structlog.get_logger("service")
        registry, keys = self.telemetry.metrics.registry, fleet_keys(settings)
        self._metrics = PipelineMetrics(registry)
        self._accounting = Accounting(self.telemetry.ledger, SettlementMetrics(registry))
        self._terms = SettlingTerms(
            queues_of(settings), settings.queue, settings.results, self.telemetry.worker, keys.fences
        )
        self.queue = QueueConsumer(settings, self.telemetry, self._metrics, self._accounting, self._terms)
        self.cameras = CameraManager(settings, self.telemetry, self._metrics, keys, time_left=self._time_left)
        self._facts = WorkerFacts(self.telemetry, self._metrics, self.cameras.reports)

    async def run(self, stop: asyncio.Event) -> None:
        """Start, work until `stop` is set, drain. `drained` tells how it went."""
        async with AsyncExitStack() as drain:  # leaving it, in reverse, is the drain
            port = await drain.enter_async_context(self._http())
            reached = await self._reach_redis(within=self._settings.redis.start_timeout)
            drain.enter_context(reporting(self._settings, self._facts))  # to the page of any worker
            engine = await asyncio.to_thread(self._load, self.cameras.model(), self._settings.batch)
            processes = drain.enter_context(self.cameras.processes(engine.spec))  # they start while the model warms up
            warm = await drain.enter_async_context(self._warmed_up(engine))
            if not reached:
                await self._reach_redis(within=math.inf)
            intake = Intake(self._mailbox(), self.telemetry)
            drain.enter_context(self.queue.membership())  # leases on entries outlive the last publish,
            cameras = await drain.enter_async_context(self.cameras.leases(warm, processes, intake))  # these as well
            keep = drain.enter_context(self._keeping())  # frames for training, where they are wanted
            pump = await drain.enter_async_context(self._pumping(warm, intake.mailbox, cameras, keep))
            drain.enter_context(self._showing())  # previews, while they are wished for
            self._on_warm(port)
            queues = await drain.enter_async_context(self._reading(engine, intake))
            await drain.enter_async_context(cameras.reading())  # until other workers have opened them
            drain.enter_context(self.queue.reading_into(intake, queues))  # until the drain begins
            drain.enter_context(self._working(Ready(port, engine), len(queues)))
            await _first(stop.wait(), intake.finished(more=cameras.go_on), asyncio.shield(pump), cameras.ticking())
        self._log.info("stopped", drained=self.drained, **self.telemetry.ledger.total().figures())

    # ---- the start

    @asynccontextmanager
    async def _http(self) -> AsyncIterator[int]:
        """Probes, metrics and the API answer from here on; yields the port."""
        telemetry, http = self.telemetry, self._settings.http
        telemetry.metrics.process()
        telemetry.metrics.build(version=__version__, worker=telemetry.worker, restarts=telemetry.lineage.restarts)
        telemetry.metrics.expose(telemetry.ledger, telemetry.status)
        async with serve_all(
            self._settings, telemetry.metrics, telemetry.status, port_before=telemetry.lineage.port
        ) as port:
            self._log.info("listening", http=link(http.host, port), worker=telemetry.worker)
            yield port

    async def _reach_redis(self, *, within: float) -> bool:
        """Whether Redis was reached in so many seconds. False: not yet, and the worker waits for it (0; and after a
        crash, as the worker before it would have). Raises RedisUnavailable where it does not wait.
        """
        waits = within in (0.0, math.inf) or self.telemetry.lineage.restarts > 0
        retries, deadline = Retries(), time.monotonic() + within
        while True:
            try:
                await asyncio.to_thread(self._check_redis)
                return True
            except RedisUnavailable as trouble:
                self._log_absence(trouble, first=retries.failures == 0)
                delay = retries.failed(trouble)
                if waits and within < math.inf:
                    return False
                if time.monotonic() + delay > deadline:
                    raise
                await asyncio.sleep(delay)

    def _log_absence(self, trouble: RedisUnavailable, *, first: bool) -> None:
        self.telemetry.outages.down("start", trouble)
        if first:
            timeout = self._settings.redis.start_timeout
            self._log.warning("waiting for Redis", trouble=str(trouble), at_most=timeout or "for ever")

    def _check_redis(self) -> None:
        settings = self._settings
        with connect(settings.redis) as client:
            server, silent = check(client, settings)
            for danger in dangers(server_infos(client)):
                self._log.warning("Redis may lose frames", why=danger)
            self.queue.join(client)
        if silent:
            self._log.warning("the Redis user may not publish to the channels of labels: only the streams are written")
        self.telemetry.outages.up("start")
        self._log.info("redis", server=server, url=address(settings.redis))

    @asynccontextmanager
    async def _warmed_up(self, engine: Engine) -> AsyncIterator[WarmEngine]:
        """Warm, measured, and hence how large its batches shall be."""
        started = time.monotonic()
        with self._threads(engine.streams, "engine") as threads:
            await asyncio.get_running_loop().run_in_executor(threads, engine.warm_up)
            remembered = RememberedCosts(engine, self._cache_of(engine))
            cost = remembered.at_start(await asyncio.to_thread(self._costs, engine, threads))
            policy = BatchPolicy.from_settings(self._settings.batch, cost)
            return_what_is_free()
            self._metrics.warm(engine, policy)
            self.telemetry.status.loaded()
            self._facts.model, self._facts.batches = engine.info, policy.stats
            self._log_model(engine, policy, time.monotonic() - started)
            warm = WarmEngine(engine, threads, policy)
            measuring = asyncio.create_task(remembered.measure_when_idle(warm, self.telemetry.ledger))
            try:
                yield warm
            finally:
                measuring.cancel()

    def _cache_of(self, engine: Engine) -> Cache | None:
        """What an engine without a model does is no fact of this machine."""
        return None if engine.info.weights == "none" else Cache(self._settings.model.cache)

    def _log_model(self, engine: Engine, policy: BatchPolicy, seconds: float) -> None:
        info = engine.info
        self._log.info(
            "model warm",
            name=info.name,
            weights=info.weights,
            engine=info.engine,
            precision=info.precision,
            device=info.device,
            streams=engine.streams,
            frames_per_s=round(policy.stats().cost.rate, 1),
            full_batch=policy.cap,
            seconds=round(seconds, 2),
        )
        if info.weights == "random":
            self._log.warning("the weights are random: the labels mean nothing, this is for load tests only")

    def _costs(self, engine: Engine, threads: ThreadPoolExecutor) -> BatchCost:
        """Measured; but what a noop engine sleeps for is known, and may be a minute."""
        delay = self._settings.model.noop_delay
        if self._settings.model.engine == "noop" and delay:
            return BatchCost.of(dict.fromkeys(engine.prepared, delay), prepared=engine.prepared, streams=engine.streams)
        return measure_costs(engine, pool=threads)

    def _mailbox(self) -> Mailbox:
        """With room for all that the queues read ahead, so that what waits there is in turn among all their sources."""
        return Mailbox(max(self._settings.batch.max_size, self.queue.prefetch), self.telemetry.ledger)

    # ---- the work, and the drain

    @asynccontextmanager
    async def _pumping(
        self, engine: WarmEngine, mailbox: Mailbox, cameras: LeasedCameras, keep: Keep | None
    ) -> AsyncIterator[asyncio.Task[None]]:
        """From mailbox to Redis. On leaving, all that is in the mailbox is published."""
        inference = Inference(
            engine.engine,
            policies=cameras.policies,
            shown=self._settings.model.top_k,
            keep=keep,
            metrics=self._metrics,
            status=self.telemetry.status,
        )
        with connect(self._settings.redis) as client, self._threads(1, "publish") as publishing:
            settler = Settler(client, self._terms, model=engine.engine.info, name="pump")
            publisher = Publisher(settler, self.telemetry.outages.of("pump"))
            pump = Pump(
                mailbox,
                engine,
                inference,
                publisher,
                publishing=publishing,
                accounting=self._accounting,
                metrics=self._metrics,
                on_published=cameras.published,
            )
            task = asyncio.create_task(pump.run(), name="pump")
            task.add_done_callback(lambda _: mailbox.close())  # a source that waits for room would wait for ever
            try:
                yield task
            finally:
                mailbox.close()
                await self._empty(task, publisher)

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
                in_flight=self.telemetry.ledger.total().in_flight,
            )
        elif pump.exception() is None:
            self.drained = self.telemetry.ledger.total().in_flight == 0 and not self._stuck

    @contextmanager
    def _keeping(self) -> Iterator[Keep | None]:
        training = self._settings.training
        if training.folder is None:
            yield None
            return
        worker, find = self.telemetry.worker, self.cameras.previews.exact
        folder = TrainingFolder(training, training.folder.expanduser(), worker=worker, find=find)
        self.telemetry.metrics.registry.register(TrainingCollector(folder.stats))
        with in_thread(folder.run, "training", leave_after=1.0):
            yield folder.look

    @contextmanager
    def _showing(self) -> Iterator[None]:
        with connect(self._settings.redis) as client:
            keys = picture_keys(self._settings)
            previews = PreviewPublisher(client, keys, (self.cameras.previews, self.queue.previews))
            with in_thread(previews.run, "previews", leave_after=OBSERVERS):
                yield

    @asynccontextmanager
    async def _reading(self, engine: Engine, intake: Intake) -> AsyncIterator[list[QueueSource]]:
        """Sources may be added to the intake; yields the queue's. On leaving, the threads of all sources are stopped,
        those of cameras too.
        """
        with self.queue.sources(engine) as queues:
            self.telemetry.status.reading()
            try:
                yield queues
            finally:
                self._stuck = await intake.halt(within=self._settings.drain.timeout * HALT_SHARE)
                if self._stuck:
                    self._log.error("sources did not stop and are left behind", sources=self._stuck)

    @contextmanager
    def _working(self, ready: Ready, queues: int) -> Iterator[None]:
        """Ready from here on. Leaving is the beginning of the drain."""
        status = self.telemetry.status
        status.warm()
        self._log.info("ready", queues=queues, cameras=len(self._settings.cameras))
        self._on_ready(ready)
        try:
            yield
        finally:
            status.draining()
            at_most = self._settings.drain.timeout
            self._drain_ends = time.monotonic() + at_most
            self._log.info("draining", in_flight=self.telemetry.ledger.total().in_flight, at_most=at_most)

    def _time_left(self) -> float:
        """Seconds of the drain."""
        return max(0.0, self._drain_ends - time.monotonic())

    @contextmanager
    def _threads(self, count: int, name: str) -> Iterator[ThreadPoolExecutor]:
        """A pool whose threads are waited for only where they are known to come back."""
        pool = ThreadPoolExecutor(count, name)
        try:
            yield pool
        finally:
            pool.shutdown(wait=self.drained, cancel_futures=True)


async def _first(*waits: Awaitable[object]) -> None:
    """Wait for the first of them, drop the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()
