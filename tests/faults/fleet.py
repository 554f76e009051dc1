"""Processes under test: workers, or consumers with a bad protocol. Killed, stopped, replaced and drained from here."""

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from pathlib import Path

from tests.faults.controls import Protocol, running_control
from tests.support import processes
from tests.support.workers import PATIENCE, THIS_TREE, Program, Worker, run_worker

INSIDE = Path(__file__).parent / "inside"
ROOT = Path(__file__).parents[2]
START_ATTEMPTS = 5


@dataclass(slots=True, eq=False)
class Member:
    """One process: the parent that was started, and the child that works where there is one.

    kind      which of the fleet's kinds it is
    stopping  it was told to stop
    """

    process: subprocess.Popen[str]
    worker: Worker | None = None  # None: a control
    kind: int = 0
    stopping: bool = False

    @property
    def pid(self) -> int:
        """The process that works."""
        return next(iter(processes.children(self.process.pid)), self.process.pid)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill_child(self) -> None:
        """SIGKILL for the process that works, where one is there; its parent starts another one."""
        working = processes.children(self.process.pid)  # none: the parent is just about to start the next one
        for pid in working if self.worker else [self.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL for all of it, as when the machine goes."""
        working = processes.children(self.process.pid)
        self.process.kill()
        for pid in working:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=PATIENCE)  # or it may count as alive, and nobody replaces it

    def stop(self) -> None:
        """SIGTERM: it drains and ends."""
        self.stopping = True
        self.process.send_signal(signal.SIGTERM)

    def freeze(self) -> int:
        """Send SIGSTOP to the process that works; return its id."""
        pid = self.pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        return pid

    def cpu_seconds(self) -> float:
        """Of parent and child so far."""
        family = {self.process.pid, self.pid}
        return sum(processes.cpu_seconds(pid) for pid in family)

    def catch_up(self) -> None:
        """Read what it has logged: a new child listens on a new port."""
        if self.worker is None:
            return
        with suppress(queue.Empty):
            while True:
                line = self.worker.lines.get_nowait()
                entry = json.loads(line) if line.startswith("{") else {"event": line}
                self.worker.log.append(entry)
        for entry in self.worker.log:
            if entry["event"] == "listening":
                self.worker.port = int(entry["http"].rpartition(":")[2])

    def plain_lines(self) -> list[str]:
        """What it has printed outside its structured log: lines for a person."""
        self.catch_up()
        assert self.worker is not None
        return [entry["event"] for entry in self.worker.log if len(entry) == 1]

    def total(self, name: str) -> float:
        """A metric summed over its labels, of the present child."""
        assert self.worker is not None
        self.catch_up()
        return self.worker.total(name)

    def probe(self, path: str) -> int:
        """The HTTP status of a probe."""
        assert self.worker is not None
        self.catch_up()
        return self.worker.get(path).status_code


@dataclass(slots=True)
class Fleet:
    """Several members on one server. A dead one is replaced when asked, and a started one is always ended.

    kinds  what starts a member, one for each kind that the fleet mixes
    ended  exit codes of members that were replaced
    """

    kinds: Sequence[Callable[[], AbstractContextManager[Member]]]
    members: list[Member] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    _starter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4))
    _starting: list[Future[Member]] = field(default_factory=list)
    _joining: threading.Lock = field(default_factory=threading.Lock)  # a member joins in the starter's thread
    _open: list[AbstractContextManager[Member]] = field(default_factory=list)

    def start(self, number: int) -> list[Member]:
        """Start this many members of each kind in turn, all at once, and wait until they are ready."""
        kinds = islice(cycle(range(len(self.kinds))), number)
        with ThreadPoolExecutor(number) as pool:
            starting = [pool.submit(self._start, kind) for kind in kinds]
        return [future.result() for future in starting]

    def _start(self, kind: int) -> Member:
        """One member. One that ends because Redis does not answer is started again, as Kubernetes would do."""
        for attempt in count(1):
            context = self.kinds[kind]()
            try:
                member = context.__enter__()
            except AssertionError as ended:
                if "ended with 4" not in str(ended) or attempt == START_ATTEMPTS:
                    raise
            else:
                member.kind = kind
                self._open.append(context)
                with self._joining:
                    self.members = sorted([*self.members, member], key=lambda member: member.kind)
                return member
        raise AssertionError("unreachable")

    def replace_dead(self, *, wait: bool = True) -> None:
        """Start one for each that has ended. Without waiting they join when they are ready, or at the next wait."""
        with self._joining:
            dead = [member for member in self.members if not member.alive]
            self.members = [member for member in self.members if member not in dead]
        self.ended += [member.process.returncode for member in dead]
        self._starting += [self._starter.submit(self._start, member.kind) for member in dead]
        if wait or not self.members:
            for future in self._starting:
                future.result(timeout=PATIENCE)
            self._starting.clear()

    def of_consumer(self, name: str) -> Member | None:
        """The member whose consumer has this name: host-pid-random."""
        pid = int(name.rsplit("-", 2)[1])
        return next((member for member in self.members if pid in (member.process.pid, member.pid)), None)

    def crashes(self) -> int:
        """Deaths of children that their parents have logged, and ends of members that had to be replaced."""
        logged = 0
        for member in self.members:
            member.catch_up()
            logged += sum(entry["event"] == "worker crashed" for entry in member.worker.log) if member.worker else 0
        return logged + len(self.ended)

    def wake(self, stopped: list[int]) -> None:
        """SIGCONT for processes that `freeze` has stopped."""
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)

    def drain(self) -> list[int]:
        """Send SIGTERM to all; return their exit codes."""
        for member in self.members:
            if member.alive:
                member.process.send_signal(signal.SIGTERM)
        return [member.process.wait(timeout=PATIENCE) for member in self.members]

    def close(self) -> None:
        self._starter.shutdown(wait=True)
        for context in reversed(self._open):
            context.__exit__(None, None, None)


@contextmanager
def running_member(
    url: str, faults: Mapping[str, object], settings: Mapping[str, object], program: Program = THIS_TREE
) -> Iterator[Member]:
    """A worker with the harness's troubles inside, ready."""
    with run_worker(url, environment=inside(faults), program=program, **settings) as worker:
        yield Member(worker.process, worker)


@contextmanager
def running_control_member(url: str, protocol: Protocol, batch: int, faults: Mapping[str, object]) -> Iterator[Member]:
    with running_control(url, protocol, batch, inside(faults)) as process:
        yield Member(process)


def inside(faults: Mapping[str, object]) -> dict[str, str]:
    """The environment that brings the troubles into a process."""
    return {"PYTHONPATH": f"{INSIDE}{os.pathsep}{ROOT}", "FAULTS": json.dumps(dict(faults))}
