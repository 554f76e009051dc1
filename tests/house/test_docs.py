"""The documents tell what the code does: names, links, anchors, commands and snippets are tried."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from coatstream.cli import app
from coatstream.errors import DeadReason, DownReason
from coatstream.frames.frame import PictureFault
from coatstream.telemetry.ledger import DropReason
from coatstream.telemetry.metrics import metrics_table

from docs.tables import admission_script, every_metric, result_schemas, settings_table
from tests.support.paths import DOCS, PACKAGE, ROOT

MOST_WORDS = 1_300  # of the README: what a newcomer reads
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "bench/README.md", ROOT / "deploy/README.md")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def block(name: str) -> str:
    match = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text_of(f"docs/{name}.md"), re.DOTALL)
    assert match, f"docs/{name}.md has no block {name}"
    return match[1].strip()


# ---- generated parts


def test_the_settings_in_the_documents_are_those_of_the_code() -> None:
    assert block("settings") == settings_table().strip(), "run: python docs/tables.py"


@pytest.mark.parametrize("name", result_schemas())
def test_the_schemas_of_documents_are_those_of_the_code(name: str) -> None:
    assert json.loads((DOCS / name).read_text("utf-8")) == result_schemas()[name], "run: python docs/tables.py"


def test_the_script_for_other_languages_is_that_of_the_code() -> None:
    assert (DOCS / "admit.lua").read_text("utf-8") == admission_script(), "run: python docs/tables.py"


def test_the_metrics_in_the_documents_are_those_of_the_code() -> None:
    assert block("metrics") == metrics_table(every_metric()).strip(), "run: python docs/tables.py"


# ---- words that the code uses


@pytest.mark.parametrize("reason", [reason.value for reason in (*DropReason, *DeadReason)])
def test_every_reason_of_a_drop_and_of_a_dead_letter_is_explained(reason: str) -> None:
    assert f"| `{reason}` |" in text_of("docs/queue.md")


@pytest.mark.parametrize("word", [word.value for word in (*DownReason, *PictureFault) if word is not DownReason.REDIS])
def test_every_reason_of_a_camera_and_every_fault_of_a_picture_is_explained(word: str) -> None:
    assert f"`{word}`" in text_of("docs/cameras.md")


def test_every_metric_stands_in_the_tables_by_topic_and_no_other() -> None:
    known = set(re.findall(r"^\| `(coatstream_\w+)`", block("metrics"), re.MULTILINE))

    assert set(re.findall(r"`(coatstream_\w+)`", text_of("docs/operating.md"))) == known


@pytest.mark.parametrize("page", PAGES)
def test_the_metrics_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"`(coatstream_[a-z_]+[a-z])`", text_of(page)))

    assert named <= set(re.findall(r"`(coatstream_\w+)`", block("metrics")))


def test_the_modules_that_the_architecture_names_exist() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    named = re.findall(r"`([a-z_]+/[a-z_0-9/]*(?:\.lua)?)`", text_of("ARCHITECTURE.md"))

    missing = [
        name
        for name in named
        if name.partition("/")[0] in rooms and not (PACKAGE / name).exists() and not (PACKAGE / f"{name}.py").exists()
    ]
    assert missing == []


# ---- the README


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").split()) <= MOST_WORDS


# ---- links


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_lead_somewhere(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).lower() for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def test_every_document_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", text_of("docs/index.md")))

    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


# ---- commands


def commands_in(text: str) -> list[list[str]]:
    """What follows `coatstream` wherever a page prints it as code: words, up to the first option or argument."""
    code = re.findall(r"^ {4,}(?:\$ )?(coatstream .*)$", text, re.MULTILINE) + re.findall(r"`(coatstream [^`]+)`", text)
    return [re.split(r"\s+#|[|<>&]", line)[0].split()[1:] for line in code]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_and_options_that_a_page_prints_exist(page: str) -> None:
    if page == "CHANGELOG.md":
        pytest.skip("it names commands of former releases")
    root = typer.main.get_command(app)

    wrong = [" ".join(words) for words in commands_in(text_of(page)) if not known(words, root)]

    assert wrong == []


def known(words: list[str], command: Any) -> bool:
    """Whether the words lead to a command, and the options among them are its own."""
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        names, words = words[0].rstrip(",."), words[1:]
        found = [command.commands.get(name) for name in names.split("|")]
        if not all(found):
            return False
        command = found[0]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    asked = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return asked <= options | {"--help", "--version", "--install-completion", "--show-completion"}


def test_every_command_is_in_a_document() -> None:
    printed = {words[0].rstrip(",.") for page in PAGES for words in commands_in(text_of(page)) if words}

    assert set(typer.main.get_command(app).commands) <= printed  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES)
def test_the_make_targets_that_a_page_prints_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    printed = re.findall(r"`make ([a-z-]+)|^ {4}make ([a-z-]+)", text_of(page), re.MULTILINE)

    assert {first or second for first, second in printed} <= targets


@pytest.mark.parametrize("page", PAGES)
def test_the_scripts_that_a_page_prints_exist(page: str) -> None:
    scripts = re.findall(r"python ((?:bench|docs|deploy)/[\w/]+\.py)", text_of(page))
    modules = re.findall(r"python -m ((?:bench|tests)[\w.]*)", text_of(page))

    assert [script for script in scripts if not (ROOT / script).exists()] == []
    for module in modules:
        assert (ROOT / module.replace(".", "/") / "__main__.py").exists() or (
            ROOT / f"{module.replace('.', '/')}.py"
        ).exists()


# ---- snippets


@pytest.mark.parametrize("page", PAGES)
def test_python_snippets_compile(page: str) -> None:
    for language, code in FENCE.findall(text_of(page)):
        if language == "python":
            compile(code, page, "exec")
        elif language == "json":
            json.loads(code)
