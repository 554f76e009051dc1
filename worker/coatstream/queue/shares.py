"""How much to read from which queue: strictly by priority, within one priority by weight. Reads nothing itself."""

from collections.abc import Callable, Sequence
from itertools import groupby

from coatstream.broker.keys import Queue


class Shares:
    """Remembers what each queue is owed, so that weights hold however small the room is. Used from one thread."""

    def __init__(self, queues: Sequence[Queue]) -> None:
        ordered = sorted(queues, key=lambda queue: queue.priority)
        self._levels = [list(level) for _, level in groupby(ordered, key=lambda queue: queue.priority)]
        self._owed = dict.fromkeys(queues, 0)

    def fill(self, room: int, read: Callable[[Queue, int], int]) -> int:
        """Call `read(queue, most)`, which returns how many entries came, until the room is full or nothing is left.

        Returns how many came. A queue of lower priority is asked only for what the higher ones left free.
        """
        came = 0
        for level in self._levels:
            came += self._fill(level, room - came, read)
        return came

    def _fill(self, level: Sequence[Queue], room: int, read: Callable[[Queue, int], int]) -> int:
        came = 0
        hungry = list(level)
        while hungry and came < room:
            for queue, most in self._quotas(hungry, room - came):
                got = read(queue, most)
                came += got
                if got < most:  # it is empty: what it is owed is not saved up
                    hungry.remove(queue)
                    self._owed[queue] = 0
        return came

    def _quotas(self, queues: Sequence[Queue], room: int) -> list[tuple[Queue, int]]:
        """The room in whole entries: nginx's smooth weighted round-robin, one entry after the other."""
        weights = sum(queue.weight for queue in queues)
        quotas = dict.fromkeys(queues, 0)
        for _ in range(room):
            for queue in queues:
                self._owed[queue] += queue.weight
            first = max(queues, key=self._owed.__getitem__)
            self._owed[first] -= weights
            quotas[first] += 1
        return [(queue, quota) for queue, quota in quotas.items() if quota]
