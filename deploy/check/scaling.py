"""Rules for who decides how many workers run: KEDA's ScaledObject, or a HorizontalPodAutoscaler."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from coatstream.broker.keys import queues_of
from coatstream.broker.location import Location
from coatstream.errors import ConfigError
from coatstream.settings.model import SettingsTree

from deploy.check.manifests import Manifest, Rule, named, namespace, of_kind, pod_labels, selected, title
from deploy.check.network import may_enter
from deploy.check.redis_access import place
from deploy.check.worker import settled, workers

# Fields of KEDA's ScaledObject and of its redis-streams trigger (documentation of KEDA 2.17). The API server prunes an
# unknown field, and KEDA ignores an unknown trigger key, so that a misspelt one is silently a default.
SCALED_OBJECT_FIELDS: Final = frozenset(
    {"scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount"}
    | {"minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers"}
)
TRIGGER_FIELDS: Final = frozenset({"type", "name", "metricType", "metadata", "authenticationRef", "useCachedMetrics"})
_STREAM: Final = frozenset({"enableTLS", "unsafeSsl", "stream", "streamLength"})
STREAM_TRIGGERS: Final = {
    "redis-streams": _STREAM | {"address", "databaseIndex"},
    "redis-cluster-streams": _STREAM | {"addresses"},
    "redis-sentinel-streams": _STREAM | {"addresses", "databaseIndex", "sentinelMaster", "sentinelUsername"},
}
KIND_OF_TRIGGER: Final = {
    "server": "redis-streams",
    "cluster": "redis-cluster-streams",
    "sentinel": "redis-sentinel-streams",
}
_PROMETHEUS: Final = frozenset(
    {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues", "namespace", "unsafeSsl"}
)
FALLBACKS: Final = frozenset({"static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"})
ZERO: Final = "coatstream/scales-to-zero"
_CALM: Final = 60  # seconds before fewer workers are wanted: each stop hands frames or cameras over
_METRICS: Final = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
_NAME: Final = re.compile(r"coatstream_\w+")


@cache
def known_metrics() -> frozenset[str]:
    return frozenset(re.findall(r"^\| `(coatstream_\w+)`", _METRICS.read_text("utf-8"), re.MULTILINE))


def unknown_metrics(query: str) -> set[str]:
    """Names in a PromQL query that no worker exports."""
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for name in _NAME.findall(query)}
    return asked - known_metrics() - _NAME_OF_INFO


_NAME_OF_INFO: Final = {"coatstream_build_info", "coatstream_model_info"}


def check_scaled_object(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    yield from (f"spec.{field} is unknown to KEDA" for field in sorted(spec.keys() - SCALED_OBJECT_FIELDS))
    accepted = (manifest["metadata"].get("annotations") or {}).get(ZERO) == "accepted"
    if (low := spec.get("minReplicaCount", 0)) < 1 and not accepted:
        yield f"minReplicaCount is 0: while Redis is away KEDA's fallback starts no worker (annotate {ZERO}: accepted)"
    if low > spec.get("maxReplicaCount", 100):
        yield "minReplicaCount exceeds maxReplicaCount"
    fallback = spec.get("fallback", {})
    if not {"failureThreshold", "replicas"} <= fallback.keys() or fallback.get("behavior", "static") not in FALLBACKS:
        yield "fallback needs failureThreshold, replicas and a known behavior"
    behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
    yield from _hasty(behavior)
    yield from _target(spec, manifests)


def _target(spec: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    reference = spec["scaleTargetRef"]
    target = named(manifests, reference.get("kind", "Deployment"), reference["name"])
    if target is None:
        yield f"scaleTargetRef {reference['name']} is not there"
    elif "replicas" in target["spec"]:
        yield f"{title(target)} sets spec.replicas: each apply would fight the autoscaler"
    rivals = of_kind(manifests, "ScaledObject", "HorizontalPodAutoscaler")
    if sum(m["spec"]["scaleTargetRef"]["name"] == reference["name"] for m in rivals) > 1:
        yield f"is not the only autoscaler of {reference['name']}"


def _hasty(behavior: Manifest) -> Iterator[str]:
    down = behavior.get("scaleDown", {})
    if down.get("stabilizationWindowSeconds", 300) < _CALM:
        yield f"scaleDown waits less than {_CALM} s: workers would come and go with every lull"
    if any(p["type"] == "Percent" and p["value"] >= 100 for p in down.get("policies", ())):
        yield "scaleDown may remove all workers at once"


def check_autoscaler(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    if spec.get("minReplicas", 1) < 1:
        yield "minReplicas is 0, which the API server refuses"
    if any(metric["type"] == "Resource" for metric in spec.get("metrics", ())):
        yield "scales by a resource: a queue worker uses all its CPU until the queue is empty, whatever its length"
    yield from _hasty(spec.get("behavior", {}))
    yield from _target(spec, manifests)


def check_triggers(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    triggers = manifest["spec"]["triggers"]
    for trigger in triggers:
        yield from (f"trigger field {key} is unknown to KEDA" for key in sorted(trigger.keys() - TRIGGER_FIELDS))
        known = STREAM_TRIGGERS.get(trigger["type"], _PROMETHEUS)
        for key, value in trigger["metadata"].items():
            if not isinstance(value, str):
                yield f"trigger key {key} must be a quoted string"
            if key not in known:
                yield f"trigger key {key} does not belong here"
        if known is not _PROMETHEUS and "streamLength" not in trigger["metadata"]:
            yield "trigger has no streamLength, and KEDA would take 5"
        reference = trigger.get("authenticationRef", {}).get("name")
        if reference and not named(manifests, "TriggerAuthentication", reference):
            yield f"the TriggerAuthentication {reference} is not there"
    streams = [trigger for trigger in triggers if trigger["type"] in STREAM_TRIGGERS]
    if len(streams) > 1 and not (formula := _formula(manifest)):
        yield "has several queues and no formula: KEDA takes the longest of them, not their sum"
    elif len(streams) > 1 and (missing := {str(t.get("name")) for t in streams} - set(re.findall(r"\w+", formula))):
        yield f"its formula leaves out {', '.join(sorted(missing))}"


def _formula(manifest: Manifest) -> str:
    return str(manifest["spec"].get("advanced", {}).get("scalingModifiers", {}).get("formula", ""))


def check_against_worker(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """The autoscaler must look at what its target reads."""
    target = named(workers(manifests), "Deployment", manifest["spec"]["scaleTargetRef"]["name"])
    tree = settled(target, manifests) if target else None
    if target is None or tree is None:
        return
    triggers = manifest["spec"]["triggers"]
    if not tree.queue.enabled:
        yield from _check_queries(triggers)
        return
    redis = place(tree)
    if redis is None or not _streams(tree):
        return
    kind = KIND_OF_TRIGGER.get(redis.kind)
    if any(trigger["type"] != kind for trigger in triggers):
        yield f"needs triggers of the type {kind}, by streamLength: the stream's length is the whole backlog"
        return
    watched = {str(trigger["metadata"].get("stream")) for trigger in triggers}
    if watched != (read := _streams(tree)):
        yield f"watches the stream {', '.join(sorted(watched))}, and the worker reads {', '.join(sorted(read))}"
    for trigger in triggers:
        yield from _wrong_address(trigger["metadata"], redis, namespace(manifest))
        yield from _locked_out(trigger["metadata"], manifests)
        held, length = frames_held(tree), str(trigger["metadata"].get("streamLength"))
        if length.isdigit() and int(length) <= held:
            yield f"streamLength must exceed the {held} frames one busy worker holds, or it would scale itself up"


def _streams(tree: SettingsTree) -> set[str]:
    try:
        return {queue.stream for queue in queues_of(tree)}
    except ConfigError:
        return set()


def _check_queries(triggers: list[Manifest]) -> Iterator[str]:
    for trigger in triggers:
        if trigger["type"] != "prometheus":
            yield "its target reads no queue: only a prometheus trigger knows what cameras need"
        for name in sorted(unknown_metrics(str(trigger["metadata"].get("query", "")))):
            yield f"its query asks for {name}, which no worker exports"


def _wrong_address(metadata: Manifest, redis: Location, space: str) -> Iterator[str]:
    addresses = str(metadata.get("addresses") or metadata.get("address", "")).split(",")
    hosts = {host.rpartition(":")[0] for host in addresses}
    if any("." not in host for host in hosts):
        yield f"trigger address {', '.join(sorted(hosts))} lacks its namespace: KEDA connects from another one"
        return
    wanted = {f"{full_name(host, space)}:{port}" for host, port in redis.hosts}
    found = {f"{full_name(h.rpartition(':')[0], space)}:{h.rpartition(':')[2]}" for h in addresses}
    if found != wanted:
        yield f"trigger address {', '.join(sorted(found))} is not the worker's Redis {', '.join(sorted(wanted))}"
    if redis.kind != "cluster" and str(metadata.get("databaseIndex", "0")) != str(redis.db):
        yield f"trigger databaseIndex {metadata.get('databaseIndex')} is not the worker's {redis.db}"
    if (str(metadata.get("enableTLS", "false")) == "true") != redis.tls:
        yield f"trigger enableTLS {metadata.get('enableTLS')} does not fit the worker's {redis.scheme}://"
    if redis.kind == "sentinel" and metadata.get("sentinelMaster") != redis.service:
        yield f"trigger sentinelMaster {metadata.get('sentinelMaster')} is not the worker's {redis.service}"


def _locked_out(metadata: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    host, _, port = str(metadata.get("addresses") or metadata.get("address", "")).split(",")[0].rpartition(":")
    service = named(manifests, "Service", host.partition(".")[0])
    if service is None:
        return  # of another overlay
    for target in selected(service["spec"].get("selector") or {}, manifests):
        ports = [p for c in target["spec"]["template"]["spec"]["containers"] for p in c.get("ports", ())]
        names = [p.get("name") for p in ports if str(p["containerPort"]) == port]
        if not any(may_enter(pod_labels(target), manifests, "keda", each) for each in [*names, int(port or 0)]):
            yield f"no NetworkPolicy of {target['metadata']['name']} lets the namespace keda in at port {port}"


def full_name(host: str, space: str) -> str:
    """A Service's host name with its namespace; names outside the cluster as they are."""
    return (host if "." in host else f"{host}.{space}.svc").removesuffix(".cluster.local")


def frames_held(tree: SettingsTree) -> int:
    """Frames one worker has unsettled at most: read ahead, in the mailbox, in each stream, in publishing."""
    batch = tree.batch.max_size
    return (tree.queue.prefetch or 2 * batch) + (max(tree.model.streams, 1) + 2) * batch


SCALED_OBJECT: Final[tuple[Rule, ...]] = (check_scaled_object, check_triggers, check_against_worker)
