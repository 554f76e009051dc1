"""How many entries one reply is asked to carry."""

from coatstream.queue.reply_size import MOST_CAUTION, SMALL_MEAN, WINDOW, RecentSizes, ReplySize


def full(size: ReplySize, replies: int = 1) -> int:
    for _ in range(replies):
        size.arrived(size.entries)
    return size.entries


def test_it_begins_with_one_and_doubles_with_each_full_reply() -> None:
    size = ReplySize(12)

    assert [size.entries, *(full(size) for _ in range(5))] == [1, 2, 4, 8, 12, 12]


def test_a_reply_with_fewer_than_were_asked_for_proves_nothing() -> None:
    size = ReplySize(12)
    full(size, 2)

    size.arrived(3)
    size.arrived(0)

    assert size.entries == 4


def test_a_reply_that_was_cut_off_is_tried_with_half_as_many_down_to_one() -> None:
    size = ReplySize(8)
    full(size, 3)

    asked = []
    for _ in range(4):
        size.cut_off()
        asked.append(size.entries)

    assert asked == [4, 2, 1, 1]


def test_each_cut_makes_it_wait_longer_before_it_tries_more_again() -> None:
    size = ReplySize(16)
    waited = []
    for _ in range(9):
        size.cut_off()
        replies = 0
        while size.entries == 1:
            full(size)
            replies += 1
        waited.append(replies - 1)

    assert waited == [1, 2, 4, 8, 16, 32, 64, 64, MOST_CAUTION]


def test_at_full_size_the_caution_is_over() -> None:
    size = ReplySize(4)
    for _ in range(5):
        size.cut_off()
    full(size, 16 + 2)
    assert size.entries == 4

    size.cut_off()

    assert full(size, 2) == 4


def recent(*sizes: int) -> RecentSizes:
    found = RecentSizes(largest=1_000_000)
    for size in sizes:
        found.add(size)
    return found


def test_entries_come_unseen_once_enough_of_them_were_alike() -> None:
    assert recent(*[150_000] * WINDOW).alike
    assert not recent(*[150_000] * (WINDOW - 1)).alike


def test_one_large_entry_ends_that_until_it_is_long_ago() -> None:
    sizes = recent(*[150_000] * WINDOW, 1_000_001)
    assert not sizes.alike

    for _ in range(WINDOW):
        sizes.add(150_000)
    assert sizes.alike


def test_small_entries_are_looked_at_since_that_costs_less_than_more_calls() -> None:
    assert not recent(*[SMALL_MEAN - 1] * WINDOW).alike
