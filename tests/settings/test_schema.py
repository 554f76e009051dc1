"""config/: the JSON Schema for editors, the manual and the examples, which agree with what the worker accepts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.keys import queues_of
from coatstream.settings.errors import SettingsError
from coatstream.settings.loading import load
from coatstream.settings.model import SettingsTree
from jsonschema import Draft7Validator

from docs.tables import CONFIG, MANUAL, SCHEMA, settings_schema

EXAMPLES = sorted((CONFIG / "examples").glob("*.yaml"))
VALIDATOR = Draft7Validator(json.loads(SCHEMA.read_text("utf-8")))


def of_file(path: Path) -> SettingsTree:
    return load(config=path, environ={}, secrets_dir=None)


def described(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every section and key of the schema, with its place."""
    for name, inner in schema.get("items", schema).get("properties", {}).items():
        yield f"{path}{name}", inner
        yield from described(inner, f"{path}{name}.")


def test_the_schema_is_the_one_that_the_code_makes() -> None:
    assert json.loads(SCHEMA.read_text("utf-8")) == settings_schema(), "run: python docs/tables.py"


def test_the_schema_is_a_right_one_and_refers_to_nothing() -> None:
    Draft7Validator.check_schema(VALIDATOR.schema)

    assert "$ref" not in SCHEMA.read_text("utf-8")


def test_every_key_of_the_schema_has_a_sentence_and_every_number_its_bounds() -> None:
    found = dict(described(settings_schema()))

    numbers = {name: inner for name, inner in found.items() if inner.get("type") in ("number", "integer")}
    bounds = [{"minimum", "exclusiveMinimum"} & set(inner) and "maximum" in inner for inner in numbers.values()]
    assert [name for name, inner in found.items() if not re.search(r"\w.{10,}\.$", inner["description"])] == []
    assert len(numbers) > 50
    assert all(bounds)


@pytest.mark.parametrize(
    ("ending", "unit"), [("timeout", "econds"), ("_after", "econds"), ("max_bytes", "bytes"), ("max_pixels", "pixels")]
)
def test_units_are_told(ending: str, unit: str) -> None:
    wanted = {name: inner for name, inner in described(settings_schema()) if name.endswith(ending)}

    assert wanted
    assert [name for name, inner in wanted.items() if unit not in inner["description"]] == []


def test_credentials_are_plain_text_in_the_schema() -> None:
    found = dict(described(settings_schema()))

    assert found["redis.password"]["type"] == ["string", "null"]
    assert found["cameras.url"]["type"] == ["string", "integer"]


@pytest.mark.parametrize("path", [MANUAL, *EXAMPLES], ids=lambda path: path.stem)
def test_a_settings_file_of_ours_names_its_schema_and_obeys_it(path: Path) -> None:
    first = path.read_text("utf-8").splitlines()[0]

    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named
    assert (path.parent / named[1]).resolve() == SCHEMA
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(path.read_text("utf-8")))] == []


def test_there_is_an_example_for_each_way_of_use() -> None:
    assert [path.stem for path in EXAMPLES] == ["cameras", "cluster", "gpu", "queue"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_the_worker_takes_it(path: Path) -> None:
    settings = of_file(path)

    assert queues_of(settings)
    assert fleet_keys(settings).rights
    assert len(path.read_text("utf-8").splitlines()) <= 45
    assert any(getattr(settings, name) != getattr(SettingsTree(), name) for name in settings.model_fields_set)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bacth": {}},
        {"batch": {"max_sise": 8}},
        {"batch": {"max_size": 0}},
        {"batch": {"max_size": 2000}},
        {"batch": {"timeout": 0}},
        {"model": {"engine": "fast"}},
        {"model": {"device": "gpu"}},
        {"redis": {"prefix": "a*"}},
        {"redis": {"connect_timeout": None}},
        {"cameras": [{"name": "door"}]},
        {"cameras": [{"name": "door", "url": "0", "fsp": 1}]},
        {"cameras": [{"name": "door", "url": "0", "tags": {"start_at": 2}}]},
        {"queues": [{"stream": ""}]},
        {"tags": {"thresholds": {"dog": {"start_at": 0.7}}}},
    ],
)
def test_the_schema_and_the_worker_refuse_the_same(wrong: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(wrong))

    assert not VALIDATOR.is_valid(wrong)
    with pytest.raises(SettingsError):
        of_file(file)


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"batch": None},
        {"cameras": None},
        {"cameras": [{"name": "desk", "url": 0, "health": {"frozen_after": 0}, "tags": None}]},
        {"redis": {"url": "redis://me:secret@host/0", "password": None, "tls_ca": "/ca.pem"}},
        {"tags": {"groups": {"dog": ["151-268"]}, "thresholds": {"dog": {"start_at": 0.7, "end_below": 0.4}}}},
    ],
)
def test_the_schema_and_the_worker_accept_the_same(right: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(right))

    assert [error.message for error in VALIDATOR.iter_errors(right)] == []
    assert of_file(file).model_fields_set == set(right) - {name for name in right if right[name] is None}
