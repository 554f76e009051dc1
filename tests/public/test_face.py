"""The public face: lazy, complete, and light for who only produces or reads."""

import ast
import inspect
import subprocess
import sys

import coatstream
import pytest

from tests.support.paths import PACKAGE

HEAVY = ("torch", "torchvision", "timm", "cv2")
COUNT = "import sys; before = set(sys.modules); {}; print(*sorted(set(sys.modules) - before))"


def loaded_by(code: str) -> list[str]:
    """Modules that a new Python has loaded after this."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(code)], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.split()


def test_importing_the_package_loads_next_to_nothing() -> None:
    """Counted, not timed: 50 ms are some 40 modules of the standard library on a slow machine."""
    loaded = loaded_by("import coatstream")

    assert len(loaded) <= 10
    assert not {"redis", "numpy", "pydantic", "typing", "importlib.metadata", *HEAVY} & set(loaded)


@pytest.mark.parametrize(
    "name", ["Producer", "AsyncProducer", "Picture", "LabelReader", "AsyncEventReader", "LabelDocument", "SettingsTree"]
)
def test_who_produces_or_reads_loads_no_model_library(name: str) -> None:
    assert not set(HEAVY) & set(loaded_by(f"from coatstream import {name}"))


def test_a_document_is_parsed_without_a_client_of_redis() -> None:
    assert "redis" not in loaded_by("from coatstream import LabelDocument, EventDocument")


def test_all_names_are_there_and_are_those_that_type_checkers_see() -> None:
    head = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    checked = next(node for node in head.body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    found = {name: getattr(coatstream, name) for name in coatstream.__all__}

    assert set(seen) == set(coatstream.__all__) <= set(dir(coatstream))
    for name, thing in found.items():
        if inspect.isclass(thing):
            assert seen[name] == f"{thing.__module__}.{thing.__qualname__}"


@pytest.mark.parametrize("name", coatstream.__all__)
def test_each_public_class_and_method_says_what_it_is(name: str) -> None:
    thing = getattr(coatstream, name)
    if not inspect.isclass(thing):
        return

    own = [member for key, member in vars(thing).items() if not key.startswith("_") and inspect.isfunction(member)]

    assert inspect.getdoc(thing)
    assert [member.__name__ for member in own if not inspect.getdoc(member)] == []


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Produzer'"):
        _ = coatstream.Produzer  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_distribution() -> None:
    assert coatstream.__version__.count(".") == 2
