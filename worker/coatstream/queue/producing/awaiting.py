"""What became of frames: hands their labels and failures to the callers that wait for them. Does no I/O.

One subscription serves all callers. Messages on a channel can be lost: before a subscription is up, while a connection
is down, or for want of a right. So the streams are searched as well: at once for a frame that was put earlier, after
each new connection, while nothing comes, and once more before a caller's time is up.
"""

import hashlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from pydantic_core import from_json

from coatstream.broker.keys import Queue
from coatstream.broker.script import Script
from coatstream.broker.steps import Do, Enter, Lock, Signal, Steps, Wait, checked, run_script
from coatstream.errors import (
    REDIS_TROUBLE,
    CoatstreamError,
    ConfigError,
    FrameDead,
    FrameDropped,
    NoOutcome,
    Retries,
)
from coatstream.queue.entry import DEFAULT_SOURCE
from coatstream.queue.producing.outbox import Outbox
from coatstream.queue.producing.picture import Picture
from coatstream.results.documents import FailureDocument, LabelDocument

Document = LabelDocument | FailureDocument

MOST_WAITING: Final = 10_000  # frames at once
MOST_IDLE: Final = 64  # sources that stay subscribed though nothing waits for them: the next frame needs no round trip
PATIENCE: Final = 1.0  # seconds of silence before the streams are looked into; doubled each time
LONGEST_PATIENCE: Final = 8.0
DEAF_PATIENCE: Final = 0.05  # the same for a frame whose channel is not known
LONGEST: Final = 86_400.0 * 365  # seconds of a time-out; locks take no infinite one
LAST_LOOK: Final = 0.25  # seconds before the end of a time-out, or a quarter of it
PAGE, PAGES = 500, 40  # labels of one look at a stream, and looks: 20,000 labels
LETTERS: Final = 32  # dead letters of one look
IDS: Final = 500  # frames asked for in one look
ASKED: Final = 8  # entries of which one look asks whether they are still there: each may hold 16 MB

_LOOK: Final = Script("queue/producing/look")


class Subscription(Protocol):
    """A connection that listens, as `broker.driver` and `broker.async_driver` have them. All but `close` are steps."""

    def open(self, channels: Sequence[str]) -> Any: ...
    def tell(self, *command: str) -> Any: ...
    def receive(self) -> Any: ...


@dataclass(slots=True, eq=False)
class Ticket:
    """Waits for one frame.

    entry_id    None: not sent yet; empty: any entry with this frame id will do
    labels      where the next look into the labels begins, as XRANGE's argument; likewise `letters`
    told        its label or failure, once it is known
    early       what was heard of frames of this id before its entry was known
    looked_at   when the streams were looked into last, on the monotonic clock
    """

    frame_id: str
    source: str | None
    known: Signal
    entry_id: str | None = None
    labels: str = ""
    letters: str = ""
    told: Document | None = None
    early: list[Document] = field(default_factory=list)
    looked_at: float = float("-inf")

    def hear(self, document: Document) -> None:
        """What became of a frame of this id."""
        if self.source not in (None, document.source):
            return
        if self.entry_id is None:
            self.early = [*self.early[-7:], document]
        elif self.told is None and self.entry_id in ("", document.entry_id):
            self.told = document
            self.known.set()

    def sent(self, entry_id: str) -> None:
        """Its entry is known now; so is what was heard of it already."""
        self.entry_id = entry_id
        begin = entry_id.partition("-")[0]
        self.labels, self.letters = begin, begin
        for document in self.early:
            self.hear(document)


@dataclass(slots=True)
class _Channel:
    """A source's two channels. `users` wait for frames of it."""

    up: Signal
    users: int = 0


class Awaiting:
    """Tickets, and how they are answered. `listen` runs in a thread or task of its own; the rest is for any caller."""

    def __init__(
        self,
        outbox: Outbox,
        queues: Sequence[Queue],
        *,
        subscription: Subscription,
        turn: Lock,
        looking: Lock,
        event: Callable[[], Signal],
        stop: Signal,
    ) -> None:
        """`turn`: for the outbox. `looking`: one looks for all."""
        self._outbox = outbox
        self._queues = queues
        self._subscription = subscription
        self._turn = turn
        self._looking = looking
        self._event = event
        self._stop = stop
        self._guard = threading.Lock()  # never held over a step
        self._tickets: dict[str, list[Ticket]] = {}
        self._channels: dict[str, _Channel] = {}
        self._trouble: CoatstreamError | None = None

    # ---- for callers that wait

    def classify(self, picture: Picture, within: float) -> Steps[LabelDocument]:
        """Put a frame, and wait for what becomes of it."""
        deadline = time.monotonic() + within
        picture = picture if picture.frame_id else replace(picture, frame_id=_name_for(picture))
        ticket = self._ticket(picture.frame_id, picture.source)
        try:
            yield from self._subscribe(ticket, deadline)
            if not (yield Enter(self._turn, deadline - time.monotonic())):
                raise NoOutcome(f"the frame was not sent within {within:g} s: other frames wait to be sent before it")
            try:
                entry_id = yield from self._outbox.put_at_once(picture, deadline)
            finally:
                self._turn.release()
            self._sent(ticket, entry_id)
            return (yield from self._outcome(ticket, deadline, within))
        finally:
            yield from self._leave(ticket)

    def wait_for(self, frame_id: str, within: float, source: str | None) -> Steps[LabelDocument]:
        """Wait for what becomes of a frame that was put before."""
        deadline = time.monotonic() + within
        known = self._outbox.recent.get(frame_id)
        if known and source not in (None, known.source):
            known = None  # another source counts its frames by the same names
        ticket = self._ticket(frame_id, source or (known.source if known else None))
        try:
            yield from self._subscribe(ticket, deadline)
            self._sent(ticket, known.entry_id if known else "")
            try:
                yield from self._look(ticket)
            except REDIS_TROUBLE as trouble:
                self._trouble = trouble
            return (yield from self._outcome(ticket, deadline, within))
        finally:
            yield from self._leave(ticket)

    def wake(self) -> None:
        """End all waits, once `stop` is set."""
        with self._guard:
            for ticket in (ticket for tickets in self._tickets.values() for ticket in tickets):
                ticket.known.set()
            for channel in self._channels.values():
                channel.up.set()

    def _ticket(self, frame_id: str, source: str | None) -> Ticket:
        ticket = Ticket(frame_id, source, self._event())
        with self._guard:
            if sum(map(len, self._tickets.values())) >= MOST_WAITING:
                raise CoatstreamError(f"{MOST_WAITING} frames are waited for already, which is as many as can be")
            self._tickets.setdefault(frame_id, []).append(ticket)
        return ticket

    def _sent(self, ticket: Ticket, entry_id: str) -> None:
        with self._guard:
            ticket.sent(entry_id)

    def _subscribe(self, ticket: Ticket, deadline: float) -> Steps[None]:
        """Wait until the source's channels are listened to, a second at most: without them the streams will do."""
        if ticket.source is None:
            return
        with self._guard:
            channel, is_new = self._channels.get(ticket.source), ticket.source not in self._channels
            if channel is None:
                channel = self._channels[ticket.source] = _Channel(self._event())
            channel.users += 1
        if is_new:
            yield Do(self._subscription.tell, ("SUBSCRIBE", *self._names(ticket.source)))
        yield Wait(channel.up, max(0.0, min(PATIENCE, deadline - time.monotonic())))

    def _leave(self, ticket: Ticket) -> Steps[None]:
        idle: list[str] = []
        with self._guard:
            others = [other for other in self._tickets.get(ticket.frame_id, ()) if other is not ticket]
            if others:
                self._tickets[ticket.frame_id] = others
            else:
                self._tickets.pop(ticket.frame_id, None)
            if ticket.source in self._channels:
                self._channels[ticket.source].users -= 1
                unused = [source for source, channel in self._channels.items() if channel.users <= 0]
                idle = unused[: max(0, len(unused) - MOST_IDLE)]
                for source in idle:
                    del self._channels[source]
        if idle:
            yield Do(self._subscription.tell, ("UNSUBSCRIBE", *self._names(*idle)))
            with self._guard:
                again = [source for source in idle if source in self._channels]
            if again:  # their SUBSCRIBE may have overtaken that
                yield Do(self._subscription.tell, ("SUBSCRIBE", *self._names(*again)))

    def _outcome(self, ticket: Ticket, deadline: float, within: float) -> Steps[LabelDocument]:
        """Raises FrameDead, FrameDropped and NoOutcome."""
        last_look = deadline - min(LAST_LOOK, within / 4)
        patience = PATIENCE if ticket.source is not None else DEAF_PATIENCE
        while True:
            now = time.monotonic()
            until = min(now + patience, last_look) if now < last_look else deadline
            yield Wait(ticket.known, max(0.0, until - now))
            if ticket.told:
                return _label(ticket.told)
            if until == deadline or self._stop.is_set():
                raise _no_outcome(ticket, within, self._trouble)
            try:
                yield from self._look(ticket, fresh=min(patience, LAST_LOOK))
            except REDIS_TROUBLE as trouble:
                self._trouble = trouble
            patience = min(2 * patience, LONGEST_PATIENCE)

    # ---- the streams

    def _look(self, ticket: Ticket, *, fresh: float = 0.0) -> Steps[None]:
        """Look into the streams for all tickets of this one's queue, unless that was done `fresh` seconds ago.

        Raises RedisUnavailable and RedisRefuses.
        """
        asked_at = time.monotonic()
        if not (yield Enter(self._looking, LAST_LOOK)):  # the caller that looks now, looks for all
            return
        try:
            if ticket.told is None and ticket.looked_at < asked_at - fresh:
                source = ticket.source
                for queue in self._queues if source is None else [self._outbox.queue_of(source)]:
                    yield from self._look_into(queue, self._together(ticket, queue))
        finally:
            self._looking.release()

    def _together(self, first: Ticket, queue: Queue) -> list[Ticket]:
        """That ticket, and others that the same look can serve: those whose entry is known."""
        if not first.labels:
            return [first]
        with self._guard:
            waiting = [ticket for tickets in self._tickets.values() for ticket in tickets]
        others = [
            ticket
            for ticket in waiting
            if ticket is not first and ticket.labels and ticket.told is None
            and ticket.source is not None and self._outbox.queue_of(ticket.source) == queue
        ]  # fmt: skip
        return [first, *others[: IDS - 1]]

    def _look_into(self, queue: Queue, tickets: Sequence[Ticket]) -> Steps[None]:
        """In pages: forward from the first of their entries, or back from now where no entry is known."""
        begun, back = time.monotonic(), not tickets[0].labels
        labels = "+" if back else min((ticket.labels for ticket in tickets), key=_place)
        letters = "+" if back else min((ticket.letters for ticket in tickets), key=_place)
        asked = [ticket for ticket in tickets if ticket.entry_id and ticket.told is None][:ASKED]
        first, last = yield from self._pages(queue, tickets, asked, back=back, labels=labels, letters=letters)
        for ticket in tickets:
            ticket.looked_at = begun
            ticket.labels, ticket.letters = first.newest if back else (last.labels or labels, last.letters or letters)
        missing = [ticket for ticket, there in zip(asked, first.there, strict=True) if there == "0" and not ticket.told]
        if missing and not last.more:
            if not back:  # its label has the lower id where the clock of the frames' server is ahead
                yield from self._pages(queue, missing, (), back=True, labels="+", letters="+")
            self._tell(map(_gone, missing))

    def _pages(
        self, queue: Queue, tickets: Sequence[Ticket], asked: Sequence[Ticket], *, back: bool, labels: str, letters: str
    ) -> Steps[tuple["_Page", "_Page"]]:
        """The first look, and the last one, until all tickets are answered or nothing more is there."""
        first = last = yield from self._page(queue, tickets, asked, back=back, labels=labels, letters=letters)
        for _ in range(PAGES):
            if not last.more or all(ticket.told for ticket in tickets):
                break
            labels, letters = last.labels or labels, last.letters or letters
            last = yield from self._page(queue, tickets, (), back=back, labels=labels, letters=letters)
        return first, replace(last, labels=last.labels or labels, letters=last.letters or letters)

    def _page(
        self, queue: Queue, tickets: Sequence[Ticket], asked: Sequence[Ticket], *, back: bool, labels: str, letters: str
    ) -> Steps["_Page"]:
        """One look. What it finds goes to its tickets at once."""
        what, ids = "labels cannot be looked for", [ticket.frame_id for ticket in tickets]
        (reply,) = yield from run_script(
            _LOOK,
            what,
            keys=[queue.stream, queue.labels, queue.dead],
            args=[
                *("back" if back else "on", labels, letters, PAGE, LETTERS, len(ids)),
                *ids,
                *(ticket.entry_id or "" for ticket in asked),
            ],
        )
        newest, ends, more, found, buried, there = checked(what, reply)
        self._tell(map(_parsed, found))
        self._tell(map(_letter, buried))
        return _Page(_behind(newest, "0-0"), *_behind(ends, ""), bool(more), there.decode())

    # ---- the channels

    def listen(self) -> Steps[None]:
        """Hear until `stop`."""
        retries = Retries()
        while not self._stop.is_set():
            try:
                with self._guard:
                    sources = list(self._channels)
                yield Do(self._subscription.open, (self._names(*sources),))
                with self._guard:
                    late = [source for source in self._channels if source not in sources]
                if late:  # they came while there was no connection to tell
                    yield Do(self._subscription.tell, ("SUBSCRIBE", *self._names(*late)))
                missed, self._trouble = retries.failures > 0, None
                retries.worked()
                yield from self._hear(2 * len(sources) if missed else 0)
            except REDIS_TROUBLE as trouble:
                self._trouble = trouble
                yield Wait(self._stop, retries.failed(trouble))

    def _hear(self, missed: int) -> Steps[None]:
        """Messages of one connection. `missed`: when so many channels are up, look for what came before it."""
        while not self._stop.is_set():
            match (yield Do(self._subscription.receive)):
                case [b"message", _, text]:
                    self._tell([_parsed(text)])
                case [b"subscribe", name, number]:
                    self._is_up(name.decode("utf-8", "replace"))
                    if number == missed:
                        yield from self._look_everywhere()

    def _look_everywhere(self) -> Steps[None]:
        with self._guard:
            waiting = [ticket for tickets in self._tickets.values() for ticket in tickets]
        for queue in self._queues:
            for ticket in waiting:
                if ticket.labels and ticket.source is not None and self._outbox.queue_of(ticket.source) == queue:
                    yield from self._look(ticket)
                    break

    def _tell(self, documents: Iterable[Document | None]) -> None:
        """Hand these to the tickets of their frames."""
        for document in documents:
            if document is not None:
                with self._guard:
                    for ticket in self._tickets.get(document.frame_id, ()):
                        ticket.hear(document)

    def _names(self, *sources: str) -> list[str]:
        """Of the channels of these sources, which are the same for all partitions."""
        queue = self._queues[0]
        return [name for source in sources for name in (queue.failure_channel(source), queue.channel(source))]

    def _is_up(self, name: str) -> None:
        """That of labels comes last."""
        with self._guard:
            for source, channel in self._channels.items():
                if name == self._queues[0].channel(source):
                    channel.up.set()


@dataclass(frozen=True, slots=True)
class _Page:
    """What one look brought, beside what was found.

    newest           where a look for what comes later begins, in labels and letters
    labels, letters  where the next page begins; empty: this one had none
    there            a digit for each entry that was asked for
    """

    newest: tuple[str, str]
    labels: str
    letters: str
    more: bool
    there: str


def seconds_of(timeout: float) -> float:
    """A caller's time-out, which a sum may have made negative or infinite. Raises ConfigError."""
    if math.isnan(timeout):
        raise ConfigError("timeout is not a number: give seconds")
    return min(max(0.0, timeout), LONGEST)


def _name_for(picture: Picture) -> str:
    """A frame id for a picture without one. A repetition is given the same, so that it hears of the first."""
    if picture.sequence is None:
        return secrets.token_hex(16)
    return hashlib.sha256(f"{picture.sequence} {picture.source}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _behind(ids: Sequence[bytes], nothing: str) -> tuple[str, str]:
    label, letter = (f"({entry_id.decode()}" if entry_id else nothing for entry_id in ids)
    return label, letter


def _place(begin: str) -> tuple[int, int]:
    """To compare where looks begin."""
    milliseconds, _, number = begin.removeprefix("(").partition("-")
    return int(milliseconds), int(number or 0)


def _parsed(text: bytes) -> Document | None:
    """None for what a stranger wrote."""
    try:
        found = from_json(text)
        kind = FailureDocument if "status" in found else LabelDocument
        return kind.model_validate(found)
    except (ValueError, TypeError):  # pydantic's own error is a ValueError
        return None


def _letter(values: Sequence[bytes]) -> Document | None:
    frame_id, entry_id, source, reason, error, died_at = (value.decode("utf-8", "replace") for value in values)
    try:
        return FailureDocument(
            schema=1,
            frame_id=frame_id or entry_id,
            entry_id=entry_id,
            source=source or DEFAULT_SOURCE,
            status="dead",
            reason=reason,
            error=error,
            at=float(died_at),
        )
    except ValueError:
        return None


def _gone(ticket: Ticket) -> Document:
    """Its entry had left the queue before the look, which found nothing else of it."""
    return FailureDocument(
        schema=1,
        frame_id=ticket.frame_id,
        entry_id=ticket.entry_id or "",
        source=ticket.source or DEFAULT_SOURCE,
        status="dropped",
        reason="unknown",
        error="it has left the queue, and neither a label nor a dead letter of it is there",
        at=time.time(),
    )


def _no_outcome(ticket: Ticket, within: float, trouble: CoatstreamError | None) -> NoOutcome:
    why = f" ({trouble})" if trouble else ""
    return NoOutcome(
        f"nothing became of the frame {ticket.frame_id} within {within:g} s{why}; it may still be labelled"
    )


def _label(document: Document) -> LabelDocument:
    """Raises FrameDead and FrameDropped."""
    if isinstance(document, LabelDocument):
        return document
    why = f"{document.reason}: {document.error}" if document.error else document.reason
    if document.status == "dead":
        what = f"the frame {document.frame_id} is a dead letter"
        raise FrameDead(f"{what}: {why}", frame_id=document.frame_id, reason=document.reason)
    raise FrameDropped(
        f"the frame {document.frame_id} was dropped: {why}", frame_id=document.frame_id, reason=document.reason
    )
