"""What one case plays on: a server, cameras, workers, the labels; all that it starts ends with it."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from tests.camera_faults.bars import Bars
from tests.camera_faults.lab import Lab, running_lab
from tests.camera_faults.replicas import Replica, running_replica
from tests.camera_faults.streams import Tail, poll, tailing
from tests.faults.proxy import Proxy, running_proxy
from tests.faults.servers import Server, running_server

T = TypeVar("T")

# The settings of every worker here. Deadlines are short, so that many faults fit into a minute.
SETTINGS: Final[dict[str, object]] = {
    "queue__enabled": False,
    "http__port": 0,
    "model__engine": "noop",
    "model__top_k": 5,
    "log__format": "json",
    "log__level": "debug",  # each loss of a camera with its `reopen_in`, not only the first
    "process__restarts_per_minute": 0,
    "results__max_length": 10_000_000,  # a count must not be fooled by MAXLEN
}
CAMERA: Final[dict[str, object]] = {"open_timeout": 3.0, "read_timeout": 2.0}
START_WITHIN: Final = 40.0  # seconds


class TookTooLong(AssertionError):
    """A condition did not come true in time."""


@dataclass(slots=True)
class Stage:
    """One run of one case."""

    kind: str
    rng: random.Random
    bars: Bars
    ends: float  # monotonic seconds
    replicas: list[Replica] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def enter(self, context: AbstractContextManager[T]) -> T:
        return self._stack.enter_context(context)

    def server(self, *options: str) -> Server:
        return self.enter(running_server(self.kind, *options))

    def proxy(self, server: Server) -> Proxy:
        return self.enter(running_proxy(server.port, random.Random(1)))

    def lab(self, number: int, *, each_alone: bool = False, clip: str = "cam320") -> Lab:
        return self.enter(running_lab(number, each_alone=each_alone, clip=clip))

    def tail(self, server: Server) -> Tail:
        return self.enter(tailing(server.client()))

    def replica(self, url: str, **settings: object) -> Replica:
        """Start one more worker."""
        replica = self.enter(running_replica(url, {**SETTINGS, **settings}))
        self.replicas.append(replica)
        return replica

    def until_ready(self, *some: Replica) -> None:
        """Wait for these workers, or for all."""
        waited = some or tuple(self.replicas)
        self.until(
            lambda: all(replica.ready_at or not replica.alive for replica in waited), "ready", within=START_WITHIN
        )
        for replica in waited:
            assert replica.alive, f"a worker ended with {replica.process.returncode}: {replica.last_words()}"

    def until_labelled(self, tail: Tail, lab: Lab, *, within: float = START_WITHIN) -> float:
        """Wait until every camera has a label of the last second; return how long that took."""
        names = set(lab.cameras)
        try:
            return self.until(lambda: names <= tail.cameras(1.0), "every camera is labelled", within=within)
        except TookTooLong:
            missing = sorted(names - tail.cameras(1.0))
            raise TookTooLong(f"no labels of {', '.join(missing[:8])} within {within:g} s: {self._words()}") from None

    def until(self, holds: Callable[[], bool], what: str, *, within: float) -> float:
        """Poll until it holds; return how long that took. Raises TookTooLong."""
        began = time.monotonic()
        if not poll(holds, until=min(self.ends, began + within * self.bars.slack)):
            raise TookTooLong(f"not within {time.monotonic() - began:.1f} s: {what}")
        return time.monotonic() - began

    def pass_by(self, seconds: float) -> None:
        """Let time go by in which something is measured. Fails if a worker ends meanwhile."""
        poll(lambda: any(not replica.alive for replica in self.replicas), until=time.monotonic() + seconds)
        for replica in self.replicas:
            assert replica.alive, f"a worker ended with {replica.process.returncode}: {replica.last_words()}"

    def gone(self, replica: Replica) -> None:
        """Forget a worker that the case has ended."""
        self.replicas.remove(replica)

    def _words(self) -> str:
        return next((replica.last_words() for replica in self.replicas), "no worker")[:600]


def cameras_of(lab: Lab, fps: float, **more: Any) -> str:
    """The setting `cameras` for a whole lab."""
    return lab.settings(fps, **{**CAMERA, **more})


@contextmanager
def on_stage(kind: str, seed: int, bars: Bars, *, limit: float) -> Iterator[Stage]:
    """A stage of `limit` seconds."""
    stage = Stage(kind, random.Random(seed), bars, time.monotonic() + limit)
    with stage._stack:
        yield stage
