"""Keeps the worker alive: it runs as a child, and a crash of the child is followed by the next child at once.

A decoder that segfaults or an allocator that aborts takes its whole process along. If that were the container's first
process, one bad frame after another would drive a pod into CrashLoopBackOff; here it costs loading the model again.
Any end that the child did not announce is a crash, whatever its exit status says: C libraries call exit() too.

Fork, not exec: what the parent has imported need not be imported again, and it does not matter how the program was
started. So at the fork the parent has no threads, no model and no CUDA; it never opens a connection or a port.
Linux only: elsewhere a fork without exec is not safe, and a child would outlive a killed parent.
"""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import structlog

from coatstream.errors import CoatstreamError
from coatstream.settings.process import end_with_parent
from coatstream.telemetry.identity import Lineage, draw_suffix, worker_name
from coatstream.telemetry.log_writer import drain_log
from coatstream.telemetry.memory_kills import memory_kills

# A terminal that is closed sends SIGHUP; `nohup` has it ignored.
STOP_SIGNALS = frozenset(
    {signal.SIGTERM, signal.SIGINT}
    | ({signal.SIGHUP} if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else set())
)
EARLY_CRASHES = 3  # in a row, before the child was ready: no frame is to blame, so a restart does not help
WINDOW = 60.0  # seconds
LOADING_ENDS_WITHIN = 2.0  # seconds after SIGTERM: a library that is being loaded may let no signal through for longer
_AWAITED = STOP_SIGNALS | {signal.SIGCHLD}
_log = structlog.get_logger("supervisor")


class NeverReady(CoatstreamError):
    """The worker crashes before it has read a frame. The process ends with exit code 1."""


@dataclass(frozen=True, slots=True)
class Lifeline:
    """What a worker reports to its parent, if it has one."""

    pipe: int | None = None

    @property
    def supervised(self) -> bool:
        """Whether there is a parent: it counts the signals then, and calls a silent end a crash."""
        return self.pipe is not None

    def ready(self, port: int = 0) -> None:
        """The model is warm and reading begins now: from here on a crash may be a frame's doing. `port` is HTTP's."""
        self._report(f"ready {port}\n")

    def leave(self, code: int) -> NoReturn:
        """End this process on purpose, now: no thread is waited for, no library's destructor can crash or hang."""
        try:
            with suppress(OSError, ValueError):  # the reader of these lines may be gone
                sys.stdout.flush()
            drain_log()
            self._report(f"end {code}\n")
        finally:
            os._exit(code)

    def crash(self) -> NoReturn:
        """End this process without a word, so that the parent starts the next one: what went wrong was a bug."""
        try:
            drain_log()
        finally:
            os._exit(1)

    def _report(self, words: str) -> None:
        if self.pipe is not None:
            os.write(self.pipe, words.encode())


RunChild = Callable[[str, Lineage, Lifeline], int]


class Pacing:
    """At most so many restarts in any minute."""

    def __init__(self, restarts_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._restarts: deque[float] = deque(maxlen=restarts_per_minute)

    def delay(self) -> float:
        """Seconds until the next restart may be."""
        if len(self._restarts) < (self._restarts.maxlen or 0):
            return 0.0
        return max(0.0, self._restarts[0] + WINDOW - self._clock())

    def restarted(self) -> None:
        """Note a restart."""
        self._restarts.append(self._clock())


@dataclass(slots=True)
class _WorkerProcess:
    pid: int
    name: str
    pipe: int
    born: float
    memory_kills: int | None  # of this container, before it was born
    words: str = ""  # what it has reported so far

    def listen(self) -> str:
        with suppress(BlockingIOError):  # a process that the child left behind may hold the other end open
            self.words += os.read(self.pipe, 100).decode()
        return self.words


@dataclass(frozen=True, slots=True)
class _End:
    code: int | None  # as announced; None: a crash
    ready: bool
    port: int  # where it listened, if it got as far as ready
    how: str
    uptime: float
    stopping: bool  # whether it had been asked to


def supervise(run_child: RunChild, *, restarts_per_minute: int) -> int:
    """Run the worker in a child, and in another after each crash; returns the exit code. Raises NeverReady.

    `run_child` gets its worker's name, its lineage and its lifeline, with `STOP_SIGNALS` blocked until it has
    handlers for them. The code that it returns, or leaves with, is this process's too; if it raises, that is a crash.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored signals are inherited: no end of a child would be noticed
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)  # for good: a late signal shall not change the exit code
    pacing, lineage, early = Pacing(restarts_per_minute), Lineage(), 0
    while True:
        child = _start(run_child, lineage)
        end = _outlive(child)
        if end.code is not None:
            return end.code
        _log.error("worker crashed", worker=child.name, end=end.how, uptime=end.uptime, restarts=lineage.restarts)
        if end.stopping:
            return int(end.ready)  # before that nothing was read, so nothing is left undone
        early = 0 if end.ready else early + 1
        if early == EARLY_CRASHES:
            raise NeverReady(
                f"the worker crashed {early} times in a row before it was ready (the last time: {end.how} after "
                f"{end.uptime} s). No frame does that: look at memory limits, the model and the driver"
            )
        if _stopped_while_waiting(pacing):
            return 0
        lineage = lineage.after(child.name, took_over=end.ready, port=end.port)


def _stopped_while_waiting(pacing: Pacing) -> bool:
    delay = pacing.delay()
    if delay > 0:
        _log.error("too many restarts", waiting=round(delay, 1))
    if signal.sigtimedwait(STOP_SIGNALS, delay) is not None:
        return True
    pacing.restarted()
    return False


def _start(run_child: RunChild, lineage: Lineage) -> _WorkerProcess:
    if threading.active_count() > 1:  # the child would inherit their locks, and no thread to release them
        raise RuntimeError(f"threads at the fork: {threading.enumerate()}")
    parent, suffix, kills = os.getpid(), draw_suffix(), memory_kills()
    hearing, telling = os.pipe()
    sys.stdout.flush()  # or the child would write it once more
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(hearing)
        lifeline = Lifeline(telling)
        _live(parent, lifeline, lambda: run_child(worker_name(suffix=suffix), lineage, lifeline))
    os.close(telling)
    os.set_blocking(hearing, False)
    child = _WorkerProcess(pid, worker_name(pid, suffix), hearing, time.monotonic(), kills)
    if lineage.restarts:
        _log.warning("worker restarted", worker=child.name, restarts=lineage.restarts)
    return child


def _live(parent: int, lifeline: Lifeline, run: Callable[[], int]) -> NoReturn:
    """The child's whole life: it must never return into the parent's stack. An exception is no wanted end."""
    try:
        if end_with_parent(parent):  # no worker without a parent
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            lifeline.leave(run())
    finally:
        lifeline.crash()


def _outlive(child: _WorkerProcess) -> _End:
    """Wait for the child's end. The first signal asks it to drain, the second one ends it, and us, at once.

    So does time where it has nothing to drain: it was still loading.
    """
    stopping = False
    while True:
        received = _next_signal(child, stopping=stopping)
        if received is None:
            _log.info("killed: it did not stop while it was loading", worker=child.name)
            return _killed(child, code=0)
        if received == signal.SIGCHLD:
            if (status := _reap(child.pid)) is not None:
                return _end(child, status, stopping)
        elif not stopping:
            stopping = True
            os.kill(child.pid, signal.SIGTERM)
        else:
            return _killed(child, code=1)


def _next_signal(child: _WorkerProcess, *, stopping: bool) -> int | None:
    """The next signal; None: a child that was asked to stop while loading has not stopped in time."""
    if stopping and "ready" not in child.listen():
        info = signal.sigtimedwait(_AWAITED, LOADING_ENDS_WITHIN)
        if info is not None or "ready" not in child.listen():
            return None if info is None else info.si_signo
    return signal.sigwait(_AWAITED)


def _killed(child: _WorkerProcess, *, code: int) -> _End:
    os.kill(child.pid, signal.SIGKILL)
    signal.sigtimedwait({signal.SIGCHLD}, 1.0)  # its port and its memory are free when we are gone
    return _End(code=code, ready=False, port=0, how="killed by us", uptime=0.0, stopping=True)


def _reap(child: int) -> int | None:
    """The child's status, if it has ended. As the container's first process we also inherit what a killed worker has
    left behind, the processes of its cameras: they would stay as zombies.
    """
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in (0, child):
            return status if pid else None


def _how(code: int, child: _WorkerProcess) -> str:
    """In words. The kernel kills for want of memory with the same signal as an operator."""
    if code != -signal.SIGKILL:
        return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit status {code}"
    now = memory_kills()
    if now is None or child.memory_kills is None:
        return "signal 9 (Killed): perhaps memory ran out, as the kernel's log would say"
    return "out of memory: killed at this container's memory limit" if now > child.memory_kills else "signal 9 (Killed)"


def _end(child: _WorkerProcess, status: int, stopping: bool) -> _End:
    words = child.listen().split()
    os.close(child.pipe)
    code = os.waitstatus_to_exitcode(status)
    return _End(
        code=int(words[-1]) if "end" in words else None,
        ready="ready" in words,
        port=int(words[words.index("ready") + 1]) if "ready" in words else 0,
        how=_how(code, child),
        uptime=round(time.monotonic() - child.born, 2),
        stopping=stopping,
    )
