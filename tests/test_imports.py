"""The arrows of ARCHITECTURE.md point down, and heavy libraries stay where they belong."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("worker", "config") for path in (ROOT / folder).rglob("*.py"))

# Each layer may import the layers after it and itself.
LAYERS: list[set[str]] = [
    {"worker.__main__"},
    {"worker.cli"},
    {"worker.commands"},
    {"worker.service"},
    {"worker.camera_desk", "worker.queue_desk"},
    {"worker.camera_metrics"},
    {"worker.cameras"},
    {"worker.pipeline", "worker.intake", "worker.web", "worker.monitor", "worker.fleet"},
    {"worker.inference"},
    {"worker.sources"},
    {"worker.broker"},
    {"worker.metrics", "worker.outages", "worker.commons"},
    {"worker.tags", "worker.picture_health", "worker.reuse", "worker.capacity"},
    {"worker.batching", "worker.status", "worker.logs", "worker.background", "worker.outcomes", "worker.supervisor"},
    {"worker.batch_policy"},
    {"worker.batch_cost"},
    {
        "worker.engine",
        "worker.decoding",
        "worker.encoding",
        "worker.allocator",
        "worker.geometry",
        "worker.resizing",
        "worker.mailbox",
        "worker.fairness",
        "worker.ledger",
        "worker.sampling",
        "worker.media",
        "worker.identity",
    },
    {"worker.events", "worker.tenure"},
    {"worker.frames", "worker.errors", "worker.redaction", "worker.backoff", "worker.cores", "worker.opencv", "worker"},
    {"config"},
]

# library -> the modules that may import it
ONLY_IN = {
    "torch": ("worker.engine", "worker.resizing", "worker.cores", "worker.commands.bench"),
    "timm": ("worker.engine",),
    "cv2": ("worker.opencv",),
    "redis": ("worker.broker",),
    "prometheus_client": ("worker.metrics", "worker.camera_metrics", "worker.web", "worker.service"),
    "typer": ("worker.cli",),
    "rich": ("worker.commands",),
    "starlette": ("worker.web",),
    "uvicorn": ("worker.web",),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def layer(module: str) -> int:
    while module:
        for number, members in enumerate(LAYERS):
            if module in members:
                return number
        module = module.rpartition(".")[0]
    raise LookupError(module)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_point_down(path: Path) -> None:
    mine = layer(name_of(path))

    upward = [
        module for module in imports(path) if module.split(".")[0] in ("worker", "config") and layer(module) < mine
    ]

    assert upward == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_libraries_stay_where_they_belong(path: Path) -> None:
    here = name_of(path)

    strays = [
        library
        for library, homes in ONLY_IN.items()
        for module in imports(path)
        if module.split(".")[0] == library and not here.startswith(homes)
    ]

    assert strays == []


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[-2] == "config"], ids=name_of)
def test_config_knows_nothing_of_the_worker(path: Path) -> None:
    assert not any(module.startswith("worker") for module in imports(path))


def test_the_generic_names_worker_and_config_are_ours() -> None:
    import config
    import worker

    assert Path(config.__file__).parents[1] == Path(worker.__file__).parents[1] == ROOT
    assert sys.modules["config"] is config
