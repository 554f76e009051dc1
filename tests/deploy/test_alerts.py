import re
from typing import Any

import pytest
import yaml

from docs.tables import every_metric
from tests.support.paths import ROOT

FILE = ROOT / "deploy" / "prometheus" / "alerts.yaml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(FILE.read_text("utf-8"))["groups"] for rule in group["rules"]
]


def names(rules: list[dict[str, Any]]) -> list[str]:
    return [rule["alert"] for rule in rules]


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_a_rule_watches_metrics_that_the_worker_has(rule: dict[str, Any]) -> None:
    scraped = {sample.name for family in every_metric().collect() for sample in family.samples}

    watched = set(re.findall(r"coatstream_\w+", rule["expr"]))

    assert watched
    assert watched <= scraped


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_a_rule_says_what_is_wrong_and_how_bad(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Coatstream[A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}


def test_each_rule_is_there_once() -> None:
    assert names(RULES) == sorted(set(names(RULES)))
    assert "CoatstreamModelRecompiles" in names(RULES)
