"""The cameras that this worker reads now, each with its lease. Decides nothing.

Owned by the fleet's thread.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import structlog

from coatstream.cameras.fleet.known import waits
from coatstream.cameras.fleet.lease import CameraLease
from coatstream.cameras.fleet.leases import Grant
from coatstream.cameras.fleet.stats import Transfer
from coatstream.errors import ConfigError
from coatstream.settings.model import CameraSettings

Departure = Literal["moved", "paused", "removed"]  # moved: another worker reads it, or will


class CameraReaders(Protocol):
    """What reads the cameras. Called in the fleet's thread; must not block."""

    def start(self, camera: CameraSettings, lease: CameraLease) -> None:
        """Read this camera, publish under the fence of its lease, and report to the lease when its pictures come and
        when the camera ends. Raises ConfigError for one that cannot be read here: it is left out until its settings
        change.
        """

    def stop(self, name: str, departure: Departure) -> None:
        """Stop reading it, for this reason. It may have ended by itself."""

    def all_ended(self) -> None:
        """No camera will ever deliver again: all were files that have ended, and none comes from Redis."""


@dataclass(slots=True)
class Assignment:
    """One camera. `grant`: the right to publish for it, where it is shared; None: it is opened as a standby."""

    camera: CameraSettings
    lease: CameraLease
    grant: Grant | None = None


class Assignments:
    """By camera; used inside its `with` block. `transfers`: how cameras came here or were lost, since the start."""

    def __init__(self, readers: CameraReaders) -> None:
        self.transfers: Counter[Transfer] = Counter()
        self._readers = readers
        self._all: dict[str, Assignment] = {}
        self._log = structlog.get_logger("fleet")

    def __contains__(self, name: object) -> bool:
        return name in self._all

    @property
    def shared(self) -> dict[str, Assignment]:
        """Those that may move; a copy."""
        return {name: assignment for name, assignment in self._all.items() if assignment.camera.shared}

    @property
    def unshared(self) -> int:
        """How many are not shared."""
        return sum(not assignment.camera.shared for assignment in self._all.values())

    @property
    def held(self) -> int:
        """Of how many shared ones this worker has the lease."""
        return sum(assignment.grant is not None for assignment in self._all.values())

    @property
    def warm(self) -> frozenset[str]:
        """Shared cameras whose pictures come in."""
        return frozenset(name for name, assignment in self.shared.items() if assignment.lease.warm)

    def begin(self, camera: CameraSettings, lease: CameraLease, grant: Grant | None = None, *, until: float) -> None:
        """Read it. Where there is a grant, publish for it from the start: a file's first frame would be lost otherwise.

        Raises ConfigError for a camera that cannot be read here; then it is not assigned.
        """
        self._all[camera.name] = Assignment(camera, lease)
        if grant is not None:
            self.grant(camera.name, grant, until=until)
        try:
            self._readers.start(camera, lease)
        except ConfigError:
            del self._all[camera.name]
            lease.end()
            raise

    def grant(self, name: str, grant: Grant, *, until: float) -> None:
        """This worker has its lease until then."""
        assignment = self._all[name]
        if assignment.grant is None or assignment.grant.fence != grant.fence:
            self.transfers[grant.why] += 1
            self._log.info("this worker has the camera", camera=name, why=grant.why, fence=grant.fence)
        assignment.grant = grant
        assignment.lease.grant(grant.fence, until=until)

    def silence(self, name: str) -> None:
        """Read on without publishing: another worker has the lease, or none has."""
        assignment = self._all[name]
        assignment.lease.end()
        if assignment.grant is not None:
            self._log.info("the camera has left this worker", camera=name, fence=assignment.grant.fence)
            assignment.grant = None

    def end(self, name: str, departure: Departure) -> None:
        """Stop reading it."""
        assignment = self._all.pop(name)
        assignment.lease.end()
        if assignment.grant is not None:
            fence = assignment.grant.fence
            self._log.info("the camera has left this worker", camera=name, why=departure, fence=fence)
        self._readers.stop(name, departure)

    @property
    def expiring(self) -> list[str]:
        """All that end with the leases. A file that waits for its frames to be taken is only silenced, then waits."""
        return [name for name, one in self.shared.items() if one.grant is not None or not waits(one.camera)]

    def expire(self, departure: Callable[[str], Departure]) -> None:
        """The leases have ended by this worker's clock."""
        self.transfers["lost"] += self.held
        self._log.warning("no answer from Redis for the time of a lease: its cameras are given up", cameras=self.held)
        for name in self.expiring:
            if waits(self._all[name].camera):  # or each outage would begin the file anew
                self.silence(name)
            else:
                self.end(name, departure(name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Publish nothing more for any shared camera. The intake stops the readers."""
        for assignment in self.shared.values():
            assignment.lease.end()
