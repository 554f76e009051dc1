"""This worker's part in the fleet: which cameras it reads now, and until when it may publish for them.

Any number of workers share all cameras, those of the settings and those from Redis. The server decides which worker
reads which (`lease.lua`); here its replies become readers that start and stop, and leases that end in time. Reads no
camera.
"""

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Final, NamedTuple

from coatstream.broker.connection import Client
from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.address import public_url
from coatstream.cameras.fleet.access import registry
from coatstream.cameras.fleet.assignments import CameraReaders
from coatstream.cameras.fleet.calls import BackgroundCall
from coatstream.cameras.fleet.known import KnownCameras
from coatstream.cameras.fleet.leases import BeatReply, Leases, Mode
from coatstream.cameras.fleet.presence import Presence
from coatstream.cameras.fleet.reconcile import Reconciler
from coatstream.cameras.fleet.registry import Content
from coatstream.cameras.fleet.schedule import Schedule
from coatstream.cameras.fleet.stats import FleetStats
from coatstream.errors import CoatstreamError
from coatstream.settings.model import SettingsTree
from coatstream.telemetry.telemetry import Telemetry

TICK: Final = 0.2  # seconds at most until `stop` is noticed
LONGEST_RETIREMENT: Final = 3.0  # seconds; two openings of a slow camera


class _BeatReport(NamedTuple):
    """What a beat reports of this worker."""

    mode: Mode
    warm: frozenset[str]
    ended: frozenset[str]
    catalogue: str


class Fleet:
    """`run` is the fleet's thread. It takes part from `begin` on. All other methods may be called from any thread."""

    def __init__(
        self,
        client: Client,
        keys: FleetKeys,
        settings: SettingsTree,
        telemetry: Telemetry,
        readers: CameraReaders,
        *,
        room: float | None = None,
        connected: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`room`: frames a second that this worker accepts from shared cameras; None: any number. `connected`: False
        where Redis refuses the keys, so there are no shared cameras (see `cameras.fleet.access.reachable`).
        """
        self._leases = Leases(client, keys, worker=telemetry.worker, lease=settings.fleet.lease)
        self._registry = registry(client, keys, settings.fleet)
        self._lease = settings.fleet.lease
        self._retirement = min(LONGEST_RETIREMENT, settings.drain.timeout / 4)
        self._health = telemetry.outages.of("fleet")
        self._readers = readers
        self._room = room
        self._connected = connected
        self._monotonic = monotonic
        self._begun = threading.Event()
        self._presence = Presence()
        # All below belongs to the thread that runs.
        self._known = KnownCameras(settings.cameras)
        self._schedule = Schedule(settings.fleet.lease)
        self._reconciler = Reconciler(self._known, self._presence, self._schedule, readers, monotonic=monotonic)
        self._call = BackgroundCall(self._presence.wake)
        self._predecessors: Collection[str] = telemetry.lineage.predecessors  # crashed: their cameras are this one's
        self._reported: _BeatReport | None = None  # by the last beat

    # ---- for other threads

    def begin(self) -> None:
        """Read cameras from now on."""
        self._begun.set()
        self._presence.wake.set()

    def retire(self) -> bool:
        """Keep every camera until another worker has opened it, and take no new ones. Returns when no other worker is
        about to take any more, at once where there is none, or after `LONGEST_RETIREMENT`: then False.
        """
        return self._presence.retire(self._retirement)

    def leave(self, within: float = 1.0) -> bool:
        """Give everything up at once. False: Redis did not confirm it in time; others wait until the lease is over."""
        return self._presence.leave(within)

    @property
    def finished(self) -> bool:
        """No camera will ever deliver again: all were files that have ended, and none comes from Redis."""
        return self._presence.finished

    def stats(self) -> FleetStats:
        return self._presence.stats()

    # ---- the thread

    def run(self, stop: threading.Event) -> None:
        """Take part until `stop`. Leases end then; the intake stops the readers."""
        presence = self._presence
        with self._call, self._reconciler.assignments:
            while not (stop.is_set() or self._begun.is_set()):
                presence.wake.wait(TICK)
                if presence.mode == "gone":
                    presence.left()  # the server has never heard of it
            self._reconciler.tend_unshared()
            while not stop.is_set():
                presence.wake.clear()
                self._step()
                presence.wake.wait(self._rest())

    def _step(self) -> None:
        self._schedule.idle = not self._known.cameras
        self._call.deliver(self._failed)
        self._reconciler.expire_in_time()
        if not self._connected:
            self._presence.retired()
            if self._presence.mode == "gone":
                self._presence.left()
        elif self._call.idle:
            self._call_next()
        is_known = not self._connected or self._known.content is not None
        finished = is_known and self._reconciler.is_finished()
        self._presence.report(self._reconciler.stats(), finished=finished, then=self._readers.all_ended)

    def _rest(self) -> float:
        """Seconds until there may be something to do; the end of a call, leases and other threads wake it before."""
        now, wait = self._monotonic(), TICK
        if self._call.idle and self._connected and not self._presence.has_left:
            wait = min(wait, self._schedule.next_call(news=self._report() != self._reported) - now)
        if self._reconciler.assignments.expiring:
            wait = min(wait, self._reconciler.until - now)
        return max(wait, 0.005)

    def _report(self) -> _BeatReport:
        ended = self._presence.ended_of(self._known.digests)
        return _BeatReport(self._presence.mode, self._reconciler.assignments.warm, ended, self._known.catalogue.digest)

    def _call_next(self) -> None:
        """Begin the next call, if one is due."""
        now, report, schedule = self._monotonic(), self._report(), self._schedule
        if schedule.is_waiting(now) or self._presence.has_left:
            return
        gone = report.mode == "gone"
        if gone and self._known.content is None:
            self._presence.left()  # the server has never heard of it
        elif not gone and schedule.reads_registry(now):
            self._call.send(partial(self._registry.read, self._known.content), self._read)
        elif gone or schedule.beats(now, news=report != self._reported):
            self._beat(now, report)
        elif schedule.polls(now):
            schedule.polled(now)
            self._call.send(self._leases.version, schedule.found)

    def _beat(self, now: float, report: _BeatReport) -> None:
        self._reported = report
        self._schedule.beaten(now)
        beat = partial(
            self._leases.beat,
            self._known.catalogue,
            warm=report.warm,
            ended=report.ended,
            room=self._room,
            mode=report.mode,
            predecessors=self._predecessors,
            unshared={name: public_url(camera) for name, camera in self._known.unshared.items()},
        )
        self._call.send(beat, partial(self._beaten, now, report.mode))

    # ---- what came of a call

    def _failed(self, trouble: CoatstreamError) -> None:
        self._schedule.failed(self._monotonic(), trouble)
        if self._presence.mode != "stay":
            self._presence.retired()  # no other worker can take over before the server knows
        if self._known.cameras:  # else nothing of this worker suffers
            self._health.down(trouble)

    def _read(self, content: Content) -> None:
        self._schedule.read(self._monotonic(), content.version)
        if self._known.learn(content):
            self._schedule.news = True
            self._reconciler.tend_unshared()
        self._reconciler.end_unwanted()

    def _beaten(self, asked_at: float, mode: Mode, reply: BeatReply) -> None:
        until = asked_at + self._lease - _margin(self._lease)
        self._predecessors = ()
        self._schedule.answered(reply)
        self._health.up()
        if until <= self._monotonic():  # the reply came too late to be acted upon
            self._schedule.news = True
            return
        self._reconciler.follow(reply, until=until)
        if mode != "stay" and not reply.standbys:
            self._presence.retired()
        if mode == "gone":
            self._presence.left()


def _margin(lease: float) -> float:
    """Seconds by which a worker ends its leases before the server does: clocks run at different speeds."""
    return lease / 10 + 0.05
