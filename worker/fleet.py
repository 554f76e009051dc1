"""This worker's part in the fleet: which cameras it reads now, and until when it may speak for them.

Any number of workers share all cameras, those of the settings and those from Redis. The server decides who reads which
(`broker/leases`); here its answers become readers that start and stop, and tenures that end in time. Reads nothing.
"""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Literal

import structlog

from config.settings import CameraSettings, FleetSettings, RedisSettings, SettingsTree
from worker.broker.connection import Client
from worker.broker.fleet_keys import FleetKeys
from worker.broker.leases import Answer, Catalogue, Entry, Lease, Leases, Mode
from worker.broker.registry import Content, Registry
from worker.errors import REDIS_TROUBLE, SLOW_RETRY, CoatstreamError, ConfigError, RedisRefuses
from worker.redaction import redact
from worker.sources.address import Kind, parse
from worker.tenure import Tenure

BEATS_A_LEASE: Final = 5
POLL: Final = 0.2  # seconds between two looks at the version: how late a worker hears of a change
TICK: Final = 0.05  # seconds, while a camera is being opened here: its first picture is news for the server
GAP: Final = 0.05  # seconds at least between two beats
IDLE_POLL: Final = 1.0  # seconds, the same where there is no camera yet
AFTER_TROUBLE: Final = 0.25  # seconds until Redis is tried again; doubles, up to the next
LONGEST_TROUBLE: Final = 1.0
LONGEST_RETIREMENT: Final = 3.0  # seconds; two openings of a slow camera
EVERY_FRAME: Final = 25.0  # frames a second that a camera of `fps: 0` is taken to send

Transfer = Literal["granted", "handed_over", "taken_over", "lost"]
Parting = Literal["moved", "paused", "removed"]  # moved: another worker reads it, or will


@dataclass(frozen=True, slots=True)
class Figures:
    """For metrics.

    members     workers that are there, this one included
    known       cameras that this worker could read, those that are not shared included
    held        cameras that it speaks for; `prospects` it has opened for a hand-over
    refused     cameras that nobody has room for
    faults      entries in Redis that are of no use
    lease_left  seconds until its tenures end without another beat; None: it has none
    transfers   how cameras came here or were lost, since the start
    paused      known cameras that nobody shall read for now
    """

    members: int = 0
    known: int = 0
    held: int = 0
    prospects: int = 0
    refused: int = 0
    faults: int = 0
    lease_left: float | None = None
    transfers: Mapping[Transfer, int] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Reading:
    camera: CameraSettings
    tenure: Tenure
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """All shared cameras that this worker can read."""

    cameras: Mapping[str, CameraSettings]
    catalogue: Catalogue
    digests: Mapping[str, str]


class Fleet:
    """`run` blocks until its `stop`; it calls back in its thread. All other methods may be called from any.

    start        read this camera; publish under the tenure's fence, and tell the tenure of its pictures. Raises
                 ConfigError for one that cannot be read here: it is left out until its settings change
    stop         read it no more, and why; it may have ended by itself
    predecessors workers that crashed and that this one comes after: their cameras are its own at once
    room         frames a second that this worker accepts from shared cameras; None: any number
    rate         what one camera asks of that
    on_trouble   told of each call that failed, on_success of each beat that went through
    on_finished  told when `finished` has become true
    connected    False: Redis refuses us the keys, so there are no shared cameras (see `reachable`)
    """

    def __init__(
        self,
        client: Client,
        keys: FleetKeys,
        settings: SettingsTree,
        *,
        worker: str,
        start: Callable[[CameraSettings, Tenure], None],
        stop: Callable[[str, Parting], None],
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
        self._cameras = {camera.name: camera for camera in settings.cameras if camera.shared}
        self._unshared = {camera.name: camera for camera in settings.cameras if not camera.shared}
        self._lease = section.lease
        self._retirement = min(LONGEST_RETIREMENT, settings.drain.timeout / 4)
        self._start, self._stop = start, stop
        self._predecessors: Collection[str] = predecessors
        self._room, self._rate = room, rate
        self._on_trouble, self._on_success, self._on_finished = on_trouble, on_success, on_finished
        self._connected = connected
        self._monotonic = monotonic
        self._log = structlog.get_logger("fleet")
        self._wake = threading.Event()
        self._retired, self._left = threading.Event(), threading.Event()
        self._lock = threading.Lock()  # guards the next two and `_figures`
        self._mode: Mode = "stay"
        self._ended: dict[str, str] = {}  # camera -> digest of the settings under which it ended
        self._figures = Figures()
        # All below is the business of the thread that runs.
        self._readings: dict[str, _Reading] = {}
        self._unfit: dict[str, CameraSettings] = {}  # that `start` refused
        self._known = self._known_from(Content())
        self._content: Content | None = None
        self._answer: Answer | None = None
        self._until = float("-inf")  # when all tenures of shared cameras end
        self._version = b""  # of what this worker knows
        self._stale, self._dirty = True, True  # the registry must be read; a beat must be made
        self._read_at = self._beat_at = self._asked_at = self._resumes_at = float("-inf")
        self._failures = 0  # calls in a row, since the last beat that went through
        self._sent: object = None  # what the last beat said of this worker
        self._transfers: Counter[Transfer] = Counter()
        self._said: dict[str, str] = {}  # camera -> fault of its entry that was logged
        self._finished = False

    # ---- for other threads

    def ended(self, name: str) -> None:
        """This camera has come to its own end: a file was read. No worker shall begin it again."""
        with self._lock:
            self._ended[name] = self._digest_of(name)
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

    def figures(self) -> Figures:
        with self._lock:
            return self._figures

    def _become(self, mode: Mode) -> None:
        with self._lock:
            if self._mode != "gone":
                self._mode = mode
        self._wake.set()

    def _digest_of(self, name: str) -> str:
        camera = self._unshared.get(name) or self._known.cameras.get(name)
        return "" if camera is None else _digest(camera)

    # ---- the thread

    def run(self, stop: threading.Event) -> None:
        """Take part until `stop`. Tenures end then, readers are left to who stops them."""
        courier = _Courier(self._wake)
        try:
            self._tend_unshared(self._content.paused if self._content else frozenset())
            while not stop.is_set():
                self._step(courier)
                self._wake.wait(self._tick(courier))
        finally:
            courier.close()
            for name in self._shared():
                self._readings[name].tenure.end()

    def _step(self, courier: "_Courier") -> None:
        self._wake.clear()
        courier.deliver(self._failed)
        self._let_go_in_time()
        if self._connected:
            if courier.idle:
                self._send(courier)
        else:
            self._retired.set()
            if self._mode == "gone":
                self._left.set()
        self._conclude()

    def _tick(self, courier: "_Courier") -> float:
        """Seconds until there may be something to do; the courier and other threads wake us before."""
        now = self._monotonic()
        wait = POLL
        if courier.idle and self._connected and not self._left.is_set():
            due = min(self._beat_at + self._beat_every(), self._asked_at + self._poll_every())
            wait = min(wait, max(self._resumes_at, due, self._beat_at + GAP) - now)
        if any(not self._readings[name].tenure.warm for name in self._shared()):
            wait = min(wait, TICK)
        if self._to_let_go():
            wait = min(wait, self._until - now)
        return max(wait, 0.005)

    def _send(self, courier: "_Courier") -> None:
        """The next call, if one is due."""
        now = self._monotonic()
        if now < self._resumes_at or self._left.is_set():
            return
        if self._mode == "gone" and self._content is None:
            self._left.set()  # it was never there
        elif self._mode != "gone" and (self._stale or now >= self._read_at + self._lease):
            courier.send(partial(self._registry.read, self._content), self._read)
        elif self._mode == "gone" or self._beat_is_due(now):
            self._send_beat(courier, now)
        elif now >= self._asked_at + self._poll_every():
            self._asked_at = now
            courier.send(self._leases.version, self._heard)

    def _beat_is_due(self, now: float) -> bool:
        if now >= self._beat_at + self._beat_every():
            return True
        return (self._dirty or self._sent != self._present()) and now >= self._beat_at + GAP

    def _beat_every(self) -> float:
        every = self._lease / BEATS_A_LEASE
        return every if self._answer is None else min(every, max(GAP, self._answer.next_in + 0.005))

    def _poll_every(self) -> float:
        every = min(POLL if self._known.cameras else IDLE_POLL, self._lease / 10)
        return every if self._mode == "stay" else min(every, 2 * TICK)

    def _present(self) -> tuple[Any, ...]:
        """What a beat says of this worker; where it has changed, the server must hear of it at once."""
        warm = frozenset(name for name in self._shared() if self._readings[name].tenure.warm)
        with self._lock:
            ended = frozenset(name for name, digest in self._ended.items() if self._known.digests.get(name) == digest)
            return self._mode, warm, ended, self._known.catalogue.digest

    def _send_beat(self, courier: "_Courier", now: float) -> None:
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
        courier.send(beat, partial(self._beaten, now, mode))

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
        news = self._content is None or content.digest != self._content.digest
        self._content = content
        if news:
            self._say_faults(content)
            self._learn(content)
            self._tend_unshared(content.paused)

    def _learn(self, content: Content) -> None:
        with self._lock:
            self._known = self._known_from(content)
        self._dirty = True

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
        """Start, stop and grant as the server says."""
        wanted = {*answer.held, *answer.open}
        for name in self._shared():
            if name not in wanted or self._known.cameras.get(name) != self._readings[name].camera:
                self._end(name)
        for name in sorted(wanted):
            camera = self._known.cameras.get(name)
            if camera is None or self._has_ended(name):
                continue
            if name not in self._readings:
                self._begin(camera, Tenure(monotonic=self._monotonic), answer.held.get(name))
            elif name in answer.held:
                self._grant(self._readings[name], answer.held[name])
            else:
                self._readings[name].lease = None
                self._readings[name].tenure.end()

    def _tend_unshared(self, paused: frozenset[str]) -> None:
        for name, camera in self._unshared.items():
            if name in self._readings and name in paused:
                self._end(name)
            elif name not in self._readings and name not in paused and not self._is_over(camera):
                self._begin(camera, Tenure.unshared())

    def _is_over(self, unshared: CameraSettings) -> bool:
        return unshared.name in self._ended or unshared.name in self._unfit

    def _has_ended(self, name: str) -> bool:
        with self._lock:
            return self._ended.get(name) == self._known.digests.get(name)

    def _begin(self, camera: CameraSettings, tenure: Tenure, lease: Lease | None = None) -> None:
        reading = _Reading(camera, tenure)
        self._readings[camera.name] = reading
        if lease is not None:
            self._grant(reading, lease)
        try:
            self._start(camera, tenure)
        except ConfigError as fault:  # tags that this model cannot have, say
            del self._readings[camera.name]
            tenure.end()
            self._leave_out(camera, fault)

    def _leave_out(self, camera: CameraSettings, fault: ConfigError) -> None:
        """As if it were not known here: a lease on it would keep it from workers that can read it."""
        self._log.warning("a camera cannot be read here", camera=camera.name, why=redact(str(fault)))
        self._unfit[camera.name] = camera
        self._learn(self._content or Content())

    def _grant(self, reading: _Reading, lease: Lease) -> None:
        if reading.lease is None or reading.lease.fence != lease.fence:
            self._transfers[lease.why] += 1
            self._log.info("camera is ours", camera=reading.camera.name, why=lease.why, fence=lease.fence)
        reading.lease = lease
        reading.tenure.grant(lease.fence, until=self._until)

    def _end(self, name: str) -> None:
        reading = self._readings.pop(name)
        reading.tenure.end()
        if reading.lease is not None:
            self._log.info("camera is no longer ours", camera=name, why=self._parting(name), fence=reading.lease.fence)
        self._stop(name, self._parting(name))

    def _parting(self, name: str) -> Parting:
        if self._content is not None and name in self._content.paused:
            return "paused"
        return "moved" if name in self._known.cameras or name in self._unshared else "removed"

    def _let_go_in_time(self) -> None:
        """The server may give them to others soon: it has not heard of us for almost a lease."""
        if self._monotonic() < self._until or not self._to_let_go():
            return
        held = [name for name in self._shared() if self._readings[name].lease is not None]
        self._transfers["lost"] += len(held)
        self._log.warning("no word from Redis for a lease: its cameras are let go", cameras=len(held))
        for name in self._to_let_go():
            reading = self._readings[name]
            if _waits(reading.camera):  # or each outage would begin it anew
                reading.lease = None
                reading.tenure.end()
            else:
                self._end(name)
        self._dirty = True

    def _to_let_go(self) -> list[str]:
        """All that end with the tenures: files only say no more, and wait."""
        mine = {name: self._readings[name] for name in self._shared()}
        return [name for name, reading in mine.items() if reading.lease is not None or not _waits(reading.camera)]

    # ---- what there is to know

    def _shared(self) -> list[str]:
        return [name for name in self._readings if name not in self._unshared]

    def _known_from(self, content: Content) -> _Known:
        own = {**self._cameras, **self._unshared}
        added = {name: camera for name, camera in content.cameras.items() if name not in own}
        every = {**self._cameras, **added}
        self._unfit = {name: camera for name, camera in self._unfit.items() if {**every, **own}.get(name) == camera}
        cameras = {name: camera for name, camera in every.items() if name not in self._unfit}
        digests = {name: _digest(camera) for name, camera in cameras.items()}
        entries = [self._entry(camera, digests[name], added=name in added) for name, camera in cameras.items()]
        return _Known(cameras, Catalogue(tuple(entries)), digests)

    def _entry(self, camera: CameraSettings, digest: str, *, added: bool) -> Entry:
        return Entry(camera.name, digest, camera.priority, self._rate(camera), _is_cold(camera), added)

    def _say_faults(self, content: Content) -> None:
        """Each once, for as long as it is there."""
        twice = dict.fromkeys(self._own(content), "the settings file has one of this name, which is read")
        faults = {**content.faults, **twice}
        if content.beyond:
            faults["others"] = f"there are {content.beyond} more cameras in Redis than fleet.max_cameras allows"
        for name, fault in faults.items():
            if self._said.get(name) != fault:
                self._log.warning("a camera in Redis is left out", camera=name, why=fault)
        self._said = faults

    def _own(self, content: Content) -> list[str]:
        return [name for name in content.cameras if name in self._cameras or name in self._unshared]

    def _paused(self) -> frozenset[str]:
        known = self._known.cameras.keys() | self._unshared.keys()
        return frozenset() if self._content is None else self._content.paused & known

    def _conclude(self) -> None:
        """Figures, and whether there is anything left to wait for."""
        answer = self._answer or Answer(b"", b"")
        held = sum(reading.lease is not None for reading in self._readings.values())
        shared = self._shared()
        figures = Figures(
            members=answer.members,
            known=len(self._known.cameras) + len(self._unshared),
            held=held + len(self._readings) - len(shared),
            prospects=len(shared) - held,
            refused=len(answer.refused),
            faults=len(self._said) + len(self._unfit),
            lease_left=max(0.0, self._until - self._monotonic()) if held else None,
            transfers=dict(self._transfers),
            paused=self._paused(),
        )
        with self._lock:
            self._figures = figures
        if not self._finished and self._is_finished(answer):
            self._finished = True
            self._on_finished()

    def _is_finished(self, answer: Answer) -> bool:
        if self._connected and self._content is None:
            return False
        with self._lock:
            own_end = all(name in self._ended for name in self._unshared)
        everything = self._known.cameras.keys()
        from_redis = everything - self._cameras.keys()
        return own_end and not from_redis and everything <= answer.ended and bool(everything or self._unshared)


class _Courier:
    """Calls Redis, one call at a time, in a thread of its own: one that hangs (the name server is silent, say) must not
    keep the fleet from stopping its readers in time.
    """

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._under_way: tuple[Future[Any], Callable[[Any], None]] | None = None
        threading.Thread(target=self._work, name="fleet-calls", daemon=True).start()

    @property
    def idle(self) -> bool:
        return self._under_way is None

    def send(self, call: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """`then` is told the result, by `deliver`."""
        future: Future[Any] = Future()
        self._under_way = (future, then)
        self._calls.put((future, call))

    def deliver(self, failed: Callable[[CoatstreamError], None]) -> None:
        """If the call is over: its result to who asked for it, its trouble to `failed`."""
        if self._under_way is None or not self._under_way[0].done():
            return
        future, then = self._under_way
        self._under_way = None
        try:
            result = future.result()
        except REDIS_TROUBLE as trouble:
            failed(trouble)
        else:
            then(result)

    def close(self) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        while (task := self._calls.get()) is not None:
            future, call = task
            try:
                future.set_result(call())
            except BaseException as error:  # the edge of the thread: whoever waits shall have it
                future.set_exception(error)
            self._wake.set()


def brisk(settings: RedisSettings, lease: float) -> RedisSettings:
    """For the fleet's client: an answer that takes longer than this comes too late for a lease anyway."""
    longest = max(0.25, lease / 8)
    timeouts = {"socket_timeout": settings.socket_timeout, "connect_timeout": settings.connect_timeout}
    return settings.model_copy(update={name: min(seconds, longest) for name, seconds in timeouts.items()})


def reachable(client: Client, keys: FleetKeys, settings: SettingsTree, *, worker: str) -> bool:
    """Whether Redis lets us share cameras. False: it does not, and there are none in the settings, so all is well.

    Raises ConfigError where there are, and RedisUnavailable.
    """
    try:
        registry(client, keys, settings.fleet).read()
        Leases(client, keys, worker=worker, lease=settings.fleet.lease).beat(Catalogue(), mode="gone")
    except RedisRefuses as refusal:
        if any(camera.shared for camera in settings.cameras):
            raise ConfigError(
                f"{refusal}; the keys are {keys.key}*; or write `shared: false` at each camera to read them without"
            ) from refusal
        structlog.get_logger("fleet").warning("no cameras can be added at run time", trouble=str(refusal))
        return False
    return True


def registry(client: Client, keys: FleetKeys, section: FleetSettings) -> Registry:
    """The cameras in Redis, as these settings allow them."""
    return Registry(client, keys, most=section.max_cameras, accept=partial(_accept, local=section.local))


def _accept(camera: CameraSettings, *, local: bool) -> None:
    """Raises ConfigError. Whoever writes into Redis must not have this machine's files read, nor sent elsewhere as a
    password.
    """
    kind = parse(camera).kind
    if local:
        return
    if kind is not Kind.NETWORK:
        raise ConfigError(f"camera {camera.name!r}: a camera from Redis may be a {kind} only where fleet.local is true")
    for key in ("password_file", "tls_ca"):
        if getattr(camera, key) is not None:
            raise ConfigError(f"camera {camera.name!r}: {key} names a file, which needs fleet.local from Redis")


def _waits(camera: CameraSettings) -> bool:
    """A file or a folder that is read as fast as its frames are taken, and so not at all while none is."""
    try:
        return parse(camera).kind in (Kind.FILE, Kind.FOLDER) and not camera.realtime
    except ConfigError:
        return False


def _is_cold(camera: CameraSettings) -> bool:
    """A file would begin anew with its heir, and a folder's backlog too, of which it would pass over some in silence; a
    device cannot be opened twice.
    """
    try:
        kind = parse(camera).kind
    except ConfigError:  # its reader will say so
        return True
    return (
        kind is Kind.DEVICE or (kind is Kind.FILE and not camera.realtime) or (kind is Kind.FOLDER and camera.backlog)
    )


def _digest(camera: CameraSettings) -> str:
    """Of everything but its secrets: it is seen by whoever may look at the members."""
    plain = camera.model_copy(update={"url": redact(camera.url.get_secret_value()), "password": None})
    text = repr(plain.model_dump(mode="python", warnings=False))
    return hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:12]


def _margin(lease: float) -> float:
    """How long before the server a worker holds its right to be over: clocks run differently fast."""
    return lease / 10 + 0.05
