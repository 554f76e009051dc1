"""`coatstream bench cameras` runs, and says what it promises. Speed is never asserted: other tests run beside this."""

import json
import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
from coatstream.commands.bench import cameras as bench_cameras
from coatstream.errors import EngineError
from coatstream.frames.opencv import cv2
from coatstream.settings.model import CameraSettings, ModelSettings, SettingsTree
from pydantic import SecretStr

from tests.support.absence import missing
from tests.support.doubles import SPEC

NOOP = ModelSettings(engine="noop", noop_delay=0.05)


def camera(name: str, fps: float, priority: float) -> CameraSettings:
    return CameraSettings(name=name, url=SecretStr("rtsp://10.0.0.1/1"), fps=fps, priority=priority)


@pytest.mark.slow
def test_bench_cameras_prints_one_json_line_with_costs_limits_and_conditions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = SettingsTree(model=NOOP, cameras=(camera("door", 1000, 1), camera("yard", 1000, 3)))

    assert bench_cameras.run_bench_cameras(settings, seconds=0.2, as_json=True) == 0

    [line] = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found["bench"] == "cameras"
    assert set(found["decode"]) == {"360p", "720p", "1080p"}
    costs = [found["decode"][size] for size in ("360p", "720p", "1080p")]
    for cost in costs:
        assert 0 < cost["keys_only_ms"] < cost["picture_ms"]
        assert cost["sampled_ms"] > 0
    assert costs[0]["picture_ms"] < costs[2]["picture_ms"]
    assert len(found["fits"]) == 3 * 4
    assert {row["limit"] for row in found["fits"]} <= {"decode", "engine"}
    assert found["configured"]["fit"] is False
    shares = found["configured"]["served_share_by_camera"]
    assert shares["yard"] == pytest.approx(3 * shares["door"], rel=0.01)
    assert found["machine"]["opencv"]


@pytest.mark.slow
def test_for_people_there_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    settings = SettingsTree(model=NOOP, cameras=(camera("door", 1, 1),))

    assert bench_cameras.run_bench_cameras(settings, seconds=0.2, as_json=False) == 0

    shown = capsys.readouterr().out
    assert "cameras that fit at 70% load" in shown
    assert "1080p" in shown
    assert "The 1 configured cameras ask for 2 inputs/s: the model can do that." in shown


@pytest.mark.parametrize("size", ["360p", "720p", "1080p"])
def test_the_clips_are_two_seconds_of_a_camera_with_one_key_frame(size: str) -> None:
    with as_file(files("coatstream") / "assets" / f"camera_{size}.mp4") as clip:
        every = bench_cameras._play(clip, SPEC)
        keys = bench_cameras._play(clip, SPEC, keyframes_only=True)
        with clip.open("rb") as file:
            opened: Any = file
            capture = cv2.VideoCapture(opened, cv2.CAP_FFMPEG, [])
            height = capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
            capture.release()

    assert (every.pictures, every.taken, keys.pictures) == (50, 10, 1)
    assert height == int(size[:-1])


def test_a_clip_that_cannot_be_decoded_ends_the_benchmark_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "camera_1080p.mp4"
    broken.write_bytes(b"no clip")

    with pytest.raises(EngineError, match=r"^FFmpeg cannot decode camera_1080p.mp4"):
        bench_cameras.decode_cost(broken, SPEC, seconds=0.0)


def test_memory_of_a_process_is_its_own_part_only() -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        missing("no /proc on this system")

    own = bench_cameras.private_bytes(os.getpid())

    assert own is not None
    assert own > 10_000_000
    assert bench_cameras.private_bytes(None) is None


def test_without_cameras_in_the_settings_nothing_is_said_of_them() -> None:
    assert bench_cameras.configured((), 100.0) is None
