"""The house: what may import what. One line a layer, top down; no circle, not even by a late import."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import PACKAGE, ROOT

LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"supervisor", "service", "classifier"},
    {"web"},
    {"cameras", "queue"},
    {"pipeline"},
    {"results"},
    {"engine", "telemetry", "broker"},
    {"frames", "settings"},
    {"errors"},
]

# library -> the rooms that may import it
ONLY_IN = {
    "torch": {"engine", "frames", "commands"},
    "timm": {"engine"},
    "cv2": {"frames"},
    "redis": {"broker"},
    "prometheus_client": {"telemetry", "pipeline", "queue", "cameras", "results", "web", "service"},
    "typer": {"cli", "commands"},
    "rich": {"commands"},
    "fastapi": {"web"},
    "starlette": {"web"},
    "uvicorn": {"web"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The module's name without the package's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports(path: Path) -> set[str]:
    """Whole names of all that a file imports, at its head or late."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    """Modules of coatstream that a file imports; `from coatstream import __version__` is none."""
    inside = {name.removeprefix("coatstream.") for name in imports(path) if name.startswith("coatstream.")}
    return {name if name in NAMES else name.rpartition(".")[0] for name in inside} - {""}


def layer(module: str) -> int:
    room = module.partition(".")[0]
    for number, rooms in enumerate(LAYERS):
        if room in rooms:
            return number
    raise LookupError(f"{module} is in no layer")


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path)], ids=name_of)
def test_arrows_point_down(path: Path) -> None:
    room, own = name_of(path).partition(".")[0], layer(name_of(path))

    up = {name for name in own_imports(path) if name.partition(".")[0] != room and layer(name) <= own}

    assert not up


def test_no_import_closes_a_circle() -> None:
    TopologicalSorter({name_of(path): own_imports(path) - {name_of(path)} for path in MODULES}).prepare()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_library_is_used_in_its_rooms_only(path: Path) -> None:
    room = name_of(path).partition(".")[0]

    astray = {name for name in imports(path) if room not in ONLY_IN.get(name.partition(".")[0], {room})}

    assert not astray


def test_the_root_of_the_package_is_small() -> None:
    entries = [entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]

    assert sum(entry.suffix == ".py" for entry in entries) <= 8
    assert sum(entry.is_dir() for entry in entries) <= 12
    assert len(LAYERS) <= 11


def test_config_holds_files_and_no_python() -> None:
    assert list((ROOT / "config").rglob("*.py")) == []
