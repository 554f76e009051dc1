"""Rules for NetworkPolicies that open more than the pods behind them need, or keep out those who must come in."""

import re
from collections.abc import Iterator
from typing import Final

from deploy.check.manifests import Manifest, chosen, pod_labels, selected
from deploy.check.network import KUBERNETES_NAME, confining
from deploy.check.redis_access import camera_ports, place
from deploy.check.worker import own, settled

_WORLD: Final = re.compile(r"(0\.0\.0\.0|::)/0")


def check_openness(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    confined = selected(chosen(spec["podSelector"]), manifests)
    needed = {port for target in confined for port in needed_ports(target, manifests)}
    for rule in spec.get("egress") or ():
        if _world(rule.get("to")) and not (_ports(rule) and _ports(rule) <= needed):
            yield (
                f"lets the pods out to everywhere at {_spoken(rule)}: name the networks, or only ports that they need "
                f"({', '.join(map(str, sorted(needed))) or 'none'})"
            )
    for rule in spec.get("ingress") or ():
        if _world(rule.get("from")) or any(_any_namespace(peer) for peer in rule.get("from") or ()):
            yield "lets everyone in: name the namespaces whose pods have to come"


def needed_ports(target: Manifest, manifests: list[Manifest]) -> set[int]:
    """Ports of addresses that a policy may not be able to name: a Redis elsewhere, cameras, the hub."""
    tree = settled(target, manifests)
    if own(target) is None or tree is None:
        return set()
    redis = place(tree)
    outside = {port for host, port in redis.hosts if "." in host and ".svc" not in host} if redis else set()
    return outside | set(camera_ports(tree)) | ({443} if tree.model.weights == "hub" else set())


def _world(peers: list[Manifest] | None) -> bool:
    return not peers or any(_WORLD.fullmatch(str(peer.get("ipBlock", {}).get("cidr"))) for peer in peers)


def _any_namespace(peer: Manifest) -> bool:
    return "namespaceSelector" in peer and not peer["namespaceSelector"] and not peer.get("podSelector")


def _ports(rule: Manifest) -> set[object]:
    return {each.get("port") if "endPort" not in each else None for each in rule.get("ports") or ()}


def _spoken(rule: Manifest) -> str:
    return ", ".join(f"port {port}" for port in sorted(map(str, _ports(rule)))) or "every port"


def check_visitors(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """Somebody beside Prometheus must reach the page."""
    container = own(manifest)
    policies = confining(pod_labels(manifest), manifests, "Ingress")
    if container is None or container["name"] != "page" or not policies:
        return
    rules = [rule for policy in policies for rule in policy.get("ingress") or ()]
    peers: list[Manifest] = [peer for rule in rules for peer in rule.get("from") or [{}]]
    if all(chosen(peer.get("namespaceSelector") or {}).get(KUBERNETES_NAME) == "monitoring" for peer in peers):
        yield "no NetworkPolicy lets people in to the page: name the namespace of your Ingress controller"
