"""An overlay's Deployment as `podman kube play` can run it: one pod on the host's network, on a server of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.support.containers import IMAGE, Container, tool
from tests.support.manifests import find, overlay
from tests.support.ports import HOST, free_port

# What only a cluster has. Probes: podman 4.3 asks them by a curl inside the container, which the image does not have.
_OF_CLUSTERS = ("runtimeClassName", "tolerations", "topologySpreadConstraints", "priorityClassName")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@contextmanager
def playing(name: str, deployment: str, url: str, folder: Path) -> Iterator[Container]:
    """The Deployment of an overlay; its container is called `<deployment>-pod-0-<container>`."""
    port = free_port()
    (file := folder / "pod.yaml").write_text(_playable(name, deployment, url, port))
    tool("podman", "kube", "play", "--network", "host", file)
    try:
        yield Container(f"{deployment}-pod-0-{_container(name, deployment)}", port)
    finally:
        tool("podman", "kube", "down", file, check=False)
        tool("podman", "pod", "rm", "-f", "-t", "0", f"{deployment}-pod-0", check=False)


def _container(name: str, deployment: str) -> str:
    spec = find(overlay(name), f"Deployment/{deployment}")["spec"]["template"]["spec"]
    return str(spec["containers"][0]["name"])


def _playable(name: str, deployment: str, url: str, port: int) -> str:
    manifests = overlay(name)
    chosen = find(manifests, f"Deployment/{deployment}")
    spec = chosen["spec"]["template"]["spec"]
    container = spec["containers"][0]
    chosen["spec"]["replicas"] = 1
    container |= {"image": IMAGE, "imagePullPolicy": "Never", "ports": []}
    container["env"] = [e for e in container["env"] if e["name"] != "COATSTREAM_REDIS__USERNAME"]
    spec["volumes"] = [volume for volume in spec["volumes"] if not {"secret", "persistentVolumeClaim"} & volume.keys()]
    kept = {volume["name"] for volume in spec["volumes"]}
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] in kept]
    for part in container["resources"].values():
        part.pop("ephemeral-storage", None)
        part.pop("nvidia.com/gpu", None)
    for key in _OF_CLUSTERS:
        spec.pop(key, None)
    for key in _PROBES:
        container.pop(key, None)
    maps = [m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] != "coatstream-dashboard"]
    settings = find(maps, "ConfigMap/coatstream-worker")["data"]
    settings |= {"COATSTREAM_REDIS__URL": url, "COATSTREAM_HTTP__PORT": str(port), "COATSTREAM_HTTP__HOST": HOST}
    for key in ("COATSTREAM_REDIS__USERNAME", "COATSTREAM_MODEL__DEVICE", "COATSTREAM_MODEL__CACHE"):
        settings.pop(key, None)
    for manifest in (*maps, chosen):
        manifest["metadata"].pop("namespace", None)
    return yaml.safe_dump_all([*maps, chosen])
