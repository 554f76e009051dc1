"""The ledger balances at any moment, and strangers cannot make it grow."""

import threading

from coatstream.errors import DeadReason
from coatstream.telemetry.ledger import MAX_SOURCES, OTHER, DropReason, Ledger
from hypothesis import given
from hypothesis import strategies as st


def test_a_frame_is_in_flight_until_it_is_published_dropped_or_dead() -> None:
    ledger = Ledger()
    for _ in range(4):
        ledger.received("door")

    ledger.published("door")
    ledger.dropped("door", DropReason.REPLACED)
    ledger.dead("door", DeadReason.UNDECODABLE)

    account = ledger.snapshot()["door"]
    assert account.in_flight == 1
    assert (account.received, account.published) == (4, 1)
    assert account.dropped == {DropReason.REPLACED: 1}
    assert account.dead == {DeadReason.UNDECODABLE: 1}


@given(st.lists(st.text(max_size=3), max_size=600))
def test_beyond_200_strangers_names_share_one_account_and_the_sums_still_balance(names: list[str]) -> None:
    ledger = Ledger(["cam"])

    for name in [*(f"stranger-{number}" for number in range(150)), *names]:
        ledger.received(name)
        ledger.published(name)

    accounts = ledger.snapshot()
    assert len(accounts) <= MAX_SOURCES + 2
    assert all(account.in_flight == 0 for account in accounts.values())
    assert ledger.total().published == 150 + len(names)


def test_a_camera_keeps_its_own_account_even_when_strangers_came_first() -> None:
    ledger = Ledger(["cam"])
    for number in range(MAX_SOURCES + 50):
        ledger.received(f"stranger-{number}")

    ledger.received("cam")

    assert ledger.snapshot()["cam"].received == 1
    assert ledger.snapshot()[OTHER].received == 50


def test_of_cameras_that_have_gone_the_newest_keep_their_account_and_nothing_is_lost_of_the_others() -> None:
    ledger = Ledger()
    for number in range(MAX_SOURCES + 50):
        ledger.name(f"cam-{number}")
        ledger.received(f"cam-{number}")
        if number:  # a frame of the first one is still in the engine
            ledger.dropped(f"cam-{number}", DropReason.STALE)
        ledger.gone(f"cam-{number}")

    accounts = ledger.snapshot()
    assert len(accounts) == MAX_SOURCES + 1
    assert {"cam-0", f"cam-{MAX_SOURCES + 49}", OTHER} < accounts.keys()
    assert accounts[OTHER].dropped == {DropReason.STALE: 50}
    assert ledger.total().received == MAX_SOURCES + 50
    ledger.published("cam-0")
    assert ledger.total().in_flight == 0


def test_a_camera_that_comes_back_has_its_account_again() -> None:
    ledger = Ledger()
    ledger.received("cam")
    ledger.published("cam")
    ledger.gone("cam")
    ledger.name("cam")

    for number in range(2 * MAX_SOURCES):
        ledger.name(f"cam-{number}")
        ledger.gone(f"cam-{number}")

    assert ledger.snapshot()["cam"].published == 1


def test_a_snapshot_balances_while_threads_count() -> None:
    ledger = Ledger()
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            ledger.received("a")
            ledger.published("a")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    flights = [account.in_flight for _ in range(500) for account in ledger.snapshot().values()]
    stop.set()
    for thread in threads:
        thread.join(5)

    assert all(0 <= flight <= 4 for flight in flights)
    assert ledger.total().in_flight == 0
