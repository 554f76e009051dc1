"""Writes frames that a person shall label: a folder of JPEGs, and metadata.csv beside them with what the model said.

`datasets.load_dataset("imagefolder", data_dir=...)` and `pandas.read_csv` read it as it is. The folder is bounded: once
it is full, nothing more is kept, and that is counted. What is written here never holds up a frame.
"""

import csv
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from coatstream.errors import BadFrame
from coatstream.frames.encoding import encode_jpeg
from coatstream.frames.frame import Frame, Prediction
from coatstream.frames.still import Still
from coatstream.results.documents import encode_embedding
from coatstream.results.training.choosing import FrameChooser, WhyKept, seen_of
from coatstream.settings.model import TrainingSettings

COLUMNS: Final = (
    *("file_name", "label", "score", "second", "second_score", "why", "source", "frame_id", "captured_at"),
    *("width", "height", "embedding"),
)
WAITING: Final = 32  # frames between the engine and the disk, 150 KB each
_TICK: Final = 0.2  # seconds until `stop` is noticed
_LOG_AGAIN: Final = 60.0  # seconds

FindStill = Callable[[str, str], Still | None]  # source and frame id -> the whole picture of exactly this frame


@dataclass(frozen=True, slots=True)
class TrainingStats:
    """Since the start: `kept` by why, and `left_out` by why not: alike, busy (the disk is too slow), full or failed."""

    kept: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    frame: Frame
    prediction: Prediction
    why: WhyKept


class TrainingFolder:
    """One worker's. `look` is called from engine threads, `run` is the thread that writes."""

    def __init__(self, settings: TrainingSettings, folder: Path, *, worker: str, find: FindStill) -> None:
        """Each start of a worker has a folder of its own within `folder`."""
        self._settings = settings
        self._folder = folder
        self._own = folder / f"{datetime.now(UTC):%Y-%m-%d}-{worker}"
        self._find = find
        self._chooser = FrameChooser(settings)
        self._lock = threading.Lock()  # guards the chooser and the counts
        self._kept: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._waiting: queue.Queue[_Chosen] = queue.Queue(WAITING)
        self._bytes: int | None = None  # of all that is in `folder`
        self._logged_at = -float("inf")
        self._log = structlog.get_logger("training")

    def stats(self) -> TrainingStats:
        with self._lock:
            return TrainingStats(dict(self._kept), dict(self._left_out))

    def look(self, frame: Frame, prediction: Prediction, surprising: bool) -> None:
        """The model has just classified this frame, and it may contradict what would have been reused. Never waits."""
        with self._lock:
            why = self._chooser.why(prediction, surprising=surprising)
            if why is None or frame.faults:
                return
            if not self._chooser.is_new(frame):
                self._left_out["alike"] += 1
                return
            try:
                self._waiting.put_nowait(_Chosen(frame, prediction, why))
            except queue.Full:
                self._left_out["busy"] += 1

    # ---- the thread

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        while not stop.is_set():
            try:
                chosen = self._waiting.get(timeout=_TICK)
            except queue.Empty:
                continue
            try:
                came_of_it = "" if self._write(chosen) else "full"
            except (OSError, BadFrame) as trouble:
                came_of_it = "failed"
                self._warn("a frame for training cannot be written", trouble=str(trouble))
            with self._lock:
                counter = self._left_out if came_of_it else self._kept
                counter[came_of_it or str(chosen.why)] += 1

    def _write(self, chosen: _Chosen) -> bool:
        """False: there is no room. Raises OSError, BadFrame."""
        if self._bytes is None:
            self._bytes = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        still = self._find(chosen.frame.source, chosen.frame.frame_id)
        jpeg = encode_jpeg(seen_of(chosen.frame) if still is None else still.pixels, quality=self._settings.quality)
        if self._bytes + len(jpeg) > self._settings.max_bytes:
            self._warn("the folder for training is full", folder=str(self._folder), bytes=self._bytes)
            return False
        self._own.mkdir(parents=True, exist_ok=True)
        name = f"{round(chosen.frame.captured_at * 1000)}-{self._kept.total():06d}.jpg"
        (self._own / name).write_bytes(jpeg)
        table = self._own / "metadata.csv"
        is_new = not table.exists()
        with table.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerow(_row(name, chosen))
        self._bytes += len(jpeg) + 200
        return True

    def _warn(self, what: str, **more: object) -> None:
        now = time.monotonic()
        if now - self._logged_at > _LOG_AGAIN:
            self._logged_at = now
            self._log.warning(what, **more)


def _row(name: str, chosen: _Chosen) -> tuple[object, ...]:
    frame, prediction = chosen.frame, chosen.prediction
    labels = [(one.label.name, round(one.score, 6)) for one in (*prediction.labels[:2], *prediction.further[:1])]
    best, second = (*labels, ("", 0.0), ("", 0.0))[:2]
    embedding = "" if prediction.embedding is None else encode_embedding(prediction.embedding)
    return (
        *(name, *best, *second, chosen.why, _plain(frame.source), _plain(frame.frame_id)),
        *(f"{frame.captured_at:.6f}", frame.width, frame.height, embedding),
    )


def _plain(text: str) -> str:
    """For a spreadsheet: strangers choose it, and a cell that begins like this would be a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text
