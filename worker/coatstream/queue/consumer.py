"""The queue half of a worker: its place in the consumer groups, its leases on entries, its sources.

Puts together what decides, and decides nothing itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import structlog

from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue, by_slot
from coatstream.broker.location import location
from coatstream.engine.protocol import Engine
from coatstream.errors import REDIS_TROUBLE, EngineBroken, RedisRefuses
from coatstream.frames.resizing import prepare
from coatstream.pipeline.accounting import Accounting
from coatstream.pipeline.intake import Intake
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.threads import OBSERVERS, in_thread
from coatstream.queue.decoding import EntryDecoder
from coatstream.queue.group import ConsumerGroup
from coatstream.queue.heartbeat import BEATS_A_LEASE, Heartbeat
from coatstream.queue.metrics import QueueMetrics
from coatstream.queue.monitor import Monitor
from coatstream.queue.observer import QueueReports
from coatstream.queue.previews import QueuePreviews
from coatstream.queue.reader import EntryReader
from coatstream.queue.server_clock import ServerClock
from coatstream.queue.source import QueueSource
from coatstream.results.publisher import Publisher
from coatstream.results.settler import Settler, SettlingTerms
from coatstream.settings.model import RedisSettings, SettingsTree
from coatstream.telemetry.telemetry import Telemetry


class QueueConsumer:
    """Reads nothing where `queue.enabled` is false. `previews`: of its sources, where they are wished for."""

    def __init__(
        self,
        settings: SettingsTree,
        telemetry: Telemetry,
        metrics: PipelineMetrics,
        accounting: Accounting,
        terms: SettlingTerms,
    ) -> None:
        self.previews = QueuePreviews()
        self._settings = settings
        self._telemetry = telemetry
        self._stages = metrics
        self._metrics = QueueMetrics(telemetry.metrics.registry)
        self._accounting = accounting
        self._observer = QueueReports(self._metrics, accounting)
        self._terms = terms
        self._queues = terms.queues if settings.queue.enabled else ()
        self._server_clock = ServerClock()
        self._log = structlog.get_logger("service")

    @property
    def prefetch(self) -> int:
        """Entries that are read ahead."""
        return self._settings.queue.prefetch or 2 * self._settings.batch.max_size

    def join(self, client: Client) -> None:
        """Join the groups, and hand back what crashed workers held: others need not wait for `min_idle` then, nor until
        this worker's model is loaded.
        """
        if not self._queues:
            return
        groups = self._groups(client, self._queues)
        for group in groups:
            group.join()
        for dead in self._telemetry.lineage.predecessors:
            handed_back = sum(group.take_over_from(dead) for group in groups)
            self._log.info("entries of a worker that crashed can be taken", worker=dead, entries=handed_back)

    # ---- the leases

    @contextmanager
    def membership(self) -> Iterator[None]:
        """The queues are watched, and leases renewed, until all that was read has its outcome; then this worker leaves
        its groups.
        """
        with self._monitored(), self._leasing():
            yield

    @contextmanager
    def _monitored(self) -> Iterator[None]:
        with connect(self._settings.redis) as client:
            labels = self._terms.queues[0].labels  # where those of cameras go
            health = self._telemetry.outages.of("monitor")
            clock = self._server_clock
            monitor = Monitor(client, self._queues, self._metrics, health, labels=labels, clock=clock)
            monitor.look()  # before the first scrape can ask
            with in_thread(monitor.run, "monitor", leave_after=OBSERVERS):
                yield

    @contextmanager
    def _leasing(self) -> Iterator[None]:
        if not self._queues:
            yield
            return
        blameless = False
        with connect(self._brisk()) as client:
            groups = self._groups(client, self._queues)
            try:
                with in_thread(self._heartbeat(groups).run, "leases"):
                    yield
            except (EngineBroken, RedisRefuses):
                blameless = True
                raise
            finally:
                self._leave(groups, blameless=blameless)

    def _heartbeat(self, groups: Sequence[ConsumerGroup]) -> Heartbeat:
        return Heartbeat(
            groups,
            self._accounting.holdings,
            self._observer,
            self._telemetry.outages.of("leases"),
            min_idle=self._settings.queue.min_idle,
            stalled=self._telemetry.status.unhealthy_because,
        )

    def _brisk(self) -> RedisSettings:
        """For the heartbeat: one node of a cluster that hangs must not cost the others' leases their renewal."""
        redis, longest = self._settings.redis, self._settings.queue.min_idle / BEATS_A_LEASE / 2
        timeouts = {"socket_timeout": redis.socket_timeout, "connect_timeout": redis.connect_timeout}
        return redis.model_copy(update={name: min(seconds, longest) for name, seconds in timeouts.items()})

    def _leave(self, groups: Sequence[ConsumerGroup], *, blameless: bool) -> None:
        """Hand back what is unfinished. `blameless`: no frame is the reason, so this delivery does not count."""
        if not self._telemetry.status.redis_is_up():
            self._log.warning("Redis is away: other workers take over what this one held after queue.min_idle")
            return
        try:
            for group in groups:
                group.release(self._accounting.holdings.entries(group.queue.stream), begun=not blameless)
                group.leave()
        except REDIS_TROUBLE as trouble:
            self._log.warning("the consumer group could not be left", trouble=str(trouble))

    # ---- the sources

    @contextmanager
    def sources(self, engine: Engine) -> Iterator[list[QueueSource]]:
        """One source for all queues; on a cluster one for each slot, since one read cannot span two.

        Their connections are closed on leaving: the threads that read are stopped by then, or are left behind and try
        no longer to settle anything.
        """
        together = self._together()
        prefetch = max(1, self.prefetch // max(1, len(together)))
        decode = EntryDecoder(
            self._settings.queue,
            partial(prepare, spec=engine.spec),
            self._telemetry.status,
            self._stages,
            self._observer,
            previews=self.previews,
            spec=engine.spec,
            clock=self._server_clock,
        )
        with ExitStack() as connections:
            sources = []
            for number, queues in enumerate(together):
                name = f"queue/{number}" if number else "queue"
                reading, settling = (connections.enter_context(connect(self._settings.redis)) for _ in range(2))
                settler = Settler(settling, self._terms, model=engine.info, name=name)
                publisher = Publisher(settler, self._telemetry.outages.of(name))
                connections.callback(publisher.give_up)
                reader = self._reader(reading, queues, prefetch=prefetch)
                health = self._telemetry.outages.of(f"{name} reader")
                sources.append(QueueSource(name, reader, decode, publisher, self._accounting, health))
            yield sources

    @contextmanager
    def reading_into(self, intake: Intake, sources: Sequence[QueueSource]) -> Iterator[None]:
        """The sources are read. On leaving they are told to stop, and are not waited for."""
        for source in sources:
            intake.add(source)
        try:
            yield
        finally:
            for source in sources:
                intake.remove(source.name)

    def _together(self) -> Sequence[Sequence[Queue]]:
        """The queues of each source."""
        if not self._queues:
            return []
        return by_slot(self._queues) if location(self._settings.redis).kind == "cluster" else [self._queues]

    def _groups(self, client: Client, queues: Sequence[Queue]) -> list[ConsumerGroup]:
        return [ConsumerGroup(client, queue, self._settings.queue, consumer=self._telemetry.worker) for queue in queues]

    def _reader(self, client: Client, queues: Sequence[Queue], *, prefetch: int) -> EntryReader:
        return EntryReader(
            self._groups(client, queues),
            self._accounting.holdings,
            self._observer,
            prefetch=prefetch,
            block=self._settings.redis.socket_timeout / 5,
        )
