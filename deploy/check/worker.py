"""Rules for coatstream's own containers, `worker` and `page`: settings, probes, memory, cores, start, drain."""

import base64
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from coatstream.engine.selection.chooser import PATIENCE
from coatstream.settings.errors import SettingsError
from coatstream.settings.loading import load
from coatstream.settings.model import SettingsTree

from deploy.check.manifests import (
    Manifest,
    Rule,
    amount,
    containers,
    environment,
    named,
    of_kind,
    pod,
    pod_labels,
    production,
    quantity,
)
from deploy.check.network import may_leave
from deploy.check.workloads import probe_seconds

PATHS: Final = {"startupProbe": "/startedz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
# Seconds that a pod needs beyond drain.timeout: ten for its longest batch on a slow CPU, five to close what is open.
GRACE_MARGIN: Final = 15.0
START_MARGIN: Final = 60.0  # beside the chooser's patience: imports, the second choice, warm-up
LONGEST_BATCH: Final = 120.0  # seconds of batch.timeout: for so long a hung engine goes unnoticed
# Bytes. Measured: 1.5 to 1.6 GB while a first start chooses an engine; at 700 MiB the chooser is killed for ever.
MEMORY: Final = {"worker": 1792 * 2**20, "page": 256 * 2**20}
_CAMERA_MEMORY: Final = 512 * 2**20  # the process that forks the readers
_GPU_MEMORY: Final = 4 * 2**30  # of the host: CUDA's own, and pinned buffers
TEMPORARY: Final = 256 * 2**20  # bytes in /tmp: the cache takes 43 MB a model, and pictures are spooled there
_GPU_BATCH: Final = 16
COMMANDS: Final = {"worker": "run", "page": "page"}


def workers(manifests: list[Manifest]) -> list[Manifest]:
    """Deployments whose container is called worker: those that run coatstream with a model."""
    return [m for m in of_kind(manifests, "Deployment") if worker(m)]


def worker(manifest: Manifest) -> Manifest | None:
    return next((container for container in containers(manifest) if container["name"] == "worker"), None)


def own(manifest: Manifest) -> Manifest | None:
    """The container that runs coatstream, as a worker or as the page."""
    return next((container for container in containers(manifest) if container["name"] in COMMANDS), None)


def settings(variables: dict[str, str], config: str | None = None) -> SettingsTree:
    """The settings that the worker would have from these variables and this YAML text. Raises SettingsError."""
    return _loaded(frozenset(variables.items()), config)


@lru_cache(maxsize=64)
def _loaded(variables: frozenset[tuple[str, str]], config: str | None) -> SettingsTree:
    """A dozen rules ask for the same."""
    if config is None:
        return load(environ=dict(variables), secrets_dir=None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(config, "utf-8")
        return load(config=file, environ=dict(variables), secrets_dir=None)


def wrong_settings(variables: dict[str, str], config: str | None = None) -> Iterator[str]:
    try:
        settings(variables, config)
    except SettingsError as error:
        yield from error.lines


def settled(manifest: Manifest, manifests: list[Manifest]) -> SettingsTree | None:
    """The settings of a worker or page; None where there is none, or where check_settings has already complained."""
    if (container := own(manifest)) is None:
        return None
    try:
        return settings(environment(container, manifests), config_of(manifest, container, manifests))
    except SettingsError:
        return None


def config_of(manifest: Manifest, container: Manifest, manifests: list[Manifest]) -> str | None:
    """The text of the file that --config names, from the ConfigMap that is mounted there."""
    args = [str(argument) for argument in container.get("args", ())]
    if "--config" not in args[:-1]:
        return None
    file = Path(args[args.index("--config") + 1])
    volumes = {volume["name"]: volume for volume in pod(manifest).get("volumes", ())}
    for mount in container.get("volumeMounts", ()):
        source = (volumes.get(mount["name"], {}).get("configMap") or {}).get("name")
        if Path(mount["mountPath"]) == file.parent and (found := named(manifests, "ConfigMap", source)):
            return (found.get("data") or {}).get(file.name)
    return None


def check_settings(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    if container := own(manifest):
        config = config_of(manifest, container, manifests)
        if config is None and "--config" in container.get("args", ()):
            yield f"no ConfigMap holds the file that --config names: {' '.join(map(str, container['args']))}"
        yield from wrong_settings(environment(container, manifests), config)


def check_secret(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    encoded = manifest.get("data") or {}
    plain = {name: base64.b64decode(value).decode("utf-8", "replace") for name, value in encoded.items()}
    yield from wrong_settings(plain | (manifest.get("stringData") or {}))


def check_command(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    container = own(manifest)
    if container is None:
        return
    wanted = COMMANDS[container["name"]]
    if container.get("command"):
        yield "command replaces the image's entry point, and tini with it: signals and zombies are its work"
    if (args := container.get("args") or [None])[0] != wanted:
        yield f"args begin with {args[0]}, and a pod of this kind runs `coatstream {wanted}`"
    if container["name"] == "worker" and container.get("lifecycle", {}).get("preStop"):
        yield "preStop takes its time from the drain, and no Service sends anything to a worker"


def check_drain(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    grace = pod(manifest).get("terminationGracePeriodSeconds", 30)
    tree = settled(manifest, manifests) if worker(manifest) else None
    if tree and grace < tree.drain.timeout + GRACE_MARGIN:
        yield (
            f"terminationGracePeriodSeconds {grace} is less than drain.timeout {tree.drain.timeout:g} and a margin of "
            f"{GRACE_MARGIN:g}: the pod is killed while it drains"
        )
    if tree and tree.batch.timeout > LONGEST_BATCH:
        yield f"batch.timeout is {tree.batch.timeout:g} s: so long does a hung engine keep its frames and stay alive"


def check_http(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    container, tree = own(manifest), settled(manifest, manifests)
    if container is None or tree is None:
        return
    if tree.http.host in {"127.0.0.1", "localhost", "::1"}:
        yield f"http.host is {tree.http.host}, where the kubelet's probes do not reach"
    if tree.http.access == "open to anyone" and production(manifests):
        yield "http.access is open to anyone: every client that reaches the pod may change cameras and dead letters"
    ports = {port.get("name"): port["containerPort"] for port in container.get("ports", ())}
    if ports.get("http") != tree.http.port:
        yield f"port http is {ports.get('http')}, and the worker listens at {tree.http.port}"
    for kind, path in PATHS.items():
        asked = container.get(kind, {}).get("httpGet", {}).get("path")
        early = container["name"] == "page" and kind == "startupProbe"  # it has no model to wait for
        if asked not in (path, None) and not (early and asked == "/healthz"):
            yield f"{kind} asks {asked} and not {path}"
        if kind in container and asked is None:
            yield f"{kind} does not ask {path}: a port that is open tells nothing"


def check_start(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    container, tree = worker(manifest), settled(manifest, manifests)
    if container is None or tree is None or tree.model.engine == "noop":
        return
    budget, needed = probe_seconds(container.get("startupProbe") or {}), PATIENCE + START_MARGIN
    if budget < needed:
        yield f"startupProbe gives up after {budget:g} s: a first start on a busy node chooses an engine for {needed:g}"


def check_memory(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    container, tree = own(manifest), settled(manifest, manifests)
    if container is None or tree is None or tree.model.engine == "noop":
        return
    floor = float(MEMORY[container["name"]])
    if container["name"] == "worker":
        floor = _GPU_MEMORY if gpus(container) else floor
        floor += _CAMERA_MEMORY if tree.cameras else 0
    if (limit := amount(container, "limits", "memory")) is not None and limit < floor:
        yield f"its memory limit is below {floor / 2**20:g} Mi, which it takes at its first start: it would be killed"
    for volume in pod(manifest).get("volumes", ()):
        size = quantity((volume.get("emptyDir") or {}).get("sizeLimit", "1Ti")) or 0
        if container["name"] == "worker" and volume["name"] == "tmp" and size < TEMPORARY:
            yield f"the volume tmp is smaller than {TEMPORARY / 2**20:g} Mi: the pod would be evicted"
        kept = amount(container, "limits", "ephemeral-storage")
        if "emptyDir" in volume and kept is not None and size < 2**40 and size > kept:
            yield f"the volume {volume['name']} may outgrow the limit of ephemeral-storage"


def check_cores(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    container, tree = worker(manifest), settled(manifest, manifests)
    if container is None or tree is None:
        return
    if "cpu" in (container.get("resources", {}).get("limits") or {}):
        yield "has a CPU limit: throttling in the middle of a batch costs more than it saves"
    cores = amount(container, "requests", "cpu")
    if cores is None:
        yield "requests no cpu, and the number of its threads follows from that"
        return
    if not environment(container, manifests).get("OMP_NUM_THREADS"):
        yield "OMP_NUM_THREADS is not set: without a CPU limit torch takes every core of the node"
    if (threads := tree.model.streams * tree.model.threads) > cores:
        yield f"model.streams x model.threads is {threads}, and it requests {cores:g} cores"
    if not gpus(container) and not (tree.model.streams and tree.model.threads):
        yield "model.streams and model.threads are not both set: each node would share out all its cores"


def gpus(container: Manifest) -> float:
    return amount(container, "limits", "nvidia.com/gpu") or 0


def check_gpu(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    container, tree = worker(manifest), settled(manifest, manifests)
    if container is None or tree is None:
        return
    if tree.model.device.startswith("cuda") and not gpus(container):
        yield "model.device is cuda, and it asks for no nvidia.com/gpu"
    if not gpus(container):
        return
    if not tree.model.device.startswith("cuda"):
        yield "has a GPU, and model.device is not cuda: without the driver it would run on the CPU in silence"
    if tree.batch.max_size < _GPU_BATCH:
        yield f"batch.max_size {tree.batch.max_size} leaves a GPU idle: take 32 or more"
    if not any(t.get("key") in ("nvidia.com/gpu", None) for t in pod(manifest).get("tolerations", ())):
        yield "does not tolerate nvidia.com/gpu, which nodes with GPUs are tainted with"


def check_weights(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    container, tree = worker(manifest), settled(manifest, manifests)
    if container is None or tree is None or tree.model.engine == "noop":
        return
    offline = environment(container, manifests).get("HF_HUB_OFFLINE") == "1"
    fetches = tree.model.weights == "hub"
    if tree.model.weights == "random":
        yield "its weights are random: the labels mean nothing"
    if fetches and offline:
        yield "weights come from the hub, and HF_HUB_OFFLINE forbids it"
    if fetches and not may_leave(pod_labels(manifest), manifests, 443):
        yield "weights come from the hub, and no NetworkPolicy lets the pods out at port 443"
    if not fetches and not offline:
        yield "weights come from a file, and HF_HUB_OFFLINE is not 1: a missing one would be looked for on the internet"


RULES: Final[tuple[Rule, ...]] = (
    check_settings,
    check_command,
    check_drain,
    check_http,
    check_start,
    check_memory,
    check_cores,
    check_gpu,
    check_weights,
)
