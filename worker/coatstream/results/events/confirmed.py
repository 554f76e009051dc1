"""What the server has confirmed to this worker: its present tags and states, and the events of the last seconds.

From that it derives what must be published again on a server that has forgotten some of it, or that holds a tag that it
must not. Knows no server itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from coatstream.results.events.documents import ended_event, started_event, state_of, worker_of
from coatstream.results.events.event import EventKind
from coatstream.results.events.protocol import CameraSnapshot, EventOutcome, EventReply, PendingEvent
from coatstream.results.events.tags import PresentTag

LATELY: Final = 30.0  # seconds; an append-only file that is written each second loses at most two
MOST_LATELY: Final = 10_000  # events


@dataclass(slots=True)
class _ConfirmedCamera:
    """One camera's.

    fence     the newest under which something was published
    owned     whether all its present tags are known here, since they were taken over
    unknown   tags that the server had at the last look and that are not known here
    """

    fence: int = 0
    owned: bool = False
    tags: dict[str, PendingEvent] = field(default_factory=dict)
    state: PendingEvent | None = None
    unknown: set[str] = field(default_factory=set)


class ConfirmedEvents:
    """One worker's. Used from one thread."""

    def __init__(self, *, worker: str) -> None:
        self._worker = worker
        self._cameras: dict[str, _ConfirmedCamera] = {}
        self._lately: dict[str, tuple[float, PendingEvent]] = {}  # entry -> when it was confirmed (monotonic), and what
        self.newest = ""  # the last entry that the server named

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._cameras)

    def take_over(self, camera: str, tags: Mapping[str, PresentTag], *, fence: int) -> None:
        """The server has these tags, from this worker or another."""
        own = self._cameras.setdefault(camera, _ConfirmedCamera())
        own.fence, own.owned = fence, True
        own.tags = {
            tag: PendingEvent(started_event(camera, tag, start, fence=fence), fence) for tag, start in tags.items()
        }

    def forget(self, camera: str) -> None:
        """Another worker looks after it from now on, or none."""
        self._cameras.pop(camera, None)

    def fitted(self, pending: PendingEvent) -> PendingEvent:
        """A tag's end must match its start on the server, even where an earlier worker published that."""
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

    def confirm(self, pending: PendingEvent, reply: EventReply, *, now: float) -> None:
        """The server has replied to it; `now` in monotonic seconds."""
        event = pending.event
        own = self._cameras.setdefault(event.camera, _ConfirmedCamera())
        if reply.outcome == EventOutcome.FENCED:
            if pending.fence >= own.fence:
                self.forget(event.camera)
            return
        own.fence = max(own.fence, pending.fence)
        if reply.outcome == EventOutcome.PUBLISHED:
            pending = self._remember(pending, reply.entry, now)
        self._enter(own, pending, reply)

    def _remember(self, pending: PendingEvent, entry: str, now: float) -> PendingEvent:
        if pending.entry != entry:
            self._lately.pop(pending.entry, None)
            pending = replace(pending, entry=entry)
            self._lately[entry] = (now, replace(pending, restores=False))
            if len(self._lately) > MOST_LATELY:
                del self._lately[next(iter(self._lately))]
        self.newest = max(self.newest, entry, key=_order)
        return pending

    def _enter(self, own: _ConfirmedCamera, pending: PendingEvent, reply: EventReply) -> None:
        event = pending.event
        if event.kind == EventKind.CAMERA_STATE:
            own.state = pending
        if event.kind not in (EventKind.TAG_STARTED, EventKind.TAG_ENDED):
            return
        tag, present = event.detail["tag"], reply.present
        known = own.tags.pop(tag, None)
        if event.kind == EventKind.TAG_ENDED:
            return
        if present is None:
            own.tags[tag] = pending
        elif known is not None and known.event.detail["started_at"] == present.started_at:
            own.tags[tag] = known
        else:  # another worker's start, or an own one whose entry is not known
            own.tags[tag] = PendingEvent(started_event(event.camera, tag, present, fence=pending.fence), pending.fence)

    def start_of(self, pending: PendingEvent) -> PendingEvent | None:
        """Where a tag was not there to end: its start, if the server has confirmed that once."""
        own = self._cameras.get(pending.event.camera)
        start = own.tags.get(pending.event.detail["tag"]) if own else None
        return replace(start, fence=pending.fence, restores=True) if start else None

    def checked(self, *, now: float) -> None:
        """The server still knew `newest`: what is older than an outage can cost need not be kept."""
        for entry in [entry for entry, (then, _) in self._lately.items() if then < now - LATELY]:
            del self._lately[entry]

    def replay(self) -> list[PendingEvent]:
        """The server has forgotten something: all events of the last seconds, in order; it decides which it lacks."""
        self.newest = ""
        return [replace(pending, fence=self._fence(pending)) for _, pending in self._lately.values()]

    def _fence(self, pending: PendingEvent) -> int:
        own = self._cameras.get(pending.event.camera)
        return max(pending.fence, own.fence) if own else pending.fence

    def differences(self, found: Mapping[str, CameraSnapshot], *, at: float) -> list[PendingEvent]:
        """What must be published so that clients read what this worker knows. `at`: Unix seconds.

        A tag that this worker does not know is ended when it is seen for the second time: its start may be on its way.
        """
        pendings: list[PendingEvent] = []
        for camera, there in found.items():
            own = self._cameras.get(camera)
            if own is not None:
                pendings += self._missing(own, there)
                pendings += self._unknown(camera, own, there.tags, at)
        return pendings

    def _missing(self, own: _ConfirmedCamera, there: CameraSnapshot) -> Iterable[PendingEvent]:
        for tag, pending in own.tags.items():
            if tag not in there.tags:
                yield replace(pending, fence=own.fence, restores=True)
        if own.state is None or (there.state or b"") == state_of(own.state.event, worker=self._worker):
            return
        if there.state is None or worker_of(there.state) == self._worker:  # else another worker has published it since
            yield replace(own.state, fence=own.fence, restores=True)

    def _unknown(
        self, camera: str, own: _ConfirmedCamera, there: Mapping[str, PresentTag], at: float
    ) -> Iterable[PendingEvent]:
        unknown = set(there) - set(own.tags) if own.owned else set()
        for tag in sorted(unknown & own.unknown):
            yield PendingEvent(ended_event(camera, tag, there[tag], at=at, fence=own.fence), own.fence)
        own.unknown = unknown


def _order(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-"))) if entry else ()
