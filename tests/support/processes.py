"""Looks at processes through /proc: their descendants, state, processor time and memory. Linux only."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all that descend from it. `memory`: proportional set size, MB."""

    processes: int
    threads: int
    handles: int
    memory: float


def children(pid: int) -> list[int]:
    """Its direct children that have not ended."""
    return sorted(_children().get(pid, []))


def descendants(pid: int) -> list[int]:
    """All processes below it that have not ended."""
    below = _children()
    found, some = [], [pid]
    while some:
        nearest = below.get(some.pop(), [])
        found += nearest
        some += nearest
    return found


def state(pid: int) -> str:
    """The letter that Linux gives its state (`S` sleeping, `T` stopped); `Z` also for one that is gone."""
    fields = _stat(pid)
    return fields[0] if fields else "Z"


def ended(pid: int) -> bool:
    """Whether it has ended; its parent may not have noticed yet."""
    return state(pid) == "Z"


def cpu_seconds(pid: int) -> float:
    """User and system time that it has used so far; 0 for one that is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS if fields else 0.0


def resident_bytes(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[21]) * PAGE_BYTES if fields else 0


def usage(pid: int) -> Usage:
    """What it holds now. A process that ends meanwhile does not count."""
    processes = threads = handles = 0
    memory = 0.0
    for one in [pid, *descendants(pid)]:
        with suppress(OSError):
            status = Path(f"/proc/{one}/status").read_text()
            some_threads = int(status.partition("Threads:")[2].split()[0])
            some_handles = len(os.listdir(f"/proc/{one}/fd"))  # noqa: PTH208
            pss = Path(f"/proc/{one}/smaps_rollup").read_text().partition("Pss:")[2].split()[0]
            processes, threads, handles = processes + 1, threads + some_threads, handles + some_handles
            memory += int(pss) / 1024
    return Usage(processes, threads, handles, memory)


def _children() -> dict[int, list[int]]:
    """Parent -> its children that have not ended, of the whole machine."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            fields = _stat(int(path.name))
            if fields and fields[0] != "Z":
                found.setdefault(int(fields[1]), []).append(int(path.name))
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on; [] for one that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []
