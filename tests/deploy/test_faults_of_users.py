"""Faults as users make them in overlays of their own: each is found, and sound variations have no finding."""

import copy
from typing import Any

import pytest

from deploy.check.check_manifests import check
from tests.support.manifests import GONE, Place, overlay, put

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


@pytest.mark.parametrize(("name", "place", "value", "finding"), PODS)
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
