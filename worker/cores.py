"""Cores: how many this process may use, and how many one torch call of the calling thread takes.

Never decides how they are shared out; that is the engine's and the decode pool's business.
"""

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2, as a container sees its own limit


def usable_cores(quota: Path = _QUOTA) -> int:
    """Cores that the affinity mask and the container's CPU quota leave to this process, rounded up; at least 1.

    The quota counts: 64 threads under a limit of two cores spend their time throttled.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text().split()
        return max(1, min(cores, -(-int(share) // int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2 here, or `max`: no limit
        return cores


def use_cores(count: int) -> None:
    """Let torch calls of the calling thread run on `count` cores, whatever other threads have set.

    With torch's OpenMP backend (every Linux wheel) the count belongs to the thread, but a thread's first parallel call
    takes over the value that any thread set last. So `set_num_threads` alone can be undone by a neighbour:
    `get_num_threads` comes first, since it makes that first take-over happen now (seen with torch 2.14).
    """
    import torch

    torch.get_num_threads()
    torch.set_num_threads(count)
