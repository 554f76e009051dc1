"""The measurement of tags: real weights on a clip of which it is known what is there when."""

import itertools
from pathlib import Path

import pytest
from coatstream.errors import EngineError
from coatstream.frames.frame import Label, Prediction, ScoredLabel
from coatstream.settings.model import TagSettings

from bench import tags as bench
from tests.support.absence import missing


@pytest.mark.slow
def test_tags_of_the_scripted_clip_are_those_that_are_there_and_few(tmp_path: Path) -> None:
    try:
        engine = bench.lite0()
    except EngineError as error:
        missing(str(error))
    settings = TagSettings(groups=bench.GROUPS, memory=1.0, start_at=0.4, end_below=0.2)
    clip = bench.write_scripted(tmp_path / "scripted.avi")

    story = bench.tell(list(bench.predictions_of(clip, engine, fps=10)), engine.labels, settings)

    assert story.frames == pytest.approx(10 * sum(seconds for _, seconds, _ in bench.SCRIPT), abs=2)
    assert story.events <= story.changes / 10
    assert story.shortest >= settings.min_duration
    assert [tag.name for tag in story.tags] == [name for name, _, _ in bench.truth()]
    for tag, (_, began, ended) in zip(story.tags, bench.truth(), strict=True):
        assert began <= tag.started_at <= began + 2.5
        assert tag.ended_at is not None
        assert tag.ended_at == pytest.approx(ended, abs=2.5)


def test_changes_of_the_best_label_and_events_are_counted() -> None:
    labels = tuple(Label(index, None, name) for index, name in enumerate(("cat", "dog")))

    shown = itertools.chain([0] * 5, [1, 0, 0] * 2, [0] * 5, [1] * 10)
    predictions = [
        Prediction("clip", str(number), number / 2, (ScoredLabel(labels[index], 0.9),), 64, 36)
        for number, index in enumerate(shown)
    ]

    story = bench.tell(predictions, labels, TagSettings(memory=0.1))

    assert (story.frames, story.changes) == (26, 5)
    assert [(tag.name, tag.started_at, tag.ended_at) for tag in story.tags] == [("cat", 0, 7.5), ("dog", 8.0, None)]
    assert story.events == 3
    assert story.shortest == 7.5
