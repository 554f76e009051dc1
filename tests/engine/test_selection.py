import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
import timm
import torch
from coatstream.engine import capabilities, self_check
from coatstream.engine.backends import openvino
from coatstream.engine.model.coat.network import CoatNetwork
from coatstream.engine.protocol import Engine
from coatstream.engine.selection import chooser, selection
from coatstream.engine.selection.selection import select
from coatstream.engine.self_check import Disagreement
from coatstream.errors import EngineError
from coatstream.settings.model import BatchSettings, ModelSettings
from torch import Tensor

from tests.support.absence import missing

TINY = "test_vit.r160_in1k"
COAT = "coat_lite_tiny.in1k"

Lines = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _cores_as_they_were() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(cache: Path | None, **more: Any) -> ModelSettings:
    return ModelSettings(**{"name": TINY, "weights": "random", "device": "cpu", "cache": cache, **more})


def chosen(model: ModelSettings) -> tuple[Engine, Lines]:
    with structlog.testing.capture_logs() as lines:
        engine = select(model, BatchSettings(max_size=4))
    return engine, [dict(line) for line in lines]


def said(lines: Lines, event: str) -> Lines:
    return [line for line in lines if line["event"] == event]


def test_auto_measures_once_and_the_next_start_takes_the_same_without_measuring(tmp_path: Path) -> None:
    first, lines = chosen(settings(tmp_path, precision="fp32"))
    second, again = chosen(settings(tmp_path, precision="fp32"))

    assert first.info == second.info
    assert first.info.engine in ("openvino", "eager")
    if first.info.engine == "openvino":
        assert said(lines, "engines compared") or first.streams == 1
        assert not said(again, "engines compared")


@pytest.mark.slow
def test_a_start_from_the_cache_builds_no_model(tmp_path: Path) -> None:
    engine, _ = chosen(settings(tmp_path))
    if engine.info.engine != "openvino":
        missing("without OpenVINO every start builds the model")
    script = (
        "import sys; from pathlib import Path; from coatstream.settings.model import *; "
        "from coatstream.engine.loading import load_engine; "
        f"model = ModelSettings(name={TINY!r}, weights='random', device='cpu', cache=Path(sys.argv[1])); "
        "engine = load_engine(model, BatchSettings(max_size=4)); "
        "print(engine.info.engine, 'timm' in sys.modules)"
    )

    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True, timeout=150
    )

    assert told.stdout.split() == ["openvino", "False"], told.stderr


def test_without_a_cache_each_start_chooses_anew() -> None:
    for _ in range(2):
        engine, lines = chosen(settings(None, precision="fp32", streams=1, threads=1))
        assert engine.info.precision == "fp32"
        assert not said(lines, "the engine of the last start is not used")


def test_a_model_is_converted_once_for_all_precisions_and_layouts_even_where_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check, convert, conversions = self_check.disagreement, openvino.convert, 0

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal conversions
        conversions += 1
        return convert(*args, **more)

    def wrong_in_bf16(engine: Engine, *rest: Any) -> Disagreement:
        return Disagreement(0.5, 0.0) if engine.info.precision == "bf16" else check(engine, *rest)

    monkeypatch.setattr(openvino, "convert", counted)
    monkeypatch.setattr(self_check, "disagreement", wrong_in_bf16)

    engine, _ = chosen(settings(None, precision="bf16", engine="openvino"))

    if engine.info.engine != "openvino":
        missing("openvino is not installed (coatstream[openvino])")
    assert (engine.info.precision, conversions) == ("fp32", 1)


@pytest.mark.slow
def test_an_engine_that_disagrees_is_refused_in_one_line_and_the_reference_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = self_check.disagreement

    def half_wrong(engine: Engine, *rest: Any) -> Disagreement:
        return check(engine, *rest) if engine.info.engine == "eager" else Disagreement(0.5, 0.0)

    monkeypatch.setattr(self_check, "disagreement", half_wrong)

    engine, lines = chosen(settings(tmp_path, name=COAT, engine="fused", precision="fp32"))

    assert (engine.info.engine, engine.info.precision) == ("eager", "fp32")
    refused = said(lines, "an engine is left out")
    assert refused[0]["engine"] == "fused fp32"
    assert refused[0]["log_level"] == "warning"
    assert "off by 0.5 of the picture's largest, more than 0.001" in refused[0]["why"]


@pytest.mark.slow
def test_an_engine_with_wrong_embeddings_is_refused_and_only_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = CoatNetwork.forward

    def wrong(network: CoatNetwork, pixels: Tensor) -> tuple[Tensor, ...]:
        logits, *pooled = right(network, pixels)
        return logits, *(1.01 * each for each in pooled)

    monkeypatch.setattr(CoatNetwork, "forward", wrong)

    engine, lines = chosen(settings(tmp_path, name=COAT, engine="fused", precision="fp32", embeddings=True))
    without, _ = chosen(settings(tmp_path, name=COAT, engine="fused", precision="fp32"))

    assert (engine.info.engine, without.info.engine) == ("eager", "fused")
    assert (
        "an embedding is off by 0.01 of its length, more than 0.005" in said(lines, "an engine is left out")[0]["why"]
    )


def test_a_precision_beyond_the_tolerance_is_refused(tmp_path: Path) -> None:
    engine, lines = chosen(settings(tmp_path, engine="eager", precision="bf16", tolerance=1e-7))

    assert (engine.info.engine, engine.info.precision) == ("eager", "fp32")
    assert "model.tolerance" in said(lines, "an engine is left out")[0]["why"]


@pytest.mark.slow
def test_without_a_compiler_another_engine_runs_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    """As in the image, which has none. In a process of its own: torch remembers the compiler that it has found."""
    script = (
        "from coatstream.settings.model import *; from coatstream.engine.loading import load_engine; "
        f"model = ModelSettings(name={TINY!r}, weights='random', device='cpu', cache=None, engine='compile'); "
        "engine = load_engine(model, BatchSettings(max_size=1)); engine.warm_up(); print('runs', engine.info.engine)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC")}

    told = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env=environment | {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
    )

    assert told.returncode == 0, told.stderr
    assert "Traceback" not in told.stdout + told.stderr
    assert [line.split()[1] for line in told.stdout.splitlines() if line.startswith("runs")] in (
        ["openvino"],
        ["eager"],
    )
    assert (told.stdout + told.stderr).count("needs a C++ compiler, and there is none: install g++") == 1


def test_a_model_that_is_no_coat_falls_to_the_next_engine_with_a_line(tmp_path: Path) -> None:
    engine, lines = chosen(settings(tmp_path, engine="fused"))

    assert engine.info.engine in ("openvino", "eager")
    (line,) = [line for line in said(lines, "an engine is left out") if line["log_level"] == "warning"]
    assert (line["engine"], line["why"]) == ("fused", f"{TINY} is no CoaT, and only those can be fused")


def test_a_coat_is_fused_and_agrees(tmp_path: Path) -> None:
    engine, lines = chosen(settings(tmp_path, name=COAT, engine="fused", precision="fp32", embeddings=True))

    assert (engine.info.engine, engine.info.precision) == ("fused", "fp32")
    assert not said(lines, "an engine is left out")


@pytest.mark.slow
def test_openvino_that_is_missing_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    engine, lines = chosen(settings(tmp_path, engine="openvino", precision="fp32"))

    assert engine.info.engine == "eager"
    (line,) = [line for line in said(lines, "an engine is left out") if line["log_level"] == "warning"]
    assert line["engine"] == "openvino"
    assert "pip install coatstream[openvino]" in line["why"]


def test_that_another_engine_runs_than_was_asked_for_is_said_at_each_start(tmp_path: Path) -> None:
    for _ in range(2):
        _, lines = chosen(settings(tmp_path, engine="fused"))

        (line,) = [line for line in said(lines, "an engine is left out") if line["log_level"] == "warning"]
        assert line["engine"] == "fused"


def test_an_engine_refused_in_the_precision_asked_for_runs_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        self_check, "disagreement", lambda engine, *_: Disagreement(0.5 * (engine.info.precision == "bf16"), 0.0)
    )

    engine, lines = chosen(settings(tmp_path, name=COAT, engine="fused", precision="bf16"))

    assert (engine.info.engine, engine.info.precision) == ("fused", "fp32")
    assert [line["engine"] for line in said(lines, "an engine is left out")] == ["fused bf16"]


def test_without_a_folder_that_takes_it_the_choice_is_made_once_and_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(selection, "choose_elsewhere", _no_openvino)

    engine, lines = chosen(settings(tmp_path / "file", precision="fp32", streams=1))

    assert engine.info.precision == "fp32"
    assert len(said(lines, "the cache cannot be used: nothing is kept there")) == 1


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", _nobody)

    _, lines = chosen(settings(Path("~/.cache/coatstream"), engine="eager", precision="bf16"))

    (line,) = said(lines, "the cache cannot be used: nothing is kept there")
    assert line["why"] == "this user has no home folder: set HOME, or model.cache"


def test_where_choosing_took_a_process_along_openvino_is_not_tried_and_the_next_start_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chooser, "MAIN", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    for _ in range(2):
        engine, lines = chosen(settings(tmp_path, precision="fp32"))

        assert engine.info.engine == "eager"
        (line,) = said(lines, "engines that need a conversion are not tried")
        assert line["why"] == "the process that chooses an engine died of signal 9"


def test_another_device_or_a_compiler_that_is_there_now_is_another_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(**more: Any) -> Any:
        return selection.choice_key(settings(tmp_path, **more), {"weights": "w", "labels": "own"})

    assert key() == key()
    assert key(device="auto") == key()  # without a GPU that is the same
    before, compiling = key(), key(engine="compile")
    monkeypatch.setattr(capabilities, "processor", lambda device: f"another {device}")
    assert key() != before
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert key() == before
    assert key(engine="compile") != compiling


@pytest.mark.slow
def test_a_choice_without_a_measurement_holds_on_other_processors_and_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"engine": "openvino", "precision": "fp32", "threads": 1}
    first, _ = chosen(settings(tmp_path / "image", **named, streams=1))
    monkeypatch.setattr(capabilities, "processor", lambda device: f"another {device}")

    second, lines = chosen(settings(tmp_path / "pod", baked_cache=tmp_path / "image", **named, streams=2))

    assert second.info == first.info
    assert second.streams == 2
    assert not lines
    assert not (tmp_path / "pod").exists()


@pytest.mark.slow
def test_other_weights_are_another_choice(tmp_path: Path) -> None:
    module = timm.create_model(TINY)
    file = tmp_path / "weights.pth"
    torch.save(module.state_dict(), file)
    first, _ = chosen(settings(tmp_path / "cache", weights=str(file)))
    with torch.no_grad():
        module.head.bias += 0.1
    torch.save(module.state_dict(), file)

    second, lines = chosen(settings(tmp_path / "cache", weights=str(file)))

    assert first.info.weights != second.info.weights
    assert not said(lines, "the engine of the last start is not used")
    if second.info.engine == "openvino":
        assert said(lines, "engines compared")


@pytest.mark.slow
def test_a_remembered_engine_that_fails_now_is_chosen_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = chosen(settings(tmp_path))
    if engine.info.engine != "openvino":
        missing("the reference does not fail")
    monkeypatch.setattr(openvino, "load_cached", _no_openvino)
    monkeypatch.setattr(openvino, "convert", _no_openvino)

    other, lines = chosen(settings(tmp_path))

    assert other.info.engine == "eager"
    assert said(lines, "the engine of the last start is not used")[0]["why"] == "no more"


@pytest.mark.slow
def test_damage_in_the_remembered_choice_costs_only_time(tmp_path: Path) -> None:
    first, _ = chosen(settings(tmp_path))
    for file in tmp_path.glob("choice-*.json"):
        file.write_text("{", "utf-8")

    second, _ = chosen(settings(tmp_path))

    assert first.info.engine == second.info.engine


def test_weights_that_are_missing_are_no_fault_of_an_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        select(settings(tmp_path, weights=str(tmp_path / "none.pth")), BatchSettings())


def _nobody(_: int) -> Any:
    raise KeyError


def _no_openvino(*_: Any, **__: Any) -> Any:
    raise EngineError("no more")


def test_a_misspelt_model_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with (
        structlog.testing.capture_logs() as lines,
        pytest.raises(
            EngineError, match=r"timm knows no model 'coat_lite_minii.in1k': did you mean coat_lite_mini\.in1k"
        ),
    ):
        select(settings(tmp_path, name="coat_lite_minii.in1k"), BatchSettings())

    assert lines == []
