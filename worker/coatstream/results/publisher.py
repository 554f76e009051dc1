"""Publishes one batch after the other, and does not give up while Redis is away.

Finished results are kept here and tried again; the batch behind them waits, and so the queue is read no further.
"""

import threading
import time
from collections.abc import Callable, Sequence

from coatstream.errors import RedisRefuses, RedisUnavailable, Retries
from coatstream.results.outcomes import Outcome
from coatstream.results.settler import Settlement, Settler
from coatstream.telemetry.outages import RedisHealth


class Publisher:
    """Blocking; called from one thread at a time."""

    def __init__(self, settler: Settler, health: RedisHealth, *, clock: Callable[[], float] = time.time) -> None:
        self._settler = settler
        self._health = health
        self._clock = clock
        self._given_up = threading.Event()

    def publish(self, outcomes: Sequence[Outcome]) -> tuple[Settlement, float]:
        """Settle the batch; also when (Unix seconds), as its documents say.

        Raises RedisUnavailable after `give_up`, and RedisRefuses where Redis refuses again and again.
        """
        retries = Retries()
        while True:
            now = self._clock()
            try:
                settlement = self._settler.settle(outcomes, now=now)
            except (RedisUnavailable, RedisRefuses) as trouble:
                self._health.down(trouble)
                delay = retries.failed(trouble)
                if retries.refused or self._given_up.wait(delay):
                    raise
            else:
                self._health.up()
                return settlement, now

    def give_up(self) -> None:
        """The drain's time is over: end the present wait. What is unsettled stays in the queue."""
        self._given_up.set()
