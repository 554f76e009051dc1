"""Events that wait to be published, in order: between all threads that publish and the one that sends.

Bounded: when it is full, states and faults of pictures give way before tags, and are counted. Knows no server.
"""

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.tags import PresentTag

_OF_TAGS: Final = frozenset({EventKind.TAG_STARTED, EventKind.TAG_ENDED})


@dataclass(frozen=True, slots=True)
class Release:
    """Leave this camera's tags and state alone from here on."""

    camera: str


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Look after this camera's tags from here on."""

    camera: str
    tags: Mapping[str, PresentTag]
    fence: int


Item = Event | Release | TakeOver


class EventBuffer:
    """Any thread may `add` and `flush`; one thread takes. `capacity`: events, the taken ones not counted."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()  # guards all below
        self._numbers = count()
        self._waiting: dict[int, Item] = {}  # in order
        self._lesser: deque[int] = deque()  # numbers of those that go first when there is no room
        self._held = 0  # events that were taken and are not published
        self._busy = False  # whatever was taken may not be done yet
        self._dropped: Counter[str] = Counter()

    def add(self, item: Item) -> None:
        """Never waits."""
        with self._changed:
            number = next(self._numbers)
            self._waiting[number] = item
            self._changed.notify_all()
            if not isinstance(item, Event):
                return
            if item.kind not in _OF_TAGS:
                self._lesser.append(number)
            if len(self._waiting) > self._capacity:
                self._drop_one()

    def _drop_one(self) -> None:
        """States and pictures first: what is lost of a tag is missed for longer."""
        number = next(iter(self._lesser), None)
        if number is None:
            number = next(number for number, item in self._waiting.items() if isinstance(item, Event))
        else:
            self._lesser.popleft()
        event = self._waiting.pop(number)
        if isinstance(event, Event):
            self._dropped[event.kind] += 1

    def take(self, most: int) -> list[Item]:
        """The oldest items. The caller is busy with them until `wait`."""
        with self._changed:
            numbers = [number for number, _ in zip(self._waiting, range(most), strict=False)]
            items = [self._waiting.pop(number) for number in numbers]
            while self._lesser and numbers and self._lesser[0] <= numbers[-1]:
                self._lesser.popleft()
            self._held += sum(isinstance(item, Event) for item in items)
            self._busy = True
            return items

    def held(self, events: int) -> None:
        """The caller holds so many events that are not published."""
        with self._changed:
            self._held, self._busy = events, True

    def wait(self, seconds: float) -> None:
        """All that was taken is done: wait for more, for so many seconds at most."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            if not self._waiting:
                self._changed.wait(seconds)

    def flush(self, within: float) -> bool:
        """Wait until all is done, for so many seconds at most; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._held or self._busy), timeout=within)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Events that found no room, by kind."""
        with self._changed:
            return dict(self._dropped)

    @property
    def events(self) -> int:
        """How many are not published."""
        with self._changed:
            return sum(isinstance(item, Event) for item in self._waiting.values()) + self._held
