"""What the server has confirmed to this worker: which tags and states stand there, and what it said lately.

From that it tells what must be said again to a server that has forgotten some of it, or that holds what it must not.
Knows no server itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from coatstream.results.events.documents import ended_event, started_event, state_of, worker_of
from coatstream.results.events.event import EventKind
from coatstream.results.events.protocol import Answer, Found, PendingEvent, Verdict
from coatstream.results.events.tags import PresentTag

LATELY: Final = 30.0  # seconds; an append-only file that is written each second loses at most two
MOST_LATELY: Final = 10_000  # events


@dataclass(slots=True)
class _Camera:
    """One camera's.

    fence     the newest under which it was spoken for
    owned     whether all its present tags are known here, since they were taken over
    suspects  tags that stood on the server at the last look and are not known here
    """

    fence: int = 0
    owned: bool = False
    tags: dict[str, PendingEvent] = field(default_factory=dict)
    state: PendingEvent | None = None
    suspects: set[str] = field(default_factory=set)


class ConfirmedEvents:
    """One worker's. Used from one thread."""

    def __init__(self, *, worker: str) -> None:
        self._worker = worker
        self._cameras: dict[str, _Camera] = {}
        self._lately: dict[str, tuple[float, PendingEvent]] = {}  # entry -> when it was confirmed (monotonic), and what
        self.newest = ""  # the last entry that the server named

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._cameras)

    def take_over(self, camera: str, tags: Mapping[str, PresentTag], *, fence: int) -> None:
        """These tags stand there, whoever has said so."""
        own = self._cameras.setdefault(camera, _Camera())
        own.fence, own.owned = fence, True
        own.tags = {
            tag: PendingEvent(started_event(camera, tag, start, fence=fence), fence) for tag, start in tags.items()
        }

    def forget(self, camera: str) -> None:
        """Somebody else's business from now on."""
        self._cameras.pop(camera, None)

    def fitted(self, pending: PendingEvent) -> PendingEvent:
        """A tag ends as the one that it started as, also where an earlier worker's start stands there."""
        own, detail = self._cameras.get(pending.event.camera), pending.event.detail
        if own is None or pending.event.kind != EventKind.TAG_ENDED or detail["tag"] not in own.tags:
            return pending
        start = own.tags[detail["tag"]].event.detail
        if start["started_at"] == detail["started_at"]:
            return pending
        as_it_started = {
            "started_at": start["started_at"],
            "duration": round(max(0.0, detail["ended_at"] - start["started_at"]), 6),
            "first_frame_id": start["frame_id"],
        }
        return replace(pending, event=replace(pending.event, detail={**detail, **as_it_started}))

    def confirm(self, pending: PendingEvent, answer: Answer, *, now: float) -> None:
        """What the server answered to it; `now` in monotonic seconds."""
        event = pending.event
        own = self._cameras.setdefault(event.camera, _Camera())
        if answer.word == Verdict.FENCED:
            if pending.fence >= own.fence:
                self.forget(event.camera)
            return
        own.fence = max(own.fence, pending.fence)
        if answer.word == Verdict.SAID:
            pending = self._remember(pending, answer.entry, now)
        self._enter(own, pending, answer)

    def _remember(self, pending: PendingEvent, entry: str, now: float) -> PendingEvent:
        if pending.entry != entry:
            self._lately.pop(pending.entry, None)
            pending = replace(pending, entry=entry)
            self._lately[entry] = (now, replace(pending, restores=False))
            if len(self._lately) > MOST_LATELY:
                del self._lately[next(iter(self._lately))]
        self.newest = max(self.newest, entry, key=_order)
        return pending

    def _enter(self, own: _Camera, pending: PendingEvent, answer: Answer) -> None:
        event = pending.event
        if event.kind == EventKind.CAMERA_STATE:
            own.state = pending
        if event.kind not in (EventKind.TAG_STARTED, EventKind.TAG_ENDED):
            return
        tag, stands = event.detail["tag"], answer.present
        known = own.tags.pop(tag, None)
        if event.kind == EventKind.TAG_ENDED:
            return
        if stands is None:
            own.tags[tag] = pending
        elif known is not None and known.event.detail["started_at"] == stands.started_at:
            own.tags[tag] = known
        else:  # another's start, or ours of which we do not know the entry
            own.tags[tag] = PendingEvent(started_event(event.camera, tag, stands, fence=pending.fence), pending.fence)

    def stands(self, pending: PendingEvent) -> PendingEvent | None:
        """Where a tag was not there to end: its start, if the server has confirmed that once."""
        own = self._cameras.get(pending.event.camera)
        start = own.tags.get(pending.event.detail["tag"]) if own else None
        return replace(start, fence=pending.fence, restores=True) if start else None

    def checked(self, *, now: float) -> None:
        """The server still knew `newest`: what is older than an outage can cost need not be kept."""
        for entry in [entry for entry, (then, _) in self._lately.items() if then < now - LATELY]:
            del self._lately[entry]

    def replay(self) -> list[PendingEvent]:
        """The server has forgotten something: all that it was told lately, in order, for it to say which."""
        self.newest = ""
        return [replace(pending, fence=self._fence(pending)) for _, pending in self._lately.values()]

    def _fence(self, pending: PendingEvent) -> int:
        own = self._cameras.get(pending.event.camera)
        return max(pending.fence, own.fence) if own else pending.fence

    def differences(self, found: Mapping[str, Found], *, at: float) -> list[PendingEvent]:
        """What must be said so that late comers read what we know. `at`: Unix seconds.

        A tag that nobody here knows of is ended when it is seen for the second time: its start may be on its way.
        """
        pendings: list[PendingEvent] = []
        for camera, there in found.items():
            own = self._cameras.get(camera)
            if own is not None:
                pendings += self._missing(own, there)
                pendings += self._strangers(camera, own, there.tags, at)
        return pendings

    def _missing(self, own: _Camera, there: Found) -> Iterable[PendingEvent]:
        for tag, pending in own.tags.items():
            if tag not in there.tags:
                yield replace(pending, fence=own.fence, restores=True)
        if own.state is None or (there.state or b"") == state_of(own.state.event, worker=self._worker):
            return
        if there.state is None or worker_of(there.state) == self._worker:  # another worker may have said it since
            yield replace(own.state, fence=own.fence, restores=True)

    def _strangers(
        self, camera: str, own: _Camera, there: Mapping[str, PresentTag], at: float
    ) -> Iterable[PendingEvent]:
        strangers = set(there) - set(own.tags) if own.owned else set()
        for tag in sorted(strangers & own.suspects):
            yield PendingEvent(ended_event(camera, tag, there[tag], at=at, fence=own.fence), own.fence)
        own.suspects = strangers


def _order(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-"))) if entry else ()
