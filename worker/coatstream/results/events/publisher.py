"""Says events from any thread: keeps them in order until the server has them, whatever becomes of the server meanwhile.

None is lost, but for those that find the buffer full, which are counted; and none is said twice. A server that has
forgotten its last second is told it again. Tags and states that late comers read are looked after every few seconds.
"""

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.errors import REDIS_TROUBLE, SLOW_RETRY, Backoff, RedisRefuses, RedisUnavailable
from coatstream.results.events.confirmed import ConfirmedEvents
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.protocol import MOST_EVENTS, Answer, EventStore, ForgottenError, PendingEvent, Verdict
from coatstream.results.events.tags import PresentTag
from coatstream.settings.model import EventsSettings

CAPACITY: Final = 10_000  # events that wait; some 10 MB
CHECK_EVERY: Final = 2.0  # seconds
SURVEY_EVERY: Final = 5.0
TICK: Final = 0.2  # for how long at most nothing is noticed of the stop
RETRY = Backoff(first=0.05, longest=2.0)

_OF_TAGS: Final = frozenset({EventKind.TAG_STARTED, EventKind.TAG_ENDED})


@dataclass(frozen=True, slots=True)
class EventStats:
    """Since the start, by kind; and what waits now.

    sent      said on the server
    dropped   found no place in the buffer
    repeated  had been said before, by us or by another: a tag that was there already, or not there to end
    refused   another worker speaks for the camera
    replayed  were said to a server that may have forgotten them
    """

    sent: Mapping[str, int]
    dropped: Mapping[str, int]
    repeated: Mapping[str, int]
    refused: Mapping[str, int]
    replayed: int
    buffered: int


@dataclass(frozen=True, slots=True)
class _Release:
    camera: str


@dataclass(frozen=True, slots=True)
class _TakeOver:
    camera: str
    tags: Mapping[str, PresentTag]
    fence: int


class EventPublisher:
    """One worker's. `announce`, `take_over` and `release` may be called from any thread; `run` is one.

    `on_trouble` is told of each call that failed, `on_success` of the first one that went through after that.
    """

    def __init__(
        self,
        client: Client,
        keys: FleetKeys,
        settings: EventsSettings,
        *,
        worker: str,
        on_trouble: Callable[[RedisUnavailable | RedisRefuses], None] = lambda trouble: None,
        on_success: Callable[[], None] = lambda: None,
        capacity: int = CAPACITY,
        survey_every: float = SURVEY_EVERY,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._server = EventStore(client, keys, settings, worker=worker)
        self._reader = EventStore(client, keys, settings, worker=worker)
        self._confirmed = ConfirmedEvents(worker=worker)
        self._on_trouble = on_trouble
        self._on_success = on_success
        self._capacity = capacity
        self._survey_every = survey_every
        self._clock = clock
        self._monotonic = monotonic
        self._rng = rng or random.Random()
        self._hand: deque[PendingEvent | _Release | _TakeOver] = deque()  # what goes first; of the running thread
        self._checked = self._surveyed = -float("inf")  # monotonic seconds
        self._news = threading.Condition()  # guards all below
        self._numbers = count()
        self._waiting: dict[int, Event | _Release | _TakeOver] = {}  # in order
        self._lesser: deque[int] = deque()  # numbers of those that go first when there is no room
        self._busy = False
        self._held = 0
        self._sent: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._repeated: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._replayed = 0

    def announce(self, event: Event) -> None:
        """Say it, as soon as that can be. Never waits."""
        with self._news:
            number = self._put(event)
            if event.kind not in _OF_TAGS:
                self._lesser.append(number)
            if len(self._waiting) > self._capacity:
                self._drop_one()

    def _put(self, item: Event | _Release | _TakeOver) -> int:
        number = next(self._numbers)
        self._waiting[number] = item
        self._news.notify_all()
        return number

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

    def present_tags(self, camera: str) -> dict[str, PresentTag]:
        """What late comers read now. Blocks. Raises RedisUnavailable, RedisRefuses."""
        return self._reader.survey([camera])[camera].tags

    def take_over(self, camera: str, *, fence: int = 0) -> dict[str, PresentTag]:
        """The tags that others have left, for `Tagger.resume`: from now on this worker looks after them.

        Blocks. Raises RedisUnavailable, RedisRefuses.
        """
        tags = self.present_tags(camera)
        with self._news:
            self._put(_TakeOver(camera, tags, fence))
        return tags

    def release(self, camera: str) -> None:
        """Once all that was announced is said, leave this camera's tags and state alone: it is another's, or gone."""
        with self._news:
            self._put(_Release(camera))

    def flush(self, within: float) -> bool:
        """Wait until all is said, for so many seconds at most; whether it is."""
        with self._news:
            return self._news.wait_for(lambda: not (self._waiting or self._held or self._busy), timeout=within)

    def stats(self) -> EventStats:
        with self._news:
            return EventStats(
                sent=dict(self._sent),
                dropped=dict(self._dropped),
                repeated=dict(self._repeated),
                refused=dict(self._refused),
                replayed=self._replayed,
                buffered=sum(isinstance(item, Event) for item in self._waiting.values()) + self._held,
            )

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. What waits then is not said: `flush` comes before."""
        failures = 0
        while not stop.is_set():
            try:
                self._step()
            except REDIS_TROUBLE as trouble:
                self._on_trouble(trouble)
                stop.wait(self._delay(failures, trouble))
                failures += 1
            else:
                if failures:
                    self._on_success()
                failures = 0

    def _delay(self, failures: int, trouble: RedisUnavailable | RedisRefuses) -> float:
        delay = RETRY.delay(failures, self._rng)
        return max(delay, SLOW_RETRY) if isinstance(trouble, RedisRefuses) or trouble.slow else delay

    def _step(self) -> None:
        """Say what is there, look after the rest when that is due, or wait a moment."""
        self._fill_hand()
        batch = self._batch()
        now = self._monotonic()
        if batch or (self._confirmed.newest and now - self._checked >= CHECK_EVERY):
            self._say(batch)
        elif self._confirmed.cameras and now - self._surveyed >= self._survey_every:
            self._survey()
        else:
            self._idle()

    def _idle(self) -> None:
        with self._news:
            self._busy = False
            self._news.notify_all()
            if not self._waiting:
                self._news.wait(TICK)

    def _fill_hand(self) -> None:
        """What is in hand stays there until it is said."""
        with self._news:
            while self._waiting and len(self._hand) < MOST_EVENTS:
                number = next(iter(self._waiting))
                item = self._waiting.pop(number)
                if self._lesser and self._lesser[0] == number:
                    self._lesser.popleft()
                self._hand.append(PendingEvent(item, item.fence) if isinstance(item, Event) else item)
            self._note_hand()

    def _note_hand(self) -> None:
        self._held = sum(isinstance(item, PendingEvent) for item in self._hand)
        self._busy = True

    def _batch(self) -> list[PendingEvent]:
        """What goes next. A tag is in it once: how it ends depends on how it started."""
        while self._hand and not isinstance(self._hand[0], PendingEvent):
            self._arrange(self._hand.popleft())
        batch: list[PendingEvent] = []
        seen: set[tuple[str, str]] = set()
        for item in self._hand:
            if not isinstance(item, PendingEvent) or len(batch) == MOST_EVENTS:
                break
            if tag := item.event.detail.get("tag"):
                if (item.event.camera, tag) in seen:
                    break
                seen.add((item.event.camera, tag))
            batch.append(self._confirmed.fitted(item))
        return batch

    def _arrange(self, item: PendingEvent | _Release | _TakeOver) -> None:
        match item:
            case _Release(camera):
                self._confirmed.forget(camera)
            case _TakeOver(camera, tags, fence):
                self._confirmed.take_over(camera, tags, fence=fence)

    def _say(self, batch: Sequence[PendingEvent]) -> None:
        try:
            answers = self._server.say(batch, newest=self._confirmed.newest)
        except ForgottenError:
            self._begin_again()
            return
        self._checked = self._monotonic()
        self._confirmed.checked(now=self._checked)
        back: list[PendingEvent] = []
        for pending, answer in zip(batch, answers, strict=True):
            self._hand.popleft()
            back += self._settle(pending, answer)
        with self._news:
            self._hand.extendleft(reversed(back))
            self._note_hand()

    def _settle(self, pending: PendingEvent, answer: Answer) -> list[PendingEvent]:
        """Note what came of one event; what must be said before all others, if anything."""
        if answer.word == Verdict.ABSENT and not pending.insists and (start := self._confirmed.stands(pending)):
            return [start, replace(pending, insists=True)]
        self._confirmed.confirm(pending, answer, now=self._checked)
        with self._news:
            match answer.word:
                case Verdict.FENCED:
                    self._refused[pending.event.kind] += 1
                case Verdict.SAID if answer.entry != pending.entry:
                    self._sent[pending.event.kind] += 1
                case _:
                    self._repeated[pending.event.kind] += 1
        return []

    def _begin_again(self) -> None:
        """The server has forgotten something: what it was told lately goes before what is in hand."""
        lately = self._confirmed.replay()
        with self._news:
            self._replayed += len(lately)
            rest = [
                item for item in self._hand if not (isinstance(item, PendingEvent) and item.entry and not item.restores)
            ]
            self._hand = deque([*lately, *rest])
            self._note_hand()

    def _survey(self) -> None:
        found = self._server.survey(self._confirmed.cameras)
        self._surveyed = self._monotonic()
        differences = self._confirmed.differences(found, at=self._clock())
        with self._news:
            self._hand.extend(differences)
            self._note_hand()
