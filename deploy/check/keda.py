"""Rules for what KEDA accepts and then does otherwise than meant: pauses, kinds of metric, passwords, numbers."""

from collections.abc import Iterator
from typing import Final

from deploy.check.manifests import Manifest, Rule, named, of_kind, production, ships_secrets
from deploy.check.rules_file import promtool
from deploy.check.scaling import STREAM_TRIGGERS
from deploy.check.worker import settled, workers

_PAUSE: Final = "autoscaling.keda.sh/paused"
_RARELY: Final = 60  # seconds between two looks at the queue
_MOST: Final = 100_000  # frames a replica: ten seconds of the fastest GPU
_NEEDED: Final = ("serverAddress", "query", "threshold")
_PARAMETERS: Final = frozenset(
    {"username", "password", "sentinelUsername", "sentinelPassword", "tls", "ca", "cert", "key", "keyPassword"}
    | {"address", "addresses", "host", "hosts", "port", "ports"}
)


def check_scaling_works(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    for key in manifest["metadata"].get("annotations") or {}:
        if key.startswith(_PAUSE):
            yield f"the annotation {key} stops the autoscaler"
    low, high = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
    if low == high and production(manifests):
        yield f"minReplicaCount and maxReplicaCount are both {low}: it never scales"
    if "idleReplicaCount" in spec:
        yield "idleReplicaCount 0 takes the last worker away, as minReplicaCount 0 does: take the component keda-zero"
    if spec.get("fallback", {}).get("replicas", 1) < 1:
        yield "fallback.replicas is 0: while Redis is away every worker goes"
    if spec.get("pollingInterval", 30) > _RARELY:
        yield f"pollingInterval is {spec['pollingInterval']} s: so long does a burst wait for its workers"
    yield from disabled(spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {}))
    if not spec["triggers"]:
        yield "has no trigger: nothing is scaled"
    yield from _leaves_early(spec, manifests)


def disabled(behavior: Manifest) -> Iterator[str]:
    for side in ("scaleUp", "scaleDown"):
        if behavior.get(side, {}).get("selectPolicy") == "Disabled":
            yield f"{side} is Disabled: it scales in one direction only"


def check_autoscaler_works(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    yield from disabled(spec.get("behavior", {}))
    for metric in spec.get("metrics", ()):
        target = (metric.get("external") or {}).get("target") or {}
        if target and target.get("type") != "AverageValue":
            yield f"its metric is a {target.get('type')}, which is not shared out among the workers: take AverageValue"


def _leaves_early(spec: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """A killed worker's frames wait for queue.min_idle: the last worker must stay to take them over."""
    target = named(workers(manifests), "Deployment", spec["scaleTargetRef"]["name"])
    tree = settled(target, manifests) if target else None
    pause = spec.get("cooldownPeriod", 300)
    if tree and spec.get("minReplicaCount", 0) == 0 and pause < 2 * tree.queue.min_idle:
        yield f"cooldownPeriod {pause} s is less than twice queue.min_idle: workers go with every lull"


def check_trigger_values(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    for trigger in manifest["spec"]["triggers"]:
        metadata = trigger["metadata"]
        if trigger.get("metricType", "AverageValue") != "AverageValue":
            yield f"metricType {trigger['metricType']} is not shared out among the workers: take AverageValue"
        if metadata.get("unsafeSsl") == "true":
            yield "unsafeSsl is true: KEDA gives the password to any server that answers"
        if trigger["type"] in STREAM_TRIGGERS:
            yield from _stream_values(trigger, manifest, manifests)
        if trigger["type"] == "prometheus":
            yield from (f"its prometheus trigger has no {key}" for key in _NEEDED if not metadata.get(key))
            rule = {
                "groups": [{"name": "keda", "rules": [{"record": "keda:query", "expr": metadata.get("query", "")}]}]
            }
            yield from (f"its query: {why}" for why in promtool(rule))


def _stream_values(trigger: Manifest, manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    length = str(trigger["metadata"].get("streamLength", "1"))
    if not length.isdigit() or not 0 < int(length) <= _MOST:
        yield f"streamLength {length} is no number of frames a replica (1 to {_MOST:,})"
    target = named(workers(manifests), "Deployment", manifest["spec"]["scaleTargetRef"]["name"])
    tree = settled(target, manifests) if target else None
    if tree and tree.redis.username and not trigger.get("authenticationRef"):
        yield "has no authenticationRef, and the worker logs in to Redis by name: KEDA would be refused"


def check_authentication(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    targets = manifest["spec"].get("secretTargetRef") or ()
    for target in targets:
        if target.get("parameter") not in _PARAMETERS:
            yield f"parameter {target.get('parameter')} is unknown to KEDA's Redis triggers"
        secrets = of_kind(manifests, "Secret")
        secret = named(secrets, "Secret", target.get("name"))
        keys = {**((secret or {}).get("data") or {}), **((secret or {}).get("stringData") or {})}
        if ships_secrets(manifests) and secret is None:
            yield f"the Secret {target.get('name')} is not there"
        elif secret and target.get("key") not in keys:
            yield f"the Secret {target.get('name')} has no key {target.get('key')}"
    given = {target.get("parameter") for target in targets}
    if "username" in given and "password" not in given:
        yield "gives a username and no password"


SCALED_OBJECT: Final[tuple[Rule, ...]] = (check_scaling_works, check_trigger_values)
