"""The process that has imported everything, and forks one child for each reading of a camera.

A fork of this process takes milliseconds and shares its memory, torch's above all. It has no threads and reads no
camera, so that every fork is safe and nothing can hang it. It ends with the worker, and its children end with it: the
kernel sees to both (`settings.process.end_with_parent`), however stuck or stopped they are. `process.forkserver` is its
other half.
"""

import gc
import os
import selectors
import signal
import socket
import struct
from contextlib import suppress
from typing import Final, NoReturn

import numpy as np

from coatstream.cameras.process import reader
from coatstream.frames.frame import InputSpec
from coatstream.frames.resizing import prepare
from coatstream.settings.process import end_with_parent

READY: Final = b"ready"
START: Final = struct.Struct("<i")  # pid, or minus the errno of why there is none
END: Final = struct.Struct("<i")  # as os.waitstatus_to_exitcode has it
_REQUEST = 1  # byte; its two file descriptors are what matters


def main(control: int, parent: int, spec: InputSpec) -> None:
    """Serve requests until the worker hangs up."""
    for stop_signal in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C goes to the whole group; the worker decides when to go
        signal.signal(stop_signal, signal.SIG_IGN)
    _end_with(parent)
    # The first picture loads what is loaded late: torch, and its kernels. Once here instead of once in every child.
    prepare(np.zeros((720, 1280, 3), np.uint8), spec)
    gc.collect()
    gc.freeze()  # or each child's collector would touch, and so copy, every page
    with socket.socket(fileno=control) as requests, suppress(BrokenPipeError):
        requests.send(READY)
        _Readers(requests).serve()


def _end_with(parent: int) -> None:
    if not end_with_parent(parent):
        os._exit(1)


class _Readers:
    """The children that live, and where to report the end of each."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._reports: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: pid, report

    def serve(self) -> None:
        self._selector.register(self._requests, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._requests:
                    self._reap(key.fd)
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        """One child for one request. False: the worker has hung up."""
        request, descriptors, _, _ = socket.recv_fds(self._requests, _REQUEST, 2)
        if not request:
            return False
        if len(descriptors) == 2:
            work, report = (socket.socket(fileno=descriptor) for descriptor in descriptors)
            with work:
                self._start(work, report)
        else:  # there was no room for both
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _start(self, work: socket.socket, report: socket.socket) -> None:
        fork_server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            with report, suppress(OSError):
                report.send(START.pack(-(error.errno or 1)))
            return
        if pid == 0:
            self._run(work, report, fork_server)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # as many files as may be open: if this process ended for that, all its children would
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            report.close()
            return
        self._reports[pidfd] = pid, report
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _run(self, work: socket.socket, report: socket.socket, fork_server: int) -> NoReturn:
        """The child, from start to end: it must never return into this process's stack."""
        code = 1
        try:
            _end_with(fork_server)
            self._leave_behind()
            with report:  # only now: a child that is stopped before `_end_with` would outlive the worker
                socket.send_fds(report, [START.pack(os.getpid())], [os.pidfd_open(os.getpid())])
            reader.run(work)
            code = 0
        finally:
            os._exit(code)

    def _leave_behind(self) -> None:
        """The end of another child's socket would never be seen while it is open here too."""
        self._requests.close()
        self._selector.close()
        for pidfd, (_, report) in self._reports.items():
            os.close(pidfd)
            report.close()

    def _reap(self, pidfd: int) -> None:
        pid, report = self._reports.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        with report, suppress(OSError):
            report.send(END.pack(os.waitstatus_to_exitcode(status)))
