"""Rules for what an overlay grants: the namespace's Pod Security, rights at the API server, and who may resize pods."""

from collections.abc import Iterator
from typing import Final

from deploy.check.manifests import Manifest, pod, workloads

ENFORCE: Final = "pod-security.kubernetes.io/enforce"


def check_namespace(manifest: Manifest, _: list[Manifest]) -> Iterator[str]:
    found = (manifest["metadata"].get("labels") or {}).get(ENFORCE)
    if found != "restricted":
        yield f"its label {ENFORCE} is {found or 'missing'} and not restricted: any pod could run there with any right"


def check_binding(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    """Neither worker nor page speaks to the API server."""
    accounts = {pod(m).get("serviceAccountName", "default") for m in workloads(manifests)}
    for subject in manifest.get("subjects") or ():
        if subject.get("kind") == "ServiceAccount" and subject.get("name") in accounts:
            yield f"gives rights to the account {subject['name']}, whose pods never speak to the API server"


def check_vertical(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    target = (spec.get("targetRef") or {}).get("name")
    mode = (spec.get("updatePolicy") or {}).get("updateMode", "Auto")
    if mode != "Off" and any(m["metadata"]["name"] == target for m in workloads(manifests)):
        yield f"evicts pods of {target} to resize them (updateMode {mode}): their memory peaks at a start. Take Off"
