"""How long to wait before the next try: exponential, capped, with full jitter."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits are drawn from 0..min(longest, first * 2**attempt) seconds: many who lost the same server spread out.

    "Full jitter" as compared in M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    first: float
    longest: float

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Seconds before try number `attempt` + 1; `attempt` counts failures from 0."""
        return rng.uniform(0, min(self.longest, self.first * 2.0 ** min(attempt, 60)))
