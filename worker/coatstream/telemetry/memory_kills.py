"""How often the kernel has killed a process of this container for want of memory: a plain SIGKILL looks the same."""

from contextlib import suppress
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def memory_kills(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """The count of this process's control group, of version 2 or 1; None where the kernel does not tell."""
    for path in _candidates(groups, own):
        with suppress(OSError, ValueError):
            for line in path.read_text("ascii").splitlines():
                word, _, count = line.partition(" ")
                if word == "oom_kill":
                    return int(count)
    return None


def _candidates(groups: Path, own: Path) -> list[Path]:
    """A container sees its own group as the root of the tree, whatever path the kernel names."""
    paths = {"": "", "memory": ""}  # controller -> path; version 2 has one group for all controllers
    with suppress(OSError, ValueError):
        for line in own.read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in paths:
                paths[controllers] = path.lstrip("/")
    return [
        *(groups / paths[""] / "memory.events", groups / "memory.events"),
        *(groups / "memory" / paths["memory"] / "memory.oom_control", groups / "memory" / "memory.oom_control"),
    ]
