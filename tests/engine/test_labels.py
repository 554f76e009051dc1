import json
from pathlib import Path

import pytest
from coatstream.engine.model.labels import imagenet_labels, labels_from_file, numbered_labels
from coatstream.errors import EngineError
from coatstream.frames.frame import Label


def test_imagenets_thousand_classes_have_wordnet_ids_and_short_names() -> None:
    labels = imagenet_labels(1000)

    assert len(labels) == 1000
    assert labels[285] == Label(285, "n02124075", "Egyptian cat")
    assert labels[89] == Label(89, "n01819313", "sulphur-crested cockatoo")
    assert labels[967] == Label(967, "n07920052", "espresso")


@pytest.mark.parametrize("count", [1000, 11221, 11821, 21841, 21842, 21843])
def test_every_imagenet_head_of_timm_gets_a_name_for_each_class(count: int) -> None:
    labels = imagenet_labels(count)

    assert [label.index for label in labels] == list(range(count))
    assert all(label.name and label.wnid for label in labels)


def test_a_head_that_is_not_imagenets_gets_numbers() -> None:
    assert imagenet_labels(2) == numbered_labels(2) == (Label(0, None, "class 0"), Label(1, None, "class 1"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "cat\ndog \nbird\n\n"),
        ("names.txt", "\ufeffcat\r\ndog\r\nbird"),
        ("names.json", json.dumps(["cat", "dog", "bird"])),
        ("names.json", json.dumps({"1": "dog", "0": "cat", "2": "bird"})),
    ],
)
def test_names_are_read_from_a_file(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")

    labels = labels_from_file(tmp_path / file, 3)

    assert labels == (Label(0, None, "cat"), Label(1, None, "dog"), Label(2, None, "bird"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", b"cat\ndog\n", "names 2 classes, and the model has 3"),
        ("a.txt", b"cat\n\nbird\n", "has no name for class 1"),
        ("a.txt", b"\xff\xfe\x00\xd8", "can't decode"),
        ("a.json", b'["cat", "dog"', "Expecting"),
        ("a.json", b'["cat", 1, "dog"]', "must hold a list of names"),
        ("a.json", b'{"0": "cat", "2": "dog", "3": "bird"}', "must have the keys 0 to 2"),
        ("a.json", b"7", "must hold a list of names"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("absent.txt", None, "No such file"),
    ],
)
def test_a_bad_label_file_is_said_in_one_line(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)

    with pytest.raises(EngineError, match=message) as caught:
        labels_from_file(tmp_path / file, 3)

    assert "\n" not in str(caught.value)
    assert file in str(caught.value)
