"""This worker's report, made every two seconds of what it counts anyway."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from coatstream import __version__
from coatstream.broker.connection import connect
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.cameras.process.conversation import CameraStats
from coatstream.errors import RedisUnavailable
from coatstream.frames.frame import PictureFault
from coatstream.frames.model import ModelInfo
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.policy import BatchStats
from coatstream.pipeline.recent import LOOKS, RecentStats
from coatstream.pipeline.threads import OBSERVERS, in_thread
from coatstream.results.reports import EVERY, MOST_CAMERAS, CameraReport, ModelReport, Reporter, WorkerReport
from coatstream.settings.model import SettingsTree
from coatstream.telemetry.telemetry import Telemetry

_PERCENTILE: Final = 0.95

Cameras = Callable[[], Iterable[tuple[str, CameraStats, Collection[PictureFault], str]]]


@dataclass
class WorkerFacts:
    """What a report is made of. `model` and `batches` are None until the engine is warm."""

    telemetry: Telemetry
    metrics: PipelineMetrics
    cameras: Cameras
    model: ModelInfo | None = None
    batches: Callable[[], BatchStats] | None = None
    started_at: float = field(default_factory=time.time)


@contextmanager
def reporting(settings: SettingsTree, facts: WorkerFacts) -> Iterator[None]:
    """Reports are written while this is entered."""
    maker = _ReportMaker(facts)

    def run(stop: threading.Event) -> None:
        with suppress(RedisUnavailable), connect(settings.redis) as client:  # the client of a cluster connects at once
            Reporter(client, fleet_keys(settings).reports, maker.make).run(stop)
        stop.wait(EVERY)

    with in_thread(run, "reports", leave_after=OBSERVERS):
        yield


class _ReportMaker:
    """Makes reports. Used from the reporter's thread."""

    def __init__(self, facts: WorkerFacts) -> None:
        self._facts = facts
        self._recent = RecentStats(facts.metrics, facts.telemetry.ledger)
        self._grabbed: deque[tuple[float, dict[str, int]]] = deque(maxlen=LOOKS)

    def make(self) -> WorkerReport:
        facts, recent = self._facts, self._recent
        recent.look()
        stats = facts.batches() if facts.batches else None
        return WorkerReport(
            worker=facts.telemetry.worker,
            at=time.time(),
            started_at=facts.started_at,
            version=__version__,
            restarts=facts.telemetry.lineage.restarts,
            because=tuple(facts.telemetry.status.unready_because()),
            model=self._model(stats),
            frames_per_second=round(recent.rate(), 2),
            age=recent.mean("age"),
            age_p95=recent.quantile("age", _PERCENTILE),
            batches=recent.batches(full=stats.full if stats else 0),
            stages=recent.stages(),
            frames=recent.frames,
            cameras=self._cameras(),
        )

    def _model(self, stats: BatchStats | None) -> ModelReport | None:
        info = self._facts.model
        if info is None:
            return None
        words = ("name", "weights", "engine", "precision", "device")
        rate = round(stats.cost.rate, 1) if stats else 0.0
        return ModelReport(rate=rate, **{word: getattr(info, word) for word in words})

    def _cameras(self) -> dict[str, CameraReport]:
        rows = list(self._facts.cameras())[:MOST_CAMERAS]
        self._grabbed.append((time.monotonic(), {name: stats.grabbed for name, stats, *_ in rows}))
        (began, before), (ended, _) = self._grabbed[0], self._grabbed[-1]
        seconds = max(0.001, ended - began)
        return {
            name: CameraReport(
                fps=round(self._recent.rate(name), 2),
                read_fps=round((stats.grabbed - before.get(name, stats.grabbed)) / seconds, 2),
                last_picture=stats.last_picture or None,
                sick=tuple(sorted(fault.value for fault in sick)),
                gate=gate,
            )
            for name, stats, sick, gate in rows
        }
