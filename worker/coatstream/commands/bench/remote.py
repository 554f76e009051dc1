"""An object in a process of its own, called by name: one side of a benchmark that must not disturb the other.

Engines share more of a process than is good for a comparison: thread pools, the allocator, the interpreter lock. Knows
nothing of what is measured.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any, Final

from coatstream.errors import CoatstreamError, EngineError
from coatstream.settings.model import LogSettings
from coatstream.telemetry import logs

LEAVE: Final = 10.0  # seconds that the process has to end


class RemoteObject:
    """A process with one object in it. One call at a time, from one thread."""

    def __init__(self, name: str, process: BaseProcess, connection: "Connection[Any, Any]") -> None:
        self.name = name
        self.process = process
        self._connection = connection

    def call(self, method: str, *arguments: object, within: float) -> Any:
        """What the object's method returns. Raises EngineError: what it raised, or that it died or took too long."""
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(within):
                raise EngineError(f"{self.name}: {method} took longer than {within:.0f} s")
            well, answer = self._connection.recv()
        except (EOFError, OSError):
            self.process.join(LEAVE)
            raise EngineError(f"the process of {self.name} ended with code {self.process.exitcode}") from None
        if not well:
            raise EngineError(answer)
        return answer


@contextmanager
def remote(name: str, make: Callable[..., object], *arguments: object) -> Iterator[RemoteObject]:
    """`make(*arguments)` in a process of its own, which ends on leaving. Both must be known to a fresh interpreter."""
    spawning = multiprocessing.get_context("spawn")  # not fork: torch's and OpenCV's threads would not survive it
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_answer, args=(theirs, make, arguments), name=f"bench-{name}", daemon=True)
    process.start()
    theirs.close()
    try:
        yield RemoteObject(name, process, ours)
    finally:
        ours.close()  # ends its loop
        process.join(LEAVE)
        if process.is_alive():
            process.kill()
            process.join(LEAVE)


def _answer(connection: "Connection[Any, Any]", make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    logs.configure(LogSettings(level="error"))
    target: object = None
    try:
        while True:
            method, values = connection.recv()
            try:
                target = target or make(*arguments)  # at the first call, which can return an error
                connection.send((True, getattr(target, method)(*values)))
            except CoatstreamError as error:
                connection.send((False, str(error)))
    except (EOFError, OSError, KeyboardInterrupt):
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an engine's threads may be in the middle of something


@contextmanager
def burner() -> Iterator[Event]:
    """A process that takes one core for as long as the event is set."""
    spawning = multiprocessing.get_context("spawn")
    burning = spawning.Event()
    process = spawning.Process(target=_burn, args=(burning,), name="bench-burner", daemon=True)
    process.start()
    try:
        yield burning
    finally:
        process.kill()
        process.join(LEAVE)


def _burn(burning: Event) -> None:
    while True:
        burning.wait()
        for _ in range(100_000):  # a few milliseconds between two looks
            pass
