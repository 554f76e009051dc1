"""`coatstream prepare`: the engine is chosen and kept, so that a start finds it."""

from pathlib import Path

import pytest
from coatstream import cli

MODEL = ("--model", "test_vit.r160_in1k", "--weights", "random", "--device", "cpu")


@pytest.mark.slow
def test_the_engine_is_named_and_the_next_start_finds_the_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = f"model.cache={tmp_path}"

    code = cli.run(["prepare", *MODEL, "--set", kept, "--set", "model.precision=fp32", "--set", "model.streams=1"])

    assert code == 0
    assert capsys.readouterr().out.startswith("test_vit.r160_in1k, weights random: engine ")
    assert len(list(tmp_path.glob("choice-*.json"))) == 1


def test_where_nothing_would_be_kept_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["prepare", *MODEL, "--set", "model.cache=null"])

    assert code == 2
    assert "set model.cache to a folder" in capsys.readouterr().err


def test_a_misspelt_model_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["prepare", "--model", "coat_lite_minii", "--set", f"model.cache={tmp_path}"])

    assert code == 3
    assert "did you mean coat_lite_mini" in capsys.readouterr().err
