"""What goes wrong, one trouble after the other, each undone before the next."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from coatstream.broker.connection import Client

from tests.faults.servers import Server
from tests.soak.cast import Cast
from tests.support import processes
from tests.support.workers import Worker


@dataclass(frozen=True, slots=True)
class Troubles:
    """`longest`: seconds that one may last."""

    server: Server
    client: Client
    workers: list[Worker]
    cast: Cast
    rng: random.Random
    longest: float

    def every(self) -> list[tuple[str, Callable[[], None]]]:
        """In the order in which they are played."""
        return [
            ("a camera dies", self.camera_dies),
            ("a worker stops for a while", self.worker_freezes),
            ("the server ends and comes back", self.server_ends),
            ("a camera is silent", self.camera_is_silent),
            ("a worker is killed", self.worker_dies),
            ("the server is killed", self.server_dies),
            ("cameras' processes are killed", self.readers_die),
            ("the server is full", self.server_is_full),
            ("the server is away for 7 s", self.server_freezes),
        ]

    def camera_dies(self) -> None:
        camera = self.rng.choice(self.cast.rough)
        camera.tell("kill")
        time.sleep(self.longest)
        camera.tell("start")

    def camera_is_silent(self) -> None:
        camera = self.rng.choice(self.cast.rough)
        camera.tell("silence")
        time.sleep(self.longest)
        camera.tell("speak")

    def worker_freezes(self) -> None:
        group = [pid for child in self._child() for pid in (child, *processes.descendants(child))]
        for pid in group:
            _signal(pid, signal.SIGSTOP)
        time.sleep(self.longest)
        for pid in group:
            _signal(pid, signal.SIGCONT)

    def worker_dies(self) -> None:
        for pid in self._child():
            _signal(pid, signal.SIGKILL)

    def readers_die(self) -> None:
        for pid in (below for child in self._child() for below in processes.children(child)):
            _signal(pid, signal.SIGKILL)

    def server_ends(self) -> None:
        assert self.server.process is not None
        self.server.process.terminate()
        self.server.process.wait(30)
        time.sleep(1.0)
        self.server.start()

    def server_dies(self) -> None:
        self.server.kill()
        time.sleep(1.0)
        self.server.start()

    def server_freezes(self) -> None:
        self.server.freeze()
        time.sleep(min(7.0, self.longest))
        self.server.thaw()

    def server_is_full(self) -> None:
        self.client.config_set("maxmemory", int(self.client.info("memory")["used_memory"]))
        time.sleep(self.longest / 2)
        self.client.config_set("maxmemory", 0)

    def _child(self) -> list[int]:
        """Of one worker: the process that works, if it runs just now. Its parent starts it again when it dies."""
        return processes.children(self.rng.choice(self.workers).process.pid)[:1]


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
