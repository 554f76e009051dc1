"""Frames to label: which are kept, and what is written. On a real folder."""

import csv
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coatstream.frames.decoding import decode
from coatstream.frames.frame import Frame, Label, PictureFault, Prediction, ScoredLabel
from coatstream.frames.still import Still
from coatstream.results.documents import decode_embedding
from coatstream.results.training.choosing import FrameChooser, WhyKept
from coatstream.results.training.folder import TrainingFolder
from coatstream.settings.model import TrainingSettings

from tests.support.workers import eventually


def frame(
    number: int, *, source: str = "door", seed: int | None = None, faults: tuple[PictureFault, ...] = ()
) -> Frame:
    rng = np.random.default_rng(number if seed is None else seed)
    pixels = np.kron(rng.integers(0, 255, (8, 8, 3), np.uint8), np.ones((28, 28, 1), np.uint8))
    return Frame(source, f"{source}-{number}", 1_700_000_000.0 + 10 * number, pixels, 1920, 1080, faults=faults)


def predicted(of: Frame, *scores: float, embedding: bool = False) -> Prediction:
    labels = tuple(ScoredLabel(Label(index, None, f"class {index}"), score) for index, score in enumerate(scores))
    vector = np.arange(4, dtype=np.float16) if embedding else None
    return Prediction(of.source, of.frame_id, of.captured_at, labels, 1920, 1080, embedding=vector)


@pytest.mark.parametrize(
    ("scores", "surprising", "why"),
    [
        ((0.9, 0.05), False, None),
        ((0.9, 0.05), True, WhyKept.GATE),
        ((0.3, 0.1), False, WhyKept.SCORE),
        ((0.5, 0.45), False, WhyKept.LEAD),
        ((0.9,), False, None),
        ((), False, None),
    ],
)
def test_a_frame_is_kept_where_the_model_is_unsure(
    scores: tuple[float, ...], surprising: bool, why: WhyKept | None
) -> None:
    chooser = FrameChooser(TrainingSettings())

    assert chooser.why(predicted(frame(1), *scores), surprising=surprising) is why


def test_a_random_share_of_the_others_is_kept() -> None:
    chooser = FrameChooser(TrainingSettings(share=0.1), random.Random(1))

    sure = predicted(frame(1), 0.9, 0.0)

    kept = sum(chooser.why(sure, surprising=False) is WhyKept.SHARE for _ in range(1000))

    assert 70 < kept < 130


def test_frames_that_look_alike_or_follow_at_once_are_kept_once() -> None:
    chooser = FrameChooser(TrainingSettings())

    assert chooser.is_new(frame(1))
    assert not chooser.is_new(frame(2, seed=1))
    assert not chooser.is_new(frame(1))
    assert chooser.is_new(frame(3))
    assert chooser.is_new(frame(1, source="yard"))


@contextmanager
def keeping(folder: Path, still: Still | None = None, **settings: object) -> Iterator[TrainingFolder]:
    tree = TrainingSettings.model_validate({"folder": folder, **settings})
    kept = TrainingFolder(tree, folder, worker="me", find=lambda source, frame_id: still)
    stop = threading.Event()
    thread = threading.Thread(target=kept.run, args=(stop,))
    thread.start()
    try:
        yield kept
    finally:
        stop.set()
        thread.join(20)


def test_pictures_and_a_table_of_what_the_model_said(tmp_path: Path) -> None:
    with keeping(tmp_path) as kept:
        kept.look(frame(1), predicted(frame(1), 0.3, 0.2, embedding=True), False)
        kept.look(frame(2, source="=cmd()"), predicted(frame(2), 0.9, 0.1), True)
        kept.look(frame(3), predicted(frame(3), 0.9, 0.1), False)
        kept.look(frame(4, faults=(PictureFault.BLACK,)), predicted(frame(4), 0.3), False)
        eventually(lambda: sum(kept.stats().kept.values()) == 2, "both are written")

    [table] = tmp_path.rglob("metadata.csv")
    with table.open(newline="") as file:
        first, second = csv.DictReader(file)
    picture = decode((table.parent / first["file_name"]).read_bytes(), max_bytes=10**6, max_pixels=10**6)
    assert picture.shape == (224, 224, 3)
    assert (first["label"], first["score"], first["second"], first["why"]) == ("class 0", "0.3", "class 1", "score")
    assert decode_embedding(first["embedding"]).tolist() == [0, 1, 2, 3]
    assert (second["why"], second["source"], second["embedding"]) == ("gate", "'=cmd()", "")
    assert kept.stats().kept == {"score": 1, "gate": 1}


def test_the_whole_picture_is_kept_where_it_is_still_there(tmp_path: Path) -> None:
    with keeping(tmp_path, Still("x", 0.0, np.zeros((360, 640, 3), np.uint8))) as kept:
        kept.look(frame(1), predicted(frame(1), 0.3), False)
        eventually(lambda: sum(kept.stats().kept.values()) == 1, "it is written")

    [path] = tmp_path.rglob("*.jpg")
    assert decode(path.read_bytes(), max_bytes=10**6, max_pixels=10**6).shape == (360, 640, 3)


def test_of_several_views_all_are_kept_since_any_may_have_the_label(tmp_path: Path) -> None:
    of = frame(1)
    views = np.stack([np.full((224, 224, 3), 20, np.uint8), np.full((224, 224, 3), 230, np.uint8)])
    with keeping(tmp_path) as kept:
        kept.look(replace(of, pixels=views), predicted(of, 0.3), False)
        eventually(lambda: sum(kept.stats().kept.values()) == 1, "it is written")

    [path] = tmp_path.rglob("*.jpg")
    picture = decode(path.read_bytes(), max_bytes=10**6, max_pixels=10**6)
    assert picture.shape == (224, 448, 3)
    assert (picture[100, 100, 0] < 30, picture[100, 400, 0] > 220) == (True, True)


def test_a_full_folder_takes_no_more_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "earlier.jpg").write_bytes(bytes(1_000_000))
    with keeping(tmp_path, max_bytes=1_000_000) as kept:
        kept.look(frame(1), predicted(frame(1), 0.3), False)
        eventually(lambda: kept.stats().left_out == {"full": 1}, "it is counted")


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with keeping(tmp_path / "file") as kept:
        kept.look(frame(1), predicted(frame(1), 0.3), False)
        eventually(lambda: kept.stats().left_out == {"failed": 1}, "it is counted")
