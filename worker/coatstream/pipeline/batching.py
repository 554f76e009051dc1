"""Takes batches from the mailbox, and waits for frames. Knows nothing of what happens to a batch.

`coatstream.pipeline.policy` decides how long a batch waits and how large it is.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from coatstream.pipeline.mailbox import Mailbox, QueuedFrame
from coatstream.pipeline.policy import BatchPolicy, LeftBecause

__all__ = ["Batch", "LeftBecause", "gather", "next_batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames that go through the engine together; never empty."""

    queued: list[QueuedFrame]
    left_because: LeftBecause

    @property
    def inputs(self) -> int:
        """Inputs of the model that its frames have: of some cameras more than one each."""
        return sum(len(queued.frame.views) for queued in self.queued)


async def gather(
    mailbox: Mailbox,
    policy: BatchPolicy,
    *,
    crowded: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.monotonic,
) -> Batch | None:
    """The next batch as `policy` wants it; None: the mailbox is closed and empty.

    `crowded`: whether no other stream is free. `clock` must be the mailbox's.
    """
    if policy.target is None:
        batch = await next_batch(mailbox, max_size=policy.cap, max_wait=policy.max_wait, clock=clock)
    else:
        batch = await _timely_batch(mailbox, policy, crowded=crowded, clock=clock)
    if batch is not None:
        policy.took((queued.put_at for queued in batch.queued), inputs=batch.inputs)
    return batch


async def next_batch(
    mailbox: Mailbox, *, max_size: int, max_wait: float, clock: Callable[[], float] = time.monotonic
) -> Batch | None:
    """The next batch: its first frame at once, more until it is full or `max_wait` after that first frame.

    The clock starts when the first frame was put, not when this was called: a frame that waited for the engine has
    waited already. None: the mailbox is closed and empty.
    """
    if not await mailbox.filled(1):
        return None
    remaining = max(0.0, mailbox.oldest() + max_wait - clock())
    reason = LeftBecause.FULL
    try:
        async with asyncio.timeout(remaining):
            if not await mailbox.filled(max_size):
                reason = LeftBecause.DRAIN
    except TimeoutError:
        reason = LeftBecause.DEADLINE
    return Batch(mailbox.take(max_size), reason)


async def _timely_batch(
    mailbox: Mailbox, policy: BatchPolicy, *, crowded: Callable[[], bool], clock: Callable[[], float]
) -> Batch | None:
    """The next batch: its first frame at once, one more and one more while the policy is patient."""
    if not await mailbox.filled(1):
        return None
    reason = None
    while reason is None:
        reason = await _one_more(mailbox, policy, crowded=crowded(), clock=clock)
    waiting = mailbox.waiting
    size = policy.size(waiting, oldest=mailbox.oldest(), now=clock())
    if size < min(waiting, policy.cap):
        reason = LeftBecause.TARGET
    return Batch(mailbox.take(size), reason)


async def _one_more(
    mailbox: Mailbox, policy: BatchPolicy, *, crowded: bool, clock: Callable[[], float]
) -> LeftBecause | None:
    """Wait for one more frame; or why the batch leaves without."""
    waiting = mailbox.waiting
    patience = policy.patience(waiting, oldest=mailbox.oldest(), now=clock(), crowded=crowded)
    if not patience.seconds:
        return patience.then
    try:
        async with asyncio.timeout(patience.seconds):
            if not await mailbox.filled(waiting + 1):
                return LeftBecause.DRAIN
    except TimeoutError:
        return patience.then
    # Where weights differ a batch may be as good as full before: then there is no further frame.
    return None if mailbox.waiting > waiting else LeftBecause.FULL
