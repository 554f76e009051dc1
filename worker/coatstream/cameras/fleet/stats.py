"""What the fleet's thread tells of itself, for metrics. Counts nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Transfer = Literal["granted", "handed_over", "taken_over", "lost"]


@dataclass(frozen=True, slots=True)
class FleetStats:
    """A snapshot.

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
