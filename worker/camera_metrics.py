"""Metrics of cameras, tags, events and the fleet: read where they are kept when somebody scrapes.

A camera's series are there while this worker reads it, so they move to another worker with the camera.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.broker.announcer import AnnouncerFigures
from worker.cameras import CameraView
from worker.errors import DownReason
from worker.fleet import Figures as FleetFigures
from worker.frames import PictureFault
from worker.status import STATES

Family = CounterMetricFamily | GaugeMetricFamily

_CAMERA: Final = ("source",)


class CameraCollector(Collector):
    """One scrape's view of the cameras of this worker."""

    def __init__(self, views: Callable[[], Sequence[CameraView]]) -> None:
        self._views = views

    def describe(self) -> Iterable[Metric]:
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        yield from self._families(self._views())

    def _families(self, views: Sequence[CameraView]) -> Iterator[Metric]:
        yield from _link(views)
        yield from _picture(views)
        yield from _reuse(views)
        yield _gauge(
            "tags_present",
            "Tags that are present now.",
            (([view.ward.settings.name], len(view.tags)) for view in views),
        )


def _link(views: Sequence[CameraView]) -> Iterator[Metric]:
    """The connection to a camera, and the process that reads it."""
    named = [(view.ward.settings.name, view.status, view.ward.source.figures()) for view in views]
    yield _gauge(
        "camera_state",
        "1 for the state that the camera is in.",
        (([name, state], state == status.state) for name, status, _ in named if status for state in STATES),
        labels=("source", "state"),
    )
    yield _gauge(
        "camera_down",
        "1 for the reason why the camera is down.",
        (
            ([name, reason.value], status.state in ("down", "stalled") and status.reason is reason)
            for name, status, _ in named
            if status
            for reason in DownReason
            if reason is not DownReason.REDIS
        ),
        labels=("source", "reason"),
    )
    yield _gauge(
        "camera_last_picture_timestamp_seconds",
        "When the newest picture came, Unix time.",
        (([name], figures.last_picture) for name, _, figures in named if figures.last_picture),
    )
    counters = (
        ("camera_pictures", "Pictures that were read, taken or not.", "grabbed"),
        ("camera_cpu_seconds", "CPU time of the camera's processes for decoding and preparing.", "cpu"),
        ("camera_held_back_frames", "Frames read while another worker still had the camera.", "held_back"),
        ("camera_processes_started", "Processes that were started to read the camera.", "started"),
        ("camera_processes_killed", "Of these, killed because they missed a deadline.", "killed"),
        ("camera_processes_crashed", "Of these, died by themselves.", "crashed"),
    )
    for metric, meaning, field in counters:
        yield _counter(metric, meaning, (([name], getattr(figures, field)) for name, _, figures in named))


def _picture(views: Sequence[CameraView]) -> Iterator[Metric]:
    health = [(view.ward.settings.name, view.ward.health.figures()) for view in views]
    yield _gauge(
        "picture_sick",
        "1 while the camera's picture has this fault.",
        (([name, fault.value], fault in figures.sick) for name, figures in health for fault in PictureFault),
        labels=("source", "fault"),
    )
    yield _counter(
        "picture_alarms",
        "Times that a fault of the camera's picture was said.",
        (([name, fault.value], count) for name, figures in health for fault, count in figures.alarms.items()),
        labels=("source", "fault"),
    )


def _reuse(views: Sequence[CameraView]) -> Iterator[Metric]:
    gates = [(view.ward.settings.name, view.ward.gate.figures()) for view in views if view.ward.gate]
    counters = (
        ("reuse_considered_frames", "Frames that the change gate looked at.", "considered"),
        ("reuse_frames", "Frames that got the labels of an earlier, like frame.", "reused"),
        ("reuse_checks", "Like frames that were classified all the same.", "checks"),
        ("reuse_disagreements", "Of these, those that got another label.", "disagreements"),
    )
    for metric, meaning, field in counters:
        yield _counter(metric, meaning, (([name], getattr(figures, field)) for name, figures in gates))
    yield _gauge(
        "reuse_disagreement_ratio",
        "Running share of checks that disagreed; above reuse.budget the gate tightens.",
        (([name], figures.rate) for name, figures in gates),
    )
    yield _gauge(
        "reuse_difference_levels",
        "Grey levels by which a like frame may differ now; at most reuse.difference.",
        (([name], figures.difference) for name, figures in gates),
    )


class FleetCollector(Collector):
    """This worker's place in the fleet."""

    def __init__(self, figures: Callable[[], FleetFigures]) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        gauges = (
            ("fleet_members", "Workers that share the cameras.", figures.members),
            ("fleet_cameras", "Shared cameras that this worker knows.", figures.known),
            ("fleet_held_cameras", "Cameras that this worker has the lease of.", figures.held),
            ("fleet_opening_cameras", "Cameras that this worker opens to take them over.", figures.prospects),
            ("fleet_refused_cameras", "Cameras for which nobody has room.", figures.refused),
            ("fleet_faulty_entries", "Cameras in Redis that cannot be used.", figures.faults),
            ("fleet_lease_left_seconds", "Time until the leases end if they are not renewed.", figures.lease_left),
        )
        for name, meaning, value in gauges:
            yield GaugeMetricFamily(f"coatstream_{name}", meaning, value=value or 0)
        yield _counter(
            "fleet_transfers",
            "Leases by how they came or went.",
            (([why], count) for why, count in figures.transfers.items()),
            labels=("why",),
        )


class EventCollector(Collector):
    """What the announcer has done."""

    def __init__(self, figures: Callable[[], AnnouncerFigures]) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        counters = (
            ("events", "Events that were written to the stream of events.", figures.sent),
            ("events_dropped", "Events given up because too many were waiting.", figures.dropped),
            ("events_repeated", "Events that had been said before.", figures.repeated),
            ("events_refused", "Events of cameras that had gone to another worker.", figures.refused),
        )
        for name, meaning, counts in counters:
            yield _counter(name, meaning, (([kind], count) for kind, count in counts.items()), labels=("event",))
        yield CounterMetricFamily(
            "coatstream_events_replayed", "Events said again to a server that had lost data.", value=figures.replayed
        )
        yield GaugeMetricFamily("coatstream_events_waiting", "Events not written yet.", value=figures.buffered)


def _gauge(
    name: str, meaning: str, samples: Iterable[tuple[list[str], float]], *, labels: Sequence[str] = _CAMERA
) -> Metric:
    return _filled(GaugeMetricFamily(f"coatstream_{name}", meaning, labels=labels), samples)


def _counter(
    name: str, meaning: str, samples: Iterable[tuple[list[str], float]], *, labels: Sequence[str] = _CAMERA
) -> Metric:
    return _filled(CounterMetricFamily(f"coatstream_{name}", meaning, labels=labels), samples)


def _filled(family: Family, samples: Iterable[tuple[list[str], float]]) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, float(value))
    return family
