"""Waits grow, stay under the cap, and differ."""

import random

from coatstream.errors import Backoff
from hypothesis import given
from hypothesis import strategies as st


@given(attempt=st.integers(0, 10_000), seed=st.integers())
def test_a_delay_lies_between_nothing_and_the_doubled_first_or_the_cap(attempt: int, seed: int) -> None:
    delay = Backoff(first=0.05, longest=2.0).delay(attempt, random.Random(seed))

    assert 0 <= delay <= min(2.0, 0.05 * 2.0 ** min(attempt, 60))


def test_two_workers_that_lost_the_same_server_do_not_come_back_together() -> None:
    backoff = Backoff(first=0.5, longest=30)

    delays = {round(backoff.delay(5, random.Random(seed)), 3) for seed in range(50)}

    assert len(delays) > 40
