"""Who is read how much: priorities strictly, weights fairly, and no room is left while there is work."""

from collections import Counter

import pytest
from coatstream.broker.keys import Queue
from coatstream.queue.shares import Shares
from hypothesis import given
from hypothesis import strategies as st


def queue(name: str, *, priority: int = 0, weight: int = 1) -> Queue:
    return Queue(name, "g", f"{name}:dead", "labels", priority, weight)


class Stock:
    """What lies in each queue; counts what is read."""

    def __init__(self, entries: dict[Queue, int]) -> None:
        self.entries = dict(entries)
        self.came: Counter[Queue] = Counter()
        self.asked: list[Queue] = []

    def read(self, queue: Queue, most: int) -> int:
        assert most > 0
        self.asked.append(queue)
        got = min(most, self.entries[queue])
        self.entries[queue] -= got
        self.came[queue] += got
        return got


def test_a_lower_priority_is_read_only_when_the_higher_ones_are_empty() -> None:
    high, middle, low = queue("high"), queue("middle", priority=1), queue("low", priority=7)
    stock = Stock({high: 5, middle: 5, low: 5})
    shares = Shares([low, high, middle])

    came = []
    for _ in range(5):
        before = stock.came.copy()
        assert shares.fill(4, stock.read) in (4, 3, 0)
        came.append(tuple((stock.came - before)[queue] for queue in (high, middle, low)))

    assert came == [(4, 0, 0), (1, 3, 0), (0, 2, 2), (0, 0, 3), (0, 0, 0)]


def test_a_queue_of_lower_priority_is_not_even_asked_when_there_is_no_room() -> None:
    high, low = queue("high"), queue("low", priority=1)
    stock = Stock({high: 100, low: 100})

    Shares([high, low]).fill(8, stock.read)

    assert stock.asked == [high]


@pytest.mark.parametrize("room", [1, 2, 3, 7, 8, 64])
@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (5, 3, 2), (1, 10), (7, 7, 7, 1)])
def test_weights_hold_within_a_tenth_over_a_thousand_entries_however_small_the_room(
    weights: tuple[int, ...], room: int
) -> None:
    queues = [queue(f"q{number}", weight=weight) for number, weight in enumerate(weights)]
    stock = Stock(dict.fromkeys(queues, 10_000))
    shares = Shares(queues)

    read = 0
    while read < 1000:
        read += shares.fill(room, stock.read)

    for each in queues:
        due = read * each.weight / sum(weights)
        assert stock.came[each] == pytest.approx(due, rel=0.1)


@given(
    entries=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    weights=st.lists(st.integers(1, 10), min_size=5, max_size=5),
    priorities=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    rooms=st.lists(st.integers(1, 16), min_size=1, max_size=8),
)
def test_no_room_is_left_while_any_queue_has_work_and_never_is_more_read_than_there_is_room(
    entries: list[int], weights: list[int], priorities: list[int], rooms: list[int]
) -> None:
    queues = [
        queue(f"q{number}", priority=priorities[number], weight=weights[number]) for number in range(len(entries))
    ]
    stock = Stock(dict(zip(queues, entries, strict=True)))
    shares = Shares(queues)

    for room in rooms:
        there = sum(stock.entries.values())
        assert shares.fill(room, stock.read) == min(room, there)
        assert sum(stock.entries.values()) == there - min(room, there)


def test_a_queue_that_was_empty_has_saved_nothing_up() -> None:
    busy, quiet = queue("busy"), queue("quiet", weight=3)
    stock = Stock({busy: 10_000, quiet: 0})
    shares = Shares([busy, quiet])
    for _ in range(500):
        shares.fill(2, stock.read)

    stock.entries[quiet] = 10_000
    stock.came.clear()
    for _ in range(20):
        shares.fill(2, stock.read)

    assert stock.came[busy] == pytest.approx(10, abs=2)  # a quarter, from the first moment on
    assert stock.came[quiet] == pytest.approx(30, abs=2)


def test_one_queue_gets_all_the_room_there_is_in_one_read() -> None:
    only = queue("only", weight=5)
    stock = Stock({only: 100})

    assert Shares([only]).fill(16, stock.read) == 16
    assert stock.asked == [only]


def test_no_room_asks_nobody() -> None:
    only = queue("only")
    stock = Stock({only: 100})

    assert Shares([only]).fill(0, stock.read) == 0
    assert stock.asked == []
