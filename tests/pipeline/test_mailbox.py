"""The one buffer: live frames replace each other, others wait for room, sources take turns."""

import asyncio
import threading
import time
from typing import Any

import pytest
from coatstream.pipeline.mailbox import Mailbox
from coatstream.telemetry.ledger import DropReason, Ledger

from tests.support.doubles import SettableClock, make_frame


def box(room: int = 2, ledger: Ledger | None = None) -> Mailbox:
    return Mailbox(room, ledger or Ledger())


def ids(mailbox: Mailbox, count: int) -> list[str]:
    return [queued.frame.frame_id for queued in mailbox.take(count)]


async def test_a_live_source_keeps_only_its_newest_frame_and_the_older_ones_are_booked() -> None:
    ledger = Ledger()
    mailbox = box(ledger=ledger)

    for frame_id in "abc":
        mailbox.put(make_frame(frame_id), reader="cam", live=True)

    assert ids(mailbox, 10) == ["c"]
    assert ledger.total().dropped == {DropReason.REPLACED: 2}


async def test_a_source_that_is_not_live_waits_for_room_and_loses_nothing() -> None:
    mailbox = box(room=2)
    frames = [make_frame(str(number)) for number in range(50)]
    thread = threading.Thread(target=lambda: [mailbox.put(frame, reader="file", live=False) for frame in frames])

    thread.start()
    got: list[str] = []
    while len(got) < 50:
        assert await mailbox.filled(1)
        assert mailbox.waiting <= 2
        got += ids(mailbox, 1)
    thread.join(5)

    assert got == [str(number) for number in range(50)]


async def test_sources_take_turns_so_that_no_backlog_stands_before_another_source() -> None:
    mailbox = box(room=10)

    for number in range(3):
        mailbox.put(make_frame(f"a{number}", source="a"), reader="queue", live=False)
    mailbox.put(make_frame("b0", source="b"), reader="queue", live=False)
    mailbox.put(make_frame("c0", source="cam"), reader="cam", live=True)

    assert sorted(ids(mailbox, 3)) == ["a0", "b0", "c0"]
    assert ids(mailbox, 3) == ["a1", "a2"]


async def test_room_is_counted_per_lane_so_that_one_full_lane_does_not_stop_another() -> None:
    mailbox = box(room=1)
    mailbox.put(make_frame("full"), reader="queue", live=False)

    assert mailbox.put(make_frame("other"), reader="file", live=False)

    assert mailbox.waiting == 2


async def test_closing_wakes_who_waits_for_room_and_refuses_new_frames_but_gives_out_the_old() -> None:
    mailbox = box(room=1)
    mailbox.put(make_frame("in"), reader="file", live=False)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(mailbox.put(make_frame("out"), reader="file", live=False)))
    thread.start()

    mailbox.close()
    thread.join(5)

    assert answers == [False]
    assert not mailbox.put(make_frame("late"), reader="cam", live=True)
    assert ids(mailbox, 5) == ["in"]


async def test_filled_returns_false_when_the_box_closes_before_the_count_is_reached() -> None:
    mailbox = box(room=5)
    waiting = asyncio.create_task(mailbox.filled(2))
    mailbox.put(make_frame(), reader="file", live=False)
    await asyncio.sleep(0)

    mailbox.close()

    assert await asyncio.wait_for(waiting, 5) is False


async def test_frames_from_many_threads_all_arrive_in_order_per_source() -> None:
    mailbox = box(room=4)

    def fill(name: str) -> None:
        for number in range(200):
            mailbox.put(make_frame(str(number), source=name), reader=name, live=False)

    threads = [threading.Thread(target=fill, args=(f"s{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    got: dict[str, list[int]] = {}
    while sum(map(len, got.values())) < 1600:
        assert await asyncio.wait_for(mailbox.filled(1), 10)
        for queued in mailbox.take(7):
            got.setdefault(queued.frame.source, []).append(int(queued.frame.frame_id))

    assert all(numbers == list(range(200)) for numbers in got.values())
    assert mailbox.waiting == 0


async def test_where_weights_differ_and_frames_are_lost_a_heavy_source_is_taken_more_often() -> None:
    clock = SettableClock(0.0)
    mailbox = Mailbox(2, Ledger(), clock=clock)
    taken: list[str] = []

    for _ in range(400):
        for _ in range(3):  # three pictures of each while a batch is in the engine
            clock.now += 0.01
            mailbox.put(make_frame(source="heavy"), reader="heavy", live=True, weight=4.0)
            mailbox.put(make_frame(source="light"), reader="light", live=True)
        taken += [queued.reader for queued in mailbox.take(8)]

    assert taken.count("heavy") == 400
    assert 90 <= taken.count("light") <= 110


async def test_what_a_batch_leaves_out_stays_and_is_replaced_by_newer_frames() -> None:
    clock = SettableClock(0.0)
    mailbox = Mailbox(2, Ledger(), clock=clock)
    ages: list[float] = []

    for _ in range(400):
        for _ in range(3):
            clock.now += 0.01
            mailbox.put(make_frame(source="heavy"), reader="heavy", live=True, weight=20.0)
            mailbox.put(make_frame(source="light"), reader="light", live=True)
        batch = mailbox.take(8)
        ages += [clock.now - queued.put_at for queued in batch]
        assert mailbox.waiting == 2 - len(batch)

    assert max(ages) <= 0.01


async def test_a_batch_does_not_wait_for_what_it_would_leave_out() -> None:
    clock = SettableClock(0.0)
    mailbox = Mailbox(2, Ledger(), clock=clock)
    for _ in range(50):
        clock.now += 0.01
        for name, weight in (("heavy", 4.0), ("light", 1.0)):
            mailbox.put(make_frame(source=name), reader=name, live=True, weight=weight)

    assert await asyncio.wait_for(mailbox.filled(8), 5)


async def test_something_is_always_taken_from_a_box_that_is_not_empty() -> None:
    clock = SettableClock(0.0)
    mailbox = Mailbox(2, Ledger(), clock=clock)
    for _ in range(50):  # the heavy one is short, and then away for a moment
        clock.now += 0.01
        mailbox.put(make_frame(source="heavy"), reader="heavy", live=True, weight=1000.0)
        mailbox.put(make_frame(source="light"), reader="light", live=True)
    mailbox.take(1)

    for _ in range(20):
        mailbox.put(make_frame(source="light"), reader="light", live=True)
        assert await asyncio.wait_for(mailbox.filled(1), 5)
        assert [queued.reader for queued in mailbox.take(8)] == ["light"]


async def test_the_loop_is_woken_once_for_a_whole_batch_and_never_while_it_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, woken = asyncio.get_running_loop(), []
    call_soon = loop.call_soon_threadsafe

    def wake(*arguments: Any, **options: Any) -> asyncio.Handle:
        woken.append(arguments)
        return call_soon(*arguments, **options)

    mailbox = box(room=100)
    monkeypatch.setattr(loop, "call_soon_threadsafe", wake)
    for number in range(3):
        mailbox.put(make_frame(str(number)), reader="queue", live=False)
    assert woken == []

    waiting = asyncio.create_task(mailbox.filled(8))
    await asyncio.sleep(0)
    for number in range(3, 20):
        mailbox.put(make_frame(str(number)), reader="queue", live=False)
    assert await waiting

    assert len(woken) == 1
    assert mailbox.waiting == 20


async def test_a_put_costs_no_more_for_all_the_other_cameras() -> None:
    async def seconds(cameras: int) -> float:
        mailbox = box()
        frames = [make_frame(source=f"door-{number}") for number in range(cameras)]

        def put(count: int) -> None:
            for number, frame in enumerate(frames[:count]):
                mailbox.put(frame, reader=frame.source, live=True, weight=1.0 + number % 2)

        put(cameras)
        mailbox.take(cameras)  # all are known, and none has lost a frame
        waiting = asyncio.create_task(mailbox.filled(cameras))
        await asyncio.sleep(0)
        began = time.perf_counter()
        put(200)
        took = time.perf_counter() - began
        waiting.cancel()
        return took

    few = min([await seconds(201) for _ in range(7)])
    many = min([await seconds(4000) for _ in range(7)])

    assert many < 4 * few
