"""A camera with regions has tags for each, under the region's name."""

from collections.abc import Iterable

from coatstream.frames.frame import Label, Prediction, ScoredLabel
from coatstream.results.events.event import Event
from coatstream.results.events.region_tags import RegionTags
from coatstream.results.events.tag_classes import TagClasses, tag_classes
from coatstream.results.events.tags import PresentTag, Tagger
from coatstream.settings.model import TagSettings

from tests.support.doubles import SettableClock

CAR, CAT = Label(0, None, "car"), Label(1, None, "cat")


def tagger(clock: SettableClock, *, known: bool = True) -> Tagger:
    settings = TagSettings(min_duration=0, min_gap=0)
    classes = tag_classes(settings, (CAR, CAT)) if known else TagClasses({})
    return Tagger("yard", settings, classes, clock=clock, monotonic=clock)


def tags(clock: SettableClock) -> RegionTags:
    return RegionTags({"gate": tagger(clock), "till 3": tagger(clock)}, tagger(clock, known=False))


def frames(seen: RegionTags, clock: SettableClock, **regions: Label) -> list[Event]:
    events: list[Event] = []
    for _ in range(6):
        clock.now += 0.5
        own = {name.replace("_", " "): (ScoredLabel(label, 0.9),) for name, label in regions.items()}
        events += seen.seen(Prediction("yard", "f", clock.now, (), 64, 36, regions=own))
    return events


def words(events: Iterable[Event]) -> list[tuple[str, str, str]]:
    return [(event.kind, event.detail["tag"], event.detail["region"]) for event in events]


def test_each_region_has_tags_of_its_own() -> None:
    clock = SettableClock()
    seen = tags(clock)

    assert words(frames(seen, clock, gate=CAR, till_3=CAT)) == [
        ("tag.started", "gate/car", "gate"),
        ("tag.started", "till 3/cat", "till 3"),
    ]
    assert set(seen.present) == {"gate/car", "till 3/cat"}
    assert words(frames(seen, clock, till_3=CAT)) == [("tag.ended", "gate/car", "gate")]


def test_the_next_worker_goes_on_with_the_tags_of_each_region_and_ends_those_of_regions_that_are_gone() -> None:
    clock = SettableClock()
    seen = tags(clock)
    seen.resume({"gate/car": PresentTag(0.9, 900.0), "door/cat": PresentTag(0.9, 900.0), "cat": PresentTag(0.8, 1.0)})

    events = frames(seen, clock, gate=CAR)

    assert {event.detail["tag"] for event in events} == {"door/cat", "cat"}
    assert set(seen.present) == {"gate/car"}
    assert [event.detail["tag"] for event in seen.end("removed")] == ["gate/car"]
