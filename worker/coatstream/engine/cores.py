"""Cores: how many this process may use, and how many one torch call of the calling thread takes.

Never decides how they are shared out; that is the engine's and the decode pool's business.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")  # how mountinfo writes a space, a tab, a newline and a backslash


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that the affinity mask and the control groups' CPU quotas leave to this process, rounded up; at least 1.

    The quota counts: 64 threads under a limit of two cores spend their time throttled. A limit of 1.5 cores is two:
    a thread less would leave half a core idle. `root` is where the file system begins.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(ceil, cpu_quotas(root))]))


def use_cores(count: int) -> None:
    """Let torch calls of the calling thread run on `count` cores, whatever other threads have set.

    With torch's OpenMP backend (every Linux wheel) the count belongs to the thread, but a thread's first parallel call
    takes over the value that any thread set last. So `set_num_threads` alone can be undone by a neighbour:
    `get_num_threads` comes first, since it makes that first take-over happen now (seen with torch 2.14).
    """
    import torch

    torch.get_num_threads()
    torch.set_num_threads(count)


def single_threaded() -> None:
    """Keep image work of the calling thread on one core: called first in a source's or decoder's thread.

    OpenCV's setting is the process's and already 1 (frames.opencv); torch's is the thread's and set only where an
    engine has loaded torch: a worker with the noop engine never does. The engine's own threads are not touched.
    """
    if "torch" in sys.modules:
        use_cores(1)


# ---- quotas


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy of control groups: of it, what lies under `group` can be seen at `place`."""

    kind: str  # cgroup2, or cgroup for version 1 with the CPU controller
    group: PurePosixPath
    place: Path


def cpu_quotas(root: Path = _ROOT) -> list[Fraction]:
    """Cores that this process's control group and those around it allow, one figure for each that sets a limit.

    A pod's limit stands in a parent of its container's group, so all of them count. Some machines have both versions
    mounted and the CPU controller in one of them; the other's files are not there. What cannot be read sets no limit.
    """
    try:
        own, mounts = dict(_own_groups(root)), list(_mounts(root))
    except ValueError:  # lines that no kernel writes
        return []
    return [
        quota
        for mount in mounts
        if (group := own.get("cpu" if mount.kind == "cgroup" else "")) is not None
        for place in _upwards(mount, group)
        if (quota := _quota(place, mount.kind)) is not None
    ]


def _own_groups(root: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """Controller -> this process's group; version 2 has no controllers here, and stands under the empty name."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, PurePosixPath(path)


def _mounts(root: Path) -> Iterator[_Mount]:
    """Hierarchies that could limit the CPU."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        _, _, _, group, place, *_ = map(_unescaped, before.split(" "))
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            yield _Mount(kind, PurePosixPath(group), root / place.lstrip("/"))


def _upwards(mount: _Mount, group: PurePosixPath) -> Iterator[Path]:
    """The folder of a group and those of all around it, as far as they can be seen.

    A container may see only its own part of the hierarchy and know its group by the host's name, or by one with `..`:
    then its own group is where the mount begins.
    """
    below = group.relative_to(mount.group) if group.is_relative_to(mount.group) else PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    yield mount.place / below
    for parent in below.parents:
        yield mount.place / parent


def _quota(place: Path, kind: str) -> Fraction | None:
    """Cores that one group may use; None: all of them (`max` in version 2, -1 in version 1)."""
    try:
        if kind == "cgroup2":
            share, period = map(int, (place / "cpu.max").read_text("ascii").split())
        else:
            share, period = (int((place / f"cpu.cfs_{name}_us").read_text("ascii")) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return Fraction(share, period) if share > 0 and period > 0 else None


def _lines(file: Path) -> list[str]:
    """Of a file; none where there is no such file: then this is not Linux. Only a newline ends a line: a name may hold
    whatever else Python takes for one.
    """
    try:
        return [line for line in file.read_bytes().decode("utf-8", "surrogateescape").split("\n") if line]
    except OSError:
        return []


def _unescaped(field: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
