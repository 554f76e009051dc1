import signal
import subprocess
import sys
from pathlib import Path

import pytest
from coatstream.engine.selection import chooser
from coatstream.engine.selection.chooser import ChooserDied, choose_elsewhere
from coatstream.settings.model import BatchSettings, ModelSettings

from tests.support.processes import ended
from tests.support.workers import eventually

# Another life of the process: it says who it is and chooses for ever.
FOR_EVER = """
import os, sys, time
sys.path[:] = {path!r}
from coatstream.engine.selection import chooser_main as chooser
def chosen(asked):
    open(asked.model.weights, "w").write(str(os.getpid()))
    time.sleep(600)
chooser._chosen = chosen
chooser.main()
"""
ASK = """
import sys
from coatstream.settings.model import BatchSettings, ModelSettings
from coatstream.engine.selection import chooser
chooser.MAIN = sys.argv[2]
chooser.choose_elsewhere(ModelSettings(weights=sys.argv[1]), BatchSettings())
"""
DEAD = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
SLEEPING = "import time; time.sleep(600)"


def settings(cache: Path, **more: str) -> ModelSettings:
    model = {"name": "test_vit.r160_in1k", "weights": "random", "device": "cpu", "engine": "eager"}
    return ModelSettings.model_validate({**model, "cache": cache, **more})


@pytest.mark.slow
def test_a_choice_lies_in_the_cache_whatever_modules_the_current_folder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "coatstream").mkdir()
    (tmp_path / "coatstream" / "__init__.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)

    assert choose_elsewhere(settings(tmp_path / "cache", precision="bf16"), BatchSettings())

    assert len(list((tmp_path / "cache").glob("choice-*.json"))) == 1


def test_what_fails_there_is_left_to_whoever_asked(tmp_path: Path) -> None:
    model = settings(tmp_path, weights=str(tmp_path / "none.pth"))

    assert not choose_elsewhere(model, BatchSettings())


def test_a_process_that_dies_is_no_reason_to_try_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "MAIN", DEAD)

    with pytest.raises(ChooserDied, match=f"signal {signal.SIGSEGV:d}"):
        choose_elsewhere(ModelSettings(), BatchSettings())


def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "MAIN", SLEEPING)

    with pytest.raises(ChooserDied, match=r"more than 0\.1 s"):
        choose_elsewhere(ModelSettings(), BatchSettings(), patience=0.1)


def test_the_process_ends_with_whoever_asked_even_if_that_is_killed(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    main = FOR_EVER.format(path=sys.path)
    with subprocess.Popen([sys.executable, "-c", ASK, str(said), main]) as asking:
        eventually(lambda: said.exists() and said.read_text() != "", "it chooses")

        asking.kill()

    eventually(lambda: ended(int(said.read_text())), "it ends")


def test_settings_of_the_environment_do_not_reach_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COATSTREAM_REDIS__PASSWORD", "hunter2")
    monkeypatch.setattr(chooser, "MAIN", "import os, sys; os._exit('COATSTREAM_REDIS__PASSWORD' in os.environ)")

    assert choose_elsewhere(settings(tmp_path), BatchSettings())
