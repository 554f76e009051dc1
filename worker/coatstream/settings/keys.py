"""The names of the settings: dotted keys, their environment form, and what each accepts. Reads nothing, judges nothing.

All of it is derived from the JSON Schema of `SettingsTree`, so that a new field needs no second mention. A path is the
place of a value in the tree, as pydantic gives it: ("batch", "max_size") or ("cameras", 0, "fps").
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from coatstream.settings.model import SettingsTree

PREFIX = "COATSTREAM_"
NESTED = "__"
LISTED = {  # what the lists of the tree look like in a variable
    "queues": '[{"stream": "urgent", "priority": 0}, {"stream": "frames", "priority": 1}]',
    "cameras": '[{"name": "door", "url": "rtsp://10.0.0.7/stream1"}]',
}

Path = tuple[int | str, ...]
Schema = dict[str, Any]


def dotted(path: Path) -> str:
    """The key as it is written to a person: batch.max_size, cameras.0.fps. Steps may be a stranger's: they are cut."""
    return ".".join(str(step)[:64] for step in path)


def environment_name(path: Path) -> str:
    """The variable that sets the value at `path`. Lists are set whole, as JSON."""
    depth = 1 if schema(path[:1]).get("type") == "array" else 2
    return PREFIX + NESTED.join(str(step) for step in path[:depth]).upper()


@cache
def settings() -> tuple[Path, ...]:
    """Every setting that has a variable of its own, in the order of the tree. Cameras are one setting."""
    return tuple(_settings())


def _settings() -> Iterator[Path]:
    for name in SettingsTree.model_fields:
        names = children((name,))
        yield from ((name, child) for child in names) if names else [(name,)]


def children(path: Path) -> tuple[str, ...]:
    """The keys of the section at `path`; of a list, nothing."""
    return tuple(schema(path).get("properties", ()))


def schema(path: Path) -> Schema:
    """The JSON Schema of the value at `path`, with `nullable` beside it; empty where the tree has no such place."""
    found = _tree()
    for step in path:
        inner = found.get("items") if isinstance(step, int) else found.get("properties", {}).get(step)
        if inner is None:
            return {}
        found = _resolved(inner)
    return found


@cache
def _tree() -> Schema:
    return SettingsTree.model_json_schema()


def _resolved(found: Schema) -> Schema:
    if "anyOf" in found:
        [value] = [option for option in found["anyOf"] if option.get("type") != "null"]
        return _resolved(value) | {"nullable": True}
    return _tree()["$defs"][found["$ref"].rpartition("/")[2]] if "$ref" in found else found


def is_text(found: Schema) -> bool:
    """Whether a value of this schema is written as text: names, paths, URLs, one of some words."""
    return found.get("type") == "string"


def is_secret(found: Schema) -> bool:
    """Whether a value of this schema may hold a credential, so that nobody may see it."""
    return bool(found.get("writeOnly"))


def expected(found: Schema) -> str:
    """What a value of this schema may be, for a person: "a whole number from 1 to 1024"."""
    return _value(found) + (", or null" if found.get("nullable") else "")


def _value(found: Schema) -> str:
    match found:
        case {"pattern": _, "description": str(words)}:
            said = words
        case {"enum": words}:
            said = "one of " + ", ".join(words)
        case {"type": "integer"}:
            said = "a whole number" + _range(found)
        case {"type": "number"}:
            said = "a number" + _range(found)
        case {"type": "boolean"}:
            said = "true or false"
        case {"type": "object", "properties": names}:
            said = "its keys: " + ", ".join(names)
        case {"type": "array", "items": {"$ref": item}}:
            said = f"a list such as {LISTED['queues' if 'Queue' in item else 'cameras']}"
        case {"type": "array", "items": item}:
            said = f"a list, each item {expected(item)}"
        case _:
            said = "text" + _length(found)
    return said


def _range(found: Schema) -> str:
    if "exclusiveMinimum" in found:
        return f" above {found['exclusiveMinimum']} and up to {found['maximum']}"
    return f" from {found['minimum']} to {found['maximum']}"


def _length(found: Schema) -> str:
    if "maxLength" in found:
        return f" of {found['minLength']} to {found['maxLength']} characters"
    return " that is not empty" if "minLength" in found else ""
