"""Settings that a program gives in a call, rather than in files and variables."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from coatstream.errors import ConfigError
from coatstream.settings import explaining
from coatstream.settings.model import SettingsTree


def settings_for(where: str | SettingsTree) -> SettingsTree:
    """Those given, or the defaults with this URL of Redis. Raises ConfigError."""
    return where if isinstance(where, SettingsTree) else settings_of({"redis": {"url": where}})


def settings_of(values: Mapping[str, Any]) -> SettingsTree:
    """The defaults with these values of sections. Raises ConfigError, which names each wrong value."""
    try:
        return SettingsTree.model_validate(values)
    except ValidationError as failure:
        problems = failure.errors(include_url=False)
        raise ConfigError("; ".join(explaining.wrong_value(problem, "this call") for problem in problems)) from None
