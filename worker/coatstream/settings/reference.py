"""The settings as a table for docs/settings.md. The words are the comments of coatstream.yaml: one source for both."""

import json
from pathlib import Path
from typing import Any

from coatstream.settings import keys
from coatstream.settings.model import CameraSettings, QueueEntry, Section, SettingsTree

SAMPLE = "coatstream.yaml"
LISTS: dict[str, type[Section]] = {
    "queues": QueueEntry,
    "cameras": CameraSettings,
}  # settings that are lists, and what an item of each is


def sample() -> str:
    """The text of coatstream.yaml, which ships beside this module."""
    return (Path(__file__).parents[3] / "config" / SAMPLE).read_text(encoding="utf-8")


def comments() -> dict[str, str]:
    """The comment above each key of coatstream.yaml: of sections, of settings, and of the keys of listed samples.

    A line that starts with `#` and two spaces belongs to a sample item of a list and is read as if it were no comment.
    """
    found, section, note = {}, "", []
    for line in sample().splitlines():
        code = line.removeprefix("#") if line.startswith("#  ") else line
        text = code.strip()
        if text.startswith("#"):
            note.append(text.lstrip("# "))
            continue
        if text:
            name = text.removeprefix("- ").partition(":")[0]
            section = section if code.startswith(" ") else name
            found[_key(section, name)] = " ".join(note)
        note = []
    return found


def _key(section: str, name: str) -> str:
    if name == section:
        return name
    return f"{section}[].{name}" if section in LISTS else f"{section}.{name}"


def settings_table() -> str:
    """A Markdown table of every setting: key, default, meaning."""
    meanings = comments()
    rows = [(f"`{key}`", default, meanings[key].replace("|", "\\|")) for key, default in _defaults()]
    lines = [f"| {' | '.join(row)} |" for row in [("key", "default", "meaning"), ("---", "---", "---"), *rows]]
    return "\n".join([*lines, ""])


def _defaults() -> list[tuple[str, str]]:
    tree = SettingsTree().model_dump(mode="json")
    found = []
    for path in keys.settings():
        value: Any = tree
        for step in path:
            value = value[step]
        found.append((keys.dotted(path), _default(value)))
    return found + [
        (f"{section}[].{name}", "required" if field.is_required() else _default(field.get_default()))
        for section, item in LISTS.items()
        for name, field in item.model_fields.items()
    ]


def _default(value: object) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
