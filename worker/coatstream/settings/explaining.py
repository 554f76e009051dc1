"""One line for each wrong setting: the key, the given value, why it is wrong, what to do. No credentials.

The value of an unknown key is never shown: it may be a password under a misspelt key, as in `pasword: hunter2`.
"""

import difflib
import json
import re
from typing import Any

from pydantic_core import ErrorDetails

from coatstream.settings import keys

_WHY = {
    "bool_parsing": "neither true nor false",
    "bool_type": "neither true nor false",
    "finite_number": "not a finite number",
    "float_parsing": "not a number",
    "float_type": "not a number",
    "greater_than": "too small",
    "greater_than_equal": "too small",
    "int_from_float": "not a whole number",
    "int_parsing": "not a whole number",
    "int_parsing_size": "too large",
    "int_type": "not a whole number",
    "less_than": "too large",
    "less_than_equal": "too large",
    "literal_error": "not known",
    "missing": "missing",
    "model_type": "not a mapping",
    "path_type": "not text",
    "string_pattern_mismatch": "not known",
    "string_too_short": "too short",
    "string_too_long": "too long",
    "string_type": "not text",
    "string_unicode": "not text in UTF-8",
    "tuple_type": "not a list",
}


def wrong_value(error: ErrorDetails, origin: str) -> str:
    """The line for one of pydantic's errors. `origin` is where the value came from, such as "environment"."""
    path, given = error["loc"], error["input"]
    if error["type"] == "extra_forbidden":
        return unknown_key(path, origin)
    found = keys.schema(path)
    shown = "" if error["type"] == "missing" else _shown(given, found)
    return f"{keys.dotted(path)}{shown} ({origin}): {_why(error)}{_remedy(error, found)}{_environment_form(path)}"


def not_a_section(name: str, origin: str) -> str:
    """The line for a section that was given as one value, which is not shown: it may be a misplaced password."""
    return f"{name} ({origin}): not a section; give {keys.expected(keys.schema((name,)))}{_environment_form((name,))}"


def unknown_key(path: keys.Path, origin: str) -> str:
    """The line for a key that does not exist."""
    return f"{keys.dotted(path)} ({origin}): no such setting; {_instead(path)}"


def unknown_variable(name: str, origin: str) -> str:
    """The line for a variable (or a secret file) that begins with COATSTREAM_ and names no setting."""
    section = name.removeprefix(keys.PREFIX).lower().partition(keys.NESTED)[0]
    if section in keys.LISTED:
        instead = f"set {section} as a whole: {keys.PREFIX}{section.upper()}='{keys.LISTED[section]}'"
    elif near := _nearest(name.removeprefix(keys.PREFIX).lower(), [_suffix(path) for path in keys.settings()]):
        instead = f"did you mean {keys.PREFIX}{near.upper()}?"
    else:
        sections = ", ".join(keys.children(()))
        instead = f"variables are named {keys.PREFIX}<SECTION>__<KEY>, and the sections are {sections}"
    return f"{name[:128]} ({origin}): no such setting; {instead}"


def not_json(path: keys.Path, origin: str, reason: str) -> str:
    """The line for a variable that must be JSON and is not. Its text may hold credentials and is not shown."""
    found, name = keys.schema(path), keys.environment_name(path)
    if found.get("type") == "object":
        first = keys.environment_name((*path, keys.children(path)[0]))
        return f"{name} ({origin}): {path[0]} is a section; set {first} and its like, or a JSON object"
    return f"{name} ({origin}): not JSON ({reason}); give {keys.expected(found)}"


def _suffix(path: keys.Path) -> str:
    return keys.NESTED.join(str(step) for step in path)


def _why(error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if isinstance(error["input"], float | str) and str(error["input"]).strip(" +-").lower() == "nan":
        return "not a number"
    return _WHY.get(error["type"], "not accepted")


def _remedy(error: ErrorDetails, found: keys.Schema) -> str:
    if error["type"] == "value_error":  # the messages of our own validators already name the remedy
        return ""
    near = _nearest(error["input"], found.get("enum", [])) if isinstance(error["input"], str) else None
    meant = f"; did you mean {near}?" if near else ""
    quotes = " (put numbers, dates, yes and no in quotes)" if error["type"] in {"string_type", "path_type"} else ""
    return f"; give {keys.expected(found)}{quotes}{meant}"


def _environment_form(path: keys.Path) -> str:
    name = keys.environment_name(path)
    if keys.schema(path).get("type") == "object" and len(path) == 1:
        return f" (in the environment: {name}__<KEY>)"
    lists = (keys.schema(path[:depth]).get("type") == "array" for depth in range(1, len(path) + 1))
    as_json = " as JSON" if any(lists) else ""
    return f" (in the environment: {name}{as_json})"


def _instead(path: keys.Path) -> str:
    parent, last = path[:-1], str(path[-1])
    if near := _nearest(last, keys.children(parent)):
        return f"did you mean {keys.dotted((*parent, near))}?{_environment_form((*parent, near))}"
    elsewhere = [setting for setting in keys.settings() if setting[-1] == last]
    if elsewhere:
        return f"did you mean {' or '.join(keys.dotted(setting) for setting in elsewhere)}?"
    whose = keys.dotted(parent) + " has" if parent else "the sections are"
    return f"{whose} {', '.join(keys.children(parent))}"


def _nearest(word: str, words: list[str] | tuple[str, ...]) -> str | None:
    return next(iter(difflib.get_close_matches(word[:64].lower(), words, n=1)), None)


def _shown(given: object, found: keys.Schema) -> str:
    """` = value` without anything that may be a credential; empty for a section, whose text may be a password."""
    if found.get("type") == "object":
        return ""
    if isinstance(given, str) and keys.is_secret(found):
        scheme = re.match(r"[a-z][a-z0-9+.-]*://", given, re.IGNORECASE)
        return f" = {scheme[0] if scheme else ''}***"
    if keys.is_secret(found):
        return " = ***"
    if isinstance(given, list | tuple):
        plain = all(isinstance(item, int | float) for item in given) and len(given) <= 16
        return f" = [{', '.join(_scalar(item) for item in given)}]" if plain else " = a list"
    return f" = {_scalar(given)}"


def _scalar(given: Any) -> str:
    match given:
        case None | bool():
            return json.dumps(given)
        case int() if given.bit_length() > 64:  # Python refuses to print more than 4,300 digits
            return "a huge number"
        case int() | float():
            return str(given)
        case str():
            return repr(_without_credentials(given)[:80])
        case dict():
            return "a mapping"
        case _:
            return f"a {type(given).__name__}"


def _without_credentials(text: str) -> str:
    """`text` with what may be a password replaced: a wrong value may be a URL, even a broken one."""
    head, at, host = text.rpartition("@")
    scheme, slashes, _ = head.partition("://")
    text = f"{scheme}{slashes}***@{host}" if at and slashes else f"***@{host}" if at else text
    before, question, _ = text.partition("?")
    return f"{before}?***" if question and "://" in before else text
