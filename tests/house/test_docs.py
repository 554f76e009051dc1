"""The documents say what the code does."""

import json
import re

import pytest
import typer
from coatstream.cli import app
from coatstream.errors import DeadReason, DownReason
from coatstream.frames.frame import PictureFault
from coatstream.telemetry.ledger import DropReason
from coatstream.telemetry.metrics import metrics_table

from docs.tables import every_metric, result_schemas, settings_table
from tests.support.paths import DOCS, ROOT

README = (ROOT / "README.md").read_text("utf-8")
CAMERAS = (ROOT / "docs" / "cameras.md").read_text("utf-8")


def block(name: str) -> str:
    page = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    match = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", page, re.DOTALL)
    assert match, f"docs/{name}.md has no block {name}"
    return match[1].strip()


def test_the_settings_in_the_documents_are_those_of_the_code() -> None:
    assert block("settings") == settings_table().strip(), "run: python docs/tables.py"


@pytest.mark.parametrize("name", result_schemas())
def test_the_schemas_of_documents_are_those_of_the_code(name: str) -> None:
    assert json.loads((DOCS / name).read_text("utf-8")) == result_schemas()[name], "run: python docs/tables.py"


def test_the_metrics_in_the_documents_are_those_of_the_code() -> None:
    assert block("metrics") == metrics_table(every_metric()).strip(), "run: python docs/tables.py"


@pytest.mark.parametrize("reason", [reason.value for reason in DropReason])
def test_every_reason_of_a_drop_is_explained(reason: str) -> None:
    assert f"`{reason}`" in README


@pytest.mark.parametrize("reason", [reason.value for reason in DeadReason if reason is not DeadReason.DELIVERY_LIMIT])
def test_every_reason_of_a_dead_letter_is_named(reason: str) -> None:
    assert f"`{reason}`" in README


@pytest.mark.parametrize("word", [word.value for word in (*DownReason, *PictureFault) if word is not DownReason.REDIS])
def test_every_reason_of_a_camera_and_every_fault_of_a_picture_is_explained(word: str) -> None:
    assert f"`{word}`" in CAMERAS


def test_every_command_in_the_documents_exists() -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

    used = set(re.findall(r"^\s+coatstream (\w+)", README, re.MULTILINE))

    assert used <= known
    assert known <= used | {"demo", "bench"}


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "deploy/README.md",
        "bench/README.md",
        *(f"docs/{name}.md" for name in ("cameras", "faults", "metrics", "performance", "settings")),
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")

    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if not target.startswith("http")]

    assert [target for target in targets if not (ROOT / document).parent.joinpath(target).exists()] == []


def test_the_metrics_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"`(coatstream_\w+)`", README))

    assert named <= set(re.findall(r"`(coatstream_\w+)`", block("metrics")))


def test_every_make_target_is_described() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")

    for target in ("setup", "demo", "test", "check", "bench", "faults", "deploy-check", "clean"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
