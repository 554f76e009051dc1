"""Which tags each class of a model stands for: the groups that it is in, else its own name. Knows no time."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from coatstream.errors import ConfigError
from coatstream.frames.frame import Label, Prediction
from coatstream.results.events.shipped_groups import shipped_for
from coatstream.settings.model import TagSettings, Thresholds

_HIGHEST: Final = 0.95
_RANGE = re.compile(r"(\d+)-(\d+)")


LARGE: Final = ((20, 1.5), (5, 1.25))  # a tag of more than so many classes has thresholds so many times as high


class TagClasses:
    """Class index -> its tags. A class in a group is no tag of its own; most are in none."""

    def __init__(self, tags: Mapping[int, tuple[str, ...]]) -> None:
        self._tags = tags
        self._sizes = Counter(tag for own in tags.values() for tag in own)

    def thresholds(self, tag: str, settings: TagSettings) -> Thresholds:
        """Its own, or those of all tags, which are higher for large groups: 59 bird classes sum to .45 on a wall."""
        if (own := settings.thresholds.get(tag)) is not None:
            return own
        factor = next((factor for size, factor in LARGE if self._sizes[tag] > size), 1.0)
        highest = max(_HIGHEST, settings.start_at)
        start_at, end_below = min(highest, settings.start_at * factor), min(highest, settings.end_below * factor)
        return Thresholds.model_construct(start_at=start_at, end_below=end_below)

    def scores(self, prediction: Prediction) -> dict[str, float]:
        """Each tag's probability, 0..1: the sum of those of its classes, as far as the model named them.

        NaN counts as 0: a tag that once had it would never end.
        """
        scores: dict[str, float] = {}
        for scored in (*prediction.labels, *prediction.further):
            if not scored.score > 0:
                continue
            for tag in self._tags.get(scored.label.index, ()):
                scores[tag] = min(1.0, scores.get(tag, 0.0) + scored.score)
        return scores

    @property
    def tags(self) -> frozenset[str]:
        """Every tag that there can be."""
        return frozenset(tag for tags in self._tags.values() for tag in tags)


def tag_classes(settings: TagSettings, labels: Sequence[Label], *, where: str = "tags") -> TagClasses:
    """The tags of a model with these classes. `where` is the section's name, for messages.

    Raises ConfigError: a name in it is no class or no tag, or has two meanings.
    """
    named = {*settings.include, *settings.thresholds}
    shipped = {name: own for name, own in shipped_for(labels).items() if name in named and name not in settings.groups}
    groups = {
        group: frozenset(
            index for entry in entries for index in _indices(entry, labels, where=f"{where}.groups.{group}")
        )
        for group, entries in {**shipped, **settings.groups}.items()
    }
    tags = _tags(groups, labels, where, shipped)
    wanted = _wanted(settings, {tag for own in tags.values() for tag in own}, groups, labels, where)
    kept = {index: tuple(tag for tag in own if tag in wanted) for index, own in tags.items()}
    return TagClasses({index: own for index, own in kept.items() if own})


def _tags(
    groups: Mapping[str, frozenset[int]], labels: Sequence[Label], where: str, shipped: Collection[str]
) -> dict[int, tuple[str, ...]]:
    tags: dict[int, tuple[str, ...]] = {}
    for label in labels:
        tags[label.index] = tuple(group for group, indices in groups.items() if label.index in indices) or (label.name,)
        if label.name in shipped and label.index not in groups[label.name]:
            tags[label.index] = ()  # the carpenter's plane is none of those that fly
        elif label.name in groups and label.index not in groups[label.name]:
            raise ConfigError(
                f"{where}.groups.{label.name}: class {label.index} has that name too and is not in the group: "
                f'add "{label.index}" to it, or give the group another name'
            )
    return tags


def _indices(entry: str, labels: Sequence[Label], *, where: str) -> list[int]:
    """The classes that one entry of a group means: a name, a wnid, an index, or a range of indices."""
    for same in (str.__str__, str.casefold):  # the dog "Cardigan" is another class than the "cardigan" that is worn
        if found := [label.index for label in labels if same(label.name) == same(entry)]:
            return found
    if found := [label.index for label in labels if label.wnid == entry]:
        return found
    if numbers := _RANGE.fullmatch(entry) or re.fullmatch(r"(\d+)", entry):
        first, last = int(numbers[1]), int(numbers[numbers.lastindex or 1])
        if first <= last < len(labels):
            return [label.index for label in labels[first : last + 1]]
        raise ConfigError(f"{where}: {entry} is no class: the model's have the numbers 0 to {len(labels) - 1}")
    raise ConfigError(f"{where}: no class is called {entry!r}{_suggestion(entry, (label.name for label in labels))}")


def _wanted(
    settings: TagSettings, tags: set[str], groups: Mapping[str, frozenset[int]], labels: Sequence[Label], where: str
) -> set[str]:
    """The tags that `include` and `exclude` leave; all names in them and in `thresholds` are looked at."""
    named = {"include": settings.include, "exclude": settings.exclude, "thresholds": tuple(settings.thresholds)}
    for section, names in named.items():
        for name in names:
            if name not in tags:
                raise ConfigError(f"{where}.{section}: {_no_tag(name, tags, groups, labels)}")
    return (set(settings.include) or tags) - set(settings.exclude)


def _no_tag(name: str, tags: set[str], groups: Mapping[str, frozenset[int]], labels: Sequence[Label]) -> str:
    indices = {label.index for label in labels if label.name == name}
    for group, members in groups.items():
        if indices & members:
            return f"{name!r} is no tag of its own: it is in the group {group!r}"
    return f"there is no tag {name!r}{_suggestion(name, tags)}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    folded = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""
