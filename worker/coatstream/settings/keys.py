"""The names of the settings: dotted keys, their variables, and what each accepts.

Everything is derived from the JSON Schema of `SettingsTree`, so a new field needs no second mention. A path is the
place of a value in the tree, as pydantic gives it: ("batch", "max_size") or ("cameras", 0, "fps").
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from coatstream.settings.model import SettingsTree

PREFIX = "COATSTREAM_"
NESTED = "__"
LISTED = {  # examples of the two lists, as variables hold them
    "queues": '[{"stream": "urgent", "priority": 0}, {"stream": "frames", "priority": 1}]',
    "cameras": '[{"name": "door", "url": "rtsp://10.0.0.7/stream1"}]',
}

Path = tuple[int | str, ...]
Schema = dict[str, Any]


def dotted(path: Path) -> str:
    """The key as people write it: batch.max_size, cameras.0.fps. Each step is cut, since it may be a stranger's."""
    return ".".join(str(step)[:64] for step in path)


def environment_name(path: Path) -> str:
    """The variable that sets the value at `path`; a list has one variable, which is JSON."""
    depth = 1 if schema(path[:1]).get("type") == "array" else 2
    return PREFIX + NESTED.join(str(step) for step in path[:depth]).upper()


@cache
def settings() -> tuple[Path, ...]:
    """Every setting with a variable of its own, in the order of the tree. A list counts as one setting."""
    return tuple(_settings())


def _settings() -> Iterator[Path]:
    for name in SettingsTree.model_fields:
        names = children((name,))
        yield from ((name, child) for child in names) if names else [(name,)]


def children(path: Path) -> tuple[str, ...]:
    """The keys of the section at `path`; empty for a list."""
    return tuple(schema(path).get("properties", ()))


def schema(path: Path) -> Schema:
    """The JSON Schema of the value at `path`, with `nullable` beside it; empty if there is no such place."""
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
    """Whether a value of this schema is text: a name, a path, a URL, one of some words."""
    return found.get("type") == "string"


def is_secret(found: Schema) -> bool:
    """Whether a value of this schema may hold a credential and must not be shown."""
    return bool(found.get("writeOnly"))


def expected(found: Schema) -> str:
    """What a value of this schema may be, in words: "a whole number from 1 to 1024"."""
    return _value(found) + (", or null" if found.get("nullable") else "")


def _value(found: Schema) -> str:
    match found:
        case {"pattern": _, "description": str(description)}:
            return description
        case {"enum": words}:
            return "one of " + ", ".join(words)
        case {"type": "integer"}:
            return "a whole number" + _range(found)
        case {"type": "number"}:
            return "a number" + _range(found)
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "object", "properties": names}:
            return "its keys: " + ", ".join(names)
        case {"type": "array", "items": {"$ref": item}}:
            return f"a list such as {LISTED['queues' if 'Queue' in item else 'cameras']}"
        case {"type": "array", "items": item}:
            return f"a list, each item {expected(item)}"
        case _:
            return "text" + _length(found)


def _range(found: Schema) -> str:
    if "exclusiveMinimum" in found:
        return f" above {found['exclusiveMinimum']} and up to {found['maximum']}"
    return f" from {found['minimum']} to {found['maximum']}"


def _length(found: Schema) -> str:
    if "maxLength" in found:
        return f" of {found['minLength']} to {found['maxLength']} characters"
    return " that is not empty" if "minLength" in found else ""
