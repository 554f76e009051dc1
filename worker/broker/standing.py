"""What the server has confirmed to this worker: which tags and states stand there, and what it said lately.

From that it tells what must be said again to a server that has forgotten some of it, or that holds what it must not.
Knows no server itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from worker.broker.announcements import Answer, Found, Saying, Word
from worker.broker.event_documents import ended_event, started_event, state_of, worker_of
from worker.events import EventKind
from worker.tags import PresentTag

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
    tags: dict[str, Saying] = field(default_factory=dict)
    state: Saying | None = None
    suspects: set[str] = field(default_factory=set)


class Standing:
    """One worker's. Used from one thread."""

    def __init__(self, *, worker: str) -> None:
        self._worker = worker
        self._cameras: dict[str, _Camera] = {}
        self._lately: dict[str, tuple[float, Saying]] = {}  # entry -> when it was confirmed (monotonic), and what
        self.newest = ""  # the last entry that the server named

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._cameras)

    def take_over(self, camera: str, tags: Mapping[str, PresentTag], *, fence: int) -> None:
        """These tags stand there, whoever has said so."""
        own = self._cameras.setdefault(camera, _Camera())
        own.fence, own.owned = fence, True
        own.tags = {tag: Saying(started_event(camera, tag, start, fence=fence), fence) for tag, start in tags.items()}

    def forget(self, camera: str) -> None:
        """Somebody else's business from now on."""
        self._cameras.pop(camera, None)

    def fitted(self, saying: Saying) -> Saying:
        """A tag ends as the one that it started as, also where an earlier worker's start stands there."""
        own, detail = self._cameras.get(saying.event.camera), saying.event.detail
        if own is None or saying.event.kind != EventKind.TAG_ENDED or detail["tag"] not in own.tags:
            return saying
        start = own.tags[detail["tag"]].event.detail
        if start["started_at"] == detail["started_at"]:
            return saying
        as_it_started = {
            "started_at": start["started_at"],
            "duration": round(max(0.0, detail["ended_at"] - start["started_at"]), 6),
            "first_frame_id": start["frame_id"],
        }
        return replace(saying, event=replace(saying.event, detail={**detail, **as_it_started}))

    def confirm(self, saying: Saying, answer: Answer, *, now: float) -> None:
        """What the server answered to it; `now` in monotonic seconds."""
        event = saying.event
        own = self._cameras.setdefault(event.camera, _Camera())
        if answer.word == Word.FENCED:
            if saying.fence >= own.fence:
                self.forget(event.camera)
            return
        own.fence = max(own.fence, saying.fence)
        if answer.word == Word.SAID:
            saying = self._remember(saying, answer.entry, now)
        self._enter(own, saying, answer)

    def _remember(self, saying: Saying, entry: str, now: float) -> Saying:
        if saying.entry != entry:
            self._lately.pop(saying.entry, None)
            saying = replace(saying, entry=entry)
            self._lately[entry] = (now, replace(saying, restores=False))
            if len(self._lately) > MOST_LATELY:
                del self._lately[next(iter(self._lately))]
        self.newest = max(self.newest, entry, key=_order)
        return saying

    def _enter(self, own: _Camera, saying: Saying, answer: Answer) -> None:
        event = saying.event
        if event.kind == EventKind.CAMERA_STATE:
            own.state = saying
        if event.kind not in (EventKind.TAG_STARTED, EventKind.TAG_ENDED):
            return
        tag, stands = event.detail["tag"], answer.present
        known = own.tags.pop(tag, None)
        if event.kind == EventKind.TAG_ENDED:
            return
        if stands is None:
            own.tags[tag] = saying
        elif known is not None and known.event.detail["started_at"] == stands.started_at:
            own.tags[tag] = known
        else:  # another's start, or ours of which we do not know the entry
            own.tags[tag] = Saying(started_event(event.camera, tag, stands, fence=saying.fence), saying.fence)

    def stands(self, saying: Saying) -> Saying | None:
        """Where a tag was not there to end: its start, if the server has confirmed that once."""
        own = self._cameras.get(saying.event.camera)
        start = own.tags.get(saying.event.detail["tag"]) if own else None
        return replace(start, fence=saying.fence, restores=True) if start else None

    def checked(self, *, now: float) -> None:
        """The server still knew `newest`: what is older than an outage can cost need not be kept."""
        for entry in [entry for entry, (then, _) in self._lately.items() if then < now - LATELY]:
            del self._lately[entry]

    def replay(self) -> list[Saying]:
        """The server has forgotten something: all that it was told lately, in order, for it to say which."""
        self.newest = ""
        return [replace(saying, fence=self._fence(saying)) for _, saying in self._lately.values()]

    def _fence(self, saying: Saying) -> int:
        own = self._cameras.get(saying.event.camera)
        return max(saying.fence, own.fence) if own else saying.fence

    def differences(self, found: Mapping[str, Found], *, at: float) -> list[Saying]:
        """What must be said so that late comers read what we know. `at`: Unix seconds.

        A tag that nobody here knows of is ended when it is seen for the second time: its start may be on its way.
        """
        sayings: list[Saying] = []
        for camera, there in found.items():
            own = self._cameras.get(camera)
            if own is not None:
                sayings += self._missing(own, there)
                sayings += self._strangers(camera, own, there.tags, at)
        return sayings

    def _missing(self, own: _Camera, there: Found) -> Iterable[Saying]:
        for tag, saying in own.tags.items():
            if tag not in there.tags:
                yield replace(saying, fence=own.fence, restores=True)
        if own.state is None or (there.state or b"") == state_of(own.state.event, worker=self._worker):
            return
        if there.state is None or worker_of(there.state) == self._worker:  # another worker may have said it since
            yield replace(own.state, fence=own.fence, restores=True)

    def _strangers(self, camera: str, own: _Camera, there: Mapping[str, PresentTag], at: float) -> Iterable[Saying]:
        strangers = set(there) - set(own.tags) if own.owned else set()
        for tag in sorted(strangers & own.suspects):
            yield Saying(ended_event(camera, tag, there[tag], at=at, fence=own.fence), own.fence)
        own.suspects = strangers


def _order(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-"))) if entry else ()
