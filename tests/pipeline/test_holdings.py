"""What is in hand: waiting or begun, per stream; and one suspect at a time."""

import threading
import time
from collections.abc import Callable

import pytest
from coatstream.frames.frame import Receipt
from coatstream.pipeline.holdings import Holdings


def holding(*entries: str, stream: str = "frames") -> Holdings:
    holdings = Holdings()
    holdings.add(stream, entries)
    return holdings


def test_what_was_read_is_held_until_it_is_settled() -> None:
    holdings = holding("1-0", "2-0")
    holdings.add("other", ["1-0"])

    holdings.settled([Receipt("frames", "1-0"), None, Receipt("frames", "9-0"), Receipt("nowhere", "1-0")])

    assert holdings.entries("frames") == {"2-0"}
    assert holdings.entries("other") == {"1-0"}
    assert holdings.entries("nowhere") == frozenset()
    assert len(holdings) == 2


def test_a_batch_may_begin_only_what_is_held() -> None:
    holdings = holding("1-0", "2-0")
    holdings.remove("frames", ["1-0"])

    assert holdings.begin([Receipt("frames", "1-0")]) == [False]
    assert holdings.begin([Receipt("frames", "2-0")]) == [True]
    assert holdings.begin([Receipt("other", "2-0")]) == [False]


def test_only_what_no_batch_has_taken_waits_and_can_be_given_up() -> None:
    holdings = holding("1-0", "2-0", "3-0")
    holdings.add("other", ["1-0"])
    holdings.begin([Receipt("frames", "2-0")])

    assert (holdings.waiting(["frames"]), holdings.waiting(["frames", "other"])) == (2, 3)
    assert holdings.give_up("frames") == ["1-0", "3-0"]
    assert holdings.entries("frames") == {"2-0"}
    assert holdings.begin([Receipt("frames", "1-0")]) == [False]


def test_an_entry_that_is_read_again_waits_again() -> None:
    holdings = holding("1-0")
    holdings.begin([Receipt("frames", "1-0")])

    holdings.add("frames", ["1-0"])  # the group was made anew, and its entries were delivered a second time

    assert holdings.waiting(["frames"]) == 1
    assert len(holdings) == 1


def test_while_one_reader_lets_a_suspect_travel_alone_no_other_may_read() -> None:
    holdings = Holdings()
    first, second = object(), object()

    assert (holdings.start_reading(first), holdings.start_reading(second)) == (True, True)
    assert holdings.close_to_others(first) is True
    assert holdings.close_to_others(second) is False
    assert (holdings.start_reading(first), holdings.start_reading(second)) == (True, False)

    holdings.open_to_others(second)  # who has not closed cannot open
    assert holdings.start_reading(second) is False

    holdings.open_to_others(first)
    assert holdings.start_reading(second) is True
    assert holdings.close_to_others(second) is True


def test_a_reader_is_not_alone_while_another_one_may_be_about_to_hold_something() -> None:
    holdings = Holdings()
    holdings.start_reading("other")
    holdings.start_reading("reader")
    holdings.close_to_others("reader")

    assert holdings.wait_until_alone("reader", 0.01) is False

    holdings.stop_reading("other")
    assert holdings.wait_until_alone("reader", 0.01) is True


BEGUN = [Receipt("frames", "1-0")]
WAITS: list[tuple[Callable[[Holdings, float], object], Callable[[Holdings], object]]] = [
    (lambda held, wait: held.wait_until_alone("reader", wait), lambda held: held.remove("frames", ["1-0"])),
    (
        lambda held, wait: held.wait_until_fewer(["frames"], 1, wait),
        lambda held: held.begin([Receipt("frames", "1-0")]),
    ),
    (lambda held, wait: held.wait_until_fewer(["frames"], 1, wait), lambda held: held.give_up("frames")),
    (lambda held, wait: held.wait_for_change(wait), lambda held: held.open_to_others("reader")),
]


@pytest.mark.parametrize(("wait", "change"), WAITS, ids=["empty", "begun", "given up", "opened"])
def test_who_waits_is_woken_by_what_it_waits_for(
    wait: Callable[[Holdings, float], object], change: Callable[[Holdings], object]
) -> None:
    holdings = holding("1-0")
    holdings.close_to_others("reader")
    waiter = threading.Thread(target=wait, args=(holdings, 50.0), daemon=True)
    deadline = time.monotonic() + 10

    waiter.start()
    while waiter.is_alive() and time.monotonic() < deadline:  # the first change may come before the wait has begun
        change(holdings)
        waiter.join(0.01)
        if waiter.is_alive():
            holdings.close_to_others("reader")

    assert not waiter.is_alive()


@pytest.mark.parametrize("wait", [wait for wait, _ in WAITS], ids=["empty", "begun", "given up", "opened"])
def test_no_wait_is_longer_than_it_may_be(wait: Callable[[Holdings, float], object]) -> None:
    holdings = holding("1-0")
    started = time.monotonic()

    wait(holdings, 0.05)

    assert 0.04 < time.monotonic() - started < 10
    assert len(holdings) == 1


def test_what_is_there_already_is_not_waited_for() -> None:
    holdings = holding("1-0")
    holdings.begin([Receipt("frames", "1-0")])
    started = time.monotonic()

    holdings.wait_until_fewer(["frames"], 1, 50.0)
    holdings.remove("frames", ["1-0"])
    assert holdings.wait_until_alone("reader", 50.0) is True

    assert time.monotonic() - started < 10


def test_threads_that_add_begin_and_settle_at_once_leave_nothing_behind() -> None:
    holdings = Holdings()

    def work(name: str) -> None:
        for number in range(300):
            receipt = Receipt(name, f"{number}-0")
            holdings.add(name, [receipt.entry_id])
            assert holdings.begin([receipt]) == [True]
            holdings.settled([receipt])

    threads = [threading.Thread(target=work, args=(f"s{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(holdings) == 0


def test_a_batch_begins_all_that_is_still_held_and_the_others_are_told_apart() -> None:
    holdings = Holdings()
    holdings.add("frames", ["1-0", "2-0"])
    holdings.add("other", ["1-0"])

    begun = holdings.begin([Receipt("frames", "2-0"), None, Receipt("frames", "9-0"), Receipt("other", "1-0")])

    assert begun == [True, True, False, True]
    assert holdings.unbegun == holdings.waiting(["frames", "other"]) == 1
    assert holdings.begin([Receipt("frames", "2-0")]) == [True]  # again: it stays begun, and is counted once
    holdings.remove("frames", ["1-0", "2-0", "9-0"])
    assert holdings.unbegun == 0
    assert len(holdings) == 1
