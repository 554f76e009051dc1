"""Processor time and memory of a whole system: every process that carries its mark, and all below those.

Linux only (/proc). Standard library only: this runs in the peers' environment, too.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

MARK = "BENCH_PEERS_MARK"  # an environment variable: children inherit it, also those that leave their parents

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Meter:
    """One system's processes.

    A process that was found once stays known: Ray's workers write their title over their environment, and are found
    as children of a process that still has its own. Valkey writes over it, too: `root` is one known by its id.
    """

    mark: str
    root: int | None = None
    _known: dict[int, str] = field(default_factory=dict)  # process id -> when it started, so that a reused id is seen
    _spent: dict[tuple[int, str], float] = field(default_factory=dict)  # seconds, the last that was read

    def processes(self) -> list[int]:
        """Those that live now."""
        entry = f"{MARK}={self.mark}".encode()
        stats = {pid: stat for pid in _all() if (stat := _stat(pid))}
        self._known = {
            pid: started for pid, started in self._known.items() if stats.get(pid, ("", "", 0.0))[1] == started
        }
        for pid, (_, started, _) in stats.items():
            if pid not in self._known and (pid == self.root or entry in _environment(pid)):
                self._known[pid] = started
        found = len(self._known) - 1
        while found != len(self._known):  # children of children
            found = len(self._known)
            for pid, (parent, started, _) in stats.items():
                if int(parent) in self._known and pid != os.getpid():
                    self._known.setdefault(pid, started)
        for pid, started in self._known.items():
            self._spent[pid, started] = stats[pid][2]
        return sorted(self._known)

    def cpu(self) -> float:
        """Seconds of all of them since they began, the ended ones up to when they were last seen."""
        self.processes()
        return sum(self._spent.values())

    def memory(self) -> float:
        """Megabytes: the sum of proportional set sizes, in which a shared page counts once."""
        return sum(map(_pss, self.processes())) / 1024


def _all() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _stat(pid: int) -> tuple[str, str, float] | None:
    """Parent, start, seconds spent (proc(5)); None for one that has gone or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else (fields[1], fields[19], (int(fields[11]) + int(fields[12])) / _TICKS)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
