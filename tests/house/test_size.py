"""The house stays small: the length of a function, its parameters, the methods of a class."""

import ast
from collections.abc import Callable
from pathlib import Path

from tests.support.paths import PACKAGE

MODULES = sorted(PACKAGE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(limit: Callable[[ast.AST], int], most: int, paths: list[Path] = MODULES) -> list[str]:
    """What is over a limit, with its place and by how much."""
    return [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}: {limit(node)}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, Function | ast.ClassDef) and limit(node) > most
    ]


def lines(node: ast.AST) -> int:
    """A function's, without its decorators."""
    return node.end_lineno - node.lineno + 1 if isinstance(node, Function) and node.end_lineno else 0


def parameters(node: ast.AST) -> int:
    """A function's, without `self` and `cls`."""
    if not isinstance(node, Function):
        return 0
    names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def methods(node: ast.AST) -> int:
    return sum(isinstance(each, Function) for each in node.body) if isinstance(node, ast.ClassDef) else 0


def test_no_function_is_longer_than_forty_lines() -> None:
    assert named(lines, 40) == []


def test_no_function_has_more_than_eight_parameters_but_for_commands() -> None:
    """A command has one for each of its options."""
    commands = {PACKAGE / "cli.py", *(PACKAGE / "commands").rglob("*.py")}

    assert named(parameters, 8, [path for path in MODULES if path not in commands]) == []


def test_no_class_has_more_than_twenty_methods() -> None:
    assert named(methods, 20) == []
