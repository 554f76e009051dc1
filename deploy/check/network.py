"""Who may speak to whom, by the NetworkPolicies of an overlay; and rules for policies and Services."""

import difflib
import ipaddress
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from deploy.check.manifests import (
    Manifest,
    chosen,
    containers,
    named,
    namespace,
    of_kind,
    pod_labels,
    port_names,
    selected,
    selects,
    title,
)

KUBERNETES_NAME: Final = "kubernetes.io/metadata.name"
# Namespaces whose names are all but the same everywhere; a name that is nearly one of these is a misspelt one.
_KNOWN: Final = ("monitoring", "keda", "kube-system", "ingress-nginx", "openshift-dns")


def confining(labels: dict[str, str], manifests: list[Manifest], direction: str) -> list[Manifest]:
    """The specs of the policies that confine these pods in a direction: Ingress or Egress."""
    policies = [m["spec"] for m in of_kind(manifests, "NetworkPolicy")]
    return [p for p in policies if direction in directions(p) and selects(chosen(p["podSelector"]), labels)]


def directions(spec: Manifest) -> list[str]:
    """policyTypes, or what the API server takes for them: Ingress always, Egress where there are rules for it."""
    return list(spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]))


def may_leave(
    labels: dict[str, str], manifests: list[Manifest], port: int, host: str | None = None, protocol: str = "TCP"
) -> bool:
    """Whether the pods may connect to that port of the host, or of anything; pods that no policy confines may."""
    policies = confining(labels, manifests, "Egress")
    rules = [rule for policy in policies for rule in policy.get("egress") or ()]
    return not policies or any(
        opens(rule, port, protocol) and (host is None or _leads(rule.get("to"), host, manifests)) for rule in rules
    )


def opens(rule: Manifest, port: int, protocol: str = "TCP") -> bool:
    if not rule.get("ports"):
        return True
    ports = [each for each in rule["ports"] if each.get("protocol", "TCP") == protocol]
    if any("port" not in each for each in ports):
        return True
    ranges = [(each["port"], each.get("endPort", each["port"])) for each in ports]
    return any(not isinstance(low, int) or low <= port <= high for low, high in ranges)


def _leads(peers: list[Manifest] | None, host: str, manifests: list[Manifest]) -> bool:
    """Whether one of these peers may be the host: a Service of this overlay or another namespace, or one outside."""
    if not peers:
        return True
    name, _, rest = host.partition(".")
    space = rest.partition(".")[0] if ".svc" in f".{rest}" else ""
    service = named(manifests, "Service", name) if not rest or space == _space(manifests) else None
    if service is not None:
        targets = [pod_labels(m) for m in selected(service["spec"].get("selector") or {}, manifests)]
        return any(_selects_pods(peer, targets, _space(manifests)) for peer in peers)
    if space or not rest:  # of the cluster, and not of this overlay
        return any(_selects_space(peer, space or _space(manifests)) for peer in peers)
    return any("ipBlock" in peer and _contains(peer["ipBlock"], host) for peer in peers)


def _space(manifests: list[Manifest]) -> str:
    return next((namespace(m) for m in of_kind(manifests, "Deployment") if namespace(m)), "")


def _selects_pods(peer: Manifest, targets: list[dict[str, str]], space: str) -> bool:
    if "namespaceSelector" in peer and not _selects_space(peer, space):
        return False
    return "ipBlock" not in peer and any(selects(chosen(peer.get("podSelector") or {}), labels) for labels in targets)


def _selects_space(peer: Manifest, space: str) -> bool:
    if "ipBlock" in peer:
        return False
    wanted = chosen(peer.get("namespaceSelector") or {}).get(KUBERNETES_NAME)
    return "namespaceSelector" not in peer or wanted in (None, space)


def _contains(block: Manifest, host: str) -> bool:
    """A name outside the cluster may have any address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host) in ipaddress.ip_network(block["cidr"])
    return True


def may_enter(labels: dict[str, str], manifests: list[Manifest], space: str, port: object) -> bool:
    """Whether pods of the namespace may connect to the port (number or name) of these pods."""
    policies = confining(labels, manifests, "Ingress")
    rules = [rule for policy in policies for rule in policy.get("ingress") or ()]
    return not policies or any(
        (not rule.get("ports") or port in {each.get("port") for each in rule["ports"]})
        and (not rule.get("from") or any("namespaceSelector" in p and _selects_space(p, space) for p in rule["from"]))
        for rule in rules
    )


def lets_in(labels: dict[str, str], manifests: list[Manifest], source: dict[str, str], ports: set[object]) -> bool:
    """Whether pods of this namespace with the labels `source` may connect to one of the ports (numbers or names)."""
    policies = confining(labels, manifests, "Ingress")
    rules = [rule for policy in policies for rule in policy.get("ingress") or ()]
    return not policies or any(
        (not rule.get("ports") or ports & {each.get("port") for each in rule["ports"]})
        and (not rule.get("from") or any(_selects_pods(p, [source], _space(manifests)) for p in rule["from"]))
        for rule in rules
    )


# ---- rules


def check_policy(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    confined = selected(chosen(spec["podSelector"]), manifests)
    if not confined:
        yield "selects no pod"
    ports = port_names(confined)
    for rule in spec.get("ingress") or ():
        for port in rule.get("ports", ()):
            if isinstance(port["port"], str) and port["port"] not in ports:
                yield f"lets traffic in at port {port['port']}, which its pods do not have"
        if confined and not rule:
            yield "lets everything in"
    peers = [peer for side in ("from", "to") for rule in _rules(spec) for peer in rule.get(side, ())]
    for peer in peers:
        name = chosen(peer.get("namespaceSelector") or {}).get(KUBERNETES_NAME, _KNOWN[0])
        if (cidr := peer.get("ipBlock", {}).get("cidr")) and not _is_network(cidr):
            yield f"{cidr} is no network: write it as 10.20.0.0/16, or one address as 10.20.0.5/32"
        if name not in _KNOWN and (near := difflib.get_close_matches(name, _KNOWN, 1, 0.8)):
            yield f"names the namespace {name}: did you mean {near[0]}?"


def _is_network(cidr: object) -> bool:
    with suppress(ValueError):
        return "/" in str(cidr) and bool(ipaddress.ip_network(str(cidr)))
    return False


def _rules(spec: Manifest) -> list[Manifest]:
    return [rule for side in ("ingress", "egress") for rule in spec.get(side) or ()]


def check_service(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    targets = selected(manifest["spec"].get("selector") or {}, manifests)
    if not targets:
        yield "selects no pod"
    if len({title(target) for target in targets}) > 1:
        yield f"mixes the pods of {', '.join(sorted(title(target) for target in targets))}"
    declared = {port["containerPort"] for m in targets for c in containers(m) for port in c.get("ports", ())}
    for port in manifest["spec"].get("ports", ()):
        target = port.get("targetPort", port.get("port"))
        if targets and target not in (port_names(targets) if isinstance(target, str) else declared):
            yield f"sends traffic to port {target}, which its pods do not have"
        if port.get("protocol", "TCP") != "TCP":
            yield f"its port {port.get('port')} is for {port['protocol']}: everything here speaks TCP"
    if manifest["spec"].get("externalIPs"):
        yield "externalIPs open it to the world outside: an Ingress has TLS and a host name"
    if manifest["spec"].get("type") in ("NodePort", "LoadBalancer"):
        yield f"its type {manifest['spec']['type']} opens it to the world outside: an Ingress has TLS and a host name"


def check_ingress(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    if not spec.get("tls"):
        yield "has no tls: tokens would travel in the clear"
    secured = {host for each in spec.get("tls") or () for host in each.get("hosts", ())}
    for each in spec.get("tls") or ():
        if not each.get("secretName"):
            yield "its tls names no secretName: browsers would be shown the controller's own certificate"
    yield from _unsafe_annotations(manifest)
    if "defaultBackend" in spec:
        yield "has a defaultBackend, which answers for every host name"
    for rule in spec.get("rules", ()):
        if not rule.get("host"):
            yield "has a rule without a host, which answers for every name"
        elif secured and not any(_covers(name, rule["host"]) for name in secured):
            yield f"its tls is for {', '.join(sorted(secured))} and not for {rule['host']}"
        for path in rule.get("http", {}).get("paths", ()):
            yield from _dead_end(path["backend"]["service"], manifests)


def _covers(name: str, host: str) -> bool:
    return name == host or (name.startswith("*.") and host.partition(".")[2] == name[2:])


def _unsafe_annotations(manifest: Manifest) -> Iterator[str]:
    for key, value in (manifest["metadata"].get("annotations") or {}).items():
        if key.endswith("ssl-redirect") and str(value) == "false":
            yield f"{key} is false: tokens would travel in the clear"
        if key.endswith("/proxy-buffering") and str(value) == "on":
            yield f"{key} is on, and the page is a stream of events: they would come late, or never"


def _dead_end(service: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    found = named(manifests, "Service", service["name"]) or {"spec": {}}
    ports = found["spec"].get("ports", ())
    wanted = service.get("port") or {}
    if not any(port.get("name") == wanted.get("name", port.get("name")) and _numbered(port, wanted) for port in ports):
        yield f"leads to the Service {service['name']} and its port {service.get('port')}, which is not there"


def _numbered(port: Manifest, wanted: Manifest) -> bool:
    return bool(wanted.get("number", port.get("port")) == port.get("port"))


def check_pod_monitor(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    targets = selected(chosen(manifest["spec"]["selector"]), manifests)
    if not targets:
        yield "selects no pod"
    for endpoint in manifest["spec"].get("podMetricsEndpoints", ()):
        for target in targets:
            declared = {port.get("name") for c in containers(target) for port in c.get("ports", ())}
            if endpoint.get("port") not in declared:
                yield f"scrapes port {endpoint.get('port')}, which {target['metadata']['name']} does not have"
            elif not may_enter(pod_labels(target), manifests, "monitoring", endpoint["port"]):
                yield f"no NetworkPolicy lets the namespace monitoring in to {target['metadata']['name']}"
