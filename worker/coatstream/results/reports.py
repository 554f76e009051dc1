"""What each worker reports of itself, for those who look at the whole fleet: one hash in Redis, a field a worker.

A report is an aid to the eye: a call that fails is forgotten, and the next one comes two seconds later.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.errors import REDIS_TROUBLE, RedisRefuses

EVERY: Final = 2.0  # seconds
FRESH: Final = 8.0  # seconds for which a report counts
FORGOTTEN: Final = 60.0  # seconds after which other workers delete it
MOST: Final = 256  # workers that are shown
MOST_CAMERAS: Final = 500  # of one report
TIDY_EVERY: Final = 15  # reports
AFTER_REFUSAL: Final = 60.0  # seconds: the user may not write to this key


class _ReportPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelReport(_ReportPart):
    """The model as it runs. `rate`: inputs a second that the engine did when it was measured."""

    name: str
    weights: str
    engine: str
    precision: str
    device: str
    rate: float = 0.0


class BatchReport(_ReportPart):
    """Batches of the last seconds, counted in inputs of the model: of some cameras a frame has several.

    per_second  batches
    size        inputs of one, on average
    fill        share of the prepared size that was inputs and not padding
    full        inputs of a full batch; 0: not known yet
    left        how many left, by why they did
    """

    per_second: float = 0.0
    size: float = 0.0
    fill: float = 0.0
    full: int = 0
    left: dict[str, int] = {}


class CameraReport(_ReportPart):
    """One camera of this worker.

    fps           labels a second
    read_fps      pictures a second that were read
    last_picture  Unix seconds
    sick          what is wrong with its picture
    gate          why its change gate saves nothing; empty: it saves, has seen too little, or there is none
    """

    fps: float = 0.0
    read_fps: float = 0.0
    last_picture: float | None = None
    sick: tuple[str, ...] = ()
    gate: str = ""


class FramesReport(_ReportPart):
    """The ledger since this worker's start: received = published + dropped + dead + in_flight."""

    received: int = 0
    published: int = 0
    dropped: dict[str, int] = {}
    dead: dict[str, int] = {}
    in_flight: int = 0


class WorkerReport(_ReportPart):
    """One worker, as it was at `at` (Unix seconds of its own clock).

    because            why it is not ready; empty: it is
    frames_per_second  labels of the last seconds
    age, age_p95       seconds from capture to publication in the last seconds: mean, and 95 of 100 below
    stages             mean seconds in each stage
    """

    worker: str
    at: float
    started_at: float
    version: str
    restarts: int = 0
    because: tuple[str, ...] = ()
    model: ModelReport | None = None
    frames_per_second: float = 0.0
    age: float | None = None
    age_p95: float | None = None
    batches: BatchReport = BatchReport()
    stages: dict[str, float] = {}
    frames: FramesReport = FramesReport()
    cameras: dict[str, CameraReport] = {}


class Reporter:
    """Writes one worker's reports, in a thread of its own. `report` is called there."""

    def __init__(
        self, client: Client, key: str, report: Callable[[], WorkerReport], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._key = key
        self._report = report
        self._clock = clock
        self._count = 0
        self._silent = self._refused = False
        self._log = structlog.get_logger("reports")

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; then the report goes."""
        while not stop.is_set():
            self.write()
            stop.wait(AFTER_REFUSAL if self._refused else EVERY)
        self._call(lambda: self._client.hdel(self._key, self._report().worker))

    def write(self) -> None:
        """Once. Now and then those of workers that vanished are deleted."""
        report = self._report()
        self._call(lambda: self._client.hset(self._key, report.worker, report.model_dump_json()))
        if self._count % TIDY_EVERY == 0:
            self._call(self._tidy)
        self._count += 1

    def _tidy(self) -> None:
        now = self._clock()
        for worker, text in self._client.hgetall(self._key).items():
            report = parse_report(text)
            if report is None or abs(now - report.at) > FORGOTTEN:
                self._client.hdel(self._key, worker)

    def _call(self, call: Callable[[], Any]) -> None:
        try:
            with calls("the worker's report cannot be written", self._client):
                call()
        except REDIS_TROUBLE as trouble:
            if not self._silent:
                self._log.info("the page and `top` show less of this worker for now", trouble=str(trouble))
            self._silent, self._refused = True, isinstance(trouble, RedisRefuses)
        else:
            self._silent = self._refused = False


def parse_report(text: bytes) -> WorkerReport | None:
    """None for what no worker wrote."""
    try:
        return WorkerReport.model_validate_json(text)
    except (ValidationError, RecursionError):
        return None


def read_reports(client: Client, key: str, *, now: float) -> list[WorkerReport]:
    """Of all workers that live, by name; `now`: Unix seconds of the server. Raises RedisUnavailable, RedisRefuses.

    A worker whose clock is wrong by more than FRESH is not shown.
    """
    with calls("the workers' reports cannot be read", client):
        found = client.hgetall(key)
    reports = [report for text in list(found.values())[: 4 * MOST] if (report := parse_report(text)) is not None]
    return sorted((one for one in reports if abs(now - one.at) <= FRESH), key=lambda one: one.worker)[:MOST]
