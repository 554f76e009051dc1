"""Publishes one batch after the other, and does not give up while Redis is away.

Finished results are kept here and tried again; the batch behind them waits, and so the queue is read no further.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count

from coatstream.errors import SLOW_RETRY, Backoff, RedisRefuses, RedisUnavailable
from coatstream.results.outcomes import Outcome
from coatstream.results.settler import Settlement, Settler

RETRY = Backoff(first=0.05, longest=2.0)
REFUSALS = 3  # in a row; fewer may be rights that are just being reloaded


class Publisher:
    """Blocking; called from one thread at a time.

    `on_trouble` is told of each failed try, `on_success` of each one that went through.
    """

    def __init__(
        self,
        settler: Settler,
        *,
        on_trouble: Callable[[RedisUnavailable | RedisRefuses], None],
        on_success: Callable[[], None],
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._settler = settler
        self._on_trouble = on_trouble
        self._on_success = on_success
        self._clock = clock
        self._rng = rng or random.Random()
        self._given_up = threading.Event()

    def publish(self, outcomes: Sequence[Outcome]) -> tuple[Settlement, float]:
        """Settle the batch; also when (Unix seconds), as its documents say.

        Raises RedisUnavailable after `give_up`, and RedisRefuses where Redis refuses again and again.
        """
        refusals = 0
        for attempt in count():
            now = self._clock()
            try:
                settlement = self._settler.settle(outcomes, now=now)
            except (RedisUnavailable, RedisRefuses) as trouble:
                self._on_trouble(trouble)
                refusals = refusals + 1 if isinstance(trouble, RedisRefuses) else 0
                if refusals == REFUSALS or self._given_up.wait(self._delay(attempt, trouble)):
                    raise
            else:
                self._on_success()
                return settlement, now
        raise AssertionError("unreachable")

    def _delay(self, attempt: int, trouble: RedisUnavailable | RedisRefuses) -> float:
        delay = RETRY.delay(attempt, self._rng)
        return max(delay, SLOW_RETRY) if isinstance(trouble, RedisRefuses) or trouble.slow else delay

    def give_up(self) -> None:
        """The drain's time is over: end the present wait. What is unsettled stays in the queue."""
        self._given_up.set()
