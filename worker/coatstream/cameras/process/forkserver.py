"""Starts, kills and reaps the processes that read cameras. Knows nothing of cameras.

Own code and not multiprocessing's forkserver, for four reasons: that one inherits the environment, where settings with
passwords may be; each child of it imports the main module again; its waits have no end (a stopped server holds every
thread that starts a process); and it takes a resource tracker along. What remains of it is small: a process that forks
(`cameras.process.forkserver_main`), a socket to ask it, and one more for each child to report its start and its end.
Linux only.
"""

import os
import select
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import astuple
from types import TracebackType
from typing import Final, Self

import structlog

from coatstream.errors import CoatstreamError
from coatstream.frames.frame import InputSpec
from coatstream.settings.process import start_python

READY_WITHIN: Final = 60.0  # seconds; torch takes five on two slow cores
START_WITHIN: Final = 5.0
GRACE: Final = 0.3  # seconds in which a process may close its camera, before SIGKILL
_GONE_WITHIN: Final = 1.0  # after SIGKILL; a process in a call to a dead file system outlives even that
_TICK: Final = 0.1
_PAUSE: Final = 0.5  # before another fork server is started

_MAIN = """
from coatstream.frames.frame import InputSpec
from coatstream.cameras.process.forkserver_main import main
main({control}, {parent}, InputSpec(*{spec!r}))
"""

# One thread each: OpenBLAS and OpenMP would start as many as there are cores, and a fork keeps none of them.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class NoProcess(CoatstreamError):
    """No process could be started; trying again later may help."""


class ReaderProcess:
    """One process, from start to end; used by one thread. Leaving its `with` block asks it to end, then kills it.

    work    the socket between the worker and the process
    killed  whether it had to be killed
    """

    def __init__(self, pid: int, pidfd: int, work: socket.socket, report: socket.socket) -> None:
        self.pid = pid
        self.work = work
        self.killed = False
        self._pidfd = pidfd
        self._report = report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(OSError):
                self.work.shutdown(socket.SHUT_WR)  # it reads an end of file there, and stops
            if not self.ended(GRACE):
                self.kill()
        finally:
            self.work.close()
            self._report.close()
            os.close(self._pidfd)

    def kill(self) -> None:
        """End it now, whatever it does."""
        self.killed = True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.ended(_GONE_WITHIN)

    def ended(self, within: float = 0.0) -> bool:
        """Whether it has ended, or does so within so many seconds."""
        end = select.poll()
        end.register(self._pidfd, select.POLLIN)
        return bool(end.poll(within * 1000))

    def how_it_ended(self) -> str:
        """In words, once it has."""
        self._report.settimeout(_GONE_WITHIN)
        try:
            report = self._report.recv(4)
        except OSError:
            report = b""
        if len(report) != 4:  # the fork server was killed, and all its children with it
            return "it ended together with the process that had started it"
        code = int.from_bytes(report, "little", signed=True)
        return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit status {code}"


class ForkServer:
    """A worker's process that forks one reader for each camera. Starts it again when it ends.

    It runs from `prepare`, or from the first `start`, to the end of the `with` block. With torch it takes half a
    gigabyte: a worker without cameras has none. A thread starts it and waits for its end, since the kernel ends a child
    with the thread that started it, not with the process.
    """

    def __init__(self, spec: InputSpec, *, start_within: float = START_WITHIN) -> None:
        """`spec` is what the readers prepare for: whether that takes torch is known, and loaded, before the fork."""
        self._spec = spec
        self._start_within = start_within
        self._log = structlog.get_logger("forkserver")
        self._changed = threading.Condition()  # guards all below
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = False
        self._closing = False
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def prepare(self) -> None:
        """Start the process that forks, if there is none; it is ready some seconds later."""
        with self._changed:
            if self._keeper is None and not self._closing:
                self._keeper = threading.Thread(target=self._keep, name="forkserver", daemon=True)
                self._keeper.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if self._process is not None:  # it holds nothing that a graceful end would save
                self._process.kill()
        if self._keeper is not None:
            self._keeper.join(_GONE_WITHIN)

    @property
    def pid(self) -> int | None:
        """Of the process that forks, or None while there is none."""
        with self._changed:
            return self._process.pid if self._process is not None else None

    def start(self, stop: threading.Event, *, within: float = READY_WITHIN) -> ReaderProcess | None:
        """A new process, or None once `stop` is set. Raises NoProcess."""
        self.prepare()
        with ExitStack() as if_it_fails, ExitStack() as theirs:
            try:
                work, its_work = _pair(if_it_fails, theirs, socket.SOCK_STREAM)
                report, its_report = _pair(if_it_fails, theirs, socket.SOCK_SEQPACKET)
            except OSError as error:  # as many files as may be open
                raise NoProcess(f"no further process: {error.strerror}") from None
            if not self._ask(its_work, its_report, stop, time.monotonic() + within):
                return None
            theirs.close()
            pid, pidfd = _started(report, self._start_within)
            if_it_fails.pop_all()
            return ReaderProcess(pid, pidfd, work, report)

    def _ask(self, work: socket.socket, report: socket.socket, stop: threading.Event, until: float) -> bool:
        with self._changed:
            while not self._ready or self._control is None:
                if stop.is_set():
                    return False
                if self._closing or time.monotonic() > until:
                    raise NoProcess("the process that starts the readers of cameras does not run")
                self._changed.wait(_TICK)
            try:
                socket.send_fds(self._control, [b"?"], [work.fileno(), report.fileno()])
            except OSError as error:  # it has just died; or it is stopped, and its queue is full by now
                raise NoProcess(f"the process that starts the readers of cameras does not answer ({error})") from None
        return True

    def _keep(self) -> None:
        """The thread."""
        # The new process must have these blocked until it ignores them: Ctrl-C may come at any time.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        while not self._closing:
            status = self._serve()
            with self._changed:
                self._forget()
                if not self._closing:
                    self._log.error("the process that starts the readers of cameras ended", status=status)
                    self._changed.wait_for(lambda: self._closing, _PAUSE)

    def _serve(self) -> int | str | None:
        """Start one and wait for its end; returns how it ended."""
        try:
            process = self._launch()
        except OSError as error:  # no room for one more process or file now, but perhaps soon
            return error.strerror
        return None if process is None else process.wait()

    def _launch(self) -> subprocess.Popen[bytes] | None:
        """Start one and wait until it is ready, or has ended; None: we are closing."""
        with self._changed:
            if self._closing:
                return None
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                main = _MAIN.format(control=theirs.fileno(), parent=os.getpid(), spec=astuple(self._spec))
                self._process = process = start_python(main, environment=_ENVIRONMENT, pass_fds=[theirs.fileno()])
            control = self._control
        ready = control.recv(16)  # returns at the latest when the process ends, and `__exit__` kills it
        control.setblocking(False)
        with self._changed:
            self._ready = bool(ready)
            self._changed.notify_all()
        return process

    def _forget(self) -> None:
        self._process, self._ready = None, False
        if self._control is not None:
            self._control.close()
            self._control = None


def _pair(ours: ExitStack, theirs: ExitStack, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """Both ends, each to be closed with its stack."""
    own, other = socket.socketpair(socket.AF_UNIX, kind)
    return ours.enter_context(own), theirs.enter_context(other)


def _started(report: socket.socket, within: float) -> tuple[int, int]:
    """Pid and pidfd of the process that was asked for. Raises NoProcess."""
    report.settimeout(within)
    try:
        start, descriptors, _, _ = socket.recv_fds(report, 4, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        raise NoProcess(f"no process within {within:g} s") from None
    pid = int.from_bytes(start, "little", signed=True)
    if pid <= 0 or not descriptors:
        raise NoProcess(f"no further process: {os.strerror(-pid)}" if pid < 0 else "no further process")
    return pid, descriptors[0]
