"""The wheel: one package, typed and complete, that gets along with a user's own modules and other distributions."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import redis

from tests.support.absence import missing
from tests.support.paths import PACKAGE, ROOT
from tests.support.servers import ON_ONE_SERVER

pytestmark = pytest.mark.slow  # each builds a wheel, or installs one

DEPENDENCIES = Path(redis.__file__).parents[1]  # where ours are installed; visible to the fresh environment
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tree, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """That of a fresh environment, in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", str(folder))
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")
    fresh = str(folder / "bin" / "python")
    pip(fresh, "install", "--no-deps", str(wheel))
    return fresh


def run(*command: str, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
    hidden = ("PYTHONPATH", "MYPYPATH", "VIRTUAL_ENV")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        command, cwd=cwd, env={**inherited, **(environ or {})}, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(python: str, *words: str) -> None:
    run(python, "-m", "pip", "--disable-pip-version-check", "--quiet", *words)


def test_it_holds_one_package_with_all_that_belongs_to_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"coatstream"}
    assert {f"coatstream/{path.relative_to(PACKAGE).as_posix()}" for path in files} <= names
    assert "coatstream/py.typed" in names
    assert any(name.endswith(".lua") for name in names)
    assert any(name.endswith(".mp4") for name in names)


def test_it_is_what_the_fresh_environment_imports(python: str, tmp_path: Path) -> None:
    place = run(python, "-c", "import coatstream; print(coatstream.__file__)", cwd=tmp_path)

    assert str(ROOT) not in place


@ON_ONE_SERVER
def test_a_project_with_a_config_and_a_worker_of_its_own_can_use_the_producer(
    python: str, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "config.py").write_text("URL = 'mine'\n")
    (tmp_path / "worker.py").write_text("WORK = 'mine'\n")
    (tmp_path / "main.py").write_text(
        "import os\nimport config, worker\nfrom coatstream import Picture, Producer\n"
        "with Producer.connect(os.environ['REDIS_URL']) as producer:\n"
        "    producer.put(Picture(b'jpeg', 'door'))\n"
        "    print(config.URL, worker.WORK, producer.sent)\n"
    )

    assert run(python, "main.py", cwd=tmp_path, environ={"REDIS_URL": redis_url}) == "mine mine 1\n"


def test_each_example_passes_the_strictest_check_with_nothing_but_the_wheel(python: str, tmp_path: Path) -> None:
    for example in EXAMPLES:
        shutil.copy(example, tmp_path)

    checker = (sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}")
    run(*checker, "--python-executable", python, *(example.name for example in EXAMPLES), cwd=tmp_path)


def test_it_and_the_distribution_config_leave_each_other_alone(wheel: Path, python: str, tmp_path: Path) -> None:
    """`config` is a popular library, and coatstream once installed a package of that name."""
    both = "from config import Config; from coatstream import Producer, LabelReader"
    try:
        pip(python, "install", "--no-deps", "config==0.5.1")
    except AssertionError as failure:
        missing(f"config==0.5.1 cannot be had from the index: {str(failure)[-200:]}")
    run(python, "-c", both, cwd=tmp_path)

    pip(python, "install", "--no-deps", "--force-reinstall", str(wheel))  # now it comes second
    run(python, "-c", both, cwd=tmp_path)

    pip(python, "uninstall", "--yes", "config")
    run(python, "-c", "from coatstream import Producer, LabelReader", cwd=tmp_path)
