"""The Kubernetes manifests, each read by a real tool: kustomize, strict schemas, the operators' own models."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.check.check_manifests import check
from deploy.check.manifests import Manifest, render, title
from deploy.check.worker import workers
from tests.support.absence import missing
from tests.support.manifests import NAMES, find, overlay, put
from tests.support.paths import ROOT

COMPONENTS = ROOT / "deploy" / "k8s" / "components"
MODELS = {
    "keda.sh/v1alpha1": ("cloudcoil.models.keda.v1alpha1", "cloudcoil-models-keda"),
    "monitoring.coreos.com/v1": ("cloudcoil.models.prometheus_operator.v1", "cloudcoil-models-prometheus-operator"),
}
# Components that no overlay uses, in compositions that make sense, with what the checker says of the bare composition.
COMPOSITIONS = [
    ("queue", "keda", "keda-zero"),
    ("queue", "keda", "keda-partitions"),
    ("queue", "keda", "keda-partitions", "keda-cluster"),
    ("queue", "keda", "keda-sentinel"),
    ("queue", "hpa"),
    ("queue", "cameras", "weights", "cache", "priority"),
]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, cwd=ROOT)


def needed(module: str, package: str) -> Any:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        missing(f"{module} is not installed: pip install {package}")
    return importlib.import_module(module)


def test_the_dev_overlay_is_whole() -> None:
    kinds = {manifest["kind"] for manifest in overlay("dev")}

    assert kinds >= {"Deployment", "StatefulSet", "Service", "ConfigMap", "Secret", "ServiceAccount", "Namespace"}
    assert kinds >= {"PodDisruptionBudget", "NetworkPolicy", "ScaledObject", "TriggerAuthentication"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["1.30", "1.36"])
def test_built_in_kinds_satisfy_the_strict_schema(name: str, version: str) -> None:
    schemas = needed("kubernetes_validate", "kubernetes-validate")

    for manifest in overlay(name):
        if manifest["apiVersion"] not in MODELS:
            schemas.validate(manifest, version, strict=True)


def test_the_strict_schema_refuses_a_misspelt_probe() -> None:
    schemas = needed("kubernetes_validate", "kubernetes-validate")
    deployment = find(overlay("dev"), "Deployment/coatstream-queue-worker")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")

    with pytest.raises(schemas.ValidationError, match="livenesProbe"):
        schemas.validate(deployment, "1.36", strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_operators_objects_satisfy_the_models_of_their_definitions(name: str) -> None:
    for manifest in overlay(name):
        if manifest["apiVersion"] in MODELS:
            getattr(needed(*MODELS[manifest["apiVersion"]]), manifest["kind"]).model_validate(manifest)


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (
            ("ScaledObject/coatstream-queue-worker", "spec", "triggers", 0, "metadata", "streamLength"),
            100,
            "streamLength",
        ),
        (("PodMonitor/coatstream", "spec", "podMetricsEndpoints", 0, "interval"), "15 s", "interval"),
    ],
)
def test_the_models_refuse_what_the_operators_would(
    place: tuple[str | int, ...], value: object, complaint: str
) -> None:
    manifests = overlay("prod-cpu")
    put(manifests, place, value)
    broken = find(manifests, place[0])

    with pytest.raises(ValueError, match=complaint):
        getattr(needed(*MODELS[broken["apiVersion"]]), broken["kind"]).model_validate(broken)


@pytest.mark.parametrize("components", COMPOSITIONS, ids="+".join)
def test_the_other_components_make_sound_overlays(components: tuple[str, ...], tmp_path: Path) -> None:
    manifests = composed(components, tmp_path)

    assert check(manifests) == []


def composed(components: tuple[str, ...], folder: Path) -> list[Manifest]:
    """An overlay of the base and these components for production, with a Redis elsewhere in its own namespace."""
    up = "/".join(
        [".."] * len(folder.resolve().parts[1:]) + list(COMPONENTS.parent.parts[1:])
    )  # it refuses absolute paths
    image = {"name": "coatstream", "newName": "example.com/coatstream", "digest": f"sha256:{'0' * 64}"}
    kustomization = {
        "namespace": "coatstream",
        "resources": [f"{up}/base"],
        "components": [f"{up}/components/{name}" for name in components],
        "images": [image],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(folder)


def test_weights_from_the_hub_pass_once_the_pods_may_reach_it() -> None:
    manifests = overlay("dev")
    worker = ("Deployment/coatstream-queue-worker", "spec", "template", "spec", "containers", 0)
    put(manifests, ("ConfigMap/coatstream-worker", "data", "COATSTREAM_MODEL__WEIGHTS"), "hub")
    put(manifests, (*worker, "env", 4, "value"), "0")
    egress = find(manifests, "NetworkPolicy/coatstream-queue-worker")["spec"]["egress"]
    egress.append({"ports": [{"port": 443, "protocol": "TCP"}]})

    assert check(manifests) == []


def test_an_object_that_is_there_twice_is_found() -> None:
    dev = overlay("dev")

    assert check([*dev, dev[1]]) == [f"{title(dev[1])}: is there twice"]


def test_the_manifests_name_the_weights_that_the_image_carries() -> None:
    carried = re.findall(r"^COPY --chmod=0444 models/\S+ (\S+)$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.M)

    for name in NAMES:
        manifests = overlay(name)
        data = find(manifests, "ConfigMap/coatstream-worker")["data"]
        assert workers(manifests)
        assert carried == [data["COATSTREAM_MODEL__WEIGHTS"]]


def test_a_folder_of_the_users_own_is_checked_a_line_a_finding(tmp_path: Path) -> None:
    find(manifests := overlay("dev"), "ConfigMap/coatstream-worker")["data"]["COATSTREAM_MODEL__TOPK"] = "3"
    (file := tmp_path / "mine.yaml").write_text(yaml.safe_dump_all(manifests))

    done = run(sys.executable, "-m", "deploy.check", file)

    assert (done.returncode, done.stderr) == (1, "")
    assert [line.partition(" (")[0] for line in done.stdout.splitlines()] == [
        f"mine.yaml: Deployment/coatstream-{name}: COATSTREAM_MODEL__TOPK" for name in ("page", "queue-worker")
    ]


def test_an_overlay_that_does_not_render_exits_2_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [pdb.yaml]\n")

    done = run(sys.executable, "-m", "deploy.check", tmp_path)

    assert done.returncode == 2
    assert "pdb.yaml" in done.stderr
    assert "Traceback" not in done.stderr
