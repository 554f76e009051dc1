"""Rules for everything that runs, whatever its image: references, probes, resources, rollout, images, spread."""

from collections.abc import Iterator
from typing import Final

from deploy.check.manifests import (
    Manifest,
    Rule,
    chosen,
    containers,
    named,
    of_kind,
    pod,
    pod_labels,
    production,
    quantity,
    selects,
    ships_secrets,
    title,
    workloads,
)

PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")
_CLAIM: Final = 256 * 2**20  # bytes
_HASTY: Final = 20.0  # seconds: a liveness probe that gives up sooner kills for a garbage collection or a busy node


def check_selector(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    if not selects(manifest["spec"]["selector"]["matchLabels"], pod_labels(manifest)):
        yield "its selector does not match the labels of its own pods"


def check_rollout(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    strategy = manifest["spec"].get("strategy") or {}
    rolling = strategy.get("rollingUpdate") or {}
    if {str(rolling.get(side)).rstrip("%") for side in ("maxSurge", "maxUnavailable")} == {"0"}:
        yield "maxSurge and maxUnavailable are both 0: a rollout could never begin"
    if strategy.get("type") == "Recreate":
        yield "its strategy is Recreate: no pod runs during a rollout"
    gpus = [c for c in containers(manifest) if "nvidia.com/gpu" in (c.get("resources", {}).get("limits") or {})]
    if gpus and str(rolling.get("maxSurge", "25%")).rstrip("%") != "0":
        yield "maxSurge is not 0: where no GPU is spare, a rollout waits for ever"


def check_references(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    account = pod(manifest).get("serviceAccountName")
    if account and not named(manifests, "ServiceAccount", account):
        yield f"the ServiceAccount {account} is not there"
    for name in _config_maps(manifest):
        if not named(manifests, "ConfigMap", name):
            yield f"the ConfigMap {name} is not there"
    shipped = ships_secrets(manifests)
    for volume in pod(manifest).get("volumes", ()):
        secret, claim = volume.get("secret") or {}, volume.get("persistentVolumeClaim") or {}
        if shipped and secret and not secret.get("optional") and not named(manifests, "Secret", secret["secretName"]):
            yield f"the Secret {secret['secretName']} is neither there nor optional"
        if claim and not named(manifests, "PersistentVolumeClaim", claim["claimName"]):
            yield f"the PersistentVolumeClaim {claim['claimName']} is not there"
    priority = pod(manifest).get("priorityClassName", "system-")
    if not priority.startswith("system-") and not named(manifests, "PriorityClass", priority):
        yield f"the PriorityClass {priority} is not there"


def _config_maps(manifest: Manifest) -> Iterator[str]:
    for container in containers(manifest):
        for source in container.get("envFrom", ()):
            if name := source.get("configMapRef", {}).get("name"):
                yield name
    for volume in pod(manifest).get("volumes", ()):
        if name := (volume.get("configMap") or {}).get("name"):
            yield name


def check_volumes(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod(manifest).get("volumes", ())}
    for container in containers(manifest):
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"volumeMount {mount['name']} has no volume"
    grouped = "fsGroup" in (pod(manifest).get("securityContext") or {})
    for volume in pod(manifest).get("volumes", ()):
        if (volume.get("emptyDir") or {}).get("medium") == "Memory":
            yield f"the volume {volume['name']} lies in memory, and counts against the memory limit"
        mode = (volume.get("secret") or {}).get("defaultMode", 0o644)
        if not mode & 0o004 and not grouped:
            yield f"the volume {volume['name']} has mode {mode:04o} and the pod no fsGroup: its user cannot read it"


def check_variables(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    for container in containers(manifest):
        names = [variable["name"] for variable in container.get("env", ())]
        yield from (f"the variable {name} is set twice" for name in sorted(set(names)) if names.count(name) > 1)


def check_probes(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    for container in containers(manifest):
        ports = container.get("ports", ())
        declared = {port.get("name") for port in ports} | {port["containerPort"] for port in ports}
        for kind in PROBES:
            probe = container.get(kind)
            if probe is None:
                yield f"{kind} is missing"
                continue
            target = probe.get("httpGet") or probe.get("tcpSocket") or {}
            if target and target["port"] not in declared:
                yield f"{kind} asks port {target['port']}, which is not declared"
            if kind != "readinessProbe" and probe.get("successThreshold", 1) != 1:
                yield f"{kind}.successThreshold must be 1"
        if (patience := probe_seconds(container.get("livenessProbe") or {})) < _HASTY:
            yield f"livenessProbe gives up after {patience:g} s: less than {_HASTY:g} kills a pod that is only busy"


def probe_seconds(probe: Manifest) -> float:
    """How long a probe may fail before it counts."""
    return float(
        probe.get("initialDelaySeconds", 0) + probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
    )


def check_progress(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    deadline = manifest["spec"].get("progressDeadlineSeconds", 600)
    longest = max(probe_seconds(c.get("startupProbe") or {}) for c in containers(manifest))
    if deadline <= longest:
        yield f"progressDeadlineSeconds {deadline} ends before a start may ({longest:g} s): a rollout fails that works"


def check_resources(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    for container in containers(manifest):
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for name, value in (*requests.items(), *limits.items()):
            if quantity(value) is None:
                yield f"{name}: {value!r} is no quantity"
            elif name.endswith("/gpu") and not str(value).isdigit():
                yield f"{name}: {value!r} is no whole number"
        for name in requests.keys() & limits.keys():
            if (quantity(requests[name]) or 0) > (quantity(limits[name]) or 0):
                yield f"requests more {name} ({requests[name]}) than its limit ({limits[name]})"
        if "memory" not in limits:
            yield "has no memory limit"
        if "memory" not in requests:
            yield "has no memory request: the scheduler puts too many of them on a node"


def check_images(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    for container in containers(manifest):
        image = str(container.get("image", ""))
        name, _, digest = image.partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]
        if not digest and tag in ("", "latest"):
            yield f"image {image} may be another one tomorrow: name a version"
        elif not digest and production(manifests):
            yield f"image {image} has no digest: in production two pods could run two images"


def check_spread(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    constraints = pod(manifest).get("topologySpreadConstraints", ())
    if not constraints:
        yield "has no topologySpreadConstraints: one node could take all its pods along"
    for constraint in constraints:
        if not selects(chosen(constraint.get("labelSelector") or {}), pod_labels(manifest)):
            yield "topologySpreadConstraints select other pods than its own"


def check_has_budget(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    budgets = of_kind(manifests, "PodDisruptionBudget")
    if not any(selects(chosen(b["spec"]["selector"]), pod_labels(manifest)) for b in budgets):
        yield "no PodDisruptionBudget selects its pods: a drain of nodes may stop all at once"


def check_budget(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    if ("minAvailable" in spec) == ("maxUnavailable" in spec):
        yield "needs exactly one of minAvailable and maxUnavailable"
    if str(spec.get("maxUnavailable", 1)).rstrip("%") == "0":
        yield "maxUnavailable is 0: no node with one of its pods can ever be drained"
    wanted = chosen(spec["selector"])
    if not spec["selector"]:
        yield "selects all pods of the namespace"
    for target in workloads(manifests):
        if wanted and selects(wanted, pod_labels(target)):
            yield from _blocks_drains(spec, target, manifests)
    if not any(selects(wanted, pod_labels(m)) for m in of_kind(manifests, "Deployment", "StatefulSet")):
        yield "selects no pod"


def _blocks_drains(spec: Manifest, target: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """minAvailable against the fewest pods there may be: by the autoscaler, or by the Deployment."""
    least, wanted = fewest(target, manifests), str(spec.get("minAvailable", 0))
    if wanted == "100%" or (wanted.isdigit() and int(wanted) >= max(least, 1)):
        yield f"minAvailable is {wanted}, and {title(target)} may have {least} pods: no node with one can be drained"


def fewest(target: Manifest, manifests: list[Manifest]) -> int:
    """Pods of a workload at least."""
    for scaler in of_kind(manifests, "ScaledObject", "HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"].get("name") == target["metadata"]["name"]:
            return int(scaler["spec"].get("minReplicaCount", scaler["spec"].get("minReplicas", 0)))
    return int(target["spec"].get("replicas", 1))


def most(target: Manifest, manifests: list[Manifest]) -> int:
    """Pods of a workload at most, without those of a rollout."""
    for scaler in of_kind(manifests, "ScaledObject", "HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"].get("name") == target["metadata"]["name"]:
            return int(scaler["spec"].get("maxReplicaCount", scaler["spec"].get("maxReplicas", 100)))
    return int(target["spec"].get("replicas", 1))


def check_claims(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    for volume in pod(manifest).get("volumes", ()):
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        claim = named(manifests, "PersistentVolumeClaim", name) if name else None
        if claim is None:
            continue
        modes = set(claim["spec"].get("accessModes") or ())
        if not modes & {"ReadWriteMany", "ReadOnlyMany"} and most(manifest, manifests) > 1:
            yield f"shares the volume {name} among its pods, and {', '.join(sorted(modes))} lets one node mount it"
        size = quantity((claim["spec"].get("resources") or {}).get("requests", {}).get("storage")) or 0
        if size < _CLAIM:
            yield f"the PersistentVolumeClaim {name} asks for less than 256 Mi: a model and its engines take more"


EVERYWHERE: Final[tuple[Rule, ...]] = (
    check_selector,
    check_rollout,
    check_references,
    check_volumes,
    check_variables,
    check_probes,
    check_resources,
    check_images,
    check_claims,
)
REPLICATED: Final[tuple[Rule, ...]] = (check_progress, check_spread, check_has_budget)
