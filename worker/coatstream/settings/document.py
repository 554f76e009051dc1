"""YAML text to plain values, strictly: bounded in size, no objects, no aliases, no key twice. Knows no settings.

Aliases are refused because merged ones grow without bound.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from coatstream.settings.errors import SettingsError

MAX_BYTES = 1024 * 1024


def read(path: Path) -> dict[str, Any]:
    """The mapping in the file at `path`. Raises SettingsError, one line, if there is none."""
    what = f"file {path}"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = getattr(error, "strerror", None) or "no such path"
        raise SettingsError([f"{what}: cannot be read ({reason}); give the path of a YAML file"]) from None
    if len(text) > MAX_BYTES:
        raise SettingsError([f"{what}: larger than {MAX_BYTES} bytes; is this the right file?"])
    document = parse(text, what)
    if document is None:  # only comments
        return {}
    if not isinstance(document, dict):
        raise SettingsError([f"{what}: not a mapping; write settings as `section:` and, indented, `key: value`"])
    return document


def parse(text: str | bytes, what: str) -> Any:
    """The value of one YAML document. Raises SettingsError, in which `what` names the text."""
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise SettingsError([f"{what}{_position(error)}: {_problem(error)}"]) from None
    except yaml.YAMLError:  # PyYAML's reader: bytes that are not UTF-8, and control characters
        raise SettingsError([f"{what}: not text in UTF-8; save it as plain UTF-8 text"]) from None
    except RecursionError:
        raise SettingsError([f"{what}: nested too deeply; settings have at most four levels"]) from None
    except (ValueError, OverflowError):  # a value that looks like a date or a number and is not one: 2024-13-45
        raise SettingsError([f"{what}: holds an impossible date or number; put text in quotes"]) from None


def _position(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not YAML"
    if isinstance(error, _Refused):
        return problem
    if "tag" in problem:  # PyYAML quotes the tag, and in `password: !hunter2` the tag is the password
        problem = "tags (!name) are not allowed"
    return f"{problem}; put text that holds : # @ ! & * or quotes into quotes"


class _Refused(yaml.MarkedYAMLError):
    """Correct YAML that settings do not use."""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, and a key that is there twice (SafeLoader takes the last one)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _Refused(problem="aliases (*name) are not allowed; write the value out", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(self.construct_object(key_node, deep=True), str):
                raise _Refused(problem="this key is not text; put it in quotes", problem_mark=key_node.start_mark)
            if key in seen:
                raise _Refused(problem=f"the key {key} is there twice; keep one", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
