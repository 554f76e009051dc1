"""Makes what this worker reads equal to what the server wants: starts, grants, silences and stops cameras.

Owned by the fleet's thread. Calls no server.
"""

from collections.abc import Callable, Collection
from functools import partial

from coatstream.cameras.fleet.assignments import Assignments, CameraReaders, Departure
from coatstream.cameras.fleet.known import KnownCameras, digest
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.fleet.leases import BeatReply, Grant
from coatstream.cameras.fleet.presence import Presence
from coatstream.cameras.fleet.schedule import Schedule
from coatstream.cameras.fleet.stats import FleetStats
from coatstream.errors import ConfigError
from coatstream.settings.model import CameraSettings


class Reconciler:
    """Of one worker. `until`: when all leases of shared cameras end, in monotonic seconds."""

    def __init__(
        self,
        known: KnownCameras,
        presence: Presence,
        schedule: Schedule,
        readers: CameraReaders,
        *,
        monotonic: Callable[[], float],
    ) -> None:
        self.assignments = Assignments(readers)
        self.until = float("-inf")
        self._known = known
        self._presence = presence
        self._schedule = schedule
        self._monotonic = monotonic
        self._reply = BeatReply(b"", b"")  # the last one
        self._wanted: Collection[str] = ()  # what the server last wanted this worker to read

    def follow(self, reply: BeatReply, *, until: float) -> None:
        """Start, stop and grant as the server wants, with leases that last `until`.

        Where the registry may be another than this worker knows, a camera that it should no longer read is silenced at
        first: once the registry is read, it is known whether the camera was moved, paused or removed.
        """
        self.until, self._reply, self._wanted = until, reply, {*reply.held, *reply.open}
        must_ask, cameras = self._schedule.stale and self._presence.mode != "gone", self._known.cameras
        for name, assignment in self.assignments.shared.items():
            if must_ask and name not in self._wanted:
                self.assignments.silence(name)
            elif name not in self._wanted or cameras.get(name) != assignment.camera:
                self.assignments.end(name, self._departure(name))
        for name in sorted(self._wanted):
            camera = cameras.get(name)
            if camera is None or self._presence.has_ended(name, self._known.digests[name]):
                continue
            if name not in self.assignments:
                self._begin(camera, reply.held.get(name))
            elif name in reply.held:
                self.assignments.grant(name, reply.held[name], until=until)
            else:
                self.assignments.silence(name)

    def end_unwanted(self) -> None:
        """The registry was read, so it is known why the server no longer wants some cameras read here."""
        for name in sorted(self.assignments.shared.keys() - self._wanted):
            self.assignments.end(name, self._departure(name))

    def tend_unshared(self) -> None:
        """Read those cameras that are neither shared nor paused nor over."""
        paused = self._known.paused
        for name, camera in self._known.unshared.items():
            if name in self.assignments and name in paused:
                self.assignments.end(name, self._departure(name))
            elif name not in self.assignments and name not in paused and not self._is_over(name):
                self._begin(camera)

    def expire_in_time(self) -> None:
        """The server may give the cameras to others soon: it has not heard of this worker for almost a lease."""
        if self._monotonic() >= self.until and self.assignments.expiring:
            self.assignments.expire(self._departure)
            self._schedule.news = True

    def stats(self) -> FleetStats:
        assignments, known, held = self.assignments, self._known, self.assignments.held
        return FleetStats(
            members=self._reply.members,
            known=len(known),
            held=held + assignments.unshared,
            standby=len(assignments.shared) - held,
            refused=len(self._reply.refused),
            faults=known.useless,
            lease_left=max(0.0, self.until - self._monotonic()) if held else None,
            transfers=dict(assignments.transfers),
            paused=known.paused,
        )

    def is_finished(self) -> bool:
        """Whether no camera will ever deliver again. The caller knows the registry."""
        known = self._known
        ended = self._presence.all_ended(known.unshared) and known.cameras.keys() <= self._reply.ended
        return ended and not known.from_redis and len(known) > 0

    def _begin(self, camera: CameraSettings, grant: Grant | None = None) -> None:
        on_end = partial(self._presence.ended, camera.name, digest(camera))
        if camera.shared:
            lease = CameraLease(monotonic=self._monotonic, on_warmth=self._presence.wake.set, on_end=on_end)
        else:
            lease = CameraLease.unshared(on_end=on_end)
        try:
            self.assignments.begin(camera, lease, grant, until=self.until)
        except ConfigError as fault:  # tags that this model does not have, for example
            self._known.leave_out(camera, fault)
            self._schedule.news = True

    def _departure(self, name: str) -> Departure:
        content = self._known.content
        if content is not None and name in content.paused:
            return "paused"
        return "moved" if name in self._known else "removed"

    def _is_over(self, unshared: str) -> bool:
        return self._presence.has_ended(unshared) or self._known.is_unfit(unshared)
