"""Metrics of the cameras that this worker reads, made when Prometheus scrapes.

A camera's series are there while this worker reads it, so they move to another worker with the camera.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from coatstream.cameras.camera import ActiveCamera
from coatstream.errors import DownReason
from coatstream.frames.frame import PictureFault
from coatstream.telemetry.families import counter, gauge
from coatstream.telemetry.status import STATES


class CameraCollector(Collector):
    """The cameras that this worker reads, at each scrape."""

    def __init__(self, cameras: Callable[[], Sequence[ActiveCamera]]) -> None:
        self._cameras = cameras

    def describe(self) -> Iterable[Metric]:
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        yield from self._families(self._cameras())

    def _families(self, cameras: Sequence[ActiveCamera]) -> Iterator[Metric]:
        yield from _link(cameras)
        yield from _picture(cameras)
        yield from _reuse(cameras)
        yield gauge(
            "tags_present",
            "Tags that are present now.",
            (([camera.name], len(camera.events.tags)) for camera in cameras),
        )


def _link(cameras: Sequence[ActiveCamera]) -> Iterator[Metric]:
    """The connection to a camera, and the process that reads it."""
    named = [(camera.name, camera.status, camera.process.stats()) for camera in cameras]
    yield gauge(
        "camera_state",
        "1 for the state that the camera is in.",
        (([name, state], state == status.state) for name, status, _ in named if status for state in STATES),
        labels=("source", "state"),
    )
    yield gauge(
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
    yield gauge(
        "camera_last_picture_timestamp_seconds",
        "When the newest picture came, Unix time.",
        (([name], stats.last_picture) for name, _, stats in named if stats.last_picture),
    )
    counters = (
        ("camera_pictures", "Pictures that were read, taken or not.", "grabbed"),
        ("camera_cpu_seconds", "CPU time of the camera's processes for decoding and preparing.", "cpu"),
        ("camera_held_back_frames", "Frames read while another worker had the camera's lease.", "held_back"),
        ("camera_processes_started", "Processes that were started to read the camera.", "started"),
        ("camera_processes_killed", "Of these, killed because they missed a deadline.", "killed"),
        ("camera_processes_crashed", "Of these, died by themselves.", "crashed"),
    )
    for metric, meaning, field in counters:
        yield counter(metric, meaning, (([name], getattr(stats, field)) for name, _, stats in named))


def _picture(cameras: Sequence[ActiveCamera]) -> Iterator[Metric]:
    health = [(camera.name, camera.health.stats()) for camera in cameras]
    yield gauge(
        "picture_sick",
        "1 while the camera's picture has this fault.",
        (([name, fault.value], fault in stats.sick) for name, stats in health for fault in PictureFault),
        labels=("source", "fault"),
    )
    yield counter(
        "picture_alarms",
        "Times that a fault of the camera's picture began.",
        (([name, fault.value], count) for name, stats in health for fault, count in stats.alarms.items()),
        labels=("source", "fault"),
    )


def _reuse(cameras: Sequence[ActiveCamera]) -> Iterator[Metric]:
    """Of each gate: `region` is empty where one covers the whole picture."""
    labels = ("source", "region")
    gates = [
        ([camera.name, region], stats)
        for camera in cameras
        if camera.gates
        for region, stats in camera.gates.stats().items()
    ]
    counters = (
        ("reuse_considered_frames", "Frames that a change gate looked at.", "considered"),
        (
            "reuse_frames",
            "Frames that got the labels of an earlier, like frame.",
            "reused",
        ),
        ("reuse_checks", "Like frames that were classified all the same.", "checks"),
        ("reuse_disagreements", "Of these, those that told a consumer something else.", "disagreements"),
    )
    for metric, meaning, field in counters:
        yield counter(metric, meaning, ((place, getattr(stats, field)) for place, stats in gates), labels=labels)
    yield gauge(
        "reuse_disagreement_ratio",
        "Running share of checks that disagreed; above reuse.budget the gate tightens.",
        ((place, stats.rate) for place, stats in gates),
        labels=labels,
    )
    yield gauge(
        "reuse_difference_levels",
        "Grey levels by which a like frame may differ now; at most reuse.difference.",
        ((place, stats.difference) for place, stats in gates),
        labels=labels,
    )
