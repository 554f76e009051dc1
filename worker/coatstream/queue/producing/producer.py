"""Puts pictures into the frames stream: bounded, each one once, and with back-pressure for whoever makes them.

    with Producer.connect(settings) as producer:
        producer.put(Picture(jpeg, source="door-1"))

Decodes nothing. A plain XADD does as well, but knows no bound: this is for who wants to be told when the queue is full.
"""

import random
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from coatstream.broker.connection import Client, connect
from coatstream.broker.keys import Queue, queues_of
from coatstream.broker.preflight import check_rights, check_server, check_slots, check_types
from coatstream.errors import SLOW_RETRY, Backoff, BadFrame, CoatstreamError, ConfigError, DeadReason, RedisUnavailable
from coatstream.queue.producing.admission import (
    MAX_BYTES,
    MAX_ENTRIES,
    Admission,
    Candidate,
    Confirm,
    Confirmation,
    Verdict,
    admission_keys,
    admission_rights,
    admission_types,
)
from coatstream.queue.producing.picture import Picture, RawPicture, fields_of
from coatstream.settings.model import QueueSettings, SettingsTree

__all__ = ["Picture", "Producer", "QueueFull", "RawPicture", "Terms", "name_of_queue", "queues_to_fill"]

ROOM: Final = Backoff(first=0.01, longest=1.0)  # between two looks at a full queue
RETRY: Final = Backoff(first=0.05, longest=2.0)  # between two tries while Redis is away
GIVEN_LIFE: Final = 7 * 86_400.0  # seconds that the server remembers a sequence that the caller gave
MADE_LIFE: Final = 86_400.0  # and one that was made here: nobody else repeats it, so it has only to outlive an outage


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


@dataclass(slots=True, eq=False)
class _Held:
    """A frame that was put and is not settled. `doubtful`: it was sent, and no answer came."""

    frame: Candidate
    admission: Admission
    doubtful: bool = False


class Producer:
    """One thread's way into one queue, whose partitions are `queues`; a source always goes to the same of them.

    Every frame that was put is counted once: put = sent + refused + doubtful + held.

    sent        frames that the server has, as safely as was asked for
    duplicates  those of them that it had before: they came again, and were not taken twice
    refused     frames for which there was no room, and that were dropped
    doubtful    frames that were given up with `forget` while nobody knew whether they had arrived
    """

    def __init__(
        self,
        client: Client,
        queues: Sequence[Queue],
        limits: QueueSettings,
        terms: Terms = Terms(),
        *,
        stop: threading.Event | None = None,
        on_wait: Callable[[float, str], None] = lambda _seconds, _why: None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        """`stop` ends every wait. `on_wait` hears before each wait for room how many seconds it has lasted, and why."""
        self.sent = self.duplicates = self.refused = self.doubtful = 0
        confirmation = Confirmation(terms.confirm, terms.replicas, terms.confirm_timeout)
        self._ways = [
            Admission(client, queue, limits, confirmation=confirmation, counts=terms.when_full == "drop")
            for queue in queues
        ]
        self._limits = limits
        self._terms = terms
        self._stop = stop or threading.Event()
        self._on_wait = on_wait
        self._clock = clock
        self._rng = rng or random.Random()
        self._name = secrets.token_hex(8)  # so that producers of one source do not take each other's for repetitions
        self._sequence = 0
        self._held: list[_Held] = []
        self._checked: set[Admission] = set()

    @classmethod
    @contextmanager
    def connect(
        cls,
        settings: SettingsTree,
        terms: Terms = Terms(),
        *,
        stream: str | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Self]:
        """A producer with a client of its own; what is held is sent on leaving, unless by an exception.

        `stream` names one of several queues; None is the first. Raises ConfigError and RedisUnavailable.
        """
        if terms.confirm != "none" and terms.confirm_timeout >= settings.redis.socket_timeout:
            raise ConfigError(
                f"confirm_timeout ({terms.confirm_timeout:g}) must be shorter than redis.socket_timeout "
                f"({settings.redis.socket_timeout:g}), or no reply would come in time"
            )
        with connect(settings.redis) as client:
            producer = cls(client, queues_to_fill(client, settings, stream), settings.queue, terms, stop=stop)
            yield producer
            producer.flush()

    @property
    def held(self) -> int:
        """Frames that were put and are neither sent nor given up."""
        return len(self._held)

    @property
    def unsure(self) -> int:
        """How many of those were sent, and no answer came: they may have arrived."""
        return sum(held.doubtful for held in self._held)

    def put(self, picture: Picture) -> None:
        """Take this picture, and send when `batch` of them are there.

        Raises BadFrame for what no worker would take. Raises as `flush` does: then this picture is held too. While as
        much is held as one call takes, that is sent first; where that fails, this picture is not taken.
        """
        held = self._candidate(picture)
        if self._held and (len(self._held) >= self._terms.batch or self._bytes() + held.frame.size > MAX_BYTES):
            self.flush()
        self._held.append(held)
        if len(self._held) >= self._terms.batch or self._bytes() >= MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is held, again and again if need be; each frame goes in once however often it is sent.

        Raises QueueFull (no room until `full_timeout` or `stop`), RedisUnavailable (away for `retry_time`, or not
        confirmed until then), RedisRefuses and ConfigError (waiting is no use). Then the rest is held: flush it later,
        within a day, or forget it.
        """
        while self._held:
            self._send(self._held[0].admission)

    def forget(self) -> int:
        """Give up what is held. Returns how many frames that were."""
        for held in self._held:
            self.doubtful += held.doubtful
            self.refused += not held.doubtful
        forgotten, self._held = len(self._held), []
        return forgotten

    def _send(self, admission: Admission) -> None:
        """Everything that is held for one queue."""
        away = _Wait(RETRY, self._terms.retry_time, self._stop, self._rng)
        full = _Wait(ROOM, self._terms.full_timeout, self._stop, self._rng)
        while mine := [held for held in self._held if held.admission is admission]:
            try:
                verdicts = self._ask(admission, mine)
            except RedisUnavailable as trouble:
                if not away.once_more(SLOW_RETRY if trouble.slow else 0):
                    raise
                continue
            away.end()
            if self._book(mine, verdicts):
                full.end()
            else:
                why = _want(admission.queue, verdicts)
                self._on_wait(full.lasted(), why)
                if not full.once_more():
                    raise QueueFull(f"{why}, and no room came in time")

    def _ask(self, admission: Admission, some: Sequence[_Held]) -> list[Verdict]:
        if admission not in self._checked:
            admission.check()
            self._checked.add(admission)
        for held in some:
            held.doubtful = True  # unless an answer comes
        verdicts = admission.ask([held.frame for held in some])
        for held in some:
            held.doubtful = False
        return verdicts

    def _book(self, some: Sequence[_Held], verdicts: Sequence[Verdict]) -> bool:
        """Count, and let go of what is settled. False if nothing was."""
        settled = set()
        for held, verdict in zip(some, verdicts, strict=True):
            if verdict in (Verdict.ADMITTED, Verdict.DUPLICATE):
                self.sent += 1
                self.duplicates += verdict is Verdict.DUPLICATE
            elif self._terms.when_full == "drop":
                self.refused += 1
            else:
                continue
            settled.add(held)
        self._held = [held for held in self._held if held not in settled]
        return bool(settled)

    def _candidate(self, picture: Picture) -> _Held:
        """Raises BadFrame."""
        fields = fields_of(picture)
        size, most = sum(map(len, fields)), self._limits.max_total_bytes
        if size > most:
            raise BadFrame(
                DeadReason.TOO_LARGE, f"it has {size} bytes, more than queue.max_total_bytes ({most}) for all together"
            )
        source = picture.source
        admission = self._ways[zlib.crc32(source.encode()) % len(self._ways)]
        if picture.sequence is not None:
            frame = Candidate(source, admission.queue.sequence(source), GIVEN_LIFE, picture.sequence, fields, size)
        else:
            key = admission.queue.sequence(f"{source}:{self._name}")
            frame = Candidate(source, key, MADE_LIFE, self._next(), fields, size)
        return _Held(frame, admission)

    def _next(self) -> int:
        """From the clock, so that a reader sees them rise over restarts, and by one at least."""
        self._sequence = max(self._sequence + 1, int(self._clock() * 1_000_000))
        return self._sequence

    def _bytes(self) -> int:
        return sum(held.frame.size for held in self._held)


@dataclass(slots=True)
class _Wait:
    """A time in which nothing goes forward. `longest` is its bound, None for none."""

    backoff: Backoff
    longest: float | None
    stop: threading.Event
    rng: random.Random
    since: float | None = field(default=None, init=False)
    attempts: int = field(default=0, init=False)

    def once_more(self, least: float = 0) -> bool:
        """Wait before the next try; False where the time is up, or `stop` is set."""
        left = float("inf") if self.longest is None else self.longest - self.lasted()
        if left <= 0:
            return False
        delay = max(least, self.backoff.delay(self.attempts, self.rng))
        self.attempts += 1
        return not self.stop.wait(min(delay, left))

    def lasted(self) -> float:
        """Seconds since this began: now, if it had not."""
        now = time.monotonic()
        if self.since is None:
            self.since = now
        return now - self.since

    def end(self) -> None:
        self.since, self.attempts = None, 0


def _want(queue: Queue, verdicts: Sequence[Verdict]) -> str:
    """Why there is no room."""
    return "Redis is at its maxmemory" if Verdict.OUT_OF_MEMORY in verdicts else f"the queue {queue.stream} is full"


def name_of_queue(settings: SettingsTree, stream: str | None = None) -> str:
    """That of the queue which `stream` names; of the first one where it is None. Raises ConfigError."""
    names = [entry.stream for entry in settings.queues] or [settings.queue.stream]
    if stream is not None and stream not in names:
        raise ConfigError(f"there is no queue {stream}: the settings have {', '.join(names)} (queues, queue.stream)")
    return stream or names[0]


def queues_to_fill(client: Client, settings: SettingsTree, stream: str | None = None) -> list[Queue]:
    """The partitions of that queue, looked at.

    Raises ConfigError (there is none, its keys hold something else, lie in several slots) and RedisUnavailable.
    """
    name = name_of_queue(settings, stream)
    parts = [queue for queue in queues_of(settings) if queue.name == name]
    check_server(client, settings.redis)
    for part in parts:
        check_rights(client, admission_rights(part), keyless=("EVAL", "EVALSHA"))
        check_types(client, admission_types(part))
        check_slots(client, [*admission_keys(part), part.sequence("source")])
    return parts
