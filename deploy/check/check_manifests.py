"""What a schema does not see in the Kubernetes manifests, and a cluster does, at night.

`python -m deploy.check [FOLDER...]` renders the overlays (else those of this project) with `kubectl kustomize` and
prints one line a finding. Exit code 0: none; 1: some; 2: one could not be rendered. Never speaks to a cluster. Misspelt
fields and wrong types of the built-in kinds are kubernetes-validate's business (tests/deploy).
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from deploy.check import (
    access,
    filling,
    hardening,
    keda,
    network,
    openness,
    pods,
    redis_access,
    rules_file,
    scaling,
    watching,
    worker,
    workloads,
)
from deploy.check.manifests import (
    Manifest,
    RenderError,
    Rule,
    namespace,
    overlays,
    parsed,
    render,
    same,
    title,
)

__all__ = ["check", "main", "render", "title"]

_LABEL_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_WORKLOAD: Final[tuple[Rule, ...]] = (*workloads.EVERYWHERE, *pods.RULES, *hardening.RULES)
RULES: Final[dict[str, tuple[Rule, ...]]] = {
    "Deployment": (
        *_WORKLOAD,
        *workloads.REPLICATED,
        pods.check_images_agree,
        *worker.RULES,
        *filling.RULES,
        redis_access.check_ways_out,
        openness.check_visitors,
        watching.check_is_scraped,
    ),
    "Namespace": (access.check_namespace,),
    "RoleBinding": (access.check_binding,),
    "ClusterRoleBinding": (access.check_binding,),
    "VerticalPodAutoscaler": (access.check_vertical,),
    "StatefulSet": (*_WORKLOAD, redis_access.check_server),
    "Secret": (worker.check_secret,),
    "ConfigMap": (hardening.check_config_map,),
    "PodDisruptionBudget": (workloads.check_budget,),
    "NetworkPolicy": (network.check_policy, openness.check_openness),
    "Service": (network.check_service,),
    "Ingress": (network.check_ingress,),
    "PodMonitor": (network.check_pod_monitor, watching.check_scrape),
    "PrometheusRule": (rules_file.check_rules, watching.check_alerts),
    "ScaledObject": (*scaling.SCALED_OBJECT, *keda.SCALED_OBJECT),
    "TriggerAuthentication": (keda.check_authentication,),
    "HorizontalPodAutoscaler": (scaling.check_autoscaler, keda.check_autoscaler_works),
}


def check(manifests: list[Manifest]) -> list[str]:
    """Findings in the objects of one rendered overlay, each `Kind/name: what is wrong`."""
    findings = [f"{title(twice)}: is there twice" for twice in _duplicates(manifests)]
    for manifest in manifests:
        for rule in (_check_name, *RULES.get(manifest["kind"], ())):
            findings += [f"{title(manifest)}: {finding}" for finding in _asked(rule, manifest, manifests)]
    return list(dict.fromkeys(findings))


def _asked(rule: Rule, manifest: Manifest, manifests: list[Manifest]) -> list[str]:
    """What a rule says; a manifest of another shape than its kind has is a finding as well."""
    try:
        return list(rule(manifest, neighbours(manifest, manifests)))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return [f"is not built like a {manifest['kind']}: {type(error).__name__}: {str(error)[:100]}"]


def neighbours(manifest: Manifest, manifests: list[Manifest]) -> list[Manifest]:
    """What it can refer to by name or labels: objects of its namespace, and of the whole cluster.

    A PodMonitor sees the namespaces that its namespaceSelector names, and a rule may ask for what any other records.
    """
    spaces = {"", namespace(manifest)}
    if manifest["kind"] == "PodMonitor":
        selector = manifest["spec"].get("namespaceSelector") or {}
        spaces = {"", *selector.get("matchNames", spaces)}
        if selector.get("any"):
            return manifests
    if namespace(manifest) == "" or manifest["kind"] == "PrometheusRule":
        return manifests
    return [m for m in manifests if namespace(m) in spaces]


def _duplicates(manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for place, manifest in enumerate(manifests) if any(same(manifest, m) for m in manifests[:place])]


def _check_name(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    if not _LABEL_NAME.fullmatch(manifest["metadata"]["name"]):
        yield "its name is no DNS label (a-z, 0-9 and -, at most 63)"


def main(folders: Sequence[str]) -> int:
    """The overlays in these folders, or in files that are already rendered (`helm template ... > FILE`)."""
    found = 0
    for place in [Path(folder).resolve() for folder in folders] or overlays():
        try:
            manifests = parsed(place.read_text("utf-8")) if place.is_file() else render(place)
        except RenderError as error:
            print(error, file=sys.stderr)
            return 2
        for finding in check(manifests):
            print(f"{place.name}: {finding}")
            found += 1
    return int(found > 0)
