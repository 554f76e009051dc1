"""This worker's part in the fleet: which cameras it reads now, and until when it may speak for them.

Any number of workers share all cameras, those of the settings and those from Redis. The server decides who reads which
(`broker/leases`); here its answers become readers that start and stop, and tenures that end in time. Reads nothing.
"""

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final

from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet.access import registry
from coatstream.cameras.fleet.assignments import Assignments, Departure
from coatstream.cameras.fleet.calls import BackgroundCall
from coatstream.cameras.fleet.known import KnownCameras, digest
from coatstream.cameras.fleet.leases import Answer, Lease, Leases, Mode
from coatstream.cameras.fleet.registry import Content
from coatstream.cameras.fleet.stats import FleetStats
from coatstream.cameras.fleet.tenure import Tenure
from coatstream.errors import SLOW_RETRY, CoatstreamError, ConfigError, RedisRefuses
from coatstream.settings.model import CameraSettings, SettingsTree

BEATS_A_LEASE: Final = 5
POLL: Final = 0.1  # seconds between two looks at the version: how late a worker hears of a change; 1 % of a slow core
GAP: Final = 0.05  # seconds at least between two beats
IDLE_POLL: Final = 1.0  # seconds, the same where there is no camera yet
TICK: Final = 0.2  # seconds for which at most nothing is noticed of the stop
AFTER_TROUBLE: Final = 0.25  # seconds until Redis is tried again; doubles, up to the next
LONGEST_TROUBLE: Final = 1.0
LONGEST_RETIREMENT: Final = 3.0  # seconds; two openings of a slow camera
EVERY_FRAME: Final = 25.0  # frames a second that a camera of `fps: 0` is taken to send


class Fleet:
    """`run` blocks until its `stop`, and takes part from `begin` on; it calls back in its thread. All other methods may
    be called from any.

    start        read this camera; publish under the tenure's fence, and tell the tenure of its pictures. Raises
                 ConfigError for one that cannot be read here: it is left out until its settings change
    stop         read it no more, and why; it may have ended by itself
    predecessors workers that crashed and that this one comes after: their cameras are its own at once
    room         frames a second that this worker accepts from shared cameras; None: any number
    rate         what one camera asks of that
    on_trouble   told of each call that failed, on_success of each beat that went through
    on_finished  told when `finished` has become true
    connected    False: Redis refuses us the keys, so there are no shared cameras (see `cameras.fleet.access.reachable`)
    """

    def __init__(
        self,
        client: Client,
        keys: FleetKeys,
        settings: SettingsTree,
        *,
        worker: str,
        start: Callable[[CameraSettings, Tenure], None],
        stop: Callable[[str, Departure], None],
        predecessors: Collection[str] = (),
        room: Callable[[], float | None] = lambda: None,
        rate: Callable[[CameraSettings], float] = lambda camera: camera.fps or EVERY_FRAME,
        on_trouble: Callable[[CoatstreamError], None] = lambda trouble: None,
        on_success: Callable[[], None] = lambda: None,
        on_finished: Callable[[], None] = lambda: None,
        connected: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        section = settings.fleet
        self._leases = Leases(client, keys, worker=worker, lease=section.lease)
        self._registry = registry(client, keys, section)
        self._lease = section.lease
        self._retirement = min(LONGEST_RETIREMENT, settings.drain.timeout / 4)
        self._predecessors: Collection[str] = predecessors
        self._room = room
        self._on_trouble, self._on_success, self._on_finished = on_trouble, on_success, on_finished
        self._connected = connected
        self._monotonic = monotonic
        self._begun, self._wake = threading.Event(), threading.Event()
        self._retired, self._left = threading.Event(), threading.Event()
        self._lock = threading.Lock()  # guards the next three
        self._mode: Mode = "stay"
        self._ended: dict[str, str] = {}  # camera -> digest of the settings under which it ended
        self._stats = FleetStats()
        self._known = KnownCameras(settings.cameras, rate=rate)
        # All below is the business of the thread that runs.
        self._assignments = Assignments(start, stop)
        self._answer: Answer | None = None
        self._wanted: Collection[str] = ()  # what the server last wanted us to read
        self._until = float("-inf")  # when all tenures of shared cameras end
        self._version = b""  # of what this worker knows
        self._stale, self._dirty = True, True  # the registry must be read; a beat must be made
        self._read_at = self._beat_at = self._asked_at = self._resumes_at = float("-inf")
        self._failures = 0  # calls in a row, since the last beat that went through
        self._sent: object = None  # what the last beat said of this worker
        self._finished = False

    # ---- for other threads

    def begin(self) -> None:
        """Read cameras from now on."""
        self._begun.set()
        self._wake.set()

    def ended(self, name: str) -> None:
        """This camera has come to its own end: a file was read. No worker shall begin it again."""
        unshared = self._known.unshared.get(name)
        under = self._known.digest_of(name) or "" if unshared is None else digest(unshared)
        with self._lock:
            self._ended[name] = under
        self._wake.set()

    def retire(self) -> bool:
        """Keep every camera until another worker has opened it, and take no new ones. Returns when nobody is about to
        take any more, at once where nobody else is there, or after `LONGEST_RETIREMENT`: then False.
        """
        self._become("leaving")
        return self._retired.wait(self._retirement)

    def leave(self, within: float = 1.0) -> bool:
        """Give everything up at once. False: Redis was not told in time; then others wait until the lease is over."""
        self._become("gone")
        return self._left.wait(within)

    @property
    def finished(self) -> bool:
        """No camera will ever deliver again: all were files that have ended, and none comes from Redis."""
        return self._finished

    def stats(self) -> FleetStats:
        with self._lock:
            return self._stats

    def _become(self, mode: Mode) -> None:
        with self._lock:
            if self._mode != "gone":
                self._mode = mode
        self._wake.set()

    # ---- the thread

    def run(self, stop: threading.Event) -> None:
        """Take part until `stop`. Tenures end then, readers are left to who stops them."""
        background_call = BackgroundCall(self._wake)
        try:
            while not (stop.is_set() or self._begun.is_set()):
                self._wake.wait(TICK)
                if self._mode == "gone":
                    self._left.set()  # it was never there
            self._tend_unshared()
            while not stop.is_set():
                self._step(background_call)
                self._wake.wait(self._rest(background_call))
        finally:
            background_call.close()
            self._assignments.fall_silent()

    def _step(self, background_call: BackgroundCall) -> None:
        self._wake.clear()
        background_call.deliver(self._failed)
        self._let_go_in_time()
        if self._connected:
            if background_call.idle:
                self._send(background_call)
        else:
            self._retired.set()
            if self._mode == "gone":
                self._left.set()
        self._conclude()

    def _rest(self, background_call: BackgroundCall) -> float:
        """Seconds until there may be something to do; the courier, tenures and other threads wake us before."""
        now = self._monotonic()
        wait = TICK
        if background_call.idle and self._connected and not self._left.is_set():
            wait = min(wait, max(self._resumes_at, self._due()) - now)
        if self._assignments.lapsing:
            wait = min(wait, self._until - now)
        return max(wait, 0.005)

    def _due(self) -> float:
        """When the next call is."""
        if self._has_news():
            return self._beat_at + GAP
        return min(self._beat_at + self._beat_every(), self._asked_at + self._poll_every())

    def _send(self, background_call: BackgroundCall) -> None:
        """The next call, if one is due."""
        now = self._monotonic()
        if now < self._resumes_at or self._left.is_set():
            return
        if self._mode == "gone" and self._known.content is None:
            self._left.set()  # it was never there
        elif self._mode != "gone" and (self._stale or now >= self._read_at + self._lease):
            background_call.send(partial(self._registry.read, self._known.content), self._read)
        elif self._mode == "gone" or self._beat_is_due(now):
            self._send_beat(background_call, now)
        elif now >= self._asked_at + self._poll_every():
            self._asked_at = now
            background_call.send(self._leases.version, self._heard)

    def _beat_is_due(self, now: float) -> bool:
        if now >= self._beat_at + self._beat_every():
            return True
        return self._has_news() and now >= self._beat_at + GAP

    def _beat_every(self) -> float:
        every = self._lease / BEATS_A_LEASE
        return every if self._answer is None else min(every, max(GAP, self._answer.next_in + 0.005))

    def _poll_every(self) -> float:
        return min(POLL if self._known.cameras or self._mode != "stay" else IDLE_POLL, self._lease / 10)

    def _has_news(self) -> bool:
        """Whether the server must hear of us at once."""
        return self._dirty or self._sent != self._present()

    def _present(self) -> tuple[Any, ...]:
        """What a beat says of this worker."""
        known = self._known
        with self._lock:
            ended = frozenset(name for name, under in self._ended.items() if known.digest_of(name) == under)
            return self._mode, self._assignments.warm, ended, known.catalogue.digest

    def _send_beat(self, background_call: BackgroundCall, now: float) -> None:
        sent = self._present()
        mode, warm, ended, _ = sent
        self._sent, self._dirty, self._beat_at = sent, False, now
        beat = partial(
            self._leases.beat,
            self._known.catalogue,
            warm=warm,
            ended=ended,
            room=self._room(),
            mode=mode,
            predecessors=self._predecessors,
        )
        background_call.send(beat, partial(self._beaten, now, mode))

    # ---- what came of a call

    def _failed(self, trouble: CoatstreamError) -> None:
        self._resumes_at = self._monotonic() + self._delay(trouble)
        self._failures = min(self._failures + 1, 10)
        self._dirty = True  # what was changed meanwhile, the next beat's version tells
        if self._mode != "stay":
            self._retired.set()  # nobody can take over what the server is not told of
        if self._known.cameras:  # else nothing of this worker suffers
            self._on_trouble(trouble)

    def _delay(self, trouble: CoatstreamError) -> float:
        """Seconds until Redis is tried again."""
        if not self._known.cameras:
            return self._lease / BEATS_A_LEASE
        if isinstance(trouble, RedisRefuses) or getattr(trouble, "slow", False):
            return SLOW_RETRY
        return min(AFTER_TROUBLE * 2.0**self._failures, LONGEST_TROUBLE, self._lease / BEATS_A_LEASE)

    def _heard(self, version: bytes) -> None:
        if version != self._version:
            self._version = version
            self._stale = self._dirty = True

    def _read(self, content: Content) -> None:
        self._read_at, self._stale, self._version = self._monotonic(), False, content.version
        if self._known.learn(content):
            self._dirty = True
            self._tend_unshared()
        for name in sorted(self._assignments.shared.keys() - self._wanted):
            self._assignments.end(name, self._parting(name))

    def _beaten(self, asked_at: float, mode: Mode, answer: Answer) -> None:
        until = asked_at + self._lease - _margin(self._lease)
        self._predecessors = ()
        if answer.before != self._version:
            self._stale = True
        self._version, self._answer = answer.version, answer
        self._failures = 0
        self._on_success()
        if until <= self._monotonic():  # the answer came too late to be acted upon
            self._dirty = True
            return
        self._until = until
        self._follow(answer)
        if mode != "stay" and not answer.heirs:
            self._retired.set()
        if mode == "gone":
            self._left.set()

    def _follow(self, answer: Answer) -> None:
        """Start, stop and grant as the server says. Where the registry may be another than we know, it says first
        whether what is not ours any more was moved, paused or removed.
        """
        wanted, cameras = {*answer.held, *answer.open}, self._known.cameras
        self._wanted, asks = wanted, self._stale and self._mode != "gone"
        for name, reading in self._assignments.shared.items():
            if asks and name not in wanted:
                self._assignments.silence(name)
            elif name not in wanted or cameras.get(name) != reading.camera:
                self._assignments.end(name, self._parting(name))
        for name in sorted(wanted):
            camera = cameras.get(name)
            if camera is None or self._has_ended(name):
                continue
            if name not in self._assignments:
                self._begin(camera, answer.held.get(name))
            elif name in answer.held:
                self._assignments.grant(name, answer.held[name], until=self._until)
            else:
                self._assignments.silence(name)

    def _tend_unshared(self) -> None:
        paused = self._known.paused
        for name, camera in self._known.unshared.items():
            if name in self._assignments and name in paused:
                self._assignments.end(name, self._parting(name))
            elif name not in self._assignments and name not in paused and not self._is_over(name):
                self._begin(camera)

    def _is_over(self, unshared: str) -> bool:
        return unshared in self._ended or self._known.is_unfit(unshared)

    def _has_ended(self, name: str) -> bool:
        with self._lock:
            return self._ended.get(name) == self._known.digest_of(name)

    def _begin(self, camera: CameraSettings, lease: Lease | None = None) -> None:
        on_end = partial(self.ended, camera.name)
        if camera.shared:
            tenure = Tenure(monotonic=self._monotonic, on_warmth=self._wake.set, on_end=on_end)
        else:
            tenure = Tenure.unshared(on_end=on_end)
        try:
            self._assignments.begin(camera, tenure, lease, until=self._until)
        except ConfigError as fault:  # tags that this model cannot have, say
            self._known.leave_out(camera, fault)
            self._dirty = True

    def _parting(self, name: str) -> Departure:
        content = self._known.content
        if content is not None and name in content.paused:
            return "paused"
        return "moved" if name in self._known else "removed"

    def _let_go_in_time(self) -> None:
        """The server may give them to others soon: it has not heard of us for almost a lease."""
        if self._monotonic() >= self._until and self._assignments.lapsing:
            self._assignments.lapse(self._parting)
            self._dirty = True

    # ---- what there is to know

    def _conclude(self) -> None:
        """Figures, and whether there is anything left to wait for."""
        answer, assignments, known = self._answer or Answer(b"", b""), self._assignments, self._known
        stats = FleetStats(
            members=answer.members,
            known=len(known),
            held=assignments.held + assignments.alone,
            prospects=len(assignments.shared) - assignments.held,
            refused=len(answer.refused),
            faults=known.useless,
            lease_left=max(0.0, self._until - self._monotonic()) if assignments.held else None,
            transfers=dict(assignments.transfers),
            paused=known.paused,
        )
        with self._lock:
            self._stats = stats
        if not self._finished and self._is_finished(answer):
            self._finished = True
            self._on_finished()

    def _is_finished(self, answer: Answer) -> bool:
        known = self._known
        if self._connected and known.content is None:
            return False
        with self._lock:
            own_end = all(name in self._ended for name in known.unshared)
        return own_end and not known.from_redis and known.cameras.keys() <= answer.ended and len(known) > 0


def _margin(lease: float) -> float:
    """How long before the server a worker holds its right to be over: clocks run differently fast."""
    return lease / 10 + 0.05
