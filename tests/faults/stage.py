"""What one fault test plays on: a kind of server, a seed, a time limit; all that it starts ends with it."""

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from coatstream.broker.connection import Client

from tests.faults import frames
from tests.faults.controls import Protocol
from tests.faults.findings import Findings
from tests.faults.fleet import Fleet, Member, running_control_member, running_member
from tests.faults.proxy import Proxy, running_proxy
from tests.faults.servers import Server, running_server
from tests.support.workers import THIS_TREE, Program

T = TypeVar("T")

MIN_IDLE = 0.5  # seconds; short, so that hundreds of faults fit into a minute
KEEP_ALL = 10_000_000  # labels: a count must not be fooled by MAXLEN


class TookTooLong(AssertionError):
    """A condition did not come true within the test's time limit."""


@dataclass(slots=True)
class Stage:
    """One run of one test. Waits end with its time limit, whatever the product does."""

    kind: str
    seed: int
    rng: random.Random
    findings: Findings
    folder: Path
    ends: float  # monotonic seconds
    protocol: Protocol | None  # None: the product; else the control that takes its place
    _stack: ExitStack

    def enter(self, context: AbstractContextManager[T]) -> T:
        return self._stack.enter_context(context)

    def server(self, *options: str) -> Server:
        return self.enter(running_server(self.kind, *options))

    def proxy(self, target: int) -> Proxy:
        return self.enter(running_proxy(target, random.Random(self.rng.random())))

    def fleet(
        self,
        url: str,
        count: int,
        *,
        stall: float = 0.0,
        share: float = 0.0,
        programs: Sequence[Program] = (THIS_TREE,),
        **settings: object,
    ) -> Fleet:
        """This many workers (or controls), ready. `share` of their batches stop the process for `stall` seconds."""
        faults = {"seed": self.seed, "folder": str(self.folder), "stall": stall, "share": share}
        chosen: dict[str, Any] = {
            "batch__max_size": 32,
            "queue__min_idle": MIN_IDLE,
            "queue__decode_threads": 1,
            "model__top_k": 1,
            "results__max_length": KEEP_ALL,
            "process__restarts_per_minute": 600,
            **settings,
        }

        def make(program: Program) -> AbstractContextManager[Member]:
            if self.protocol is not None:
                return running_control_member(url, self.protocol, chosen["batch__max_size"], faults)
            return running_member(url, faults, chosen, program)

        fleet = Fleet([partial(make, program) for program in programs])
        self._stack.callback(fleet.close)
        fleet.start(count)
        return fleet

    def stalls(self) -> int:
        """The number of batches that have stopped their process."""
        counted = self.folder / "stalls"
        return counted.stat().st_size if counted.exists() else 0

    def left(self) -> float:
        """Seconds until the time limit."""
        return self.ends - time.monotonic()

    def until(self, holds: Callable[[], bool], what: str, *, within: float | None = None, every: float = 0.01) -> float:
        """Poll until it holds; return how long that took, in seconds. Raises TookTooLong."""
        began = time.monotonic()
        ends = self.ends if within is None else min(self.ends, began + within * self.findings.slack)
        while not holds():
            if time.monotonic() > ends:
                raise TookTooLong(f"not within {time.monotonic() - began:.1f} s: {what}")
            time.sleep(every)
        return time.monotonic() - began

    def until_gone(self, member: Member, *, within: float = 20.0) -> None:
        """Wait for a process to end."""
        self.until(lambda: not member.alive, "the worker ends", within=within)

    def next_label(self, client: Client, keys: frames.Keys = frames.KEYS, *, within: float = 15.0) -> float:
        """Wait for one label more than there are now; return how long that took."""
        before = client.xlen(keys.labels)
        return self.until(lambda: client.xlen(keys.labels) > before, "another label", within=within, every=0.003)

    def settle_up(
        self, client: Client, fleet: Fleet, sent: list[str], *, dead: int = 0, keys: frames.Keys = frames.KEYS
    ) -> frames.Outcomes:
        """The end of nearly every test: the queue becomes empty, the books balance, each frame has one outcome."""
        self.empty(client, keys)
        self.close_books(fleet)
        found = frames.outcomes(client, keys)
        self.judge(found, sent, dead=dead)
        self.audit(client, found, keys)
        return found

    def empty(self, client: Client, keys: frames.Keys = frames.KEYS, *, within: float | None = None) -> float:
        """Wait until the queue is empty; return how long that took."""
        return self.until(lambda: client.xlen(keys.stream) == 0, "the queue becomes empty", within=within, every=0.02)

    def judge(self, found: frames.Outcomes, sent: list[str], *, dead: int = 0) -> None:
        self.findings.note("frames", len(set(sent)))
        self.findings.exactly("lost", found.lost(sent), 0)
        self.findings.exactly("doubled", found.doubled(), 0)
        self.findings.exactly("dead letters", found.dead.total(), dead)

    def close_books(self, fleet: Fleet) -> None:
        """Every surviving worker's ledger balances once it has nothing in hand; then all of them drain."""
        if self.protocol is not None:
            return
        fleet.replace_dead()
        for member in fleet.members:
            try:
                self.until(lambda member=member: not _unbalanced(member), "the ledger balances", within=10.0)  # type: ignore[misc]
            except TookTooLong as late:
                raise TookTooLong(f"{late}: {_unbalanced(member)}; {_whereabouts(member)}") from None
        self.findings.exactly("exit codes", sorted(set(fleet.drain())), [0])

    def audit(self, client: Client, found: frames.Outcomes, keys: frames.Keys = frames.KEYS) -> None:
        """Every entry that ever was in the stream is accounted for there."""
        if self.protocol is not None:
            return
        otherwise = frames.booked(client, "dropped", keys) + frames.booked(client, "trimmed", keys)
        known = client.xlen(keys.stream) + found.entries.total() + found.dead.total() + otherwise
        self.findings.exactly("entries not accounted for", frames.added(client, keys) - known, 0)
        self.findings.exactly("left pending", len(frames.pending(client, keys)), 0)


def _unbalanced(member: Member) -> str:
    """Why its ledger does not balance; empty: it does."""
    assert member.worker is not None
    member.catch_up()
    try:
        member.worker.assert_balanced()
    except (AssertionError, OSError, httpx.HTTPError) as error:  # its child may just be starting
        return f"{type(error).__name__} {error}"[:500]
    return ""


def _whereabouts(member: Member) -> str:
    """What a member that does not answer is at: its processes, where the harness asks, what it said last."""
    assert member.worker is not None
    said = [entry["event"] for entry in member.worker.log[-8:]]
    code, port = member.process.poll(), member.worker.port
    return f"ended with {code}, works in {member.pid}, asked at port {port}, said last {said}"


@contextmanager
def on_stage(
    kind: str, seed: int, findings: Findings, *, limit: float, protocol: Protocol | None = None
) -> Iterator[Stage]:
    """A stage of `limit` seconds; all that it started ends with it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coatstream-faults-")))
        ends = time.monotonic() + limit
        yield Stage(kind, seed, random.Random(seed), findings, folder, ends, protocol, stack)
