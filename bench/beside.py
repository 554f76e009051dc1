"""A process beside the benchmark's own, which shares no interpreter lock and no allocator with what measures it."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from coatstream.engine.memory import tune_allocator
from coatstream.errors import CoatstreamError
from coatstream.settings.model import SettingsTree
from coatstream.telemetry import logs


@contextmanager
def beside(target: Callable[..., None], *arguments: object, leave: float) -> Iterator[BaseProcess]:
    """Call `target` in a process of its own. On leaving it gets SIGTERM, and has `leave` seconds to drain."""
    spawning = multiprocessing.get_context("spawn")  # not fork: torch's and OpenCV's threads would not survive it
    process = spawning.Process(target=target, args=arguments, name=target.__name__, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join(leave)
        if process.is_alive():
            process.kill()
            process.join(5)


def leave_of(settings: SettingsTree) -> float:
    """Seconds that a worker may take to drain."""
    return settings.drain.timeout + 5


def as_worker(settings: SettingsTree, serve: Callable[[], object]) -> None:
    """Serve as `coatstream run` does, in a process without its parent; a fault is one line on stderr."""
    logs.configure(settings.log)
    tune_allocator()
    try:
        serve()
    except CoatstreamError as error:
        sys.exit(f"coatstream: {error}")


def cpu_seconds(pid: int | None) -> float:
    """Processor time of a process of ours, in ticks of 10 ms as Linux counts them; 0 elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)
