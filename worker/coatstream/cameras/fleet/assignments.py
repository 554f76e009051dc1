"""The cameras that this worker reads now, each with its tenure. Decides nothing.

Owned by the fleet's thread.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import structlog

from coatstream.cameras.fleet.known import waits
from coatstream.cameras.fleet.leases import Lease
from coatstream.cameras.fleet.stats import Transfer
from coatstream.cameras.fleet.tenure import Tenure
from coatstream.errors import ConfigError
from coatstream.settings.model import CameraSettings

Departure = Literal["moved", "paused", "removed"]  # moved: another worker reads it, or will


@dataclass(slots=True)
class Reading:
    """One camera. `lease`: the right to speak for it, where it is shared; None: it is opened for a hand-over."""

    camera: CameraSettings
    tenure: Tenure
    lease: Lease | None = None


class Assignments:
    """By camera.

    start, stop  as `coatstream.cameras.fleet.member.Fleet` says
    transfers    how cameras came here or were lost, since the start
    """

    def __init__(self, start: Callable[[CameraSettings, Tenure], None], stop: Callable[[str, Departure], None]) -> None:
        self.transfers: Counter[Transfer] = Counter()
        self._start, self._stop = start, stop
        self._all: dict[str, Reading] = {}
        self._log = structlog.get_logger("fleet")

    def __contains__(self, name: object) -> bool:
        return name in self._all

    @property
    def shared(self) -> dict[str, Reading]:
        """Those that may move; a copy."""
        return {name: reading for name, reading in self._all.items() if reading.camera.shared}

    @property
    def alone(self) -> int:
        """How many are not shared."""
        return sum(not reading.camera.shared for reading in self._all.values())

    @property
    def held(self) -> int:
        """How many of the shared ones are ours."""
        return sum(reading.lease is not None for reading in self._all.values())

    @property
    def warm(self) -> frozenset[str]:
        """Shared cameras whose pictures come in."""
        return frozenset(name for name, reading in self._all.items() if reading.camera.shared and reading.tenure.warm)

    def begin(self, camera: CameraSettings, tenure: Tenure, lease: Lease | None = None, *, until: float = 0.0) -> None:
        """Read it, and speak for it at once where there is a lease: a file's first frame would be lost otherwise.

        Raises ConfigError for a camera that cannot be read here; it is not among the readings then.
        """
        self._all[camera.name] = Reading(camera, tenure)
        if lease is not None:
            self.grant(camera.name, lease, until=until)
        try:
            self._start(camera, tenure)
        except ConfigError:
            del self._all[camera.name]
            tenure.end()
            raise

    def grant(self, name: str, lease: Lease, *, until: float) -> None:
        """It is ours until then."""
        reading = self._all[name]
        if reading.lease is None or reading.lease.fence != lease.fence:
            self.transfers[lease.why] += 1
            self._log.info("camera is ours", camera=name, why=lease.why, fence=lease.fence)
        reading.lease = lease
        reading.tenure.grant(lease.fence, until=until)

    def silence(self, name: str) -> None:
        """Another speaks for it, or nobody; it is still read."""
        reading = self._all[name]
        reading.tenure.end()
        if reading.lease is not None:
            self._log.info("camera is no longer ours", camera=name, fence=reading.lease.fence)
            reading.lease = None

    def end(self, name: str, departure: Departure) -> None:
        """Read it no more."""
        reading = self._all.pop(name)
        reading.tenure.end()
        if reading.lease is not None:
            self._log.info("camera is no longer ours", camera=name, why=departure, fence=reading.lease.fence)
        self._stop(name, departure)

    @property
    def lapsing(self) -> list[str]:
        """All that end with the tenures: files only say no more, and wait."""
        return [name for name, reading in self.shared.items() if reading.lease is not None or not waits(reading.camera)]

    def lapse(self, departure: Callable[[str], Departure]) -> None:
        """The tenures have ended by our clock."""
        self.transfers["lost"] += self.held
        self._log.warning("no word from Redis for a lease: its cameras are let go", cameras=self.held)
        for name in self.lapsing:
            if waits(self._all[name].camera):  # or each outage would begin it anew
                self.silence(name)
            else:
                self.end(name, departure(name))

    def fall_silent(self) -> None:
        """Say nothing more of any shared camera; who reads them is stopped by somebody else."""
        for reading in self.shared.values():
            reading.tenure.end()
