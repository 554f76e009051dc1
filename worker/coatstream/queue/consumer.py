"""The queue half of a worker: its place in the consumer groups, its leases on entries, its readers.

Puts together what decides, and decides nothing itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import structlog

from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue, by_slot
from coatstream.broker.location import location
from coatstream.engine.protocol import Engine
from coatstream.errors import REDIS_TROUBLE, DeadReason, EngineBroken, RedisRefuses
from coatstream.frames.model import ModelInfo
from coatstream.frames.resizing import prepare
from coatstream.pipeline.holdings import Holdings
from coatstream.pipeline.intake import Intake
from coatstream.pipeline.source import Source
from coatstream.pipeline.threads import in_thread
from coatstream.queue.group import ConsumerGroup
from coatstream.queue.heartbeat import BEATS_A_LEASE, Heartbeat
from coatstream.queue.monitor import Monitor
from coatstream.queue.reader import EntryReader
from coatstream.queue.source import QueueSource
from coatstream.results.publisher import Publisher
from coatstream.settings.model import RedisSettings
from coatstream.telemetry.telemetry import Telemetry


class QueueConsumer:
    """Does nothing where `queue.enabled` is false.

    holdings   entries that were read and are not settled
    publisher  makes one with a connection and a name of its own
    """

    def __init__(
        self,
        telemetry: Telemetry,
        queues: Sequence[Queue],
        *,
        publisher: Callable[[Client, ModelInfo, str], Publisher],
    ) -> None:
        self.holdings = Holdings()
        self._settings = telemetry.settings
        self._worker = telemetry.worker
        self._lineage = telemetry.lineage
        self._ledger = telemetry.ledger
        self._status = telemetry.status
        self._metrics = telemetry.metrics
        self._outages = telemetry.outages
        self._labels = queues[0].labels  # where those of cameras go
        self._queues = queues if telemetry.settings.queue.enabled else ()
        self._publisher = publisher
        self._log = structlog.get_logger("service")

    @property
    def prefetch(self) -> int:
        """Entries that are read ahead."""
        return self._settings.queue.prefetch or 2 * self._settings.batch.max_size

    def succeed(self, client: Client) -> None:
        """Join, and hand back what workers held that are dead for certain: others need not wait for `min_idle`, nor for
        this one's model.
        """
        if not self._queues:
            return
        groups = self._groups(client, self._queues)
        for group in groups:
            group.join()
        for dead in self._lineage.predecessors:
            handed_back = sum(group.inherit(dead) for group in groups)
            self._log.info("entries of a worker that crashed can be taken", worker=dead, entries=handed_back)

    @contextmanager
    def monitored(self) -> Iterator[None]:
        with connect(self._settings.redis) as client:
            reports = self._outages.of("monitor")
            monitor = Monitor(
                client,
                self._queues,
                self._metrics,
                labels=self._labels,
                on_up=reports["on_success"],
                on_down=reports["on_trouble"],
            )
            monitor.look()  # before the first scrape can ask
            with in_thread(monitor.run, "monitor"):
                yield

    @contextmanager
    def leasing(self) -> Iterator[None]:
        """Leases are renewed until all that was read has its outcome; then this worker leaves its groups."""
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
            self.holdings,
            min_idle=self._settings.queue.min_idle,
            stalled=self._status.unhealthy_because,
            count=self._metrics.count,
            **self._outages.of("leases"),
        )

    def _brisk(self) -> RedisSettings:
        """For the heartbeat: one node of a cluster that hangs must not cost the others' leases their renewal."""
        redis, longest = self._settings.redis, self._settings.queue.min_idle / BEATS_A_LEASE / 2
        timeouts = {"socket_timeout": redis.socket_timeout, "connect_timeout": redis.connect_timeout}
        return redis.model_copy(update={name: min(seconds, longest) for name, seconds in timeouts.items()})

    def _leave(self, groups: Sequence[ConsumerGroup], *, blameless: bool) -> None:
        """What is unfinished now, this worker will never finish. `blameless`: and that is no frame's doing."""
        if not self._status.redis_is_up():
            self._log.warning("Redis is away: what this worker still held is taken over by others after queue.min_idle")
            return
        try:
            for group in groups:
                group.release(self.holdings.entries(group.queue.stream), begun=not blameless)
                group.leave()
        except REDIS_TROUBLE as trouble:
            self._log.warning("the consumer group could not be left", trouble=str(trouble))

    def take_in(self, intake: Intake, engine: Engine, connections: ExitStack) -> list[Publisher]:
        """One source for all queues; on a cluster one for each slot, since one read cannot span two.

        Returns who settles what can never be labelled: at the end they must give up.
        """
        if not self._queues:
            return []
        together = by_slot(self._queues) if location(self._settings.redis).kind == "cluster" else [self._queues]
        settlers = []
        for number, queues in enumerate(together):
            name = f"queue/{number}" if number else "queue"
            reading, settling = (connections.enter_context(connect(self._settings.redis)) for _ in range(2))
            settler = self._publisher(settling, engine.info, name)
            reader = self._reader(reading, queues, prefetch=max(1, self.prefetch // len(together)))
            intake.add(self._source(name, reader, settler, engine))
            settlers.append(settler)
        return settlers

    def _groups(self, client: Client, queues: Sequence[Queue]) -> list[ConsumerGroup]:
        return [ConsumerGroup(client, queue, self._settings.queue, consumer=self._worker) for queue in queues]

    def _reader(self, client: Client, queues: Sequence[Queue], *, prefetch: int) -> EntryReader:
        return EntryReader(
            client,
            self._groups(client, queues),
            consumer=self._worker,
            prefetch=prefetch,
            block=self._settings.redis.socket_timeout / 5,
            holdings=self.holdings,
            count=self._metrics.count,
            on_buried=self._delivered_too_often,
        )

    def _source(self, name: str, reader: EntryReader, settler: Publisher, engine: Engine) -> Source:
        return QueueSource(
            reader,
            self._settings.queue,
            name=name,
            prepare=partial(prepare, spec=engine.spec),
            spec=engine.spec,
            settler=settler,
            holdings=self.holdings,
            ledger=self._ledger,
            at_work=partial(self._status.at_work, "a picture"),
            observe=self._metrics.observe,
            count=self._metrics.count,
            **self._outages.of(f"{name} reader"),
        )

    def _delivered_too_often(self, source: str) -> None:
        self._log.error("a frame that no worker could finish is a dead letter now", source=source)
        self._ledger.received(source)
        self._ledger.dead(source, DeadReason.DELIVERY_LIMIT)
