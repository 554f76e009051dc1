"""Rules for how any pod is put on a node, started, mounted and named: faults that apply cleanly and fail later."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from deploy.check.manifests import Manifest, Rule, containers, pod, production

_PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")
_TOPOLOGY: Final = ("kubernetes.io/hostname", "topology.kubernetes.io/zone", "topology.kubernetes.io/region")
_GRACE: Final = 5
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def check_placement(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    spec = pod(manifest)
    if spec.get("nodeName"):
        yield "nodeName goes round the scheduler: without this node there is no pod"
    if str(spec.get("priorityClassName", "")).startswith("system-"):
        yield f"priorityClassName {spec['priorityClassName']} is the cluster's own: its pods would push out others"
    for constraint in spec.get("topologySpreadConstraints", ()):
        yield from _wrong_topology(constraint)
        if not constraint.get("labelSelector"):
            yield "topologySpreadConstraints has no labelSelector: it counts no pod, and spreads none"
    affinity = (spec.get("affinity") or {}).get("podAffinity") or {}
    for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ():
        if term.get("topologyKey") == _TOPOLOGY[0]:
            yield "podAffinity wants all its pods on one node: they go with that node"


def _wrong_topology(constraint: Manifest) -> Iterator[str]:
    key = str(constraint.get("topologyKey"))
    if key not in _TOPOLOGY and (near := difflib.get_close_matches(key, _TOPOLOGY, 1, 0.8)):
        yield f"topologyKey {key}: did you mean {near[0]}?"


def check_life(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    spec = pod(manifest)
    if spec.get("restartPolicy", "Always") != "Always":
        yield f"restartPolicy is {spec['restartPolicy']}, which the API server refuses here"
    if "activeDeadlineSeconds" in spec:
        yield "activeDeadlineSeconds ends a pod that should go on"
    if spec.get("dnsPolicy", "ClusterFirst") == "Default" or (
        spec.get("dnsPolicy") == "None" and not spec.get("dnsConfig")
    ):
        yield f"dnsPolicy {spec['dnsPolicy']} does not know the cluster's names"
    if spec.get("terminationGracePeriodSeconds", 30) < _GRACE:
        yield f"terminationGracePeriodSeconds is less than {_GRACE}: it is killed before it has closed anything"
    if manifest["spec"].get("paused"):
        yield "is paused: a change of it reaches no pod"
    if manifest["spec"].get("replicas", 1) == 0:
        yield "has 0 replicas: nothing runs"
    if manifest["spec"].get("revisionHistoryLimit", 1) == 0:
        yield "revisionHistoryLimit is 0: `kubectl rollout undo` has nothing to go back to"
    rolling = (manifest["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    if str(rolling.get("maxUnavailable")) == "100%":
        yield "maxUnavailable is 100%: no pod runs during a rollout"
    for container in containers(manifest):
        if container.get("tty") or container.get("stdin"):
            yield f"container {container['name']} waits for a terminal (stdin, tty)"
        yield from _late_stop(container, spec.get("terminationGracePeriodSeconds", 30))


def _late_stop(container: Manifest, grace: float) -> Iterator[str]:
    before = (container.get("lifecycle") or {}).get("preStop") or {}
    words = [str(word) for word in before.get("exec", {}).get("command", ())]
    slept = re.search(r"\bsleep (\d+)", " ".join(words))
    seconds = before.get("sleep", {}).get("seconds", int(slept[1]) if slept else 0)
    if seconds and seconds + 5 > grace:
        yield f"preStop takes {seconds} s of the {grace} s of terminationGracePeriodSeconds: it is killed, not stopped"


def check_probe_targets(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    for container in containers(manifest):
        for kind in _PROBES:
            target = (container.get(kind) or {}).get("httpGet") or {}
            if target.get("scheme", "HTTP") != "HTTP" and container["name"] in ("worker", "page"):
                yield f"{kind} asks by {target['scheme']}, and coatstream answers HTTP"
            if target.get("host"):
                yield f"{kind} asks the host {target['host']} and not its own pod"


def check_twice(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    spec = pod(manifest)
    yield from _twice("the volume", (volume["name"] for volume in spec.get("volumes", ())))
    yield from _twice("the container", (container["name"] for container in containers(manifest)))
    ports = [port for container in spec["containers"] for port in container.get("ports", ())]
    yield from _twice("the port", (port["name"] for port in ports if port.get("name")))
    yield from _twice("the port", (f"{port['containerPort']}/{port.get('protocol', 'TCP')}" for port in ports))
    for container in containers(manifest):
        yield from _twice("the mountPath", (mount["mountPath"] for mount in container.get("volumeMounts", ())))


def _twice(what: str, names: Iterable[str]) -> Iterator[str]:
    yield from (f"{what} {name} is there twice" for name, times in Counter(names).items() if times > 1)


def check_mounts(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    for volume in pod(manifest).get("volumes", ()):
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield f"the volume {volume['name']} has no sizeLimit: it may fill the node's disk"
    for container in containers(manifest):
        for mount in container.get("volumeMounts", ()):
            if mount["mountPath"] == "/tmp" and mount.get("readOnly"):  # noqa: S108 a pod's
                yield f"container {container['name']} cannot write to /tmp: its mount is readOnly"
        for variable in container.get("env", ()):
            if "value" in variable and not isinstance(variable["value"], str | None):
                yield f"the variable {variable['name']} is {variable['value']!r} and must be a quoted string"


def check_pulling(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    for container in containers(manifest):
        image, policy = str(container.get("image", "")), container.get("imagePullPolicy")
        name, _, digest = image.partition("@")
        if digest and not _DIGEST.fullmatch(digest):
            yield f"image {image}: {digest} is no digest (sha256: and 64 hexadecimal digits)"
        if digest and name.rpartition("/")[2].endswith(":latest"):
            yield f"image {image} names latest and a digest: a reader takes it for another one than it is"
        if not production(manifests):
            continue
        if digest and policy == "Always":
            yield "imagePullPolicy Always asks the registry at each start for what a digest fixes: it need not be away"
        if policy == "Never":
            yield "imagePullPolicy is Never: no node pulls the image, so the pod runs only where the image lies already"
        if container["name"] in ("worker", "page") and "/" not in name:
            yield f"image {image} names no registry: a node would look for it on Docker Hub"


def check_images_agree(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """Workers and page of one variant share streams and settings: they should be one version."""
    mine = dict(_own_images([manifest]))
    for name, image in _own_images([m for m in manifests if m["kind"] == "Deployment"]):
        for own in mine.values():
            if own != image and own.partition("@")[0] == image.partition("@")[0] and "@" in own:
                yield f"its image {own} is not that of {name} ({image}): two versions of one program"


def _own_images(manifests: list[Manifest]) -> Iterator[tuple[str, str]]:
    for manifest in manifests:
        for container in containers(manifest):
            gpus = (container.get("resources", {}).get("limits") or {}).get("nvidia.com/gpu")
            if container["name"] in ("worker", "page") and not gpus:
                yield manifest["metadata"]["name"], str(container.get("image", ""))


RULES: Final[tuple[Rule, ...]] = (
    check_placement,
    check_life,
    check_probe_targets,
    check_twice,
    check_mounts,
    check_pulling,
)
