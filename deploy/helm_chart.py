"""Writes the templates of deploy/helm from the Kustomize overlays, so there is one source: python -m deploy.helm_chart

What an installation chooses becomes a value; everything else is what the overlays say. A test renders the chart with
the values of each overlay and compares the objects.
"""

import copy
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from deploy.check.manifests import OVERLAYS, Manifest, named, render
from deploy.monitoring.__main__ import prometheus_rule

CHART: Final = Path(__file__).parent / "helm"
DASHBOARD: Final = CHART.parent / "monitoring" / "coatstream.json"
HEAD: Final = "{{- /* Written by `python -m deploy.helm_chart` from deploy/k8s. */ -}}\n"
_HASHED: Final = re.compile(r"\b(coatstream-(?:worker|cameras))-[a-z0-9]{10}\b")
_SENTINEL: Final = re.compile(r"^(?P<indent> *)(?P<before>.*?)'?@@(?P<name>[a-z-]+)@@'?$", re.MULTILINE)

Objects = Sequence[Manifest | None]

INLINE: Final = {
    "image": '{{ include "coatstream.image" . }}',
    "namespace": "{{ .Release.Namespace }}",
    "address": "{{ .Values.redis.address }}",
    "stream": "{{ .Values.settings.COATSTREAM_QUEUE__STREAM | quote }}",
    "length": "{{ .Values.keda.streamLength | quote }}",
    "most": "{{ .Values.keda.maxReplicas }}",
    "most-cameras": "{{ .Values.camerasKeda.maxReplicas }}",
    "pages": "{{ .Values.page.replicas }}",
    "checksum": "{{ toYaml .Values.settings | sha256sum }}",
    "checksum-cameras": "{{ toYaml .Values.cameras.config | sha256sum }}",
    "prometheus": "{{ .Values.camerasKeda.prometheus }}",
}
BLOCKS: Final = {  # a whole line, or an item of a list, by what stands there instead
    "redis-peers": "{{- toYaml .Values.redis.networkPolicyPeers | nindent INDENT }}",
    "camera-egress": "{{- toYaml .Values.cameras.egress | nindent INDENT }}",
    "priority": "{{- if .Values.priority.enabled }}\npriorityClassName: coatstream-queue\n{{- end }}",
    "priority-cameras": "{{- if .Values.priority.enabled }}\npriorityClassName: coatstream-cameras\n{{- end }}",
    "replicas": "{{- if not .Values.camerasKeda.enabled }}\nreplicas: {{ .Values.cameras.replicas }}\n{{- end }}",
    "cache-volume": (
        "{{- if .Values.cache.enabled }}\n- name: cache\n"
        "  persistentVolumeClaim:\n    claimName: coatstream-cache\n{{- end }}"
    ),
    "cache-mount": "{{- if .Values.cache.enabled }}\n- mountPath: /var/cache/coatstream\n  name: cache\n{{- end }}",
}


def templates() -> dict[str, str]:
    """File name in the chart -> its text."""
    cpu, gpu = render(OVERLAYS / "prod-cpu"), render(OVERLAYS / "prod-gpu")
    account = named(cpu, "ServiceAccount", "coatstream")
    parts: dict[str, tuple[str, Objects]] = {
        "account": ("", [account]),
        "queue": (".Values.queue.enabled", _worker(cpu, "queue-worker", rest=True)),
        "cameras": (".Values.cameras.enabled", _worker(cpu, "camera-worker", rest=True)),
        "page": (".Values.page.enabled", _page(cpu)),
        "keda": ("and .Values.keda.enabled .Values.queue.enabled", _keda(cpu)),
        "cameras-keda": ("and .Values.camerasKeda.enabled .Values.cameras.enabled", _cameras_keda(cpu)),
        "cache": (".Values.cache.enabled", [named(gpu, "PersistentVolumeClaim", "coatstream-cache")]),
        "podmonitor": (".Values.monitoring.enabled", [named(cpu, "PodMonitor", "coatstream")]),
        "priority": (".Values.priority.enabled", [m for m in cpu if m["kind"] == "PriorityClass"]),
    }
    files = {f"templates/{name}.yaml": _template(condition, objects) for name, (condition, objects) in parts.items()}
    graphics = _template("", _worker(gpu, "queue-worker", rest=False))
    processors, *others = files["templates/queue.yaml"].removeprefix(HEAD).split("\n---\n")
    condition, processors = processors.split("\n", 1)
    either = (
        f"{condition}\n{{{{- if .Values.gpu.enabled }}}}\n{graphics.removeprefix(HEAD).rstrip()}\n{{{{- else }}}}\n"
    )
    files["templates/queue.yaml"] = HEAD + "\n---\n".join([f"{either}{processors}\n{{{{- end }}}}", *others])
    files["files/prometheusrule.yaml"] = prometheus_rule()
    files["files/coatstream.json"] = DASHBOARD.read_text("utf-8")
    return files


def _worker(manifests: list[Manifest], name: str, *, rest: bool) -> list[Manifest]:
    """The Deployment with its values taken out, and what stands around it."""
    deployment = _copy(manifests, "Deployment", f"coatstream-{name}")
    spec, cameras = deployment["spec"]["template"]["spec"], name == "camera-worker"
    container = spec["containers"][0]
    container["image"] = "@@image@@"
    deployment["spec"]["template"]["metadata"]["annotations"] = {"checksum/settings": "@@checksum@@"}
    spec["priorityClassName"] = "@@priority-cameras@@" if cameras else "@@priority@@"
    spec["volumes"] = [v for v in spec["volumes"] if v["name"] != "cache"] + ["@@cache-volume@@"]
    container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] != "cache"] + ["@@cache-mount@@"]
    if cameras:
        deployment["spec"]["replicas"] = "@@replicas@@"
        deployment["spec"]["template"]["metadata"]["annotations"]["checksum/cameras"] = "@@checksum-cameras@@"
    if not rest:
        return [deployment]
    policy = _copy(manifests, "NetworkPolicy", f"coatstream-{name}")
    policy["spec"]["egress"][1]["to"] = "@@redis-peers@@"
    if cameras:
        policy["spec"]["egress"][2:] = ["@@camera-egress@@"]
    return [deployment, _copy(manifests, "PodDisruptionBudget", f"coatstream-{name}"), policy]


def _page(manifests: list[Manifest]) -> list[Manifest]:
    deployment, policy = (_copy(manifests, kind, "coatstream-page") for kind in ("Deployment", "NetworkPolicy"))
    template = deployment["spec"]["template"]
    template["spec"]["containers"][0]["image"] = "@@image@@"
    template["metadata"]["annotations"] = {"checksum/settings": "@@checksum@@"}
    deployment["spec"]["replicas"] = "@@pages@@"
    policy["spec"]["egress"][1]["to"] = "@@redis-peers@@"
    others = [_copy(manifests, kind, "coatstream-page") for kind in ("Service", "PodDisruptionBudget")]
    return [deployment, policy, *others]


def _keda(manifests: list[Manifest]) -> list[Manifest]:
    scaled = _copy(manifests, "ScaledObject", "coatstream-queue-worker")
    scaled["spec"]["maxReplicaCount"] = "@@most@@"
    queue = {"address": "@@address@@", "stream": "@@stream@@", "streamLength": "@@length@@"}
    scaled["spec"]["triggers"][0]["metadata"] |= queue
    return [scaled, _copy(manifests, "TriggerAuthentication", "coatstream-redis")]


def _cameras_keda(manifests: list[Manifest]) -> list[Manifest]:
    scaled = _copy(manifests, "ScaledObject", "coatstream-camera-worker")
    scaled["spec"]["maxReplicaCount"] = "@@most-cameras@@"
    for trigger in scaled["spec"]["triggers"]:
        trigger["metadata"]["serverAddress"] = "@@prometheus@@"
    return [scaled]


def _copy(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    found = named(manifests, kind, name)
    if found is None:
        raise LookupError(f"{kind}/{name} is not in the overlay")
    return copy.deepcopy(found)


def _template(condition: str, objects: Objects) -> str:
    """The objects as one file, behind the condition."""
    texts = []
    for each in filter(None, objects):
        manifest = copy.deepcopy(each)
        if "namespace" in manifest["metadata"]:
            manifest["metadata"]["namespace"] = "@@namespace@@"
        text = _HASHED.sub(r"\1", yaml.safe_dump(manifest, sort_keys=True, width=4096))
        texts.append(_SENTINEL.sub(_replaced, text).rstrip())
    body = "\n---\n".join(texts)
    return f"{HEAD}{{{{- if {condition} }}}}\n{body}\n{{{{- end }}}}\n" if condition else f"{HEAD}{body}\n"


def _replaced(found: re.Match[str]) -> str:
    name, indent, before = found["name"], found["indent"], found["before"]
    if (inline := INLINE.get(name)) is not None:
        return f"{indent}{before}{inline}"
    block = BLOCKS[name].replace("INDENT", str(len(indent) + 2))
    if name.endswith("peers"):  # a list that stands below its key
        return f"{indent}{before.rstrip()}\n{indent}  {block}"
    if "nindent" in block:  # further items of a list
        return f"{indent}{block.replace(f'nindent {len(indent) + 2}', f'nindent {len(indent)}')}"
    return textwrap.indent(block, indent)


def main() -> None:
    for name, text in templates().items():
        file = CHART / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
