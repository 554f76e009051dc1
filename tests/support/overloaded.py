"""Cameras and an engine around a real mailbox, in simulated time: what tests of shares, age and starvation run."""

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from coatstream.pipeline.fairness import water_fill
from coatstream.pipeline.mailbox import Mailbox, QueuedFrame
from coatstream.telemetry.ledger import Ledger

from tests.support.doubles import SettableClock, make_frame

FLOOD = "flood"


@dataclass(frozen=True)
class Cam:
    """One camera; `begins` and `ends` in seconds."""

    fps: float
    weight: float = 1.0
    begins: float = 0.0
    ends: float = float("inf")


@dataclass
class Seen:
    """What happened after the warm-up. Cameras by number.

    age    longest wait of a taken frame, in the camera's own periods
    gap    longest time between two takes of a camera, seconds
    """

    seconds: float
    offered: Counter[int] = field(default_factory=Counter)
    taken: Counter[int] = field(default_factory=Counter)
    age: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    gap: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    batches: list[int] = field(default_factory=list)
    flood: int = 0

    def fair(self, cams: Sequence[Cam]) -> dict[int, float]:
        """Frames that each camera should have got of those that all of them got."""
        demands = {number: (float(self.offered[number]), cam.weight) for number, cam in enumerate(cams)}
        return water_fill(demands, self.taken.total())


@dataclass
class Engine:
    """`cost` is the seconds of a batch by its size."""

    cost: Callable[[int], float]
    max_size: int = 8
    streams: int = 1


class Simulation:
    """Runs in a test that has a loop, since a mailbox needs one; never waits."""

    def __init__(
        self, cams: Sequence[Cam], engine: Engine, *, jitter: float = 0.0, flood: int = 0, seed: int = 0
    ) -> None:
        """`jitter` is in periods; `flood` the number of sources of a queue that is never empty."""
        self._cams = cams
        self._engine = engine
        self._jitter = jitter
        self._rng = random.Random(seed)
        self._clock = SettableClock(0.0)
        self._room = 2 * engine.max_size
        self.mailbox = Mailbox(self._room, Ledger(), clock=self._clock)
        self._frames = [replace(make_frame(), source=str(number)) for number in range(len(cams))]
        self._strangers = [replace(make_frame(), source=f"{FLOOD}{number}") for number in range(flood)]
        self._numbers = count()
        self._events: list[tuple[float, int, Iterator[float]]] = []
        self._idle = engine.streams
        self._last: dict[int, float] = {}
        self._poured, self._drunk = 0, 0

    def run(self, seconds: float, *, warm_up: float = 0.0) -> Seen:
        seen = Seen(seconds - warm_up)
        for number in range(len(self._cams)):
            self._push(self._camera(number, seen, warm_up))
        while self._events and self._events[0][0] <= seconds:
            at, _, process = heapq.heappop(self._events)
            self._clock.now = at
            self._push(process)
            while self._idle and (batch := self._take()):
                self._idle -= 1
                self._see(batch, seen, warm_up)
                self._push(self._work(len(batch)))
        for number, last in self._last.items():
            seen.gap[number] = max(seen.gap[number], seconds - last)
        return seen

    def _push(self, process: Iterator[float]) -> None:
        at = next(process, None)
        if at is not None:
            heapq.heappush(self._events, (at, next(self._numbers), process))

    def _camera(self, number: int, seen: Seen, warm_up: float) -> Iterator[float]:
        cam, frame = self._cams[number], self._frames[number]
        due = cam.begins + self._rng.random() / cam.fps
        while due < cam.ends:
            yield max(self._clock.now, due + self._rng.uniform(-self._jitter, self._jitter) / cam.fps)
            self.mailbox.put(frame, reader=frame.source, live=True, weight=cam.weight)
            seen.offered[number] += self._clock.now > warm_up
            due += 1 / cam.fps

    def _work(self, size: int) -> Iterator[float]:
        yield self._clock.now + self._engine.cost(size)
        self._idle += 1

    def _take(self) -> list[QueuedFrame]:
        while self._strangers and self._poured - self._drunk < self._room:
            frame = self._strangers[self._poured % len(self._strangers)]
            self.mailbox.put(frame, reader=FLOOD, live=False)
            self._poured += 1
        batch = self.mailbox.take(self._engine.max_size)
        self._drunk += sum(queued.reader == FLOOD for queued in batch)
        return batch

    def _see(self, batch: Sequence[QueuedFrame], seen: Seen, warm_up: float) -> None:
        now = self._clock.now
        for queued in batch:
            if queued.reader != FLOOD:
                number = int(queued.reader)
                age = (now - queued.put_at) * self._cams[number].fps
                last, self._last[number] = self._last.get(number, self._cams[number].begins), now
                if now > warm_up:
                    seen.taken[number] += 1
                    seen.age[number] = max(seen.age[number], age)
                    seen.gap[number] = max(seen.gap[number], now - last)
            elif now > warm_up:
                seen.flood += 1
        if now > warm_up:
            seen.batches.append(len(batch))


def linear(frames_per_s: float, streams: int = 1) -> Callable[[int], float]:
    """An engine that takes as long for each frame, as a CPU does; `streams` share it."""
    return lambda size: size * streams / frames_per_s
