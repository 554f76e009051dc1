"""When a batch leaves, and why."""

import asyncio

from coatstream.pipeline.batching import LeftBecause, gather, next_batch
from coatstream.pipeline.cost import BatchCost
from coatstream.pipeline.mailbox import Mailbox
from coatstream.pipeline.policy import BatchPolicy
from coatstream.telemetry.ledger import Ledger

from tests.support.doubles import SettableClock, make_frame


def box(clock: SettableClock | None = None) -> Mailbox:
    return Mailbox(100, Ledger(), clock=clock or SettableClock())


def put(mailbox: Mailbox, count: int) -> None:
    for number in range(count):
        mailbox.put(make_frame(str(number)), reader="queue", live=False)


async def test_a_full_batch_leaves_at_once_because_it_is_full() -> None:
    mailbox = box()
    put(mailbox, 5)

    batch = await next_batch(mailbox, max_size=4, max_wait=3600)

    assert batch is not None
    assert (len(batch.queued), batch.left_because) == (4, LeftBecause.FULL)
    assert mailbox.waiting == 1


async def test_without_max_wait_a_batch_takes_what_is_there() -> None:
    mailbox = box()
    put(mailbox, 3)

    batch = await next_batch(mailbox, max_size=8, max_wait=0, clock=SettableClock())

    assert batch is not None
    assert (len(batch.queued), batch.left_because) == (3, LeftBecause.DEADLINE)


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
    assert (len(batch.queued), batch.left_because) == (3, LeftBecause.FULL)


async def test_a_drain_does_not_wait_and_the_last_batch_is_followed_by_none() -> None:
    mailbox = box()
    put(mailbox, 2)
    mailbox.close()

    batch = await next_batch(mailbox, max_size=8, max_wait=3600)
    nothing = await next_batch(mailbox, max_size=8, max_wait=3600)

    assert batch is not None
    assert (len(batch.queued), batch.left_because) == (2, LeftBecause.DRAIN)
    assert nothing is None


# ---- as the policy wants it


def policy(*, target: float | None = 3600.0, max_wait: float = 0.0, fixed: float = 10.0, cap: int = 4) -> BatchPolicy:
    """Where frames share `fixed` seconds, and one has come each millisecond of the last second before 1,000 s."""
    cost = BatchCost.of({size: fixed + 0.001 * size for size in range(1, cap + 1)})
    made = BatchPolicy(cost, cap, target=target, max_wait=max_wait)
    made.took(999.0 + number / 1000 for number in range(1000))
    return made


async def test_without_a_target_the_policy_says_only_how_large_a_full_batch_is() -> None:
    mailbox = box()
    put(mailbox, 5)
    plain = policy(target=None)

    batches = [await gather(mailbox, plain, clock=SettableClock()) for _ in range(2)]

    assert [(len(batch.queued), batch.left_because) for batch in batches if batch] == [
        (4, LeftBecause.FULL),
        (1, LeftBecause.DEADLINE),
    ]


async def test_with_a_target_a_batch_waits_while_it_pays_and_leaves_when_it_is_full() -> None:
    mailbox = box()
    put(mailbox, 1)
    waiting = asyncio.create_task(gather(mailbox, policy(), clock=SettableClock()))
    for _ in range(2):
        await asyncio.sleep(0.02)
        assert not waiting.done()
        put(mailbox, 1)

    put(mailbox, 1)
    batch = await asyncio.wait_for(waiting, 5)

    assert batch is not None
    assert (len(batch.queued), batch.left_because) == (4, LeftBecause.FULL)


async def test_a_frame_for_which_none_comes_goes_alone_once_waiting_has_cost_what_it_could_save() -> None:
    mailbox = box()
    put(mailbox, 1)

    batch = await asyncio.wait_for(gather(mailbox, policy(fixed=0.05), clock=SettableClock()), 5)

    assert batch is not None
    assert (len(batch.queued), batch.left_because) == (1, LeftBecause.PAYS_NO_MORE)


async def test_where_a_stream_is_free_it_leaves_at_once() -> None:
    mailbox = box()
    put(mailbox, 1)

    batch = await asyncio.wait_for(gather(mailbox, policy(), crowded=lambda: False, clock=SettableClock()), 5)

    assert batch is not None
    assert batch.left_because is LeftBecause.PAYS_NO_MORE


async def test_a_batch_that_would_be_late_leaves_because_of_the_target() -> None:
    mailbox = box()
    put(mailbox, 1)

    batch = await asyncio.wait_for(gather(mailbox, policy(target=10.01), clock=SettableClock()), 5)

    assert batch is not None
    assert batch.left_because is LeftBecause.TARGET


async def test_a_batch_is_cut_so_that_its_oldest_frame_is_in_time() -> None:
    mailbox = box()
    put(mailbox, 4)
    cost = BatchCost.of({size: 1.0 * size for size in range(1, 5)})
    rare = BatchPolicy(cost, 4, target=2.5)
    rare.took([900.0, 950.0, 1_000.0])

    batch = await gather(mailbox, rare, clock=SettableClock())

    assert batch is not None
    assert (len(batch.queued), batch.left_because) == (2, LeftBecause.TARGET)
    assert mailbox.waiting == 2


async def test_max_wait_bounds_the_wait_under_a_target_too() -> None:
    mailbox = box()
    put(mailbox, 1)

    batch = await asyncio.wait_for(gather(mailbox, policy(max_wait=0.02), clock=SettableClock()), 5)

    assert batch is not None
    assert batch.left_because is LeftBecause.DEADLINE


async def test_a_drain_ends_the_wait_under_a_target_too() -> None:
    mailbox = box()
    put(mailbox, 2)
    waiting = asyncio.create_task(gather(mailbox, policy(), clock=SettableClock()))
    await asyncio.sleep(0.02)

    mailbox.close()
    batch = await asyncio.wait_for(waiting, 5)

    assert batch is not None
    assert (len(batch.queued), batch.left_because) == (2, LeftBecause.DRAIN)
    assert await gather(mailbox, policy(), clock=SettableClock()) is None


async def test_what_shares_leave_out_is_not_waited_for() -> None:
    clock = SettableClock()
    mailbox = box(clock)
    for weight, source in [(1.0, "low"), (5.0, "high")] * 8:  # the slower one loses frames, and gets its share
        clock.now += 0.02
        mailbox.put(make_frame(source=source), reader=source, live=True, weight=weight)
    plain = policy(cap=8)

    batch = await asyncio.wait_for(gather(mailbox, plain, clock=clock), 5)

    assert batch is not None
    assert batch.left_because is LeftBecause.FULL


async def test_the_policy_learns_from_what_is_taken() -> None:
    clock = SettableClock()
    mailbox = box(clock)
    learning = BatchPolicy(BatchCost.of({1: 0.01, 2: 0.011}), 2, target=1.0)
    for _ in range(50):
        clock.now += 0.5
        put(mailbox, 1)
        await gather(mailbox, learning, clock=clock)

    assert 0.45 < learning.stats().expected_gap < 0.55
