"""Publishes events of any thread: keeps them in order until the server has them, even while the server is away.

None is lost but those that find the buffer full, which are counted, and none is published twice. Events that a server
has forgotten (it lost its last second) are published again. Every few seconds the tags and states that clients read
from the server are compared with what this worker knows.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.errors import REDIS_TROUBLE, Retries
from coatstream.results.events.buffer import EventBuffer, Release, TakeOver
from coatstream.results.events.confirmed import ConfirmedEvents
from coatstream.results.events.documents import ended_event
from coatstream.results.events.event import Event, EventKind
from coatstream.results.events.protocol import (
    MOST_EVENTS,
    EventOutcome,
    EventReply,
    EventStore,
    ForgottenError,
    PendingEvent,
    SeenTags,
)
from coatstream.results.events.tags import PresentTag
from coatstream.results.pictures.attaching import PictureAttacher
from coatstream.settings.model import EventsSettings
from coatstream.telemetry.outages import RedisHealth

CAPACITY: Final = 10_000  # events that wait; some 10 MB
CHECK_EVERY: Final = 2.0  # seconds
SURVEY_EVERY: Final = 5.0
TICK: Final = 0.2  # seconds at most until `stop` is noticed


@dataclass(frozen=True, slots=True)
class EventStats:
    """Since the start, by kind; and what waits now.

    sent      published
    dropped   found no place in the buffer
    repeated  were published before, by this worker or another: a tag that was there already, or not there to end
    refused   another worker has the camera's lease
    replayed  were sent again to a server that may have forgotten them
    """

    sent: Mapping[str, int]
    dropped: Mapping[str, int]
    repeated: Mapping[str, int]
    refused: Mapping[str, int]
    replayed: int
    buffered: int


class EventPublisher:
    """One worker's. `run` is its thread. All other methods may be called from any thread."""

    def __init__(
        self,
        client: Client,
        keys: FleetKeys,
        settings: EventsSettings,
        *,
        worker: str,
        health: RedisHealth,
        model: str = "",
        pictures: PictureAttacher | None = None,
        survey_every: float = SURVEY_EVERY,
    ) -> None:
        """`pictures` gives events theirs; None: they have none."""
        self._reader = EventStore(client, keys, settings, worker=worker)
        self._model = model
        self._seen: dict[str, SeenTags] = {}  # the newest of each camera
        self._buffer = EventBuffer(CAPACITY)
        self._counting = threading.Lock()  # guards the next one
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in ("sent", "repeated", "refused")}
        # All below belongs to the thread that runs.
        self._store = EventStore(client, keys, settings, worker=worker)
        self._outgoing = Outgoing(ConfirmedEvents(worker=worker))
        self._pictures = pictures
        self._health = health
        self._survey_every = survey_every
        self._checked = self._surveyed = -float("inf")  # monotonic seconds

    def publish(self, *events: Event) -> None:
        """As soon as that can be. Never waits."""
        for event in events:
            self._buffer.add(self._signed(event))

    def _signed(self, event: Event) -> Event:
        """With the model that saw a tag."""
        of_tag = event.kind in (EventKind.TAG_STARTED, EventKind.TAG_ENDED)
        return replace(event, detail={"model": self._model, **event.detail}) if of_tag and self._model else event

    def saw(self, camera: str, seen: SeenTags) -> None:
        """These of its tags are present."""
        self._seen[camera] = seen

    def present_tags(self, camera: str) -> dict[str, PresentTag]:
        """As clients read them now. Blocks. Raises RedisUnavailable, RedisRefuses."""
        return self._reader.survey([camera])[camera].tags

    def take_over(self, camera: str, *, fence: int = 0) -> dict[str, PresentTag]:
        """The tags that others have left, for `Tagger.resume`: from now on this worker looks after them.

        Blocks. Raises RedisUnavailable, RedisRefuses.
        """
        tags = self.present_tags(camera)
        self._buffer.add(TakeOver(camera, tags, fence))
        others = {tag for tag, start in tags.items() if start.model and self._model and start.model != self._model}
        for tag in sorted(others):  # what another model saw is not what this one will see no more
            self.publish(ended_event(camera, tag, tags[tag], at=time.time(), fence=fence, why="model"))
        return {tag: start for tag, start in tags.items() if tag not in others}

    def release(self, camera: str) -> None:
        """Once all earlier events are published, leave this camera's tags and state alone: it is another worker's, or
        gone.
        """
        self._seen.pop(camera, None)
        self._buffer.add(Release(camera))

    def flush(self, within: float) -> bool:
        """Wait until all is published, for so many seconds at most; whether it is."""
        return self._buffer.flush(within)

    def stats(self) -> EventStats:
        with self._counting:
            counts = {name: dict(counter) for name, counter in self._counts.items()}
        replayed = self._outgoing.replayed
        return EventStats(**counts, dropped=self._buffer.dropped, replayed=replayed, buffered=self._buffer.events)

    # ---- the thread

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. What waits then is not published: call `flush` before."""
        retries = Retries()
        while not stop.is_set():
            try:
                self._step()
            except REDIS_TROUBLE as trouble:
                self._health.down(trouble)
                stop.wait(retries.failed(trouble))
            else:
                if retries.failures:
                    self._health.up()
                retries.worked()

    def _step(self) -> None:
        """Publish what is there, look after the rest when that is due, or wait a moment."""
        outgoing, now = self._outgoing, time.monotonic()
        outgoing.refill(self._buffer, self._pictures)
        outgoing.attach(self._pictures)
        batch = outgoing.batch()
        if batch or (outgoing.confirmed.newest and now - self._checked >= CHECK_EVERY):
            self._send(batch)
        elif outgoing.confirmed.cameras and now - self._surveyed >= self._survey_every:
            found = self._store.survey(outgoing.confirmed.cameras)
            self._surveyed = time.monotonic()
            outgoing.append(outgoing.confirmed.differences(found, at=time.time()))
            self._store.keep(outgoing.confirmed.cameras, dict(self._seen))
        else:
            self._buffer.wait(TICK)
            return
        self._buffer.held(outgoing.events)

    def _send(self, batch: Sequence[PendingEvent]) -> None:
        confirmed = self._outgoing.confirmed
        try:
            replies = self._store.publish(batch, newest=confirmed.newest)
        except ForgottenError:
            self._outgoing.replay()
            return
        self._checked = time.monotonic()
        confirmed.checked(now=self._checked)
        back = [start for one in zip(batch, replies, strict=True) for start in self._settle(*one)]
        self._outgoing.settled(len(batch), back)

    def _settle(self, pending: PendingEvent, reply: EventReply) -> list[PendingEvent]:
        """Note what came of one event. Returns what must be published before all others, if anything."""
        confirmed = self._outgoing.confirmed
        if reply.outcome == EventOutcome.ABSENT and not pending.insists and (start := confirmed.start_of(pending)):
            return [start, replace(pending, insists=True)]
        confirmed.confirm(pending, reply, now=self._checked)
        count = "repeated"
        if reply.outcome == EventOutcome.FENCED:
            count = "refused"
        elif reply.outcome == EventOutcome.PUBLISHED and reply.entry != pending.entry:
            count = "sent"
        with self._counting:
            self._counts[count][pending.event.kind] += 1
        return []


class Outgoing:
    """What goes next, in order. It stays here until the server has replied. Used from one thread.

    confirmed  what the server has confirmed
    replayed   how many events were sent again, since the start
    """

    def __init__(self, confirmed: ConfirmedEvents) -> None:
        self.confirmed = confirmed
        self.replayed = 0
        self._items: deque[PendingEvent | Release | TakeOver] = deque()

    @property
    def events(self) -> int:
        return sum(isinstance(item, PendingEvent) for item in self._items)

    def refill(self, buffer: EventBuffer, pictures: PictureAttacher | None = None) -> None:
        """Take what waits. Its pictures become JPEGs here and now: the next call may have to wait for the server."""
        for item in buffer.take(max(0, MOST_EVENTS - len(self._items))):
            if isinstance(item, Event):
                event = pictures.developed(item) if pictures else replace(item, still=None)
                self._items.append(PendingEvent(event, event.fence))
            else:
                self._items.append(item)

    def attach(self, pictures: PictureAttacher | None) -> None:
        """Store the pictures of all that waits here. Raises RedisUnavailable: what is stored by then stays so."""
        for place, item in enumerate(self._items):
            if pictures and isinstance(item, PendingEvent) and item.event.photo:
                self._items[place] = replace(item, event=pictures.attached(item.event))

    def append(self, pending: Iterable[PendingEvent]) -> None:
        self._items.extend(pending)

    def batch(self) -> list[PendingEvent]:
        """What the next call publishes. A tag is in it once: how it ends depends on how it started."""
        while self._items and not isinstance(self._items[0], PendingEvent):
            self._obey(self._items.popleft())
        batch: list[PendingEvent] = []
        seen: set[tuple[str, str]] = set()
        for item in self._items:
            if not isinstance(item, PendingEvent) or len(batch) == MOST_EVENTS:
                break
            if tag := item.event.detail.get("tag"):
                if (item.event.camera, tag) in seen:
                    break
                seen.add((item.event.camera, tag))
            batch.append(self.confirmed.fitted(item))
        return batch

    def _obey(self, item: PendingEvent | Release | TakeOver) -> None:
        match item:
            case Release(camera):
                self.confirmed.forget(camera)
            case TakeOver(camera, tags, fence):
                self.confirmed.take_over(camera, tags, fence=fence)

    def settled(self, count: int, back: Sequence[PendingEvent]) -> None:
        """The server has replied to the first `count` events; those of `back` go before all others."""
        for _ in range(count):
            self._items.popleft()
        self._items.extendleft(reversed(back))

    def replay(self) -> None:
        """The server has forgotten something: what was confirmed lately goes before all others, once."""
        lately = self.confirmed.replay()
        self.replayed += len(lately)
        rest = [
            item for item in self._items if not (isinstance(item, PendingEvent) and item.entry and not item.restores)
        ]
        self._items = deque([*lately, *rest])
