"""Looks at processes through /proc: children, processor time, memory. Linux only, like the harness."""

import os
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """Its direct children, dead ones left out."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            stat = _stat(int(path.name))
            if stat and int(stat[1]) == pid and stat[0] != "Z":
                found.append(int(path.name))
    return sorted(found)


def cpu_seconds(pid: int) -> float:
    """User and system time that it has used so far; 0 for one that is gone."""
    stat = _stat(pid)
    return (int(stat[11]) + int(stat[12])) / TICKS if stat else 0.0


def resident_bytes(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[21]) * PAGE_BYTES if stat else 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on; [] for one that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []
