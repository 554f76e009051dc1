"""Which tag a class stands for, and what is said of settings that no model can fulfil. ImageNet's own names."""

from typing import Any

import pytest
from coatstream.engine.model.labels import imagenet_labels
from coatstream.errors import ConfigError
from coatstream.frames.frame import Label, Prediction, ScoredLabel
from coatstream.results.events.tag_classes import TagClasses, tag_classes
from coatstream.settings.model import TagSettings

LABELS = imagenet_labels(1000)
NAMED = (Label(0, None, "crane"), Label(1, None, "7"), Label(2, None, "crane"))


def classes(labels: tuple[Label, ...] = LABELS, **settings: object) -> TagClasses:
    return tag_classes(TagSettings.model_validate(settings), labels)


def scores(classes: TagClasses, *indices: int, labels: tuple[Label, ...] = LABELS) -> dict[str, float]:
    """What a frame with these classes, each of probability 0.25, is worth."""
    scored = tuple(ScoredLabel(labels[index], 0.25) for index in indices)
    return classes.scores(Prediction("door", "f", 0.0, scored[:1], 64, 36, further=scored[1:]))


def test_without_settings_each_class_is_a_tag_under_its_own_name() -> None:
    assert scores(classes(), 285, 967) == {"Egyptian cat": 0.25, "espresso": 0.25}


def test_a_score_that_is_no_number_counts_as_nothing() -> None:
    labels = (ScoredLabel(LABELS[285], float("nan")), ScoredLabel(LABELS[967], 0.5))

    assert classes().scores(Prediction("door", "f", 0.0, labels, 64, 36)) == {"espresso": 0.5}


@pytest.mark.parametrize(
    ("entries", "members"),
    [
        (["tabby"], {281}),
        (["TABBY"], {281}),
        (["n02123045"], {281}),
        (["281"], {281}),
        (["281-285"], set(range(281, 286))),
        (["tabby", "n02123159", "283-284"], {281, 282, 283, 284}),
        (["Cardigan"], {264}),  # the dog
        (["cardigan"], {474}),  # to wear
        (["crane"], {134, 517}),  # a bird and a machine
    ],
)
def test_a_group_takes_names_wordnet_ids_numbers_and_ranges(entries: list[str], members: set[int]) -> None:
    grouped = classes(groups={"mine": entries})

    assert {index for index in range(1000) if "mine" in scores(grouped, index)} == members
    assert all(scores(grouped, index) == {"mine": 0.25} for index in members)


def test_a_groups_score_is_the_sum_of_its_classes_wherever_they_stand_in_the_list() -> None:
    assert scores(classes(groups={"cat": ["281-285"]}), 281, 967, 285) == {"cat": 0.5, "espresso": 0.25}


def test_a_class_may_be_in_several_groups() -> None:
    assert scores(classes(groups={"cat": ["281-285"], "pet": ["tabby", "151-268"]}), 281) == {"cat": 0.25, "pet": 0.25}


def test_classes_of_one_name_are_one_tag() -> None:
    assert scores(classes(), 134, 517) == {"crane": 0.5}


def test_a_name_that_looks_like_a_number_is_a_name() -> None:
    assert scores(classes(NAMED, groups={"mine": ["7"]}), 1, labels=NAMED) == {"mine": 0.25}


def test_include_and_exclude_go_by_tags() -> None:
    groups = {"cat": ["281-285"]}

    assert classes(groups=groups, include=["cat", "espresso"], exclude=["espresso"]).tags == {"cat"}
    assert "espresso" not in classes(groups=groups, exclude=["espresso"]).tags
    assert len(classes(groups=groups, exclude=["espresso"]).tags) == 1000 - 2 - 5 + 1 - 1  # two names are there twice


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"groups": {"cat": ["taby"]}},
            "tags.groups.cat: no class is called 'taby'; did you mean 'tabby'?",
        ),
        ({"groups": {"cat": ["Zyzzyva"]}}, "tags.groups.cat: no class is called 'Zyzzyva'"),
        ({"groups": {"cat": ["1000"]}}, "tags.groups.cat: 1000 is no class: the model's have the numbers 0 to 999"),
        ({"groups": {"cat": ["5-3"]}}, "tags.groups.cat: 5-3 is no class: the model's have the numbers 0 to 999"),
        (
            {"groups": {"cat": ["990-1000"]}},
            "tags.groups.cat: 990-1000 is no class: the model's have the numbers 0 to 999",
        ),
        (
            {"include": ["espreso"]},
            "tags.include: there is no tag 'espreso'; did you mean 'espresso'?",
        ),
        (
            {"groups": {"cat": ["tabby"]}, "exclude": ["tabby"]},
            "tags.exclude: 'tabby' is no tag of its own: it is in the group 'cat'",
        ),
        (
            {"groups": {"dog": ["151-268"]}, "thresholds": {"dogs": {"start_at": 0.5, "end_below": 0.2}}},
            "tags.thresholds: there is no tag 'dogs'; did you mean 'dog'?",
        ),
        (
            {"groups": {"crane": ["517"]}},
            "tags.groups.crane: class 134 has that name too and is not in the group: "
            'add "134" to it, or give the group another name',
        ),
    ],
)
def test_a_name_that_means_nothing_is_one_clear_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        classes(**settings)

    assert str(caught.value) == line
