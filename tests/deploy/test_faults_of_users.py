"""Faults as users make them in overlays of their own: each is found, and sound variations have no finding."""

import copy
from typing import Any

import pytest
import yaml

from deploy.check.check_manifests import check
from tests.support.manifests import GONE, Place, overlay, put
from tests.support.paths import ROOT

WORKER = ("Deployment/coatstream-queue-worker", "spec", "template", "spec")
CONTAINER = (*WORKER, "containers", 0)
CONTEXT = (*WORKER, "securityContext")
PAGE = ("Deployment/coatstream-page", "spec", "template", "spec")
CAMERAS = ("Deployment/coatstream-camera-worker", "spec", "template", "spec")
CLAIM = ("PersistentVolumeClaim/coatstream-cache", "spec")
BUDGET = ("PodDisruptionBudget/coatstream-queue-worker", "spec")
SPREAD = (*WORKER, "topologySpreadConstraints", 0)
IMAGE = "registry.example.com/coatstream"
AFFINITY = {
    "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}
}
HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
SIDECAR = {
    "name": "logs",
    "image": f"registry.example.com/logs@sha256:{'2' * 64}",
    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}},
    "securityContext": HARDENED,
    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    "startupProbe": {"exec": {"command": ["/alive"]}},
    "readinessProbe": {"exec": {"command": ["/alive"]}},
    "livenessProbe": {"exec": {"command": ["/alive"]}},
}

PODS: list[tuple[str, Place, object, str]] = [
    ("prod-cpu", (*CONTAINER, "securityContext", "runAsUser"), 0, "its user is 0"),
    ("prod-cpu", (*CONTEXT, "runAsGroup"), 0, "the group of root"),
    ("prod-cpu", (*CONTEXT, "supplementalGroups"), [0], "the group of root"),
    ("prod-cpu", (*CONTEXT, "windowsOptions"), {"hostProcess": True}, "hostProcess"),
    ("prod-cpu", (*WORKER, "shareProcessNamespace"), True, "shareProcessNamespace"),
    ("prod-cpu", (*WORKER, "containers", 1), {**SIDECAR, "securityContext": {}}, "container logs violates"),
    ("prod-cpu", (*WORKER, "initContainers"), [{**SIDECAR, "securityContext": {}}], "container logs violates"),
    ("prod-cpu", (*WORKER, "nodeName"), "node-1", "goes round the scheduler"),
    ("prod-cpu", (*WORKER, "affinity"), AFFINITY, "all its pods on one node"),
    ("prod-cpu", (*WORKER, "priorityClassName"), "system-node-critical", "the cluster's own"),
    ("prod-cpu", (*SPREAD, "topologyKey"), "kubernetes.io/hostnmae", "did you mean kubernetes.io/hostname?"),
    ("prod-cpu", (*SPREAD, "labelSelector"), {}, "spreads none"),
    ("prod-cpu", (*WORKER, "restartPolicy"), "Never", "restartPolicy is Never"),
    ("prod-cpu", (*WORKER, "activeDeadlineSeconds"), 3600, "should go on"),
    ("prod-cpu", (*WORKER, "dnsPolicy"), "Default", "the cluster's names"),
    ("prod-cpu", (WORKER[0], "spec", "paused"), True, "is paused"),
    ("prod-cpu", (PAGE[0], "spec", "replicas"), 0, "has 0 replicas"),
    ("prod-cpu", (WORKER[0], "spec", "revisionHistoryLimit"), 0, "rollout undo"),
    (
        "prod-cpu",
        (WORKER[0], "spec", "strategy", "rollingUpdate"),
        {"maxSurge": 0, "maxUnavailable": "100%"},
        "no pod runs",
    ),
    ("prod-cpu", (*CONTAINER, "tty"), True, "waits for a terminal"),
    (
        "prod-cpu",
        (*PAGE, "containers", 0, "lifecycle"),
        {"preStop": {"sleep": {"seconds": 100}}},
        "preStop takes 100 s",
    ),
    ("prod-cpu", (*CONTAINER, "livenessProbe", "httpGet", "scheme"), "HTTPS", "asks by HTTPS"),
    ("prod-cpu", (*CONTAINER, "livenessProbe", "httpGet", "host"), "example.com", "not its own pod"),
    (
        "prod-cpu",
        (*WORKER, "volumes", 2),
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        "volume tmp is there twice",
    ),
    ("prod-cpu", (*CONTAINER, "volumeMounts", 2), {"name": "secrets", "mountPath": "/tmp"}, "mountPath /tmp is there"),
    ("prod-cpu", (*CONTAINER, "ports", 1), {"name": "http", "containerPort": 8081}, "port http is there twice"),
    ("prod-cpu", (*WORKER, "volumes", 0, "emptyDir"), {}, "has no sizeLimit"),
    ("prod-cpu", (*CONTAINER, "volumeMounts", 0, "readOnly"), True, "cannot write to /tmp"),
    ("prod-cpu", (*CONTAINER, "env", 2, "value"), 1, "must be a quoted string"),
    ("prod-cpu", (*CONTAINER, "image"), f"{IMAGE}@sha256:0000", "is no digest"),
    ("prod-cpu", (*CONTAINER, "image"), f"{IMAGE}:latest@sha256:{'0' * 64}", "names latest and a digest"),
    ("prod-cpu", (*CONTAINER, "image"), f"coatstream@sha256:{'0' * 64}", "names no registry"),
    ("prod-cpu", (*CAMERAS, "containers", 0, "image"), f"{IMAGE}@sha256:{'1' * 64}", "two versions of one program"),
    ("prod-cpu", (*CONTAINER, "imagePullPolicy"), "Always", "asks the registry at each start"),
    ("prod-cpu", (*CONTAINER, "imagePullPolicy"), "Never", "imagePullPolicy is Never"),
    ("prod-cpu", (*CONTAINER, "args"), ["run", "--password=hunter2"], "told a password"),
    ("prod-cpu", (*CONTAINER, "args"), ["run", "redis://:hunter2@redis:6379"], "told a password"),
    ("prod-cpu", (WORKER[0], "metadata", "annotations"), {"note": "redis://u:hunter2@redis"}, "annotation note holds"),
    ("prod-cpu", (*CONTAINER, "env", 5), {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}, "holds a password"),
    ("prod-cpu", (*CONTAINER, "env", 5), {"name": "CAMERA_API_KEY", "value": "x"}, "holds a password"),
    (
        "prod-cpu",
        ("ConfigMap/coatstream-cameras", "data", "cameras.yaml"),
        "cameras: [{name: gate-1, url: 'rtsp://gate-1.example.com/s', username: u, password: hunter2}]",
        "holds a password",
    ),
    ("prod-cpu", (*BUDGET, "minAvailable"), "100%", "no node with one can be drained"),
    ("prod-cpu", (*BUDGET, "minAvailable"), 1, "may have 1 pods"),
    ("prod-cpu", (*BUDGET, "selector"), {}, "selects all pods"),
    ("prod-gpu", (*CLAIM, "accessModes"), ["ReadWriteOnce"], "lets one node mount it"),
    ("prod-gpu", (*CLAIM, "resources", "requests", "storage"), "1Mi", "asks for less than 256 Mi"),
    ("prod-cpu", ("Namespace/coatstream", "metadata", "labels"), GONE, "is missing and not restricted"),
    # What lies in another namespace is not there.
    ("prod-cpu", (BUDGET[0], "metadata", "namespace"), "default", "no PodDisruptionBudget"),
    ("prod-cpu", ("NetworkPolicy/coatstream-page", "metadata", "namespace"), "default", "no NetworkPolicy confines"),
    ("prod-cpu", ("ConfigMap/coatstream-worker", "metadata", "namespace"), "default", "coatstream-worker"),
    ("prod-cpu", ("ScaledObject/coatstream-queue-worker", "metadata", "namespace"), "keda", "is not there"),
    ("prod-cpu", ("TriggerAuthentication/coatstream-redis", "metadata", "namespace"), "keda", "is not there"),
    # What is built otherwise than its kind is a finding, and no traceback.
    ("prod-cpu", ("ScaledObject/coatstream-queue-worker", "spec", "maxReplicaCount"), "10", "is not built like"),
]


EGRESS = ("NetworkPolicy/coatstream-queue-worker", "spec", "egress")
INGRESS = ("NetworkPolicy/coatstream-queue-worker", "spec", "ingress", 0)
CAMERAS_OUT = ("NetworkPolicy/coatstream-camera-worker", "spec", "egress", 2)
VISITORS = ("NetworkPolicy/coatstream-page", "spec", "ingress", 0, "from")
DOOR = ("NetworkPolicy/coatstream-redis", "spec", "ingress", 0)
SERVICE = ("Service/coatstream-page", "spec")
WORLD = {"ipBlock": {"cidr": "0.0.0.0/0"}}
HTTPS = {"port": 443, "protocol": "TCP"}
NETWORKS: list[tuple[str, Place, object, str]] = [
    ("prod-cpu", (*EGRESS, 2), {"to": [WORLD]}, "to everywhere at every port"),
    ("prod-cpu", (*EGRESS, 2), {"to": [WORLD], "ports": [HTTPS]}, "to everywhere at port 443"),
    ("prod-cpu", (*EGRESS, 2), {"to": [{"ipBlock": {"cidr": "::/0"}}]}, "to everywhere at every port"),
    ("prod-cpu", (*EGRESS, 2), {}, "to everywhere at every port"),
    ("prod-cpu", (*EGRESS, 0, "ports"), [{"port": 53, "protocol": "TCP"}], "out to DNS (port 53, UDP)"),
    ("prod-cpu", (*EGRESS, 0, "to"), [{"podSelector": {}}], "out to DNS"),
    ("prod-cpu", (*EGRESS, 1, "ports", 0, "protocol"), "UDP", "out to Redis"),
    ("prod-cpu", (*INGRESS, "from"), [{"namespaceSelector": {}}], "lets everyone in"),
    ("prod-cpu", (*INGRESS, "from"), [WORLD], "lets everyone in"),
    ("prod-cpu", (*INGRESS, "from"), GONE, "lets everyone in"),
    ("prod-cpu", (*VISITORS, 1), GONE, "lets people in to the page"),
    ("prod-cpu", (*CAMERAS_OUT, "ports", 0, "protocol"), "UDP", "camera gate-1 (port 554)"),
    ("prod-cpu", (*CAMERAS_OUT, "to", 0, "ipBlock", "cidr"), "10.20.0.5/16", "is no network"),
    ("prod-cpu", (*CAMERAS_OUT, "to", 0, "ipBlock", "cidr"), "10.20.0.0", "is no network"),
    ("dev", (*DOOR, "from", 0), {"podSelector": {"matchLabels": {"a": "b"}}}, "lets the pods in to Redis"),
    ("dev", (*DOOR, "from"), GONE, "lets everyone in"),
    ("dev", (DOOR[0], "kind"), "ConfigMap", "reaches the queue"),
    ("dev", ("Service/coatstream-redis", "spec", "ports", 0, "port"), 6380, "which the Service coatstream-redis"),
    ("dev", ("StatefulSet/coatstream-redis", "spec", "replicas"), 2, "know nothing of each other"),
    ("dev", ("StatefulSet/coatstream-redis", "spec", "serviceName"), "redis", "serviceName redis is not there"),
    ("prod-cpu", (*SERVICE, "selector"), {"app.kubernetes.io/name": "coatstream"}, "mixes the pods"),
    ("prod-cpu", (*SERVICE, "ports", 0, "targetPort"), 9090, "port 9090, which its pods do not have"),
    ("prod-cpu", (*SERVICE, "ports", 0, "targetPort"), GONE, "port 80, which its pods do not have"),
    ("prod-cpu", (*SERVICE, "ports", 0, "protocol"), "UDP", "speaks TCP"),
    ("prod-cpu", (*SERVICE, "externalIPs"), ["192.0.2.1"], "externalIPs"),
]


PAGES_BUDGET = {
    "minAvailable": 2,
    "selector": {"matchLabels": {"app.kubernetes.io/name": "coatstream", "app.kubernetes.io/component": "page"}},
}
SCALED = ("ScaledObject/coatstream-queue-worker", "spec")
TRIGGER = (*SCALED, "triggers", 0)
BEHAVIOR = (*SCALED, "advanced", "horizontalPodAutoscalerConfig", "behavior")
QUERY = ("ScaledObject/coatstream-camera-worker", "spec", "triggers", 0, "metadata")
LOGIN = ("TriggerAuthentication/coatstream-redis", "spec", "secretTargetRef")
KEDA: list[tuple[str, Place, object, str]] = [
    (
        "prod-cpu",
        (SCALED[0], "metadata", "annotations"),
        {"autoscaling.keda.sh/paused": "true"},
        "stops the autoscaler",
    ),
    ("prod-cpu", (*SCALED, "maxReplicaCount"), 1, "it never scales"),
    ("prod-cpu", (*SCALED, "idleReplicaCount"), 0, "idleReplicaCount 0"),
    ("prod-cpu", (*SCALED, "fallback", "replicas"), 0, "fallback.replicas is 0"),
    ("prod-cpu", (*SCALED, "pollingInterval"), 600, "pollingInterval is 600 s"),
    ("prod-cpu", (*BEHAVIOR, "scaleUp", "selectPolicy"), "Disabled", "scaleUp is Disabled"),
    ("prod-cpu", (*BEHAVIOR, "scaleDown", "selectPolicy"), "Disabled", "scaleDown is Disabled"),
    ("prod-cpu", (*SCALED, "triggers"), [], "has no trigger"),
    ("prod-cpu", (*TRIGGER, "authenticationRef"), GONE, "KEDA would be refused"),
    ("prod-cpu", (*TRIGGER, "metricType"), "Value", "metricType Value"),
    ("prod-cpu", (*TRIGGER, "metadata", "streamLength"), "many", "streamLength many is no number"),
    ("prod-cpu", (*TRIGGER, "metadata", "streamLength"), "1000000", "streamLength 1000000 is no number"),
    ("prod-cpu", (*TRIGGER, "metadata", "unsafeSsl"), "true", "any server that answers"),
    ("prod-cpu", (*TRIGGER, "metadata", "pendingEntriesCount"), "5", "pendingEntriesCount does not belong here"),
    ("prod-cpu", (*QUERY, "threshold"), GONE, "has no threshold"),
    ("prod-cpu", (*QUERY, "serverAddress"), GONE, "has no serverAddress"),
    ("prod-cpu", (*LOGIN, 1, "parameter"), "passwd", "parameter passwd is unknown"),
    ("prod-cpu", (*LOGIN, 1), GONE, "gives a username and no password"),
    ("dev", (*LOGIN, 1, "name"), "keda", "the Secret keda is not there"),
    ("dev", (*LOGIN, 1, "key"), "pass", "has no key pass"),
]
MONITOR = ("PodMonitor/coatstream", "spec")
ENDPOINT = (*MONITOR, "podMetricsEndpoints", 0)
RULES = ("PrometheusRule/coatstream", "spec", "groups", 1, "rules", 0)
MONITORING: list[tuple[str, Place, object, str]] = [
    ("prod-cpu", (*ENDPOINT, "path"), "/metric", "answer at /metrics"),
    ("prod-cpu", (*ENDPOINT, "scheme"), "https", "speak http"),
    ("prod-cpu", (*ENDPOINT, "scrapeTimeout"), "30s", "scrapeTimeout exceeds interval"),
    ("prod-cpu", (*ENDPOINT, "interval"), "10m", "would have holes"),
    ("prod-cpu", (*ENDPOINT, "relabelings"), GONE, "no label component"),
    ("prod-cpu", (*MONITOR, "sampleLimit"), 100, "all would be refused"),
    ("prod-cpu", (*MONITOR, "selector", "matchLabels", "app.kubernetes.io/component"), "page", "no PodMonitor selects"),
    ("prod-cpu", (*MONITOR, "namespaceSelector"), {"matchNames": ["other"]}, "selects no pod"),
    ("prod-cpu", (*RULES, "expr"), "sum(coatstream_queue_depth_frames) > 1000", "take max"),
    ("prod-cpu", (*RULES, "expr"), "rate(coatstream_queue_depth_frames[5m]) > 1", "which is a gauge"),
    ("prod-cpu", (*RULES, "expr"), "delta(coatstream_frames_dead_total[5m]) > 1", "which is a counter"),
    ("prod-cpu", (*RULES, "expr"), "coatstream_frames_dead_total > 5", "which only grows"),
    ("prod-cpu", (*RULES, "expr"), "coatstream:frames_late:ratio_rate2h > 0.1", "which no rule records"),
    (
        "prod-cpu",
        (*RULES, "expr"),
        'rate(coatstream_frame_age_seconds_bucket{le="2.7"}[5m]) > 1',
        "asks for the bucket le=2.7",
    ),
    ("prod-cpu", (*RULES, "labels"), GONE, "has no severity"),
    ("prod-cpu", (*RULES, "labels", "severity"), "warnning", "did you mean warning?"),
    ("prod-cpu", (*RULES, "annotations", "runbook_url"), GONE, "has no runbook_url"),
    (
        "prod-cpu",
        (*RULES, "annotations", "runbook_url"),
        "https://example.com/docs/runbook.md#coatstreamcameradwn",
        "where no paragraph begins",
    ),
]


SETTINGS = ("ConfigMap/coatstream-worker", "data")
CONFIG = ("ConfigMap/coatstream-cameras", "data", "cameras.yaml")
ELSEWHERE = (
    "cameras: [{name: gate-1, url: 'rtsp://gate-1.example.com/s', username: u, password_file: /etc/cams/gate-1}]"
)
TWICE = "cameras: [{name: a, url: 'rtsp://a.example.com/s'}, {name: a, url: 'rtsp://b.example.com/s'}]"
KEY = {"configMapKeyRef": {"name": "coatstream-worker", "key": "STREAM"}}
SECRET = {"secretKeyRef": {"name": "redis", "key": "password"}}
NO_DEVICE = [{"key": "nvidia.com/gpu", "operator": "Equal", "value": "false", "effect": "NoSchedule"}]
FILLING: list[tuple[str, Place, object, str]] = [
    ("prod-cpu", (*CONTAINER, "name"), "coatstream", "no container is called worker or page"),
    ("prod-cpu", (*PAGE, "containers", 0, "name"), "web", "no container is called worker or page"),
    ("prod-cpu", (*WORKER, "serviceAccountName"), GONE, "no serviceAccountName"),
    ("prod-cpu", (*PAGE, "terminationGracePeriodSeconds"), 1, "before it has closed anything"),
    ("prod-cpu", (*SETTINGS, "COATSTREM_REDIS__URL"), "redis://x", "did you mean COATSTREAM_REDIS__URL?"),
    ("prod-cpu", (*SETTINGS, "coatstream_redis__url"), "redis://redis.redis.svc:6379/0", "in two spellings"),
    ("prod-cpu", (*CONTAINER, "env", 5), {"name": "COATSTREAM_REDIS__PASWORD", "valueFrom": SECRET}, "no such setting"),
    ("prod-cpu", (*CONTAINER, "env", 5), {"name": "COATSTREAM_QUEUE__STREAM", "valueFrom": KEY}, "with the key STREAM"),
    ("prod-cpu", (*CONTAINER, "args"), ["run", "--confg", "x"], "does not know"),
    ("prod-cpu", (*PAGE, "volumes", 1, "secret", "secretName"), "coatstream-pages", "did you mean coatstream-page?"),
    ("prod-cpu", (*CONTAINER, "volumeMounts", 1, "mountPath"), "/etc/secrets", "nothing is mounted at"),
    ("prod-cpu", (*PAGE, "containers", 0, "volumeMounts", 1), GONE, "COATSTREAM_HTTP__TOKEN: it does not start"),
    ("prod-cpu", (*SETTINGS, "COATSTREAM_MODEL__WEIGHTS"), "/models/m.safetensors", "the image has nothing"),
    ("prod-gpu", (*SETTINGS, "COATSTREAM_MODEL__CACHE"), "/var/lib/cache", "that can be written to"),
    ("prod-gpu", (*CONTAINER, "volumeMounts", 2, "readOnly"), True, "that can be written to"),
    ("prod-cpu", CONFIG, ELSEWHERE, "has its password in /etc/cams/gate-1"),
    ("prod-cpu", CONFIG, TWICE, "cameras"),
    ("prod-cpu", (*CONTAINER, "resources", "requests", "memory"), "64Mi", "evicts it first"),
    ("prod-cpu", (*CONTAINER, "env", 0), {"name": "OMP_NUM_THREADS", "value": "16"}, "OMP_NUM_THREADS is 16"),
    ("prod-cpu", (*CONTAINER, "env", 3), {"name": "COATSTREAM_QUEUE__DECODE_THREADS", "value": "64"}, "is 64, and it"),
    ("prod-cpu", (*SETTINGS, "COATSTREAM_MODEL__ENGINE"), "noop", "model.engine is noop"),
    ("prod-cpu", (*SETTINGS, "COATSTREAM_MODEL__ENGINE"), "compile", "has no compiler"),
    ("prod-cpu", (*SETTINGS, "COATSTREAM_QUEUE__MIN_IDLE"), "1", "for a dead worker's"),
    ("prod-gpu", (*CONTAINER, "resources", "limits", "nvidia.com/gpu"), "0", "asks for no nvidia.com/gpu"),
    ("prod-gpu", (*CONTAINER, "resources", "limits", "nvidia.com/gpu"), "2", "asks for 2 GPUs"),
    ("prod-gpu", (*WORKER, "tolerations", 0, "effect"), "NoExecute", "does not fit the taint"),
    ("prod-gpu", (*WORKER, "tolerations"), NO_DEVICE, "does not fit the taint"),
    ("prod-gpu", (*CONTAINER, "env", 6), {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}, "round the device plugin"),
]


@pytest.mark.parametrize(("name", "place", "value", "finding"), [*PODS, *NETWORKS, *KEDA, *MONITORING, *FILLING])
def test_a_fault_of_a_user_is_found(name: str, place: Place, value: object, finding: str) -> None:
    manifests = overlay(name)
    put(manifests, place, value)

    findings = check(manifests)

    assert any(finding in each for each in findings), findings


ACCOUNT = {"kind": "ServiceAccount", "name": "coatstream", "namespace": "coatstream"}
TARGET = {"kind": "Deployment", "name": "coatstream-queue-worker"}
ADDED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "ClusterRoleBinding", "metadata": {"name": "x"}, "subjects": [ACCOUNT]}, "never speak to the API server"),
    (
        {
            "kind": "VerticalPodAutoscaler",
            "metadata": {"name": "x", "namespace": "coatstream"},
            "spec": {"targetRef": TARGET},
        },
        "to resize them",
    ),
]


@pytest.mark.parametrize(("added", "finding"), ADDED)
def test_an_object_too_many_is_found(added: dict[str, Any], finding: str) -> None:
    findings = check([*overlay("prod-cpu"), copy.deepcopy(added)])

    assert any(finding in each for each in findings), findings


def test_a_hardened_sidecar_is_no_fault() -> None:
    manifests = overlay("prod-cpu")
    put(manifests, (*WORKER, "containers", 1), SIDECAR)

    assert check(manifests) == []


INGRESS_FILE = ROOT / "deploy" / "k8s" / "components" / "page" / "ingress-example.yaml"
PATHS = ("Ingress/coatstream-page", "spec", "rules", 0)


def with_ingress() -> list[dict[str, Any]]:
    example = yaml.safe_load(INGRESS_FILE.read_text("utf-8"))
    example["metadata"]["namespace"] = "coatstream"
    return [*overlay("prod-cpu"), example]


def test_the_example_of_an_ingress_is_no_fault() -> None:
    assert check(with_ingress()) == []


@pytest.mark.parametrize(
    ("place", "value", "finding"),
    [
        ((*PATHS[:2], "tls"), [], "has no tls"),
        ((*PATHS[:2], "tls"), [{"hosts": ["other.example.com"], "secretName": "x"}], "and not for coatstream.example"),
        ((*PATHS[:2], "tls", 0, "secretName"), GONE, "names no secretName"),
        ((*PATHS, "host"), GONE, "rule without a host"),
        ((*PATHS, "http", "paths", 0, "backend", "service", "port"), {"number": 8080}, "which is not there"),
        ((*PATHS, "http", "paths", 0, "backend", "service", "name"), "page", "which is not there"),
        ((PATHS[0], "metadata", "annotations", "nginx.ingress.kubernetes.io/ssl-redirect"), "false", "in the clear"),
        ((PATHS[0], "metadata", "annotations", "nginx.ingress.kubernetes.io/proxy-buffering"), "on", "come late"),
    ],
)
def test_a_fault_of_an_ingress_is_found(place: Place, value: object, finding: str) -> None:
    manifests = with_ingress()
    put(manifests, place, value)

    findings = check(manifests)

    assert any(finding in each for each in findings), findings


def test_policy_types_may_be_left_to_the_api_server() -> None:
    manifests = overlay("prod-cpu")
    put(manifests, (EGRESS[0], "spec", "policyTypes"), GONE)

    assert check(manifests) == []


@pytest.mark.parametrize("peer", [{"ipBlock": {"cidr": "169.254.20.10/32"}}, {"namespaceSelector": {}}])
def test_names_may_be_asked_of_the_node_or_of_any_namespace(peer: dict[str, Any]) -> None:
    manifests = overlay("prod-cpu")
    put(manifests, (*EGRESS, 0, "to"), [peer])

    assert check(manifests) == []


def test_a_redis_of_a_provider_over_tls_is_no_fault() -> None:
    manifests = overlay("prod-cpu")
    put(manifests, ("ConfigMap/coatstream-worker", "data", "COATSTREAM_REDIS__URL"), "rediss://q.example.com:6380/0")
    trigger = ("ScaledObject/coatstream-queue-worker", "spec", "triggers", 0, "metadata")
    put(manifests, (*trigger, "address"), "q.example.com:6380")
    put(manifests, (*trigger, "enableTLS"), "true")
    for component in ("queue-worker", "camera-worker", "page"):
        rule = {"to": [WORLD], "ports": [{"port": 6380, "protocol": "TCP"}]}
        put(manifests, (f"NetworkPolicy/coatstream-{component}", "spec", "egress", 1), rule)

    assert check(manifests) == []


def test_the_last_worker_must_not_leave_before_it_could_take_over_a_killed_ones_frames() -> None:
    manifests = overlay("prod-cpu")
    put(manifests, (SCALED[0], "metadata", "annotations"), {"coatstream/scales-to-zero": "accepted"})
    put(manifests, (*SCALED, "minReplicaCount"), 0)
    assert check(manifests) == []

    put(manifests, (*SCALED, "cooldownPeriod"), 5)

    assert any("cooldownPeriod 5 s" in each for each in check(manifests))


def test_an_alert_of_ones_own_is_no_fault() -> None:
    manifests = overlay("prod-cpu")
    expr = "max by (stream) (coatstream_queue_depth_frames) > 1000 and rate(coatstream_frames_published_total[5m]) < 5"
    put(manifests, RULES, {"alert": "OurQueueIsLong", "expr": expr, "labels": {"severity": "page", "team": "video"}})

    assert check(manifests) == []


def test_a_certificate_and_settings_of_another_program_are_no_fault() -> None:
    manifests = overlay("prod-cpu")
    place = {"namespace": "coatstream"}
    secret = {
        "kind": "Secret",
        "metadata": {"name": "page-tls", **place},
        "data": {"tls.crt": "/+8=", "tls.key": "eA=="},
    }
    config = {"kind": "ConfigMap", "metadata": {"name": "logs", **place}, "data": {"PASSWORD_FILE": "/etc/x"}}

    assert check([*manifests, secret, config]) == []


def test_more_cores_memory_and_pages_are_no_fault() -> None:
    manifests = overlay("prod-cpu")
    put(manifests, (*CONTAINER, "resources"), {"requests": {"cpu": "8", "memory": "6Gi"}, "limits": {"memory": "8Gi"}})
    put(manifests, (*WORKER, "terminationGracePeriodSeconds"), 90)
    put(manifests, (*TRIGGER, "metadata", "streamLength"), "600")
    put(manifests, (PAGE[0], "spec", "replicas"), 3)
    put(manifests, ("PodDisruptionBudget/coatstream-page", "spec"), PAGES_BUDGET)

    assert check(manifests) == []


def test_a_namespace_of_another_name_and_a_redis_with_tls_in_the_cluster_are_no_fault() -> None:
    manifests = overlay("prod-cpu")
    for manifest in manifests:
        if manifest["metadata"].get("namespace"):
            manifest["metadata"]["namespace"] = "video"
    put(manifests, ("Namespace/coatstream", "metadata", "name"), "video")
    put(manifests, (*SETTINGS, "COATSTREAM_REDIS__URL"), "rediss://redis.redis.svc:6380/2")
    put(manifests, (*SETTINGS, "COATSTREAM_REDIS__PREFIX"), "site1:")
    put(manifests, (*TRIGGER, "metadata", "address"), "redis.redis.svc:6380")
    put(manifests, (*TRIGGER, "metadata", "databaseIndex"), "2")
    put(manifests, (*TRIGGER, "metadata", "enableTLS"), "true")
    put(manifests, (*TRIGGER, "metadata", "stream"), "site1:frames")
    for component in ("queue-worker", "camera-worker", "page"):
        put(manifests, (f"NetworkPolicy/coatstream-{component}", "spec", "egress", 1, "ports", 0, "port"), 6380)

    assert check(manifests) == []
