"""Pod Security "restricted", whole, and what this project asks for beyond it.

The profile: https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

import re
from collections.abc import Iterator
from typing import Final

from deploy.check.manifests import Manifest, Rule, containers, pod

_VOLUMES: Final = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim"}
_ALLOWED_VOLUMES: Final = _VOLUMES | {"projected", "secret"}
_SECCOMP: Final = {"RuntimeDefault", "Localhost"}
_SELINUX: Final = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SYSCTLS: Final = re.compile(r"kernel\.shm_rmid_forced|net\.ipv4\.(ip_|tcp_|ping_)\w+")
_SECRET_KEY: Final = re.compile(
    r"(PASSWORD|PASSWD|TOKEN|SECRET|CREDENTIALS|(API|ACCESS|SECRET|PRIVATE)[_-]?KEY)$", re.IGNORECASE
)
_SECRET_VALUE: Final = re.compile(
    r"://[^\s/@]*:[^\s/@]+@|^[^#\n]*(?<![\w-])(password|token)\s*:\s*[^\s{]|-----BEGIN [A-Z ]*PRIVATE KEY", re.MULTILINE
)
_SECRET_WORD: Final = re.compile(r"--?[\w-]*(password|token|secret)[= ]\S", re.IGNORECASE)
_ANNOTATION: Final = re.compile(r"://[^\s/@]*:[^\s/@]+@")


def check_pod_security(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    yield from (f"violates Pod Security 'restricted': {why}" for why in _of_pod(pod(manifest)))
    for container in containers(manifest):
        for why in _of_container(container, pod(manifest).get("securityContext") or {}):
            yield f"container {container['name']} violates Pod Security 'restricted': {why}"


def _of_pod(spec: Manifest) -> Iterator[str]:
    for shared in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(shared):
            yield shared
    for volume in spec.get("volumes", ()):
        for kind in volume.keys() - {"name"} - _ALLOWED_VOLUMES:
            yield f"the volume {volume['name']} is a {kind}"
    context = spec.get("securityContext") or {}
    for sysctl in context.get("sysctls", ()):
        if not _SYSCTLS.fullmatch(sysctl["name"]):
            yield f"sysctl {sysctl['name']}"
    if context.get("runAsUser") == 0:
        yield "the pod's user is 0"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"


def _of_container(container: Manifest, of_pod: Manifest) -> Iterator[str]:
    own = container.get("securityContext") or {}
    context = {**of_pod, **own}
    if context.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if own.get("runAsUser") == 0:
        yield "its user is 0"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("privileged"):
        yield "privileged"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", ()):
        yield "it does not drop all capabilities"
    for added in set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield f"it adds the capability {added}"
    if (context.get("seccompProfile") or {}).get("type") not in _SECCOMP:
        yield "no seccompProfile"
    if own.get("procMount", "Default") != "Default":
        yield f"procMount {own['procMount']}"
    if (context.get("seLinuxOptions") or {}).get("type") not in _SELINUX:
        yield "an SELinux type of its own"
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield "AppArmor is off"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "it takes a port of the node (hostPort)"


def check_beyond(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    if pod(manifest).get("automountServiceAccountToken") is not False:
        yield "mounts an API token that no container uses"
    if pod(manifest).get("enableServiceLinks") is not False:
        yield "enableServiceLinks is not false: a Service coatstream-... would put variables among the settings"
    for container in containers(manifest):
        context = {**(pod(manifest).get("securityContext") or {}), **(container.get("securityContext") or {})}
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"container {container['name']} can write to its root file system"
        if "/tmp" not in {mount["mountPath"] for mount in container.get("volumeMounts", ())}:  # noqa: S108 a pod's
            yield f"container {container['name']} has no writable /tmp, without which torch builds no model"
        for variable in container.get("env", ()):
            if holds_secret(variable["name"], variable.get("value")):
                yield f"the variable {variable['name']} holds a password: it belongs into a Secret"


def check_groups(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    spec = pod(manifest)
    if spec.get("shareProcessNamespace"):
        yield "shareProcessNamespace: each container may read the others' memory, and passwords in it"
    for owner in (spec, *containers(manifest)):
        context = owner.get("securityContext") or {}
        groups = [context.get("runAsGroup"), context.get("fsGroup"), *context.get("supplementalGroups", ())]
        if any(group == 0 for group in groups):
            yield "one of its groups is 0, the group of root"


def check_spoken(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    """What everyone may read who may look at pods: arguments and annotations."""
    for container in containers(manifest):
        words = " ".join(str(word) for word in (*container.get("command", ()), *container.get("args", ())))
        if _SECRET_WORD.search(words) or _ANNOTATION.search(words):
            yield f"container {container['name']} is told a password in its arguments: it belongs into a Secret"
    of_pods = manifest["spec"]["template"].get("metadata") or {}
    for metadata in (manifest["metadata"], of_pods):
        for key, value in (metadata.get("annotations") or {}).items():
            if _SECRET_KEY.search(key) or _ANNOTATION.search(str(value)):
                yield f"the annotation {key} holds a password: it belongs into a Secret"


def check_config_map(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    for key, value in (manifest.get("data") or {}).items():
        if holds_secret(key, value):
            yield f"{key} holds a password: it belongs into a Secret"


def holds_secret(key: str, value: object) -> bool:
    return bool(value) and bool(_SECRET_KEY.search(key) or _SECRET_VALUE.search(str(value)))


RULES: Final[tuple[Rule, ...]] = (check_pod_security, check_beyond, check_groups, check_spoken)
