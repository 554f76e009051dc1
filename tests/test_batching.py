"""When a batch leaves, and why."""

import asyncio

from tests.doubles import SettableClock, make_frame
from worker.batching import LeftBecause, next_batch
from worker.mailbox import Mailbox


def box(clock: SettableClock | None = None) -> Mailbox:
    return Mailbox(100, on_replaced=lambda frame: None, clock=clock or SettableClock())


def put(mailbox: Mailbox, count: int) -> None:
    for number in range(count):
        mailbox.put(make_frame(str(number)), lane="queue", live=False)


async def test_a_full_batch_leaves_at_once_because_it_is_full() -> None:
    mailbox = box()
    put(mailbox, 5)

    batch = await next_batch(mailbox, max_size=4, max_wait=3600)

    assert batch is not None
    assert (len(batch.letters), batch.left_because) == (4, LeftBecause.FULL)
    assert mailbox.waiting == 1


async def test_without_max_wait_a_batch_takes_what_is_there() -> None:
    mailbox = box()
    put(mailbox, 3)

    batch = await next_batch(mailbox, max_size=8, max_wait=0, clock=SettableClock())

    assert batch is not None
    assert (len(batch.letters), batch.left_because) == (3, LeftBecause.DEADLINE)


async def test_the_wait_counts_from_the_first_frame_and_not_from_the_call() -> None:
    clock = SettableClock(now=100.0)
    mailbox = box(clock)
    put(mailbox, 1)
    clock.now = 3_800.0

    batch = await asyncio.wait_for(next_batch(mailbox, max_size=8, max_wait=3_600, clock=clock), timeout=5)

    assert batch is not None
    assert batch.left_because is LeftBecause.DEADLINE


async def test_a_batch_that_waits_takes_frames_that_come_later() -> None:
    mailbox = box()
    put(mailbox, 1)
    waiting = asyncio.create_task(next_batch(mailbox, max_size=3, max_wait=3600, clock=SettableClock()))
    await asyncio.sleep(0)

    put(mailbox, 2)
    batch = await asyncio.wait_for(waiting, 5)

    assert batch is not None
    assert (len(batch.letters), batch.left_because) == (3, LeftBecause.FULL)


async def test_a_drain_does_not_wait_and_the_last_batch_is_followed_by_none() -> None:
    mailbox = box()
    put(mailbox, 2)
    mailbox.close()

    batch = await next_batch(mailbox, max_size=8, max_wait=3600)
    nothing = await next_batch(mailbox, max_size=8, max_wait=3600)

    assert batch is not None
    assert (len(batch.letters), batch.left_because) == (2, LeftBecause.DRAIN)
    assert nothing is None
