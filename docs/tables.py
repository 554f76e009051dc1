"""Writes what documents and editors know of the settings and metrics: `python docs/tables.py`.

From the code and the comments of config/coatstream.yaml it makes the tables of docs/settings.md and docs/metrics.md,
and config/coatstream.schema.json, with which editors complete and check a settings file; and the JSON Schemas of all
documents that consumers read.
"""

import json
from pathlib import Path
from typing import Any

from coatstream.cameras.fleet.metrics import FleetCollector
from coatstream.cameras.fleet.stats import FleetStats
from coatstream.cameras.metrics import CameraCollector
from coatstream.engine.backends.noop import NoopEngine
from coatstream.pipeline.cost import BatchCost
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.policy import BatchPolicy
from coatstream.queue.metrics import QueueMetrics
from coatstream.queue.producing.admission import ADMIT
from coatstream.results import documents
from coatstream.results.events import documents as events
from coatstream.results.events.metrics import EventCollector
from coatstream.results.events.publisher import EventStats
from coatstream.results.metrics import SettlementMetrics
from coatstream.results.pictures.attaching import PictureStats
from coatstream.results.pictures.metrics import PictureCollector
from coatstream.results.training.folder import TrainingStats
from coatstream.results.training.metrics import TrainingCollector
from coatstream.settings import keys
from coatstream.settings.model import CameraSettings, QueueEntry, Section, SettingsTree
from coatstream.telemetry.ledger import Ledger
from coatstream.telemetry.metrics import Metrics, metrics_table
from coatstream.telemetry.status import Status
from prometheus_client import CollectorRegistry

HERE = Path(__file__).parent
CONFIG = HERE.parent / "config"
MANUAL = CONFIG / "coatstream.yaml"
SCHEMA = CONFIG / "coatstream.schema.json"
LISTS: dict[str, type[Section]] = {"queues": QueueEntry, "cameras": CameraSettings}  # setting -> what an item of it is


# ---- settings


def comments() -> dict[str, str]:
    """The comment above each key of the manual: of sections, of settings, and of the keys of listed samples.

    A line that starts with `#` and two spaces belongs to a sample item of a list and is read as if it were no comment.
    """
    found, section, note = {}, "", []
    for line in MANUAL.read_text("utf-8").splitlines():
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
    return f"`{value if value and isinstance(value, str) else json.dumps(value)}`"


# ---- the JSON Schema for editors


def settings_schema() -> dict[str, Any]:
    """The JSON Schema (draft 7, which every editor knows) of a settings file, described in the manual's words.

    Nothing refers to anything: many editors show no description beside a reference.
    """
    tree = SettingsTree.model_json_schema()
    meanings = comments()
    sections = {name: _plain(inner, tree["$defs"]) for name, inner in tree["properties"].items()}
    for name, section in sections.items():
        _describe(section["items"] if name in LISTS else section, name, meanings)
        section["type"] = [section["type"], "null"]  # `batch:` with nothing below it sets nothing
    sections["cameras"]["items"]["properties"]["url"]["type"] = ["string", "integer"]  # a local device's number
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "coatstream",
        "description": "The settings of coatstream. All are optional; times are seconds, sizes bytes.",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: {"description": meanings[name]} | section for name, section in sections.items()},
    }


def _describe(schema: dict[str, Any], name: str, meanings: dict[str, str]) -> None:
    """Put the manual's words to each key of a section, and of the sections that a camera may have of its own."""
    for key, inner in schema["properties"].items():
        schema["properties"][key] = {"description": meanings[_key(name, key)]} | inner
        if "properties" in inner:
            _describe(inner, key, meanings)


def _plain(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A schema as a settings file has it: written out, without the titles, which only repeat the keys."""
    default = {} if isinstance(schema.get("default"), dict) else {k: schema[k] for k in ("default",) if k in schema}
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions) | default
    if "anyOf" in schema:
        values = [_plain(option, definitions) for option in schema["anyOf"] if option.get("type") != "null"]
        if len(values) > 1:
            return {"anyOf": values} | default
        return values[0] | {"type": [values[0]["type"], "null"]} | default
    found = {key: value for key, value in schema.items() if key not in ("title", "writeOnly", "format", "description")}
    if "prefixItems" in found:  # a word that draft 7 does not know
        found["items"] = [_plain(item, definitions) for item in found.pop("prefixItems")]
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = _plain(found[key], definitions)
    if "properties" in found:
        found["properties"] = {name: _plain(inner, definitions) for name, inner in found["properties"].items()}
    return found


# ---- the documents of results


def result_schemas() -> dict[str, dict[str, Any]]:
    """File name in docs/ -> the JSON Schema of what consumers read."""
    return {
        "label.schema.json": documents.schema(),
        "failure.schema.json": documents.schema(documents.FailureDocument),
        "event.schema.json": events.schema(),
    }


def admission_script() -> str:
    """Bounded enqueueing as one file, for producers in other languages."""
    return f"-- Written by docs/tables.py for docs/admission.md, which has its keys and arguments.\n\n{ADMIT.source}"


# ---- metrics


def every_metric() -> CollectorRegistry:
    """A registry with all that a worker shows."""
    registry = CollectorRegistry()
    PipelineMetrics(registry).warm(NoopEngine("noop", (1,)), BatchPolicy(BatchCost.of({1: 1.0}), 1))
    QueueMetrics(registry)
    SettlementMetrics(registry)
    metrics = Metrics(registry)
    metrics.build(version="1", worker="w")
    metrics.lost_lines(lambda: 0)
    metrics.expose(Ledger(), Status(stall_after=1))
    registry.register(CameraCollector(lambda: ()))
    registry.register(FleetCollector(FleetStats))
    registry.register(EventCollector(lambda: EventStats({}, {}, {}, {}, 0, 0)))
    registry.register(PictureCollector(PictureStats))
    registry.register(TrainingCollector(TrainingStats))
    return registry


def main() -> None:
    for name, table in (("settings", settings_table()), ("metrics", metrics_table(every_metric()))):
        page = HERE / f"{name}.md"
        head, _, rest = page.read_text("utf-8").partition(f"<!-- {name} -->")
        _, _, tail = rest.partition(f"<!-- /{name} -->")
        page.write_text(f"{head}<!-- {name} -->\n{table.strip()}\n<!-- /{name} -->{tail}", "utf-8")
    SCHEMA.write_text(json.dumps(settings_schema(), indent=2) + "\n", "utf-8")
    for name, schema in result_schemas().items():
        (HERE / name).write_text(json.dumps(schema, indent=2) + "\n", "utf-8")
    (HERE / "admit.lua").write_text(admission_script(), "utf-8")


if __name__ == "__main__":
    main()
