"""Faults put into the overlays, one at a time: the checker finds each, and nothing in the overlays as they are."""

import pytest

from deploy.check.check_manifests import check
from tests.support.manifests import GONE, NAMES, Place, overlay, put

NAME = "kubernetes.io/metadata.name"
WORKER = ("Deployment/coatstream-queue-worker", "spec", "template", "spec")
CONTAINER = (*WORKER, "containers", 0)
SCALED = ("ScaledObject/coatstream-queue-worker", "spec")
TRIGGER = (*SCALED, "triggers", 0, "metadata")
SETTINGS = ("ConfigMap/coatstream-worker", "data")
EGRESS = ("NetworkPolicy/coatstream-queue-worker", "spec", "egress")
INGRESS = ("NetworkPolicy/coatstream-queue-worker", "spec", "ingress")
REDIS = ("StatefulSet/coatstream-redis", "spec", "template", "spec")
REDIS_INGRESS = ("NetworkPolicy/coatstream-redis", "spec", "ingress")
BEHAVIOR = (*SCALED, "advanced", "horizontalPodAutoscalerConfig", "behavior")
ALERT = ("PrometheusRule/coatstream", "spec", "groups", 1, "rules", 0)

FAULTS: list[tuple[Place, object, str]] = [
    ((*WORKER[:-1], "metadata", "labels", "app.kubernetes.io/component"), "camera", "selector does not match"),
    ((WORKER[0], "metadata", "name"), "coatstream_worker", "no DNS label"),
    ((WORKER[0], "spec", "replicas"), 2, "fight the autoscaler"),
    ((WORKER[0], "spec", "strategy", "rollingUpdate"), {"maxSurge": 0, "maxUnavailable": "0%"}, "never begin"),
    ((*WORKER, "terminationGracePeriodSeconds"), 25, "killed while it drains"),
    ((*WORKER, "terminationGracePeriodSeconds"), GONE, "terminationGracePeriodSeconds 30 is less"),
    ((*WORKER, "serviceAccountName"), "coatstraem", "ServiceAccount coatstraem is not there"),
    ((*WORKER, "automountServiceAccountToken"), True, "API token"),
    ((*WORKER, "securityContext", "runAsNonRoot"), False, "violates Pod Security"),
    ((*WORKER, "volumes", 1, "secret"), {"secretName": "passwords"}, "neither there nor optional"),
    ((*CONTAINER, "securityContext", "capabilities"), GONE, "violates Pod Security"),
    ((*CONTAINER, "securityContext", "readOnlyRootFilesystem"), False, "root file system"),
    ((*CONTAINER, "volumeMounts", 0, "mountPath"), "/scratch", "no writable /tmp"),
    ((*CONTAINER, "volumeMounts", 0, "name"), "temp", "volumeMount temp has no volume"),
    ((*CONTAINER, "envFrom", 0, "configMapRef", "name"), "settings", "ConfigMap settings is not there"),
    ((*CONTAINER, "env", 3, "name"), "OMP_NUM_THREADS", "OMP_NUM_THREADS is set twice"),
    ((*CONTAINER, "env", 4, "value"), "0", "HF_HUB_OFFLINE is not 1"),
    ((*CONTAINER, "livenessProbe"), GONE, "livenessProbe is missing"),
    ((*CONTAINER, "livenessProbe", "httpGet", "path"), "/readyz", "livenessProbe asks /readyz"),
    ((*CONTAINER, "readinessProbe", "httpGet", "port"), "web", "asks port web"),
    ((*CONTAINER, "startupProbe", "successThreshold"), 2, "successThreshold must be 1"),
    ((*CONTAINER, "resources", "requests", "memory"), "3Gi", "requests more memory"),
    ((*CONTAINER, "resources", "requests", "memory"), "1536MB", "'1536MB' is no quantity"),
    ((*CONTAINER, "resources", "limits", "nvidia.com/gpu"), "0.5", "no whole number"),
    ((*CONTAINER, "resources", "limits", "memory"), GONE, "no memory limit"),
    ((*SETTINGS, "COATSTREAM_QUEUE__STRAEM"), "frames", "COATSTREAM_QUEUE__STRAEM (environment): no such setting"),
    ((*SETTINGS, "COATSTREAM_REDIS__URL__HOST"), "redis", "COATSTREAM_REDIS__URL__HOST (environment): no such setting"),
    ((*SETTINGS, "COATSTREAM_BATCH__MAX_SIZE"), "many", "batch.max_size = 'many'"),
    ((*SETTINGS, "COATSTREAM_CAMERAS"), "[gate", "COATSTREAM_CAMERAS (environment): not JSON"),
    ((*SETTINGS, "COATSTREAM_HTTP__HOST"), GONE, "http.host is 127.0.0.1"),
    ((*SETTINGS, "COATSTREAM_HTTP__PORT"), "9000", "listens at 9000"),
    ((*SETTINGS, "COATSTREAM_MODEL__WEIGHTS"), "hub", "no NetworkPolicy lets the pods out"),
    ((*SETTINGS, "COATSTREAM_QUEUE__STREAM"), "pictures", "the worker reads pictures"),
    ((*SETTINGS, "COATSTREAM_REDIS__URL"), "redis://queue.example.com:6379/0", "is not the worker's Redis"),
    ((*SETTINGS, "COATSTREAM_REDIS__URL"), "rediss://coatstream-redis:6379/2", "databaseIndex 0 is not the worker's 2"),
    ((*SETTINGS, "COATSTREAM_REDIS__URL"), "rediss://coatstream-redis:6379/0", "enableTLS"),
    (
        ("Secret/coatstream-secrets", "data", "COATSTREAM_REDIS__PASWORD"),
        "eA==",
        "did you mean COATSTREAM_REDIS__PASSWORD?",
    ),
    (("PodDisruptionBudget/coatstream-queue-worker", "spec", "minAvailable"), 1, "exactly one"),
    (("PodDisruptionBudget/coatstream-queue-worker", "spec", "selector", "matchLabels"), {"a": "b"}, "selects no pod"),
    ((EGRESS[0], "spec", "podSelector", "matchLabels"), {"app": "coatstream"}, "selects no pod"),
    ((EGRESS[0], "spec", "ingress", 0, "ports", 0, "port"), "metrics", "port metrics"),
    (("Service/coatstream-redis", "spec", "selector"), {"app": "redis"}, "selects no pod"),
    (("Service/coatstream-redis", "spec", "ports", 0, "targetPort"), "valkey", "port valkey"),
    ((*SCALED, "coolDownPeriod"), 300, "spec.coolDownPeriod is unknown"),
    ((*SCALED, "minReplicaCount"), GONE, "minReplicaCount is 0"),
    ((*SCALED, "maxReplicaCount"), 0, "exceeds maxReplicaCount"),
    ((*SCALED, "fallback", "behavior"), "bogus", "known behavior"),
    ((*SCALED, "fallback", "replicas"), GONE, "fallback needs"),
    ((*SCALED, "scaleTargetRef", "name"), "worker", "scaleTargetRef worker is not there"),
    ((*SCALED, "triggers", 0, "type"), "redis", "needs triggers of the type redis-streams"),
    ((*SCALED, "triggers", 0, "authenticationRef", "name"), "redis", "TriggerAuthentication redis is not there"),
    ((*TRIGGER, "consumerGroup"), "coatstream", "consumerGroup does not belong here"),
    ((*TRIGGER, "lagCount"), "50", "lagCount does not belong here"),
    ((*TRIGGER, "streamlength"), "100", "streamlength does not belong here"),
    ((*TRIGGER, "streamLength"), GONE, "no streamLength"),
    ((*TRIGGER, "streamLength"), 100, "must be a quoted string"),
    ((*TRIGGER, "streamLength"), "48", "exceed the 48 frames"),
    ((*TRIGGER, "stream"), "frame", "watches the stream frame"),
    ((*SETTINGS, "COATSTREAM_REDIS__PREFIX"), "site1:", "and the worker reads site1:frames"),
    ((*TRIGGER, "address"), "coatstream-redis:6379", "lacks its namespace"),
    ((*TRIGGER, "address"), "coatstream-redis.coatstream.svc:6379", "is not the worker's Redis"),
]

# Faults of the review of 2026-11: 33 of them passed the checker of then.
REVIEWED: list[tuple[Place, object, str]] = [
    ((*CONTAINER, "resources", "limits", "memory"), "512Mi", "requests more memory"),
    (
        (*CONTAINER, "resources"),
        {"requests": {"cpu": "2", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        "1792 Mi",
    ),
    ((*WORKER, "volumes", 0, "emptyDir", "sizeLimit"), "16Mi", "would be evicted"),
    ((*WORKER, "volumes", 0, "emptyDir", "medium"), "Memory", "lies in memory"),
    ((*CONTAINER, "startupProbe", "failureThreshold"), 6, "gives up after 30 s"),
    ((*CONTAINER, "startupProbe"), GONE, "startupProbe is missing"),
    ((*WORKER, "topologySpreadConstraints"), GONE, "no topologySpreadConstraints"),
    ((*WORKER, "topologySpreadConstraints", 0, "labelSelector"), {"matchLabels": {"a": "b"}}, "select other pods"),
    (("PodDisruptionBudget/coatstream-queue-worker", "kind"), "ConfigMap", "no PodDisruptionBudget"),
    ((EGRESS[0], "kind"), "ConfigMap", "no NetworkPolicy confines"),
    ((*EGRESS, 1), {"ports": [{"port": 6380}]}, "out to Redis"),
    ((*EGRESS, 0), {"ports": [{"port": 443}]}, "out to DNS"),
    ((*INGRESS, 0, "from", 0, "namespaceSelector", "matchLabels"), {NAME: "monitroing"}, "did you mean monitoring?"),
    ((*REDIS_INGRESS, 0, "from", 1), GONE, "lets the namespace keda in"),
    ((*CONTAINER, "resources", "limits", "cpu"), "4", "has a CPU limit"),
    ((*CONTAINER, "env", 0), GONE, "OMP_NUM_THREADS is not set"),
    ((*CONTAINER, "env", 2, "value"), "8", "streams x model.threads is 16"),
    ((*CONTAINER, "image"), "coatstream:latest", "another one tomorrow"),
    ((*CONTAINER, "image"), "coatstream", "another one tomorrow"),
    ((*WORKER, "securityContext", "runAsUser"), 0, "the pod's user is 0"),
    ((*WORKER, "securityContext", "seccompProfile"), GONE, "no seccompProfile"),
    ((*WORKER, "hostNetwork"), True, "hostNetwork"),
    ((*CONTAINER, "securityContext", "privileged"), True, "privileged"),
    ((*CONTAINER, "securityContext", "capabilities", "add"), ["NET_ADMIN"], "adds the capability NET_ADMIN"),
    ((*WORKER, "volumes", 2), {"name": "x", "hostPath": {"path": "/"}}, "is a hostPath"),
    ((*CONTAINER, "args"), ["demo"], "args begin with demo"),
    ((*CONTAINER, "command"), ["coatstream"], "tini"),
    ((*CONTAINER, "livenessProbe"), {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1}, "only busy"),
    ((*CONTAINER, "lifecycle"), {"preStop": {"exec": {"command": ["sleep", "40"]}}}, "preStop takes its time"),
    ((*SETTINGS, "COATSTREAM_BATCH__TIMEOUT"), "600", "batch.timeout is 600"),
    ((*SETTINGS, "COATSTREAM_MODEL__WEIGHTS"), "random", "weights are random"),
    ((*SETTINGS, "COATSTREAM_REDIS__URL"), "redis://u:secret@coatstream-redis:6379/0", "holds a password"),
    ((*WORKER, "securityContext", "fsGroup"), GONE, "no fsGroup"),
    ((*BEHAVIOR, "scaleDown", "stabilizationWindowSeconds"), 0, "come and go"),
    ((*TRIGGER, "address"), "coatstream-redis.coatstream-dev.svc:6380", "is not the worker's Redis"),
    ((*TRIGGER, "address"), "coatstream-redis.prod.svc:6379", "is not the worker's Redis"),
    ((*REDIS, "containers", 0, "args", -1), "allkeys-lru", "Redis evicts"),
    ((*REDIS, "containers", 0, "args", 6), "4gb", "may grow beyond"),
    ((WORKER[0], "spec", "strategy"), {"type": "Recreate"}, "Recreate"),
    ((WORKER[0], "spec", "progressDeadlineSeconds"), 60, "ends before a start may"),
]

PAGE = ("Deployment/coatstream-page", "spec", "template", "spec")
CAMERAS = ("Deployment/coatstream-camera-worker", "spec", "template", "spec")
BUSY = ("ScaledObject/coatstream-camera-worker", "spec", "triggers", 1)
CAMERA_EGRESS = ("NetworkPolicy/coatstream-camera-worker", "spec", "egress")
ZEROS = "registry.example.com/coatstream"
# Faults of overlays for production: which overlay, where, what, and the finding.
PRODUCTION: list[tuple[str, Place, object, str]] = [
    ("prod-cpu", (*CONTAINER, "image"), f"{ZEROS}:1.0", "has no digest"),
    ("prod-cpu", (*WORKER, "enableServiceLinks"), GONE, "enableServiceLinks"),
    ("prod-cpu", (*WORKER, "hostPID"), True, "hostPID"),
    ("prod-cpu", (*CONTAINER, "ports", 0, "hostPort"), 8080, "hostPort"),
    ("prod-cpu", (*CONTAINER, "securityContext", "procMount"), "Unmasked", "procMount"),
    ("prod-cpu", (*WORKER, "securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}], "sysctl"),
    ("prod-cpu", (*CONTAINER, "env", 4), {"name": "COATSTREAM_REDIS__PASSWORD", "value": "x"}, "holds a password"),
    ("prod-cpu", (*CONTAINER, "resources", "requests", "memory"), GONE, "no memory request"),
    ("prod-cpu", (*CONTAINER, "resources", "requests", "cpu"), GONE, "requests no cpu"),
    ("prod-cpu", (*CONTAINER, "env", 1), {"name": "A", "value": "1"}, "not both set"),
    ("prod-cpu", (*WORKER, "priorityClassName"), "coatstream", "PriorityClass coatstream is not there"),
    ("prod-cpu", (*CONTAINER, "readinessProbe", "httpGet"), GONE, "readinessProbe does not ask /readyz"),
    ("prod-cpu", (*CAMERAS, "containers", 0, "args", 2), "/etc/coatstream/config/cams.yaml", "cams.yaml"),
    ("prod-cpu", (*CAMERAS, "volumes", 2, "configMap", "name"), "cameras", "ConfigMap cameras is not there"),
    ("prod-cpu", (*CAMERAS, "containers", 0, "resources", "limits", "memory"), "2Gi", "2304 Mi"),
    ("prod-cpu", (*CAMERA_EGRESS, 2, "ports"), [{"port": 8554, "protocol": "TCP"}], "camera gate-1 (port 554)"),
    ("prod-cpu", (*CAMERA_EGRESS, 2), GONE, "camera gate-1 (port 554)"),
    ("prod-cpu", (*BUSY, "metadata", "query"), "sum(coatstream_stages_seconds_sum)", "no worker exports"),
    ("prod-cpu", (*BUSY, "metadata", "treshold"), "1", "treshold does not belong here"),
    ("prod-cpu", (*BUSY, "type"), "redis-streams", "its target reads no queue"),
    ("prod-cpu", (CAMERAS[0], "spec", "replicas"), 2, "fight the autoscaler"),
    ("prod-cpu", (*SCALED, "scaleTargetRef", "name"), "coatstream-camera-worker", "not the only autoscaler"),
    ("prod-cpu", (*EGRESS, 1, "to", 0, "namespaceSelector", "matchLabels"), {NAME: "cache"}, "out to Redis"),
    ("prod-cpu", (*INGRESS, 0, "from", 0), {"podSelector": {}}, "lets the namespace monitoring in"),
    (
        "prod-cpu",
        ("PodMonitor/coatstream", "spec", "podMetricsEndpoints", 0, "port"),
        "metrics",
        "scrapes port metrics",
    ),
    ("prod-cpu", ("PodMonitor/coatstream", "spec", "selector"), {"matchLabels": {"app": "x"}}, "selects no pod"),
    ("prod-cpu", (*ALERT, "expr"), "coatstream_redis_down == 1", "no worker exports"),
    ("prod-gpu", (*SETTINGS, "COATSTREAM_HTTP__ACCESS"), "open to anyone", "http.access is open"),
    ("prod-gpu", (*PAGE, "containers", 0, "args"), ["run"], "args begin with run"),
    ("prod-gpu", (*PAGE, "containers", 0, "startupProbe", "httpGet", "path"), "/", "startupProbe asks /"),
    ("prod-gpu", (*WORKER, "tolerations"), GONE, "does not tolerate nvidia.com/gpu"),
    ("prod-gpu", (*CONTAINER, "resources", "limits", "nvidia.com/gpu"), GONE, "asks for no nvidia.com/gpu"),
    ("prod-gpu", (*SETTINGS, "COATSTREAM_MODEL__DEVICE"), "auto", "model.device is not cuda"),
    ("prod-gpu", (*SETTINGS, "COATSTREAM_BATCH__MAX_SIZE"), "4", "leaves a GPU idle"),
    (
        "prod-gpu",
        (WORKER[0], "spec", "strategy", "rollingUpdate"),
        {"maxSurge": 1, "maxUnavailable": 0},
        "GPU is spare",
    ),
    ("prod-gpu", (*CONTAINER, "resources", "limits", "memory"), "2Gi", "4096 Mi"),
    ("prod-gpu", (*WORKER, "volumes", 2, "persistentVolumeClaim", "claimName"), "cash", "cash is not there"),
    ("prod-gpu", (*TRIGGER, "streamLength"), "400", "would scale itself up"),
]

DEVELOPMENT = [("dev", *fault) for fault in (*FAULTS, *REVIEWED)]


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_has_no_findings(name: str) -> None:
    assert check(overlay(name)) == []


@pytest.mark.parametrize(("name", "place", "value", "finding"), [*DEVELOPMENT, *PRODUCTION])
def test_a_seeded_fault_is_found(name: str, place: Place, value: object, finding: str) -> None:
    manifests = overlay(name)
    put(manifests, place, value)

    findings = check(manifests)

    assert any(finding in each for each in findings), findings
