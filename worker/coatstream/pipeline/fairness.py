"""Which source comes next when not every frame can be taken: shares by weight, by start-time fair queueing.

Arithmetic only: no lock, no clock, no frames. `pipeline.mailbox` reports what arrives and asks what to take.

A source's frame is due at a virtual time, and each frame that is taken puts the source's next one 1/weight further off.
What differs from the textbook is that a live source holds one frame at most. A batch as large as the number of cameras
would take one frame of each whatever their weights, so a batch ends where the next frame in fair order belongs to a
source that loses frames and whose next one has not come yet: the engine is back sooner, and finds it.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_PERIODS: Final = 1 / 8  # weight of the newest interval in a source's mean period
_LOSSES: Final = 1 / 32  # weight of the newest frame in a source's share of lost frames
_SHORT: Final = 0.03  # share of lost frames from which a source counts as short of its share
_CREDIT: Final = 3.0  # frames that a source may have missed and still be due at once
_DEBT: Final = 3.0  # frames that a source may be ahead of its share
_FORGET: Final = 10.0  # seconds without a frame after which a live source is forgotten, and at least _SILENT periods
_SILENT: Final = 4.0
_OVERDUE: Final = 2.0  # periods after which a frame that waits is the last of a source that fell silent
_LEAST: Final = 4  # a batch is at least this part of what it could be: engines like full ones
_MOST_FLOWS: Final = 2048  # of sources that have nothing waiting: a queue's sources come from strangers
_GOLDEN: Final = (5**0.5 - 1) / 2  # its multiples lie evenly in 0 to 1, however many there are
_EPSILON: Final = 1e-9  # of a weight


@dataclass(slots=True)
class _Flow:
    """What is known of a source.

    phase   0 to 1, differing from source to source: sources of one weight that are due at one moment would go in one
            burst, and a heavier one between them would have to wait for all of it
    due     virtual time of its next frame
    put_at  when its newest frame came, seconds
    period  mean seconds between its frames; 0: not known yet
    lost    share of its frames that waited in vain, smoothed
    """

    weight: float
    live: bool
    phase: float
    due: float
    put_at: float
    period: float = 0.0
    lost: float = 0.0

    def within(self, virtual: float) -> float:
        """When it is due, if it may have missed or be ahead by so many frames only."""
        earliest, latest = self.phase - _CREDIT, self.phase + _DEBT
        return min(max(self.due, virtual + earliest / self.weight), virtual + latest / self.weight)

    @property
    def short(self) -> bool:
        """Whether it gets fewer frames than it has."""
        return self.lost > _SHORT if self.live else True

    def silent(self, periods: float, now: float) -> bool:
        return now - self.put_at > periods * self.period


class Turns(Generic[Key]):
    """The order among sources. Used under the mailbox's lock."""

    def __init__(self) -> None:
        self._flows: dict[Key, _Flow] = {}
        self._weights: Counter[float] = Counter()  # of all accounts
        self._short = 0  # live accounts that are short: asked at each put, so it must not be looked for
        self._virtual = 0.0  # how far service has come, in frames per weight; never goes back
        self._opened = 0
        self._look_at = 0.0  # when to look for silent sources next

    def __len__(self) -> int:
        """Sources that are known."""
        return len(self._flows)

    @property
    def alike(self) -> bool:
        """Whether all sources weigh the same: then taking what waits in turn is fair already."""
        return len(self._weights) <= 1

    @property
    def short(self) -> bool:
        """Whether some live source gets fewer frames than it has."""
        return self._short > 0

    def arrived(self, key: Key, *, weight: float, live: bool, now: float, replaced: bool) -> None:
        """A frame came; `replaced`: it took the place of one that had waited here."""
        flow = self._flows.get(key)
        if flow is None or flow.weight != weight:
            self._open(key, weight, live, now)
            return
        interval = now - flow.put_at
        # Two pictures at once are a burst of the network, no fault of the engine: the first has not waited in vain.
        in_vain = replaced and interval >= flow.period / 2
        was_short = flow.short
        flow.lost += _LOSSES * (in_vain - flow.lost)
        self._short += flow.short - was_short
        flow.period += (interval - flow.period) * (_PERIODS if flow.period else 1.0)
        flow.put_at = now

    def choose(self, waiting: Mapping[Key, int], count: int, *, now: float) -> list[Key]:
        """Whose frames to take, at most `count` of them and at least one; `waiting` is in turn order."""
        self._advance(waiting)
        due = [(*self._place(key, now), turn, key) for turn, key in enumerate(waiting)]
        coming = [] if self.alike else self._coming(waiting, now)
        heapq.heapify(due)
        left = dict(waiting)
        least = max(1, min(len(waiting), count) // _LEAST)
        chosen: list[Key] = []
        while due and len(chosen) < count:
            *when, turn, key = heapq.heappop(due)
            if len(chosen) >= least and coming and coming[0] < tuple(when):
                break  # a frame that is due earlier comes soon
            chosen.append(key)
            left[key] -= 1
            flow = self._flows[key]
            flow.due = flow.within(self._virtual) + 1 / flow.weight
            if left[key]:
                heapq.heappush(due, (*self._turn(flow), turn + len(waiting), key))
            elif flow.live and flow.short and not self.alike:
                heapq.heappush(coming, self._turn(flow))
        return chosen

    def _place(self, key: Key, now: float) -> tuple[float, float]:
        flow = self._flows[key]
        last = flow.live and flow.period and flow.silent(_OVERDUE, now)
        return (float("-inf"), 0.0) if last else self._turn(flow)

    def _turn(self, flow: _Flow) -> tuple[float, float]:
        """By when it is due; of those that are due already the heaviest first, since it is due again the soonest."""
        return max(flow.due, self._virtual), 1 / flow.weight

    def _coming(self, waiting: Collection[Key], now: float) -> list[tuple[float, float]]:
        """When the next frames are due of sources that are short, have nothing here, and will have something soon."""
        near = (flow for key, flow in self._flows.items() if key not in waiting and flow.live)
        coming = [self._turn(flow) for flow in near if flow.short and not flow.silent(_OVERDUE, now)]
        heapq.heapify(coming)
        return coming

    def _advance(self, waiting: Collection[Key]) -> None:
        """Virtual time is where the least served of all short sources has come to."""
        here = [self._flows[key] for key in waiting]
        for flow in here:
            flow.due = flow.within(self._virtual)
        starts = [flow.due for flow in here if flow.short] or [flow.due for flow in here]
        self._virtual = max(self._virtual, min(starts, default=0.0))

    def _open(self, key: Key, weight: float, live: bool, now: float) -> None:
        self._close(key)
        self._opened += 1
        phase = self._opened * _GOLDEN % 1.0
        self._flows[key] = _Flow(weight, live, phase, self._virtual + phase / weight, now)
        self._weights[weight] += 1

    def _close(self, key: Key) -> None:
        flow = self._flows.pop(key, None)
        if flow is not None:
            self._short -= flow.live and flow.short
            self._weights[flow.weight] -= 1
            self._weights = +self._weights

    def forget(self, waiting: Collection[Key], now: float) -> None:
        """Drop what is known of sources that are gone; cheap to call often."""
        if now < self._look_at and len(self._flows) <= len(waiting) + _MOST_FLOWS:
            return
        crowded = len(self._flows) > len(waiting) + _MOST_FLOWS
        self._look_at = now + 1.0
        for key in [key for key in self._flows if key not in waiting]:
            flow = self._flows[key]
            silent = now - flow.put_at > _FORGET and flow.silent(_SILENT, now)
            if silent or (crowded and not flow.live):
                self._close(key)


def water_fill(demands: Mapping[Key, tuple[float, float]], capacity: float) -> dict[Key, float]:
    """Shares of `capacity` by weight, none above its demand: min(demand, k x weight) with the largest k that fits.

    `demands` holds (demand, weight) by name.
    """
    shares: dict[Key, float] = {}
    weight = sum(weight for _, weight in demands.values())
    for name, (demand, own) in sorted(demands.items(), key=lambda item: item[1][0] / item[1][1]):
        shares[name] = min(demand, capacity * own / weight) if weight > _EPSILON else 0.0
        capacity -= shares[name]
        weight -= own
    return {name: shares[name] for name in demands}
