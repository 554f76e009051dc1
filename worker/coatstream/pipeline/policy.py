"""When a batch leaves and how large it is, under a target for the time from arrival to label. Waits for nothing itself.

Without a target a batch takes what is there, as Triton's and LitServe's batchers do; only the size of a full one comes
from the measured costs. With a target:

- A batch waits for the next frame while that pays. A frame that joins n others finds the fixed cost paid: it saves
  `cost.saves(n)`, less the `gap` until it comes, while each of the n waits for the gap and for what one more adds. So
  n (gap + adds) must be below saves - gap. Where another stream is free it never pays: the next frame has that one to
  itself.
- The gap is the mean of the last second or so, counted over the span and not from frame to frame: cameras come in
  bursts.
- A wait ends when it has cost as much as it could save. So it is at most twice the best choice, even where the next
  frame never comes; and it ends when the oldest frame would be late, publishing included.
- A batch is as large as still lets the oldest frame be in time, if batches of that size keep up with what arrives.
  Otherwise it takes what is there, up to a full one: smaller batches would make all others late. (Simulated: a fixed
  smaller size under a target, as one would expect, misses it more often from 80 % load on.)

BentoML's dispatcher (CORK) has the same linear model, refitted on the last batches of a server that serves already. It
polls each millisecond, waits while n x (age of the newest + a) is below the mean wait of its last batches, and cancels
requests that it takes to be late. Here the model is measured before the first frame and follows the load by one factor,
frames wake the wait, and none is dropped for being late: a queue's frames must have their labels. Clipper raises its
largest batch until the target is missed and then takes a tenth off: that needs misses to learn from. Triton takes a
delay and preferred sizes from its user.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import exp, inf
from typing import Final

from coatstream.pipeline.cost import BatchCost
from coatstream.settings.model import BatchSettings

_SPAN: Final = 1.0  # seconds over which arrivals are counted, mostly
_SILENCE: Final = 15.0  # seconds that count of a longer one: a night's would outweigh what comes after it for long
_NEWEST: Final = 1 / 8  # weight of the newest batch in what batches take lately
_DEVIATIONS: Final = 4.0  # mean ones, above the mean: hardly ever exceeded (as in TCP's timer)
_SPARE: Final = 1.05  # times what arrives: what batches of a size must reach to keep up, since the gap is an estimate
_ROUNDING: Final = 0.1  # of a frame: a mean that comes near a whole number counts as that
_SLOWEST: Final = 4.0  # times the measured cost: one batch that hung tells nothing about the next


class LeftBecause(StrEnum):
    """Why a batch did not wait any longer."""

    FULL = "full"
    DEADLINE = "deadline"  # max_wait had passed since its first frame
    TARGET = "target"  # its oldest frame would have missed target_latency
    PAYS_NO_MORE = "pays_no_more"  # waiting for the next frame would have cost more than it saves
    DRAIN = "drain"  # no more frames will come


@dataclass(frozen=True, slots=True)
class BatchWait:
    """Seconds that a batch may wait for its next frame; and why it leaves when none has come by then."""

    seconds: float
    then: LeftBecause


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What was chosen, and why.

    cap           frames in a full batch
    full          inputs of the model in one: a frame has several where a camera's whole picture is seen, or regions
    views         inputs that a frame has on average, lately
    expected_gap  seconds to the next frame; infinite before the second one
    slowdown      times the measured cost that batches take lately
    margin        seconds that are kept for publishing
    """

    cost: BatchCost
    cap: int
    expected_gap: float
    slowdown: float
    margin: float
    full: int = 0
    views: float = 1.0


class BatchPolicy:
    """Called on the loop only.

    Frames are what waits; what they cost goes by the inputs of the model that they have on average.

    `target`: seconds from arrival to label; None: take what is there, wait for `max_wait` at most. With a target a
    `max_wait` above 0 is another bound.
    """

    def __init__(
        self,
        cost: BatchCost,
        cap: int,
        *,
        target: float | None = None,
        max_wait: float = 0.0,
        cap_for: Callable[[BatchCost], int] | None = None,
    ) -> None:
        """`cap`: inputs in a full batch. `cap_for`: the same by other costs (see `learn`); None: `cap` again."""
        self._full = cap
        self._views = 1.0
        self._cap_for = cap_for
        self.target = target
        self.max_wait = max_wait
        self.learn(cost)
        self._arrivals = _Arrivals()
        self._slowdown = 1.0
        self._publishing = _Usual()

    @classmethod
    def from_settings(cls, batch: BatchSettings, cost: BatchCost) -> "BatchPolicy":
        """Sizes that the user has prepared are the user's choice; else full batches are as large as pays."""

        def cap_for(cost: BatchCost) -> int:
            return batch.max_size if batch.prepared else cost.best_size(batch.max_size)

        return cls(cost, cap_for(cost), target=batch.target_latency, max_wait=batch.max_wait, cap_for=cap_for)

    @property
    def cap(self) -> int:
        """Frames in a full batch; at least one."""
        return max(1, int(self._full / self._views + _ROUNDING))

    def learn(self, cost: BatchCost) -> None:
        """These are the costs from now on."""
        self._cost = cost
        if self._cap_for is not None:
            self._full = self._cap_for(cost)
        self._measured = tuple(cost.seconds(size) if size else 0.0 for size in range(self._full + 1))

    def stats(self) -> BatchStats:
        return BatchStats(
            cost=self._cost,
            cap=self.cap,
            expected_gap=self._arrivals.gap,
            slowdown=self._slowdown,
            margin=self._publishing.at_most,
            full=self._full,
            views=self._views,
        )

    # ---- what happened

    def took(self, put_at: Iterable[float], *, inputs: int | None = None) -> None:
        """A batch has left, of frames that came at these times (monotonic seconds).

        `inputs`: how many they have in all; None: one each.
        """
        times = list(put_at)
        self._arrivals.add(times)
        own = 1.0 if inputs is None else inputs / len(times)
        self._views += _NEWEST * (own - self._views)

    def classified(self, inputs: int, seconds: float) -> None:
        """A batch of so many inputs was back from the engine after so long."""
        times = seconds / max(self._of_inputs(inputs), 1e-9)
        # It was measured with nothing else to do; and frames that needed no model must not make it look faster.
        self._slowdown += _NEWEST * (min(max(times, 1.0), _SLOWEST) - self._slowdown)

    def published(self, seconds: float) -> None:
        """A batch's labels were out so long after it had come back from the engine."""
        self._publishing.add(seconds)

    # ---- what to do

    def patience(self, waiting: int, *, oldest: float, now: float, crowded: bool) -> BatchWait:
        """How long `waiting` frames, the oldest of which came at `oldest`, wait for one more. Zero: they leave now.

        `crowded`: no other stream is free.
        """
        if waiting >= self.cap:
            return BatchWait(0.0, LeftBecause.FULL)
        bounds = [(self._worth(waiting) if crowded else 0.0, LeftBecause.PAYS_NO_MORE)]
        if self.target is not None:
            bounds.append((self._slack(oldest, now) - self._seconds(waiting + 1), LeftBecause.TARGET))
        if self.max_wait > 0:
            bounds.append((oldest + self.max_wait - now, LeftBecause.DEADLINE))
        seconds, then = min(bounds, key=lambda bound: max(0.0, bound[0]))
        return BatchWait(max(0.0, seconds), then)

    def size(self, waiting: int, *, oldest: float, now: float) -> int:
        """How many of the `waiting` frames leave together; at least one."""
        most = min(waiting, self.cap)
        if self.target is None:
            return most
        slack = self._slack(oldest, now)
        timely = next((size for size in range(most, 0, -1) if self._seconds(size) <= slack), most)
        return timely if self._keeps_up(timely) else most

    def _slack(self, oldest: float, now: float) -> float:
        """Seconds that the engine may take for the oldest frame to be in time."""
        return inf if self.target is None else oldest + self.target - self._publishing.at_most - now

    def _worth(self, waiting: int) -> float:
        """Seconds that waiting for one more frame may cost; 0 where the frame is expected to come later than that."""
        fixed, adds = self._cost.fixed, self._cost.adds(waiting)
        saved = fixed + self._views * (self._cost.saves(waiting) - fixed - waiting * adds)
        worth = saved * self._slowdown / (waiting + 1)
        return worth if self._arrivals.gap <= worth else 0.0

    def _keeps_up(self, size: int) -> bool:
        return self._cost.streams * size * self._arrivals.gap >= _SPARE * self._seconds(size)

    def _seconds(self, count: int) -> float:
        """Of so many frames."""
        return self._slowdown * self._of_inputs(round(count * self._views))

    def _of_inputs(self, count: int) -> float:
        return self._measured[count] if count <= self._full else self._cost.seconds(count)


class _Arrivals:
    """Frames over the time in which they came; the older, the less they count."""

    def __init__(self) -> None:
        self._frames = 0.0
        self._span = 0.0
        self._newest: float | None = None

    @property
    def gap(self) -> float:
        """Mean seconds from one frame to the next; infinite where two have not come yet."""
        return self._span / self._frames if self._frames else inf

    def add(self, put_at: Iterable[float]) -> None:
        times = sorted(put_at)
        if self._newest is None:
            self._newest = times.pop(0)  # a gap needs two
        if not times:
            return
        passed = min(max(0.0, times[-1] - self._newest), _SILENCE)
        fade = exp(-passed / _SPAN)
        self._frames = self._frames * fade + len(times)
        self._span = self._span * fade + passed
        self._newest = max(times[-1], self._newest)


class _Usual:
    """A mean and its mean deviation, of what was lately."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._deviation = 0.0
        self._known = False

    @property
    def at_most(self) -> float:
        """What is hardly ever exceeded; 0 before the first."""
        return self._mean + _DEVIATIONS * self._deviation

    def add(self, value: float) -> None:
        if not self._known:
            self._mean, self._deviation, self._known = value, value / 2, True
            return
        self._deviation += _NEWEST * (abs(value - self._mean) - self._deviation)
        self._mean += _NEWEST * (value - self._mean)
