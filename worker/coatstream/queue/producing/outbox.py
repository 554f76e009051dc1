"""What one producer has put and the queue has not answered for: held, sent again, counted. Does no I/O."""

import random
import secrets
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from coatstream.broker.keys import Queue
from coatstream.broker.steps import Signal, Steps, Wait
from coatstream.errors import (
    RETRY,
    Backoff,
    BadFrame,
    CoatstreamError,
    ConfigError,
    DeadReason,
    RedisUnavailable,
    Retries,
)
from coatstream.queue.producing.admission import (
    MAX_BYTES,
    MAX_ENTRIES,
    Admission,
    Answer,
    Candidate,
    Confirm,
    Confirmation,
    Verdict,
)
from coatstream.queue.producing.picture import Picture, fields_of
from coatstream.settings.model import QueueSettings

ROOM: Final = Backoff(first=0.01, longest=1.0)  # between two looks at a full queue
GIVEN_LIFE: Final = 7 * 86_400.0  # seconds that the server remembers a sequence that the caller gave
MADE_LIFE: Final = 86_400.0  # and one that was made here: no other producer repeats it, so it has to outlive an outage
REMEMBERED: Final = 10_000  # frames that were sent, of which `wait_for` knows source and entry


class QueueFull(CoatstreamError):
    """No room in time. What was not taken is held: put the same again with `flush`, or give it up with `forget`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How pictures are put. Durations are seconds.

    when_full        wait: for room, `full_timeout` at most (None: for ever); drop: lose the frame and count it
    batch            frames of one call; more than 1 is faster, and the last ones wait for `flush`
    retry_time       how long a call is tried again while Redis is away
    confirm          when a frame counts as sent. none: the server has it. replicas: so many replicas have it as well
                     (WAIT). disk: it is on the server's disk (WAITAOF, from Redis 7.2 and Valkey 7.2 on)
    confirm_timeout  how long one call waits for that
    """

    when_full: Literal["wait", "drop"] = "wait"
    full_timeout: float | None = None
    batch: int = 1
    retry_time: float = 10.0
    confirm: Confirm = "none"
    replicas: int = 1
    confirm_timeout: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MAX_ENTRIES:
            raise ConfigError(f"batch is {self.batch}; give 1 to {MAX_ENTRIES}")
        if self.when_full not in ("wait", "drop"):
            raise ConfigError(f"when_full is {self.when_full!r}, not wait or drop")
        if self.confirm not in ("none", "replicas", "disk"):
            raise ConfigError(f"confirm is {self.confirm!r}, not none, replicas or disk")
        if self.replicas < 1:
            raise ConfigError(f"replicas is {self.replicas}; give at least 1")


AS_USUAL: Final = Terms()


class Sent(NamedTuple):
    """A frame that the queue has. `entry_id` is empty for a duplicate of a frame before its source's last one."""

    source: str
    entry_id: str


@dataclass(slots=True, eq=False)
class _Held:
    """A frame that was put and is not settled. `doubtful`: it was sent, and no answer came."""

    frame: Candidate
    admission: Admission
    frame_id: str
    doubtful: bool = False
    answer: Answer | None = None


class Outbox:
    """Used by one caller at a time. The counters are those of `Producer`."""

    def __init__(
        self,
        queues: Sequence[Queue],
        limits: QueueSettings,
        terms: Terms,
        *,
        stop: Signal,
        on_wait: Callable[[float, str], None],
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.sent = self.duplicates = self.refused = self.doubtful = 0
        self.recent: OrderedDict[str, Sent] = OrderedDict()  # by the frame's own id
        confirmation = Confirmation(terms.confirm, terms.replicas, terms.confirm_timeout)
        self._ways = [
            Admission(queue, limits, confirmation=confirmation, counts=terms.when_full == "drop") for queue in queues
        ]
        self._limits = limits
        self._terms = terms
        self._stop = stop
        self._on_wait = on_wait
        self._clock = clock
        self._rng = rng
        self._name = secrets.token_hex(8)  # so that producers of one source do not take each other's for repetitions
        self._sequence = 0
        self._held: list[_Held] = []
        self._checked: set[Admission] = set()

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def unsure(self) -> int:
        return sum(held.doubtful for held in self._held)

    def queue_of(self, source: str) -> Queue:
        """The partition that all frames of a source go to."""
        return self._way(source).queue

    def put(self, picture: Picture) -> Steps[None]:
        held = self._candidate(picture)
        if self._held and (len(self._held) >= self._terms.batch or self._bytes() + held.frame.size > MAX_BYTES):
            yield from self.flush()
        self._held.append(held)
        if len(self._held) >= self._terms.batch or self._bytes() >= MAX_BYTES:
            yield from self.flush()

    def put_at_once(self, picture: Picture, deadline: float) -> Steps[str]:
        """Send this picture, after what is held. Returns the entry's id, empty as in `Sent`.

        No try begins after `deadline`, on the monotonic clock, but the first.

        Raises BadFrame, QueueFull and what `flush` does; then the picture is given up.
        """
        held = self._candidate(picture)
        if self._held:
            yield from self.flush(deadline)
        self._held.append(held)
        try:
            yield from self.flush(deadline)
        finally:
            if held in self._held:
                self._give_up([held])
        if held.answer is None or held.answer.verdict not in (Verdict.ADMITTED, Verdict.DUPLICATE):
            raise QueueFull(f"the queue {held.admission.queue.stream} is full, and the frame was dropped")
        return held.answer.entry_id

    def flush(self, deadline: float = float("inf")) -> Steps[None]:
        while self._held:
            yield from self._send(self._held[0].admission, deadline)

    def forget(self) -> int:
        return self._give_up(self._held)

    def _give_up(self, some: Sequence[_Held]) -> int:
        for held in some:
            self.doubtful += held.doubtful
            self.refused += not held.doubtful
        self._held = [held for held in self._held if held not in some]
        return len(some)

    def _send(self, admission: Admission, deadline: float) -> Steps[None]:
        """Everything that is held for one queue. `deadline`: where that comes before the terms' own bounds."""
        away = _Patience(Retries(RETRY, self._rng), self._terms.retry_time, deadline, self._stop)
        full = _Patience(Retries(ROOM, self._rng), self._terms.full_timeout, deadline, self._stop)
        while mine := [held for held in self._held if held.admission is admission]:
            try:
                answers = yield from self._ask(admission, mine)
            except RedisUnavailable as trouble:
                if not (yield from away.once_more(trouble)):
                    raise
                continue
            away.end()
            if self._book(mine, answers):
                full.end()
            else:
                why = _want(admission.queue, answers)
                self._on_wait(full.lasted(), why)
                if not (yield from full.once_more()):
                    raise QueueFull(f"{why}, and no room came in time")

    def _ask(self, admission: Admission, some: Sequence[_Held]) -> Steps[list[Answer]]:
        if admission not in self._checked:
            yield from admission.check()
            self._checked.add(admission)
        for held in some:
            held.doubtful = True  # unless an answer comes
        answers = yield from admission.ask([held.frame for held in some])
        for held in some:
            held.doubtful = False
        return answers

    def _book(self, some: Sequence[_Held], answers: Sequence[Answer]) -> bool:
        """Count, and let go of what is settled; False if nothing was. What was given up meanwhile has been counted."""
        settled = set()
        for held, answer in zip(some, answers, strict=True):
            if held not in self._held:
                settled.add(held)
            elif answer.verdict in (Verdict.ADMITTED, Verdict.DUPLICATE):
                self.sent += 1
                self.duplicates += answer.verdict is Verdict.DUPLICATE
                self._remember(held, answer)
            elif self._terms.when_full == "drop":
                self.refused += 1
            else:
                continue
            held.answer = answer
            settled.add(held)
        self._held = [held for held in self._held if held not in settled]
        return bool(settled)

    def _remember(self, held: _Held, answer: Answer) -> None:
        frame_id = held.frame_id or answer.entry_id
        self.recent[frame_id] = Sent(held.frame.source, answer.entry_id)
        self.recent.move_to_end(frame_id)
        if len(self.recent) > REMEMBERED:
            self.recent.popitem(last=False)

    def _candidate(self, picture: Picture) -> _Held:
        """Raises BadFrame."""
        fields = fields_of(picture)
        size, most = sum(map(len, fields)), self._limits.max_total_bytes
        if size > most:
            raise BadFrame(
                DeadReason.TOO_LARGE, f"it has {size} bytes, more than queue.max_total_bytes ({most}) for all together"
            )
        source, admission = picture.source, self._way(picture.source)
        if picture.sequence is not None:
            frame = Candidate(source, admission.queue.sequence(source), GIVEN_LIFE, picture.sequence, fields, size)
        else:
            key = admission.queue.sequence(f"{source}:{self._name}")
            frame = Candidate(source, key, MADE_LIFE, self._next(), fields, size)
        return _Held(frame, admission, picture.frame_id)

    def _way(self, source: str) -> Admission:
        return self._ways[zlib.crc32(source.encode()) % len(self._ways)]

    def _next(self) -> int:
        """From the clock, so that a reader sees them rise over restarts, and by one at least."""
        self._sequence = max(self._sequence + 1, int(self._clock() * 1_000_000))
        return self._sequence

    def _bytes(self) -> int:
        return sum(held.frame.size for held in self._held)


@dataclass(slots=True)
class _Patience:
    """A time in which nothing goes forward. It ends after `longest` seconds (None: never), and at `deadline`."""

    retries: Retries
    longest: float | None
    deadline: float
    stop: Signal
    since: float | None = field(default=None, init=False)

    def once_more(self, trouble: CoatstreamError | None = None) -> Steps[bool]:
        """Wait before the next try; False where the time is up, or `stop` is set."""
        left = self.deadline - time.monotonic()
        if self.longest is not None:
            left = min(left, self.longest - self.lasted())
        if left <= 0:
            return False
        return not (yield Wait(self.stop, min(self.retries.failed(trouble), left)))

    def lasted(self) -> float:
        """Seconds since this began: now, if it had not."""
        now = time.monotonic()
        if self.since is None:
            self.since = now
        return now - self.since

    def end(self) -> None:
        self.since = None
        self.retries.worked()


def _want(queue: Queue, answers: Sequence[Answer]) -> str:
    """Why there is no room."""
    out_of_memory = any(answer.verdict is Verdict.OUT_OF_MEMORY for answer in answers)
    return "Redis is at its maxmemory" if out_of_memory else f"the queue {queue.stream} is full"
