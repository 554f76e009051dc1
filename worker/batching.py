"""When a batch is full enough, and why it left. Knows nothing of what happens to it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from worker.mailbox import Letter, Mailbox


class LeftBecause(StrEnum):
    """Why a batch did not wait any longer."""

    FULL = "full"
    DEADLINE = "deadline"  # max_wait had passed since its first frame
    DRAIN = "drain"  # no more frames will come


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames that go through the engine together; never empty."""

    letters: list[Letter]
    left_because: LeftBecause


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
