"""Writes the Kubernetes forms of the rules and the dashboard beside this file: `python -m deploy.monitoring`."""

from pathlib import Path
from typing import Final

import yaml

HERE: Final = Path(__file__).parent
COMPONENT: Final = HERE.parent / "k8s" / "components" / "monitoring"
HEAD: Final = (
    "# Written by `python -m deploy.monitoring` from deploy/monitoring/alerts.yaml; a test keeps them alike.\n"
)


def prometheus_rule() -> str:
    """alerts.yaml as the `spec` of a PrometheusRule."""
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "coatstream"}}
    spec = yaml.safe_load((HERE / "alerts.yaml").read_text("utf-8"))
    return HEAD + yaml.safe_dump(rule | {"spec": spec}, sort_keys=False, width=120)


def files() -> dict[Path, str]:
    """Each file that is written, and its text."""
    dashboard = (HERE / "coatstream.json").read_text("utf-8")
    return {COMPONENT / "prometheusrule.yaml": prometheus_rule(), COMPONENT / "coatstream.json": dashboard}


if __name__ == "__main__":
    for file, text in files().items():
        file.write_text(text, "utf-8")
