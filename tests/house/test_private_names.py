"""Tests use what a room shows. Where one has to look behind it, that is counted, and the count may only fall."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

MOST = 26
ELSEWHERE = {"_inductor", "_sock", "_available_connections"}  # torch's and redis-py's, which have no public ones


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Private names that a test file makes itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            for target in [node.target] if isinstance(node, ast.AnnAssign) else node.targets:
                yield ast.unparse(target).removeprefix("self.")


def used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of each private name that a test file reads, imports or replaces."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ast.Name("self" | "cls")):
                continue
            case ast.Attribute(attr=name):
                yield node.lineno, name
            case ast.ImportFrom(names=names):
                yield from ((node.lineno, each.name) for each in names)
            case ast.Call(ast.Attribute(attr="setattr"), [_, ast.Constant(str(name)), *_]):
                yield node.lineno, name


def reached(path: Path) -> list[str]:
    tree = ast.parse(path.read_text("utf-8"))
    own = ELSEWHERE | set(defined(tree))
    return [f"{path.relative_to(ROOT)}:{line} {name}" for line, name in used(tree) if private(name) and name not in own]


def test_few_tests_reach_for_a_private_name() -> None:
    found = [place for path in sorted((ROOT / "tests").rglob("*.py")) for place in reached(path)]

    assert len(found) <= MOST, "\n".join(["use a public name instead:", *found])
