"""Keeps the leases on what this process holds alive, as long as it makes progress; and tidies the group up.

A lease must not outlive the work on its entry. So nothing is renewed once a batch or a picture has been in hand for too
long (the same moment in which /healthz answers 503): other workers then take the entries over.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from coatstream.errors import REDIS_TROUBLE
from coatstream.pipeline.holdings import Holdings
from coatstream.queue.group import ConsumerGroup
from coatstream.queue.observer import QueueObserver
from coatstream.telemetry.outages import RedisHealth

LONGEST_BEAT = 3.0  # seconds between two renewals
BEATS_A_LEASE = 4  # and never fewer than so many within `min_idle`: three may be lost
AFTER_TROUBLE = 0.5  # seconds at least until the next round, however short the lease: a server in trouble is left alone
REAP_EVERY = 10.0  # seconds
REAP_AFTER = 4  # times `min_idle` of silence, after which a consumer without entries is removed


class Heartbeat:
    """Runs in a thread of its own until `stop`.

    stalled   why this process makes no progress; empty: it does
    observer  is told of leases that were lost
    health    is told of each call that failed, and of each round that went through
    """

    def __init__(
        self,
        groups: Sequence[ConsumerGroup],
        holdings: Holdings,
        observer: QueueObserver,
        health: RedisHealth,
        *,
        min_idle: float,
        stalled: Callable[[], list[str]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._groups = groups
        self._holdings = holdings
        self._min_idle = min_idle
        self._stalled = stalled
        self._observer = observer
        self._health = health
        self._monotonic = monotonic
        self._log = structlog.get_logger("leases")
        self._silent = False
        self._reaped_at = float("-inf")
        self._doubtful: dict[str, set[str]] = {}  # stream -> entries that were not this worker's in the last round

    @property
    def every(self) -> float:
        """Seconds between two rounds."""
        return min(LONGEST_BEAT, self._min_idle / BEATS_A_LEASE)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            well = self.beat()
            stop.wait(self.every if well else max(self.every, AFTER_TROUBLE))

    def beat(self) -> bool:
        """One round: renew every lease, now and then remove consumers that vanished. False: Redis is in trouble."""
        if self._is_stalled():
            return True
        well = {group: self._goes_through(partial(self._renew, group)) for group in self._groups}
        self._groups = sorted(self._groups, key=well.__getitem__, reverse=True)  # those in trouble last, next time
        all_well = all(well.values()) and self._goes_through(self._reap)
        if all_well:
            self._health.up()
        return all_well

    def _goes_through(self, step: Callable[[], None]) -> bool:
        """Trouble with one queue (its node is away, its key is wrong) must not cost the others their leases."""
        try:
            step()
        except REDIS_TROUBLE as trouble:
            self._health.down(trouble)
            return False
        return True

    def _is_stalled(self) -> bool:
        reasons = self._stalled()
        if reasons and not self._silent:
            self._log.error(
                "no progress: leases are not renewed, other workers will take the frames", reason=reasons[0]
            )
        self._silent = bool(reasons)
        return self._silent

    def _renew(self, group: ConsumerGroup) -> None:
        """A settled entry leaves the server a moment before the holdings: so a lease counts as lost only when two
        rounds in a row find it gone.
        """
        stream = group.queue.stream
        not_ours = set(group.beat(self._holdings.entries(stream)))
        lost = not_ours & self._doubtful.get(stream, set()) & self._holdings.entries(stream)
        self._doubtful[stream] = not_ours - lost
        if lost:
            self._holdings.remove(stream, lost)
            self._observer.count("leases_lost", len(lost))
            self._log.warning("entries went to another worker, or were deleted", stream=stream, entries=len(lost))

    def _reap(self) -> None:
        now = self._monotonic()
        if now - self._reaped_at < REAP_EVERY:
            return
        self._reaped_at = now
        for group in self._groups:
            group.reap(REAP_AFTER * self._min_idle)
