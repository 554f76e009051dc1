"""The settings tree, its sample file, and the table made of both."""

import re
from pathlib import Path

import pytest
import yaml
from coatstream.settings import keys
from coatstream.settings.loading import load
from coatstream.settings.model import BatchSettings, CameraSettings, ModelSettings, QueueEntry, SettingsTree
from pydantic import ValidationError

from docs.tables import LISTS, MANUAL, comments, settings_table

LISTED = {f"{section}[].{name}" for section, item in LISTS.items() for name in item.model_fields}


def sample_with_its_items() -> str:
    """The sample file after doing what its comments above `queues` and `cameras` say."""
    return (
        MANUAL.read_text("utf-8")
        .replace("cameras: []", "cameras:")
        .replace("queues: []", "queues:")
        .replace("\n#  ", "\n  ")
    )


def keys_of(values: dict[str, object], prefix: str = "") -> set[str]:
    found = set()
    for name, value in values.items():
        found |= {prefix + name} | (keys_of(value, f"{prefix}{name}.") if isinstance(value, dict) else set())
    return found


def test_settings_cannot_be_changed_after_they_are_made() -> None:
    tree = SettingsTree()

    with pytest.raises(ValidationError, match="frozen"):
        tree.batch.max_size = 9  # type: ignore[misc]


def test_prepared_sizes_that_ascend_to_the_largest_batch_are_accepted() -> None:
    assert BatchSettings(max_size=8, prepared=(1, 4, 8)).prepared == (1, 4, 8)


@pytest.mark.parametrize("prepared", [(4, 1, 8), (4, 4, 8), (1, 4), (1, 16)])
def test_prepared_sizes_that_do_not_ascend_to_the_largest_batch_are_refused(prepared: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"must ascend and end with batch\.max_size \(8\)"):
        BatchSettings(max_size=8, prepared=prepared)


def test_a_wrong_largest_batch_is_not_blamed_on_the_prepared_sizes_too() -> None:
    with pytest.raises(ValidationError) as caught:
        BatchSettings.model_validate({"max_size": 0, "prepared": [1, 8]})

    assert [error["loc"] for error in caught.value.errors()] == [("max_size",)]


def test_a_device_index_is_a_camera_url() -> None:
    camera = CameraSettings.model_validate({"name": "desk", "url": 0})

    assert camera.url.get_secret_value() == "0"


def test_two_cameras_of_one_name_are_refused() -> None:
    camera = {"name": "door", "url": "0"}

    with pytest.raises(ValidationError, match="must be unique, and door is there twice"):
        SettingsTree.model_validate({"cameras": [camera, camera]})


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_a_device_of_torch_is_accepted(device: str) -> None:
    assert ModelSettings(device=device).device == device


def test_credentials_do_not_show_when_settings_are_printed() -> None:
    tree = load(
        environ={"COATSTREAM_REDIS__URL": "redis://me:hunter2@host"},
        overrides={"cameras": [{"name": "door", "url": "rtsp://me:hunter2@host", "password": "hunter2"}]},
        secrets_dir=None,
    )

    assert "hunter2" not in repr(tree) + tree.model_dump_json()


def test_the_sample_file_holds_exactly_the_defaults() -> None:
    assert load(config=MANUAL, environ={}, secrets_dir=None) == SettingsTree()


def test_the_sample_file_holds_every_key_of_the_tree_and_no_other() -> None:
    assert keys_of(yaml.safe_load(MANUAL.read_text("utf-8"))) == keys_of(SettingsTree().model_dump())


def test_the_sample_camera_can_be_uncommented_and_holds_every_key_with_its_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(sample_with_its_items())

    tree = load(config=file, environ={}, secrets_dir=None)

    [camera] = tree.cameras
    assert camera.model_fields_set == set(CameraSettings.model_fields)
    assert camera == CameraSettings(name=camera.name, url=camera.url)
    [queue] = tree.queues
    assert queue.model_fields_set == set(QueueEntry.model_fields)
    assert queue == QueueEntry(stream=queue.stream)


def test_each_key_of_the_sample_file_has_a_comment() -> None:
    every = keys_of(SettingsTree().model_dump()) | LISTED

    told = comments()

    assert set(told) == every
    assert [key for key, comment in told.items() if len(comment) < 15 or not comment.endswith(".")] == []


def test_the_table_has_one_row_of_three_cells_for_every_setting() -> None:
    header, rule, *rows = settings_table().splitlines()

    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    assert (header, rule) == ("| key | default | meaning |", "| --- | --- | --- |")
    assert [row[0].strip() for row in cells] == [
        *(f"`{keys.dotted(path)}`" for path in keys.settings()),
        *(f"`{section}[].{name}`" for section, item in LISTS.items() for name in item.model_fields),
    ]
    assert {len(row) for row in cells} == {3}


def test_a_row_of_the_table_tells_the_default_of_the_tree_and_the_comment_of_the_sample_file() -> None:
    rows = settings_table().splitlines()

    assert "| `log.format` | `auto` | console, json, or auto (console on a terminal, else JSON). |" in rows
    meaning = "Frames taken per second; fractions are allowed (0.2: one frame in five seconds). 0: every frame."
    assert f"| `cameras[].fps` | `5.0` | {meaning} |" in rows
    assert (
        "| `cameras[].name` | required | The source's name in labels and metrics. Each camera needs its own. |" in rows
    )


@pytest.mark.parametrize("name", ["queue", "queue/1", "other"])
def test_a_camera_cannot_take_the_name_of_the_queue_or_of_the_many(name: str) -> None:
    with pytest.raises(ValidationError, match=f"the name {name} is taken"):
        SettingsTree.model_validate({"cameras": [{"name": name, "url": "0"}]})


@pytest.mark.parametrize(
    "sections",
    [
        {"events": {"stream": "labels"}},
        {"events": {"tags": "labels"}},  # the tags of a camera called "latest" would go into the hash of newest labels
        {"events": {"tags": "cameras"}},
        {"fleet": {"key": "frames"}},
        {"results": {"stream": "events"}, "cameras": [{"name": "door", "url": "0"}]},
    ],
)
def test_one_key_for_two_things_is_refused(sections: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="is the name of two things"):
        SettingsTree.model_validate(sections)


def test_who_has_no_cameras_may_call_the_queue_as_they_would_be_called() -> None:
    assert SettingsTree.model_validate({"queue": {"stream": "cameras"}, "results": {"stream": "tags"}}).cameras == ()


def test_a_priority_of_which_nothing_would_be_left_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.001"):
        CameraSettings.model_validate({"name": "door", "url": "0", "priority": 1e-9})


def test_an_empty_cache_folder_is_refused_since_it_would_be_the_current_one() -> None:
    with pytest.raises(ValidationError, match="must name a folder"):
        ModelSettings.model_validate({"cache": ""})

    assert ModelSettings.model_validate({"cache": None}).cache is None
