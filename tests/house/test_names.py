"""One name, one thing: no two classes of the package are called alike, public or private."""

import ast
from collections import defaultdict

from tests.support.paths import PACKAGE


def places_of_classes() -> dict[str, list[str]]:
    """Name without a leading underscore -> modules that define a class of that name."""
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name.lstrip("_")].append(str(path.relative_to(PACKAGE)))
    return found


def test_no_two_classes_are_called_alike() -> None:
    places = places_of_classes()

    twins = {name: modules for name, modules in places.items() if len(modules) > 1}

    assert len(places) > 200
    assert twins == {}
