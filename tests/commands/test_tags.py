"""Ready groups, what thresholds would say, and what the model sees: commands on a real clip, with a noop engine."""

import json
from pathlib import Path

import numpy as np
import pytest
from coatstream import cli
from coatstream.commands.view import drawn
from coatstream.frames.frame import InputSpec
from coatstream.frames.opencv import cv2
from coatstream.frames.views import Region

from tests.support.paths import ASSETS

CLIP = ASSETS / "cockatoo_360p.mp4"
SPEC = InputSpec(32, 32, 0.875, "center", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_the_ready_groups_are_listed_with_their_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tags", "groups", "--json"]) == 0

    groups = {one["group"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {"dog", "cat", "bird", "car", "plane", "food"} <= set(groups)
    assert (len(groups["dog"]["classes"]), groups["cat"]["classes"]) == (118, [281, 282, 283, 284, 285])
    assert groups["plane"]["names"] == ["airliner", "warplane"]


def test_a_clip_is_tuned_into_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = tmp_path / "scores.png"

    assert (
        cli.run(["tags", "tune", str(CLIP), "--engine", "noop", "--seconds", "2", "--save", str(save), "--json"]) == 0
    )

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows
    assert all(0 <= row["p10"] <= row["p50"] <= row["p90"] <= row["max"] <= 1 for row in rows)
    picture = cv2.imread(str(save))
    assert picture is not None
    assert picture.shape == (420, 1000, 3)


def test_what_is_no_clip_and_no_camera_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tags", "tune", "nothing"]) == 2

    assert "nothing is no file, and no camera of the settings" in capsys.readouterr().err


def test_a_view_is_drawn_over_the_first_picture_of_a_camera(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"model: {{engine: noop}}\ncameras: [{{name: yard, url: {json.dumps(str(CLIP))}}}]\n")
    save = tmp_path / "view.jpg"

    assert cli.run(["cameras", "view", "yard", "--save", str(save), "--config", str(config)]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "input: 0, 0; 360, 360 of 640 x 360",
        "input: 280, 0; 640, 360 of 640 x 360",
    ]
    assert save.stat().st_size > 10_000


def test_what_no_input_shows_is_darker() -> None:
    made = drawn(np.full((90, 160, 3), 240, np.uint8), SPEC, (Region("gate", ((0.0, 0.0), (0.5, 1.0))),))

    assert (made[80, 20, 0], made[80, 120, 0]) == (240, 80)


def test_each_region_is_tuned_by_its_own_tags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    own = "{start_at: 0.9, end_below: 0.8, min_duration: 0}"
    view = f"[{{name: nest, at: [[0, 0], [0.5, 1]], tags: {own}}}, {{name: perch, at: [[0.5, 0], [1, 1]]}}]"
    camera = f"{{name: yard, url: {json.dumps(str(CLIP))}, view: {view}}}"
    config.write_text(f"model: {{engine: noop}}\ncameras: [{camera}]\n")

    assert cli.run(["tags", "tune", "yard", "--seconds", "1", "--json", "--config", str(config)]) == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {row["tag"].partition("/")[0]: row["start_at"] for row in rows}
    assert found == {"nest": 0.9, "perch": 0.4}


def test_a_region_beyond_the_picture_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    view = "[{name: gate, at: [[0, 0], [320, 180]]}, {name: till, at: [[1000, 100], [1900, 300]]}]"
    config.write_text(
        f"model: {{engine: noop}}\ncameras: [{{name: yard, url: {json.dumps(str(CLIP))}, view: {view}}}]\n"
    )

    assert cli.run(["cameras", "view", "yard", "--save", str(tmp_path / "v.jpg"), "--config", str(config)]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "gate: 0, 0; 320, 180 of 640 x 360",
        "till: 640, 100; 640, 300 of 640 x 360, beyond the picture",
    ]
