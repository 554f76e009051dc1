"""The tags of a camera whose picture has regions: each region has a tagger, and its name stands before its tags."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from coatstream.frames.frame import Prediction
from coatstream.results.events.event import Event
from coatstream.results.events.tags import PresentTag, Tagger, Why


class CameraTags(Protocol):
    """One camera's tags: a `Tagger`, or one for each region. Used from one thread at a time."""

    @property
    def present(self) -> dict[str, PresentTag]: ...

    def seen(self, prediction: Prediction) -> tuple[Event, ...]: ...

    def tick(self) -> tuple[Event, ...]: ...

    def excuse(self) -> None: ...

    def end(self, why: Why) -> tuple[Event, ...]: ...

    def resume(self, present: Mapping[str, PresentTag], *, fence: int = 0) -> None: ...


class RegionTags:
    """`CameraTags` of regions. A tag is `gate/car`: so it stands in events and in `tags:<camera>`.

    rest  knows no class: it ends the tags that earlier settings have left
    """

    def __init__(self, regions: Mapping[str, Tagger], rest: Tagger) -> None:
        self._regions = regions
        self._rest = rest

    @property
    def present(self) -> dict[str, PresentTag]:
        named = {f"{name}/{tag}": start for name, own in self._regions.items() for tag, start in own.present.items()}
        return named | self._rest.present

    def seen(self, prediction: Prediction) -> tuple[Event, ...]:
        plain = replace(prediction, labels=(), further=(), regions={})
        events = list(self._rest.seen(plain))
        for name, tagger in self._regions.items():
            events += _of(name, tagger.seen(replace(plain, labels=prediction.regions.get(name, ()))))
        return tuple(events)

    def tick(self) -> tuple[Event, ...]:
        return (*self._rest.tick(), *(event for name, own in self._regions.items() for event in _of(name, own.tick())))

    def excuse(self) -> None:
        for tagger in (self._rest, *self._regions.values()):
            tagger.excuse()

    def end(self, why: Why) -> tuple[Event, ...]:
        ends = (event for name, own in self._regions.items() for event in _of(name, own.end(why)))
        return (*self._rest.end(why), *ends)

    def resume(self, present: Mapping[str, PresentTag], *, fence: int = 0) -> None:
        left = dict(present)
        for name, tagger in self._regions.items():
            before = f"{name}/"
            tagger.resume(
                {tag.removeprefix(before): left.pop(tag) for tag in present if tag.startswith(before)}, fence=fence
            )
        self._rest.resume(left, fence=fence)


def _of(region: str, events: Iterable[Event]) -> Iterator[Event]:
    for event in events:
        detail = {**event.detail, "tag": f"{region}/{event.detail['tag']}", "region": region}
        yield replace(event, detail=detail)
