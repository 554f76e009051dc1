"""Alerts, recording rules and the dashboard: each watches what workers export, is tested, and leads to the runbook."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from deploy.check.scaling import unknown_metrics
from deploy.monitoring.__main__ import files
from tests.support.absence import missing
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy" / "monitoring"
FILE = FOLDER / "alerts.yaml"
GROUPS = yaml.safe_load(FILE.read_text("utf-8"))["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
RECORDED = [rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text("utf-8")
DASHBOARD = json.loads((FOLDER / "coatstream.json").read_text("utf-8"))


def names(rules: list[dict[str, Any]]) -> list[str]:
    return [rule["alert"] for rule in rules]


def promtool(*arguments: str) -> None:
    if (tool := shutil.which("promtool")) is None:
        missing("no promtool on this machine (apt-get install prometheus)")
    done = subprocess.run([tool, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_a_rule_watches_metrics_that_the_worker_has(rule: dict[str, Any]) -> None:
    assert not unknown_metrics(rule["expr"])
    assert set(re.findall(r"coatstream:[\w:]+", rule["expr"])) <= set(RECORDED)
    assert "coatstream" in rule["expr"]


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_a_rule_tells_what_is_wrong_how_bad_and_where_help_is(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Coatstream[A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"].endswith(f"docs/runbook.md#{rule['alert'].lower()}")


def test_each_rule_is_there_once_and_has_its_paragraph_in_the_runbook() -> None:
    assert names(RULES) == sorted(set(names(RULES)))
    assert names(RULES) == re.findall(r"^### (Coatstream\w+)$", RUNBOOK, re.MULTILINE)
    assert "CoatstreamModelRecompiles" in names(RULES)


@pytest.mark.slow
def test_promtool_accepts_the_rules_and_each_alert_fires_on_its_fault_and_not_in_a_healthy_hour() -> None:
    tested = (FOLDER / "tests" / "alerts.test.yaml").read_text("utf-8")

    promtool("check", "rules", "--lint-fatal", "alerts.yaml")
    promtool("test", "rules", "tests/alerts.test.yaml")

    assert set(re.findall(r"alertname=\"(\w+)\", alertstate=\"firing\"", tested)) == set(names(RULES))


def test_what_kubernetes_gets_is_what_is_here() -> None:
    for file, text in files().items():
        assert file.read_text("utf-8") == text, "python -m deploy.monitoring"


# ---- the dashboard


def queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def test_the_dashboard_asks_for_what_workers_export() -> None:
    for query in queries():
        assert not unknown_metrics(query)
        assert set(re.findall(r"coatstream:\w+:\w+", query)) <= set(RECORDED), query
        assert "coatstream" in query


def test_panels_are_whole_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert DASHBOARD["panels"][0]["title"] == "Are labels flowing?"
