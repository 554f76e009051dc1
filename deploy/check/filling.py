"""Rules for what a worker or page is given: variables, passwords, folders, cores, a GPU."""

import difflib
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from coatstream.settings.loading import SECRETS_DIR
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
)
from deploy.check.worker import gpus, own, settled, worker, wrong_settings

_PREFIX: Final = "COATSTREAM_"
_RESTING: Final = 768 * 2**20  # bytes: a worker takes 0.75 to 0.95 GB all the time
_IDLE: Final = 5.0  # seconds: sooner a slow batch would be taken for a dead worker's
_SECRETS: Final = ("coatstream-secrets", "coatstream-page", "coatstream-cameras", "coatstream-keda")
_BAKED: Final = "/opt/"
_PAGE_OPTIONS: Final = ("--redis", "--config", "-c", "--set")
_MODEL_OPTIONS: Final = ("--model", "--weights", "--engine", "--device", "--top-k", "--embeddings")
_OPTIONS: Final = {"run": (*_PAGE_OPTIONS, *_MODEL_OPTIONS), "page": _PAGE_OPTIONS}
_TAINTS: Final = ("present", "true", "")


def check_is_known(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    """Without a container of these names most rules would not be asked."""
    if pod_labels(manifest).get("app.kubernetes.io/name") == "coatstream" and own(manifest) is None:
        yield "no container is called worker or page, by which settings, cores and probes are checked"
    if own(manifest) is not None and not pod(manifest).get("serviceAccountName"):
        yield "has no serviceAccountName: rights that anybody gives to the account default are its own"


def check_names(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """Names of variables, whose values may come from elsewhere."""
    container = own(manifest)
    if container is None:
        return
    listed = [variable["name"] for variable in container.get("env", ())]
    for source in container.get("envFrom", ()):
        config = named(manifests, "ConfigMap", (source.get("configMapRef") or {}).get("name")) or {}
        listed += [f"{source.get('prefix', '')}{key}" for key in config.get("data") or {}]
    for name in sorted(set(listed)):
        start = name.partition("_")[0] + "_"
        if start != _PREFIX and difflib.get_close_matches(start, [_PREFIX], 1, 0.85) and start.upper() != _PREFIX:
            yield f"the variable {name} is no setting: did you mean {_PREFIX}{name.partition('_')[2]}?"
    spelled = Counter(name.upper() for name in set(listed))
    yield from (f"the variable {name} is there in two spellings" for name, times in spelled.items() if times > 1)
    for variable in container.get("env", ()):
        source = variable.get("valueFrom") or {}
        if ("secretKeyRef" in source or "configMapKeyRef" in source) and variable["name"].startswith(_PREFIX):
            yield from (line for line in wrong_settings({variable["name"]: "1"}) if "no such setting" in line)


def check_keys(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    for container in containers(manifest):
        for variable in container.get("env", ()):
            wanted = (variable.get("valueFrom") or {}).get("configMapKeyRef")
            if not wanted or wanted.get("optional"):
                continue
            config = named(manifests, "ConfigMap", wanted.get("name"))
            if config is None or wanted.get("key") not in (config.get("data") or {}):
                yield f"the ConfigMap {wanted.get('name')} with the key {wanted.get('key')} is not there"


def check_options(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    container = own(manifest)
    args = [str(word) for word in (container or {}).get("args") or ()]
    for word in args[1:]:
        option = word.partition("=")[0]
        if option.startswith("-") and option not in _OPTIONS.get(args[0], (option,)):
            yield f"args hold {option}, which `coatstream {args[0]}` does not know"


def check_secrets(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """A token has to come from somewhere, and a password too where the worker logs in by name."""
    container, tree = own(manifest), settled(manifest, manifests)
    if container is None or tree is None:
        return
    for volume in pod(manifest).get("volumes", ()):
        name = str((volume.get("secret") or {}).get("secretName", _SECRETS[0]))
        known = {*_SECRETS, *(m["metadata"]["name"] for m in of_kind(manifests, "Secret"))}
        if name not in known and (near := difflib.get_close_matches(name, known, 1, 0.9)):
            yield f"the Secret {name}: did you mean {near[0]}?"
    if _mounted(str(SECRETS_DIR), container) or any("secretRef" in each for each in container.get("envFrom", ())):
        return
    names = {variable["name"].upper() for variable in container.get("env", ())}
    if tree.http.access != "open to anyone" and not any("HTTP__TOKEN" in name for name in names):
        yield f"nothing is mounted at {SECRETS_DIR}, and no variable brings COATSTREAM_HTTP__TOKEN: it does not start"
    elif tree.redis.username and not any("REDIS__PASSWORD" in name for name in names):
        yield f"nothing is mounted at {SECRETS_DIR}, and redis.username has no password"


def _mounted(path: str, container: Manifest) -> Manifest | None:
    """The mount that the path lies on."""
    places = {str(place) for place in (PurePosixPath(path), *PurePosixPath(path).parents)} - {"/"}
    found = [m for m in container.get("volumeMounts", ()) if str(PurePosixPath(m["mountPath"])) in places]
    return max(found, key=lambda mount: len(mount["mountPath"]), default=None)


def check_folders(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """What settings name as a file or folder must be mounted; the root file system is the image's, and read-only."""
    container, tree = worker(manifest), settled(manifest, manifests)
    if container is None or tree is None:
        return
    weights, cache = str(tree.model.weights), str(environment(container, manifests).get("COATSTREAM_MODEL__CACHE", ""))
    if weights.startswith("/") and not weights.startswith(_BAKED) and not _mounted(weights, container):
        yield f"model.weights is {weights}, where no volume is mounted and the image has nothing"
    if cache.startswith("/") and (_mounted(cache, container) or {"readOnly": True}).get("readOnly"):
        yield f"model.cache is {cache}, where no volume is mounted that can be written to"
    for camera in tree.cameras:
        file = str(getattr(camera, "password_file", None) or "")
        if file.startswith("/") and not _mounted(file, container):
            yield f"the camera {camera.name} has its password in {file}, where no volume is mounted"


def check_strength(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    container, tree = worker(manifest), settled(manifest, manifests)
    if container is None or tree is None:
        return
    asked = amount(container, "requests", "memory")
    if asked is not None and asked < _RESTING and tree.model.engine != "noop":
        yield f"its memory request is below {_RESTING / 2**20:g} Mi, what it takes at rest: a full node evicts it first"
    cores = amount(container, "requests", "cpu") or 0
    threads = str(environment(container, manifests).get("OMP_NUM_THREADS", "0"))
    if threads.isdigit() and int(threads) > max(cores, 1):
        yield f"OMP_NUM_THREADS is {threads}, and it requests {cores:g} cores"
    if tree.queue.enabled and tree.queue.decode_threads > max(2 * cores, 2):
        yield f"queue.decode_threads is {tree.queue.decode_threads}, and it requests {cores:g} cores"
    yield from _meaningless(tree, gpus(container), manifests)


def _meaningless(tree: SettingsTree, devices: float, manifests: list[Manifest]) -> Iterator[str]:
    if tree.model.engine == "noop" and production(manifests):
        yield "model.engine is noop: the labels mean nothing"
    if tree.model.engine == "compile":
        yield "model.engine is compile, and the image has no compiler: take auto"
    if tree.queue.enabled and tree.queue.min_idle < _IDLE:
        yield f"queue.min_idle is {tree.queue.min_idle:g} s: frames in work would be taken for a dead worker's"
    if devices > 1:
        yield f"asks for {devices:g} GPUs, and a worker uses one: more replicas use more"


def check_device(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    container = worker(manifest)
    if container is None or not gpus(container):
        return
    if any(variable["name"] == "NVIDIA_VISIBLE_DEVICES" for variable in container.get("env", ())):
        yield "NVIDIA_VISIBLE_DEVICES goes round the device plugin: pods would share GPUs that others were given"
    tolerated = [t for t in pod(manifest).get("tolerations", ()) if t.get("key") in ("nvidia.com/gpu", None)]
    if tolerated and not any(_tolerates(toleration) for toleration in tolerated):
        yield "its toleration of nvidia.com/gpu does not fit the taint of nodes with GPUs (NoSchedule): take Exists"


def _tolerates(toleration: Manifest) -> bool:
    fits = toleration.get("operator", "Equal") == "Exists" or str(toleration.get("value", "")) in _TAINTS
    return fits and toleration.get("effect") in (None, "NoSchedule")


RULES: Final[tuple[Rule, ...]] = (
    check_is_known,
    check_names,
    check_keys,
    check_options,
    check_secrets,
    check_folders,
    check_strength,
    check_device,
)
