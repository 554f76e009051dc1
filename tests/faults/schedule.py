"""Which fault comes when: drawn from a seed, spread over the frames of a run, and played on a fleet.

A fault's moment is a number of settled frames, not a time: so every fault hits a fleet that is at work, however fast
the machine.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from coatstream.broker.connection import Client

from tests.faults import frames
from tests.faults.fleet import Fleet, Member
from tests.faults.stage import MIN_IDLE, Stage

FREEZE_SECONDS = 1.6 * MIN_IDLE  # long enough for others to take the frames over, while the work goes on afterwards


class Kind(StrEnum):
    KILL = "kills"  # of the process that works; its parent starts another
    KILL_ALL = "workers killed whole"
    STOP = "workers stopped"  # SIGTERM: a rolling update
    FREEZE = "freezes"
    FLUSH = "scripts flushed"
    CLOSE = "connections closed"


@dataclass(frozen=True, slots=True)
class Fault:
    """It comes after `after` settled frames. `victim`: its place in the fleet, 0 to 1."""

    after: int
    kind: Kind
    victim: float


def schedule(rng: random.Random, frame_count: int, counts: dict[Kind, int]) -> list[Fault]:
    """Faults of each kind, `counts` of them, at random moments of the first nine tenths, in order."""
    found = [
        Fault(rng.randrange(frame_count * 9 // 10), kind, rng.random())
        for kind, count in counts.items()
        for _ in range(count)
    ]
    return sorted(found, key=lambda fault: fault.after)


def play(
    stage: Stage, client: Client, fleet: Fleet, faults: Sequence[Fault], keys: frames.Keys = frames.KEYS
) -> Counter[Kind]:
    """Let each come at its moment; return how many of each kind came. Dead workers are replaced on the way."""
    sleeping: list[tuple[float, int]] = []  # (when to wake, process id)
    played: Counter[Kind] = Counter()
    for fault in faults:
        stage.until(
            partial(_reached, client, fleet, keys, fault, sleeping), f"{fault.after} settled frames", every=0.004
        )
        _strike(client, fleet, fault, sleeping)
        played[fault.kind] += 1
        fleet.replace_dead(wait=False)
    stage.until(lambda: not _wake(sleeping), "the last one thaws")
    stage.until(lambda: not any(member.stopping and member.alive for member in fleet.members), "the last one stops")
    for kind, count in played.items():
        stage.findings.note(kind.value, count)
    return played


def _reached(client: Client, fleet: Fleet, keys: frames.Keys, fault: Fault, sleeping: list[tuple[float, int]]) -> bool:
    """Workers that end meanwhile are replaced: one that is killed three times before it is ready gives up."""
    _wake(sleeping)
    fleet.replace_dead(wait=False)
    return bool(client.xlen(keys.labels) + client.xlen(keys.dead) >= fault.after)


def _wake(sleeping: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Send SIGCONT to each process that has slept long enough; return those that still sleep."""
    now = time.monotonic()
    for at, pid in [sleeper for sleeper in sleeping if sleeper[0] <= now]:
        sleeping.remove((at, pid))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return sleeping


def _strike(client: Client, fleet: Fleet, fault: Fault, sleeping: list[tuple[float, int]]) -> None:
    victim: Member = fleet.members[int(fault.victim * len(fleet.members))]
    match fault.kind:
        case Kind.KILL:
            victim.kill_child()
        case Kind.KILL_ALL:
            victim.kill()
        case Kind.STOP:
            victim.stop()
        case Kind.FREEZE:
            sleeping.append((time.monotonic() + FREEZE_SECONDS, victim.freeze()))
        case Kind.FLUSH:
            client.script_flush()
        case Kind.CLOSE:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
