"""Rules for alerting rules: each watches metrics that workers have, and promtool (where it is installed) reads them."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from deploy.check.manifests import Manifest
from deploy.check.scaling import unknown_metrics


def check_rules(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    groups = manifest["spec"].get("groups") or ()
    if not any(rule.get("alert") for group in groups for rule in group["rules"]):
        yield "has no alert"
    for rule in (rule for group in groups for rule in group["rules"]):
        for name in sorted(unknown_metrics(rule["expr"])):
            yield f"{rule.get('alert') or rule['record']} watches {name}, which no worker exports"
    yield from promtool(manifest["spec"])


def promtool(rules: Manifest) -> Iterator[str]:
    """What promtool has to say, if it is here."""
    if (tool := shutil.which("promtool")) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rules.yaml")
        file.write_text(yaml.safe_dump(rules), "utf-8")
        done = subprocess.run(  # noqa: S603
            [tool, "check", "rules", "--lint-fatal", str(file)], capture_output=True, text=True, timeout=60, check=False
        )
    if done.returncode:
        yield f"promtool: {(done.stdout + done.stderr).strip().splitlines()[-1][:200]}"
