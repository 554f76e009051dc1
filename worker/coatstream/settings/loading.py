"""Finds and merges the settings: command line over environment over secret files over the YAML file over defaults.

pydantic-settings reads the environment and the secret files. This module merges, because the library's `BaseSettings`
stops at the first source that fails, ignores misspelt variables, and does not know where a wrong value came from.
An empty variable or secret file counts as unset, and so does an empty section of the YAML file.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NestedSecretsSettingsSource, SettingsConfigDict

from coatstream.settings import document, explaining, keys
from coatstream.settings.errors import SettingsError
from coatstream.settings.model import SettingsTree

SECRETS_DIR = Path("/etc/coatstream/secrets")

# The variables that Kubernetes sets for each Service called coatstream or coatstream-something.
# A bare ..._PORT must also look like a link, because COATSTREAM_HTTP_PORT=80 is a misspelt setting.
_SERVICE_LINK = re.compile(
    r"COATSTREAM(_[A-Z0-9]+)*"
    r"(_SERVICE_HOST=.*|_SERVICE_PORT(_[A-Z0-9_]+)?=\d*|_PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*"
    r"|_PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)


@dataclass(frozen=True, slots=True)
class _Layer:
    """The values of one origin, and the mistakes found while reading it."""

    origin: str
    values: dict[str, Any]
    problems: tuple[str, ...] = ()


class _Variables(BaseSettings, SettingsTree):
    """How variables are named, for the sources of pydantic-settings. Never instantiated."""

    model_config = SettingsConfigDict(env_prefix=keys.PREFIX, env_nested_delimiter=keys.NESTED)


def load(
    *,
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    secrets_dir: Path | None = SECRETS_DIR,
) -> SettingsTree:
    """The settings of this process.

    config       a YAML file
    overrides    dotted keys and their values, from the command line
    environ      `os.environ` unless given
    secrets_dir  a folder of files named like variables

    Raises SettingsError with the mistakes of all origins, so that one correction is enough.
    """
    found = [  # the weakest first
        _from_file(config),
        _from_secrets(secrets_dir),
        _from_environment(os.environ if environ is None else environ),
        _from_overrides(overrides or {}),
    ]
    layers = [_sections_only(layer) for layer in found]
    problems = [problem for layer in layers for problem in layer.problems]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merged(merged, layer.values)
    if password_file := _password_file(merged, layers, secrets_dir):
        merged["redis"]["password_file"] = password_file
    try:
        tree = SettingsTree.model_validate(merged, context={"overridden": _overridden(*layers[:3])})
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
        problems += [explaining.wrong_value(error, _origin(error["loc"], layers)) for error in errors]
    if problems:
        raise SettingsError(problems)
    return tree


def parse_override(text: str) -> tuple[str, Any]:
    """("batch.max_size", 8) of "batch.max_size=8". Settings that are text take the value as typed, others as YAML.

    Raises SettingsError if there is no key, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SettingsError(["--set takes KEY=VALUE, for instance --set batch.max_size=8"])
    found = keys.schema(tuple(key.split(".")))
    if keys.is_text(found) or not found:  # `load` reports an unknown key
        return key, None if value == "null" else value
    return key, document.parse(value, f"--set {key}")


def _from_overrides(overrides: Mapping[str, Any]) -> _Layer:
    values: dict[str, Any] = {}
    for key, value in overrides.items():
        for step in reversed(key.split(".")):
            value = {step: value}  # noqa: PLW2901  it grows from the leaf to the root
        values = _merged(values, value)
    return _Layer("command line", values)


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    variables = {name.upper(): value for name, value in environ.items()}
    links = {name for name, value in variables.items() if _SERVICE_LINK.fullmatch(f"{name}={value}")}
    variables = {name: value for name, value in variables.items() if name not in links}
    return _from_variables("environment", variables, EnvSettingsSource(_Variables))


def _from_secrets(folder: Path | None) -> _Layer:
    origin = _secrets_origin(folder)
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder else []
        source = NestedSecretsSettingsSource(
            _Variables,  # type: ignore[arg-type]  # takes a class as well, as its source says
            folder,
            secrets_dir_missing="ok",
            secrets_dir_max_size=document.MAX_BYTES,
            secrets_nested_delimiter=keys.NESTED,
        )
    except FileNotFoundError:
        return _Layer(origin, {})
    except UnicodeDecodeError:
        return _Layer(origin, {}, (f"{origin}: a file is not text in UTF-8; write secrets as plain UTF-8 text",))
    except (OSError, ValueError) as error:  # pydantic-settings' own error is a ValueError; it names paths and sizes
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "mount a small folder that this user may read"
        return _Layer(origin, {}, (f"{origin}: cannot be read ({reason}); {remedy}",))
    variables = {name.upper(): value or "" for name, value in source.env_vars.items()}
    layer = _from_variables(origin, variables, source)
    strays = [name for name in names if name.upper().startswith(keys.PREFIX) and name.upper() not in variables]
    unread = tuple(f"{name[:128]} ({origin}): not a file inside that folder; put the file there" for name in strays)
    return _Layer(origin, layer.values, layer.problems + unread)


def _password_file(merged: Mapping[str, Any], layers: list[_Layer], secrets: Path | None) -> Path | None:
    """The secret file that `redis.password` comes from. It is read for each connection, since it may be rotated."""
    redis = merged.get("redis")
    if (
        secrets is None
        or not isinstance(redis, dict)
        or redis.get("password_file")
        or _holds_password(redis.get("url"))
    ):
        return None
    path = ("redis", "password")
    if _origin(path, layers) != _secrets_origin(secrets):
        return None
    named = (entry for entry in secrets.iterdir() if entry.name.upper() == keys.environment_name(path))
    return next(named, None)  # None if the whole section `redis` is one secret, as JSON


def _holds_password(url: object) -> bool:
    """Whether the URL holds a password, which is stronger than the settings."""
    try:
        parts = urlsplit(str(url))
        return bool(parts.password) or "password" in parse_qs(parts.query)
    except ValueError:  # `connect` reports what is wrong with it
        return False


def _secrets_origin(folder: Path | None) -> str:
    return f"secrets folder {folder}"


def _from_variables(origin: str, variables: Mapping[str, str], source: EnvSettingsSource) -> _Layer:
    """The layer of variables named in upper case. The source gets what it can read; the rest are problems."""
    paths = {keys.environment_name(path): path for path in keys.settings()}
    paths |= {keys.environment_name((name,)): (name,) for name in keys.children(())}
    readable, problems = {}, []
    for name, value in sorted(variables.items()):
        if not name.startswith(keys.PREFIX) or not value:
            continue
        if name not in paths:
            problems.append(explaining.unknown_variable(name, origin))
        elif reason := _not_json(paths[name], value):
            problems.append(explaining.not_json(paths[name], origin, reason))
        else:
            readable[name.lower()] = value  # the sources look for lower case
    source.env_vars = readable
    return _Layer(origin, source(), tuple(problems))


def _not_json(path: keys.Path, value: str) -> str | None:
    """Why `value` cannot be read; None if it can, or if the setting at `path` is not JSON."""
    if keys.schema(path).get("type") not in {"array", "object"}:
        return None
    try:
        json.loads(value)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    except (ValueError, RecursionError):
        return "a number is too long, or lists are nested too deeply"
    return None


def _from_file(path: Path | None) -> _Layer:
    origin = f"file {path}"
    try:
        values = document.read(path) if path else {}
    except SettingsError as error:
        return _Layer(origin, {}, error.lines)
    return _Layer(origin, {name: value for name, value in values.items() if value is not None})


def _sections_only(layer: _Layer) -> _Layer:
    """`layer` without sections that are not mappings: merging would hide them under the keys of a stronger layer."""
    sections = {name for name in keys.children(()) if keys.schema((name,)).get("type") == "object"}
    wrong = [name for name, value in layer.values.items() if name in sections and not isinstance(value, dict)]
    values = {name: value for name, value in layer.values.items() if name not in wrong}
    problems = tuple(explaining.not_a_section(name, layer.origin) for name in wrong)
    return _Layer(layer.origin, values, layer.problems + problems)


def _merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`low`, overridden by everything that `high` sets; sections are merged, lists are replaced."""
    both = {
        name: _merged(low[name], value)
        for name, value in high.items()
        if isinstance(value, dict) and isinstance(low.get(name), dict)
    }
    return low | high | both


def _origin(path: keys.Path, layers: list[_Layer]) -> str:
    return next((layer.origin for layer in reversed(layers) if _sets(layer.values, path)), "default")


def _sets(values: Any, path: keys.Path) -> bool:
    for step in path:
        if not isinstance(values, dict):
            return True  # a list, which one layer sets as a whole
        if step not in values:
            return False
        values = values[step]
    return True


def _overridden(file: _Layer, *stronger: _Layer) -> tuple[str, ...]:
    """A line for each key of the file that has another value in a variable or a secret file. Values are not shown."""
    found = []
    for path in keys.settings():
        layer = next((layer for layer in reversed(stronger) if _sets(layer.values, path)), None)
        if layer is None or not _sets(file.values, path):
            continue
        if _text_at(file.values, path) != _text_at(layer.values, path):
            name = keys.environment_name(path)
            found.append(f"{keys.dotted(path)} of the {file.origin} is overridden by {name} ({layer.origin})")
    return tuple(found)


def _text_at(values: Any, path: keys.Path) -> str:
    for step in path:
        values = values[step]
    return str(values).lower()  # a variable holds text: true and True, 8 and "8" are the same
