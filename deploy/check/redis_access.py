"""Rules for Redis: that workers, page and KEDA reach it, and that one which an overlay ships keeps what it is given."""

import re
from collections.abc import Iterator
from typing import Final

from coatstream.broker.location import Location, location
from coatstream.errors import ConfigError
from coatstream.settings.model import SettingsTree

from deploy.check.manifests import (
    Manifest,
    amount,
    chosen,
    containers,
    named,
    namespace,
    of_kind,
    pod,
    pod_labels,
    production,
    selected,
)
from deploy.check.network import KUBERNETES_NAME, confining, lets_in, may_leave, opens
from deploy.check.worker import own, settled, worker

_ADDRESS: Final = re.compile(r"[\d.]+|\[?[0-9a-f:]+\]?")
_SERVERS: Final = ("valkey-server", "redis-server")
_SIZE: Final = re.compile(r"(\d+)(k|m|g)?b?", re.IGNORECASE)
_SCALE: Final = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_SHARE: Final = 0.75  # of the memory limit for data: rewriting the append-only file and buffers take the rest
_RTSP: Final = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}


def place(tree: SettingsTree) -> Location | None:
    """Where the worker's Redis is; None where redis.url cannot be used."""
    try:
        return location(tree.redis)
    except ConfigError:
        return None


def check_ways_out(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """A confined pod must reach what it needs: names, Redis, cameras. And every pod of ours must be confined."""
    tree = settled(manifest, manifests)
    if own(manifest) is None:
        return
    labels = pod_labels(manifest)
    for direction in ("Ingress", "Egress"):
        if not confining(labels, manifests, direction):
            yield f"no NetworkPolicy confines its pods ({direction}): cameras' passwords and Redis lie behind them"
    if tree is None:
        return
    if (redis := place(tree)) is None:
        yield "redis.url is not set, or cannot be read"
        return
    for host, port in redis.hosts:
        if not may_leave(labels, manifests, port, host):
            yield f"no NetworkPolicy lets the pods out to Redis ({host}:{port})"
    if any(not _ADDRESS.fullmatch(host) for host, _ in redis.hosts) and not finds_names(labels, manifests):
        yield "no NetworkPolicy lets the pods out to DNS (port 53, UDP), and redis.url has a name in it"
    yield from _closed_doors(redis, labels, manifests)
    if worker(manifest):
        yield from _ways_to_cameras(tree, labels, manifests)


def finds_names(labels: dict[str, str], manifests: list[Manifest]) -> bool:
    """Whether the pods may ask the cluster's DNS, by UDP: that of kube-system, of OpenShift, or one on the node."""
    policies = confining(labels, manifests, "Egress")
    rules = [
        rule
        for policy in policies
        for rule in policy.get("egress") or ()
        if opens(rule, 53, "UDP") or opens(rule, 5353, "UDP")
    ]
    return not policies or any(not rule.get("to") or any(map(_may_be_dns, rule["to"])) for rule in rules)


def _may_be_dns(peer: Manifest) -> bool:
    if "ipBlock" in peer:
        return True
    space = chosen(peer.get("namespaceSelector") or {}).get(KUBERNETES_NAME, "kube-system")
    return "namespaceSelector" in peer and (space == "kube-system" or "dns" in space)


def _closed_doors(redis: Location, labels: dict[str, str], manifests: list[Manifest]) -> Iterator[str]:
    """A Redis of this overlay must be found, and must let the pods in."""
    space = next((namespace(m) for m in of_kind(manifests, "Deployment")), "")
    for host, port in redis.hosts:
        name, _, rest = host.partition(".")
        service = named(manifests, "Service", name) if rest.partition(".")[0] in ("", space) else None
        if service is None:
            continue
        served = [each for each in service["spec"].get("ports", ()) if each.get("port") == port]
        if not served:
            yield f"redis.url names port {port}, which the Service {name} does not have"
        doors: set[object] = {each.get("targetPort", port) for each in served}
        for target in selected(service["spec"].get("selector") or {}, manifests):
            declared = [each for c in containers(target) for each in c.get("ports", ())]
            doors |= {p["containerPort"] for p in declared if p.get("name") in doors}
            doors |= {p.get("name") for p in declared if p["containerPort"] in doors}
            if not lets_in(pod_labels(target), manifests, labels, doors):
                yield f"no NetworkPolicy of {target['metadata']['name']} lets the pods in to Redis"


def _ways_to_cameras(tree: SettingsTree, labels: dict[str, str], manifests: list[Manifest]) -> Iterator[str]:
    for camera in tree.cameras:
        if (found := _address(camera)) is None:
            continue
        host, port = found
        if not may_leave(labels, manifests, port, host):
            yield f"no NetworkPolicy lets the pods out to the camera {camera.name} (port {port})"
        if camera.transport == "udp":
            yield f"the camera {camera.name} sends over UDP, to ports that no NetworkPolicy can name: take tcp"


def camera_ports(tree: SettingsTree) -> list[int]:
    return [found[1] for camera in tree.cameras if (found := _address(camera))]


def _address(camera: object) -> tuple[str, int] | None:
    """Host and port of a camera on the network."""
    found = re.match(r"(?P<scheme>[a-z]+)://(?:.*@)?(?P<host>\[[^\]]+\]|[^/:?]+)(:(?P<port>\d+))?", str(_url(camera)))
    if found is None or found["scheme"] not in _RTSP:
        return None
    return found["host"].strip("[]"), int(found["port"] or _RTSP[found["scheme"]])


def _url(camera: object) -> str:
    url = getattr(camera, "url", "")
    return str(url.get_secret_value() if hasattr(url, "get_secret_value") else url)


def check_server(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """A Redis that the overlay ships."""
    for container in containers(manifest):
        words = [str(word) for word in (*container.get("command", ()), *container.get("args", ()))]
        if not any(word.rpartition("/")[2] in _SERVERS for word in words):
            continue
        yield from _alone(manifest, manifests)
        if (policy := _option(words, "--maxmemory-policy") or "noeviction") != "noeviction":
            yield f"its Redis evicts ({policy}): frames would vanish without an outcome"
        size, limit = _bytes(_option(words, "--maxmemory")), amount(container, "limits", "memory") or 0
        if size is None or size > _SHARE * limit:
            yield f"its Redis may grow beyond {_SHARE:.0%} of the memory limit: it is killed instead of refusing frames"
        if _option(words, "--appendonly") != "yes":
            yield "its Redis forgets the queue when it restarts (appendonly)"
        if production(manifests) and any(
            "emptyDir" in volume and volume["name"] == "data" for volume in _volumes(manifest)
        ):
            yield "its Redis keeps the queue in an emptyDir, which goes with the pod"


def _alone(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    if manifest["spec"].get("replicas", 1) > 1 and not any(
        "cluster" in str(c.get("args")) for c in containers(manifest)
    ):
        yield "its Redis has several replicas that know nothing of each other: each would hold another queue"
    if (name := manifest["spec"].get("serviceName")) and not named(manifests, "Service", name):
        yield f"serviceName {name} is not there"
    if not confining(pod_labels(manifest), manifests, "Ingress"):
        yield "no NetworkPolicy confines its pods (Ingress): every pod of the cluster reaches the queue"


def _volumes(manifest: Manifest) -> list[Manifest]:
    return [*pod(manifest).get("volumes", ())]


def _option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words[:-1] else None


def _bytes(value: str | None) -> int | None:
    found = _SIZE.fullmatch(value or "")
    return int(found[1]) * _SCALE[(found[2] or "").lower()] if found else None
