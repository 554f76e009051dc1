"""Rules for monitoring: every pod is scraped, and rules ask what the metrics can answer."""

import difflib
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from coatstream.pipeline.metrics import PipelineMetrics
from prometheus_client import CollectorRegistry

from deploy.check.manifests import Manifest, chosen, of_kind, pod_labels, quantity, selects
from deploy.check.worker import own

_DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
_TYPE: Final = re.compile(r"^\| `(coatstream_\w+)` \| (\w+) \|", re.MULTILINE)
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SAMPLES: Final = 1000  # of one worker with a few dozen cameras
_SELDOM: Final = 120.0  # seconds: the rules' rates are over five minutes
_SEVERITIES: Final = ("critical", "warning", "info", "page", "error", "none", "ticket", "high", "low", "medium")
# Gauges of what all workers share: each worker reports the same number.
_SHARED: Final = re.compile(
    r"\bsum\s*(?:(?:by|without)\s*\([^)]*\)\s*)?\(\s*"
    r"(coatstream_(?:queue_(?:depth|pending|stranded|trimmed)_frames|queue_oldest_age_seconds|dead_letters"
    r"|fleet_(?:members|refused_cameras|cameras|faulty_entries)|event_pictures_bytes))\b"
)
_RATE: Final = re.compile(r"\b(rate|irate|increase|resets|deriv|delta|idelta|predict_linear)\s*\(\s*(coatstream_\w+)")
_COMPARED: Final = re.compile(
    r"^\s*(?:(?:sum|max|avg)\s*(?:by\s*\([^)]*\)\s*)?\(?\s*)?(coatstream_\w+_total)[^\[\]]*[<>]"
)
_OF_COUNTERS: Final = ("rate", "irate", "increase", "resets")
_BUCKET: Final = re.compile(r"(coatstream_\w+)_bucket\s*\{[^}]*\ble=\"([^\"]*)\"")


@cache
def types() -> dict[str, str]:
    """What kind each metric is: gauge, counter, histogram, info."""
    return dict(_TYPE.findall((_DOCS / "metrics.md").read_text("utf-8")))


@cache
def anchors() -> frozenset[str]:
    """Headings of the runbook as links name them."""
    found = re.findall(r"^#+ (.+)$", (_DOCS / "runbook.md").read_text("utf-8"), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found)


def seconds(value: object) -> float | None:
    """A duration of Prometheus such as 1m30s."""
    found = _DURATION.fullmatch(str(value))
    if found is None or not any(found.groups()):
        return None
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return float(3600 * hours + 60 * minutes + rest)


def check_scrape(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    spec = manifest["spec"]
    limit = quantity(spec.get("sampleLimit", 10**9)) or 0
    if limit < _SAMPLES:
        yield f"sampleLimit {spec['sampleLimit']} is less than a worker has ({_SAMPLES}): all would be refused"
    endpoints = spec.get("podMetricsEndpoints") or ()
    for endpoint in endpoints:
        if endpoint.get("path", "/metrics") != "/metrics":
            yield f"scrapes {endpoint['path']}, and workers answer at /metrics"
        if str(endpoint.get("scheme", "http")).lower() != "http":
            yield f"scrapes by {endpoint['scheme']}, and workers speak http"
        interval, patience = seconds(endpoint.get("interval", "30s")), seconds(endpoint.get("scrapeTimeout", "1s"))
        if interval and patience and patience > interval:
            yield "scrapeTimeout exceeds interval, which Prometheus refuses"
        if interval and interval > _SELDOM:
            yield f"interval {endpoint['interval']} is more than {_SELDOM:g} s: rates over 5 minutes would have holes"
    labelled = {each.get("targetLabel") for e in endpoints for each in e.get("relabelings") or ()}
    if endpoints and "component" not in labelled and _asked_for_component(manifests):
        yield "sets no label component, by which the cameras' autoscaler tells workers apart"


def _asked_for_component(manifests: list[Manifest]) -> bool:
    triggers = [t for m in of_kind(manifests, "ScaledObject") for t in m["spec"].get("triggers") or ()]
    return any("component=" in str(t.get("metadata", {}).get("query")) for t in triggers)


def check_is_scraped(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    monitors = of_kind(manifests, "PodMonitor", "ServiceMonitor")
    if own(manifest) is None or not monitors or any(m["kind"] == "ServiceMonitor" for m in monitors):
        return
    if not any(selects(chosen(m["spec"]["selector"]), pod_labels(manifest)) for m in monitors):
        yield "no PodMonitor selects its pods: no alert would hear of them"


def check_alerts(manifest: Manifest, manifests: list[Manifest]) -> Iterator[str]:
    rules = [rule for group in manifest["spec"].get("groups") or () for rule in group["rules"]]
    everywhere = [
        r for m in of_kind(manifests, "PrometheusRule") for g in m["spec"].get("groups") or () for r in g["rules"]
    ]
    recorded = {rule["record"] for rule in everywhere if str(rule.get("record")).startswith("coatstream:")}
    for rule in rules:
        name, expr = rule.get("alert") or rule.get("record"), str(rule["expr"])
        for asked in sorted(set(re.findall(r"\bcoatstream:[\w:]+", expr)) - recorded if recorded else ()):
            yield f"{name} asks for {asked}, which no rule records"
        yield from (f"{name} {why}" for why in _misread(expr))
        if "alert" in rule:
            yield from (f"{name} {why}" for why in _unhelpful(rule))


def _misread(expr: str) -> Iterator[str]:
    for metric in sorted(set(_SHARED.findall(expr))):
        yield f"sums {metric}, of which every worker reports the whole: take max"
    for function, metric in sorted(set(_RATE.findall(expr))):
        counts = metric.endswith("_total") or re.sub(r"_(bucket|sum|count)$", "", metric) != metric
        if types().get(metric) == "gauge" and function in _OF_COUNTERS:
            yield f"takes the {function} of {metric}, which is a gauge: take delta or deriv"
        if counts and function not in _OF_COUNTERS:
            yield f"takes the {function} of {metric}, which is a counter: take rate or increase"
    if (found := _COMPARED.search(expr)) and " unless " not in expr and " - " not in expr:
        yield f"compares {found[1]}, which only grows: take its increase over a time"
    for metric, bound in sorted(set(_BUCKET.findall(expr))):
        if (known := bounds().get(metric)) and not _is_bound(bound, known):
            yield f"asks for the bucket le={bound} of {metric}, which has {', '.join(f'{each:g}' for each in known)}"


@cache
def bounds() -> dict[str, list[float]]:
    """The buckets of each histogram."""
    registry, found = CollectorRegistry(), dict[str, set[float]]()
    PipelineMetrics(registry)
    for family in registry.collect():
        for sample in family.samples:
            if "le" in sample.labels:
                found.setdefault(family.name, set()).add(float(sample.labels["le"]))
    return {name: sorted(each) for name, each in found.items()}


def _is_bound(bound: str, found: list[float]) -> bool:
    with suppress(ValueError):
        return float(bound) in found
    return False


def _unhelpful(rule: Manifest) -> Iterator[str]:
    severity = (rule.get("labels") or {}).get("severity")
    if severity is None:
        yield "has no severity: Alertmanager would not know whom to tell"
    elif severity not in _SEVERITIES and (near := difflib.get_close_matches(str(severity), _SEVERITIES, 1, 0.75)):
        yield f"has the severity {severity}: did you mean {near[0]}?"
    address = str((rule.get("annotations") or {}).get("runbook_url", ""))
    page, _, anchor = address.partition("#")
    if page.endswith("docs/runbook.md") and anchor not in anchors():
        yield f"leads to {anchor or 'the top'} of the runbook, where no paragraph begins"
    if not address and str(rule["alert"]).startswith("Coatstream"):
        yield "has no runbook_url: the person on call is not told what to do"
