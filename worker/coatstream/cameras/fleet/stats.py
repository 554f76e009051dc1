"""What the fleet's thread reports of itself, for metrics. Counts nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Transfer = Literal["granted", "handed_over", "taken_over", "lost"]


@dataclass(frozen=True, slots=True)
class FleetStats:
    """A snapshot.

    members     live workers, this one included
    known       cameras that this worker could read, those that are not shared included
    held        cameras that it publishes for
    standby     cameras that it has opened for a hand-over
    refused     cameras for which no worker has room
    faults      entries in Redis that cannot be used
    lease_left  seconds until its leases end without another beat; None: it has none
    transfers   how cameras came here or were lost, since the start
    paused      known cameras that are paused
    """

    members: int = 0
    known: int = 0
    held: int = 0
    standby: int = 0
    refused: int = 0
    faults: int = 0
    lease_left: float | None = None
    transfers: Mapping[Transfer, int] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
