"""Metric families from samples, in one line each."""

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Family = CounterMetricFamily | GaugeMetricFamily

_CAMERA: Final = ("source",)


def gauge(
    name: str, meaning: str, samples: Iterable[tuple[list[str], float]], *, labels: Sequence[str] = _CAMERA
) -> Metric:
    return _filled(GaugeMetricFamily(f"coatstream_{name}", meaning, labels=labels), samples)


def counter(
    name: str, meaning: str, samples: Iterable[tuple[list[str], float]], *, labels: Sequence[str] = _CAMERA
) -> Metric:
    return _filled(CounterMetricFamily(f"coatstream_{name}", meaning, labels=labels), samples)


def _filled(family: Family, samples: Iterable[tuple[list[str], float]]) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, float(value))
    return family
