"""What the pipeline did in the last ten seconds, as plain numbers: differences of its own metrics and of the ledger."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.results.reports import BatchReport, FramesReport
from coatstream.telemetry.ledger import Ledger

LOOKS: Final = 6  # the newest is compared with the oldest of them

Totals = Mapping[str, float]


class RecentStats:
    """Used from one thread, which calls `look` every two seconds or so."""

    def __init__(
        self, metrics: PipelineMetrics, ledger: Ledger, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._ledger = ledger
        self._monotonic = monotonic
        self._looks: deque[tuple[float, Totals, Mapping[str, int]]] = deque(maxlen=LOOKS)
        self.frames = FramesReport()

    def look(self) -> None:
        """Read all totals now."""
        accounts = self._ledger.snapshot()
        published = {source: account.published for source, account in accounts.items()}
        total = self._ledger.total()
        self.frames = FramesReport(
            received=total.received,
            published=total.published,
            dropped={reason.value: count for reason, count in total.dropped.items()},
            dead={reason.value: count for reason, count in total.dead.items()},
            in_flight=total.in_flight,
        )
        self._looks.append((self._monotonic(), self._metrics.totals(), published))

    def rate(self, source: str | None = None) -> float:
        """Labels a second, of one source or all."""
        (_, _, old), (_, _, new) = self._looks[0], self._looks[-1]
        sources = new if source is None else [source]
        return sum(new.get(name, 0) - old.get(name, 0) for name in sources) / self._seconds()

    def mean(self, name: str) -> float | None:
        """Of one histogram; None: nothing was observed."""
        count = self._more(f"{name}_count")
        return self._more(f"{name}_sum") / count if count else None

    def quantile(self, name: str, share: float) -> float | None:
        """The upper end of the bucket below which this share lies; None: nothing was observed, or it is beyond all."""
        count = self._more(f"{name}_count")
        bounds = sorted(float(key.rpartition("=")[2]) for key in self._looks[-1][1] if key.startswith(f"{name}<="))
        reached = (bound for bound in bounds if count and self._more(f"{name}<={bound}") >= share * count)
        found = next(reached, float("inf"))
        return None if found == float("inf") else found

    def stages(self) -> dict[str, float]:
        """Mean seconds in each stage that had something to do."""
        means = {stage: self.mean(f"stage.{stage}") for stage in self._metrics.stages}
        return {stage: seconds for stage, seconds in means.items() if seconds is not None}

    def batches(self, *, full: int) -> BatchReport:
        left = {name: round(self._more(f"left.{name}")) for name in self._metrics.reasons}
        return BatchReport(
            per_second=self._more("size_count") / self._seconds(),
            size=self.mean("size") or 0.0,
            fill=self.mean("fill") or 0.0,
            full=full,
            left={name: count for name, count in left.items() if count},
        )

    def _more(self, key: str) -> float:
        return self._looks[-1][1].get(key, 0.0) - self._looks[0][1].get(key, 0.0)

    def _seconds(self) -> float:
        return max(0.001, self._looks[-1][0] - self._looks[0][0])
