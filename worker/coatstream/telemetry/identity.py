"""A worker's name, which is its consumer name in each group and `worker` in each label; and the workers before it."""

import os
import secrets
import socket
from dataclasses import dataclass

_REMEMBERED = 16  # dead workers whose entries still wait for a successor; older ones are found by their silence


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a restarted worker must know: how often that happened, and whose entries are not taken over yet."""

    restarts: int = 0
    predecessors: tuple[str, ...] = ()  # names of crashed workers, oldest first
    port: int = 0  # where they served HTTP: Prometheus shall find their successor there

    def after(self, dead: str, *, took_over: bool, port: int = 0) -> "Lineage":
        """The successor's, when `dead`, whose lineage this is, has crashed; `took_over`: it had got as far as ready."""
        waiting = () if took_over else self.predecessors
        return Lineage(self.restarts + 1, (*waiting, dead)[-_REMEMBERED:], port or self.port)


FIRST = Lineage()


def worker_name(pid: int | None = None, suffix: str | None = None) -> str:
    """host-pid-random: never a stable name, since two processes of one name would share a list of pending entries.

    A parent that must know its child's name draws the suffix before the fork and learns the pid from it.
    """
    return f"{socket.gethostname()}-{pid or os.getpid()}-{suffix or draw_suffix()}"


def draw_suffix() -> str:
    """The random part of a name. A pid alone comes again: in a container the worker's is the same at every start."""
    return secrets.token_hex(4)
