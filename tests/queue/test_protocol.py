"""The whole queue protocol against a model: any sequence of steps, several workers, crashes, strangers, real servers.

Each entry is at any time in exactly one place, gets at most one outcome, and the books add up. And the machine is worth
its time: it finds a counterexample as soon as one line of one script is wrong.
"""

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest
from coatstream.broker.connection import Client
from coatstream.broker.driver import Driver
from coatstream.broker.script import Script
from coatstream.queue import group
from coatstream.queue.audit import audit
from coatstream.queue.producing import admission
from coatstream.queue.producing.admission import Admission, Answer, Candidate, Confirmation, Verdict
from coatstream.results import settler as settling
from coatstream.results.outcomes import Outcome
from coatstream.settings.model import QueueSettings
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.servers import ON_ONE_SERVER
from tests.support.settled import HOUR, NOW, QUEUE, add, buried, dropped, ids, member, owners, published, read, settler

EXAMPLES: Final = int(os.environ.get("PROTOCOL_EXAMPLES", "200"))  # some 15 s a server; `make faults` may take more
STEPS: Final = 40
MAX_DELIVERIES: Final = 2
NOBODY: Final = "_released"
OUTCOMES: Final[dict[str, Callable[..., Outcome]]] = {"published": published, "dropped": dropped, "dead": buried}
OUTCOME: Final = st.sampled_from(sorted(OUTCOMES))


@dataclass
class Entry:
    """What the model knows of one entry.

    state   waiting, pending, published, dropped, dead, trimmed (gone, and counted) or gone (nobody has counted it)
    there   False: somebody deleted it
    idle    its lease has been silent for long
    """

    entry_id: str
    admitted: int
    state: str = "waiting"
    there: bool = True
    owner: str = ""
    deliveries: int = 0
    idle: bool = False


@dataclass
class Worker:
    """One process: its name, what it believes to hold, and the batch that it settled last."""

    name: str
    client: Client
    known: set[str] = field(default_factory=set)
    last: tuple[Sequence[Outcome], list[bool]] | None = None

    def __post_init__(self) -> None:
        self.patient = member(self.client, self.name, max_deliveries=MAX_DELIVERIES)
        self.impatient = member(self.client, self.name, max_deliveries=MAX_DELIVERIES, min_idle=0.0001)  # 0 ms
        self.settler = settler(self.client, worker=self.name)


class Protocol(RuleBasedStateMachine):
    """`client` is set by the test; every rule does a thing to the server and to the model, and compares the answers.

    Rules name entries by a number: 0 is the first that is pending, and behind those come all others that ever were.
    """

    client: Client
    who = st.integers(0, 2)
    which = st.integers(0, 12)

    @initialize()
    def begin(self) -> None:
        self.client.flushall()
        self.model: dict[str, Entry] = {}  # in the order of the stream
        self.workers = [Worker(f"w{number}", self.client) for number in range(3)]
        self.crashed: list[str] = []
        self.cameras = 0
        self.admitted_bytes = 0
        self.sources: Counter[str] = Counter()
        self.sequence = 1
        self.admission = Admission(QUEUE, QueueSettings(), confirmation=Confirmation("none", 0, 1.0), counts=False)
        assert self.workers[0].patient.join()
        self.admit(count=4, size=7, again=False)
        self.add(count=4)
        self.read(who=0, count=3, lost=False)
        self.read(who=1, count=3, lost=False)

    # ---- producers and strangers

    @rule(count=st.integers(1, 4))
    def add(self, count: int) -> None:
        self.model |= {entry_id: Entry(entry_id, 0) for entry_id in add(self.client, count)}

    def _ask(self, frames: list[Candidate]) -> list[Answer]:
        return Driver(self.client).run(self.admission.ask(frames))

    @rule(count=st.integers(1, 4), size=st.sampled_from([7, 100]), again=st.booleans())
    def admit(self, count: int, size: int, again: bool) -> None:
        """`again`: the reply was lost, and the same frames are sent once more."""
        if not any(entry.there for entry in self.model.values()):  # what strangers deleted is forgotten then
            self.admitted_bytes, self.sources = 0, Counter()
        frames = [self._candidate(self.sequence + number, size) for number in range(count)]
        self.sequence += count

        answers = self._ask(frames)
        assert [answer.verdict for answer in answers] == [Verdict.ADMITTED] * count
        if again:
            *before, last = self._ask(frames)
            assert before == [Answer(Verdict.DUPLICATE)] * (count - 1)
            assert last == Answer(Verdict.DUPLICATE, answers[-1].entry_id)
        found = [entry_id.decode() for entry_id, _ in reversed(self.client.xrevrange("frames", count=count))]
        assert [answer.entry_id for answer in answers] == found
        self.model |= {entry_id: Entry(entry_id, size) for entry_id in found}
        self.admitted_bytes += size * count
        self.sources["door"] += count

    def _candidate(self, sequence: int, size: int) -> Candidate:
        return Candidate("door", QUEUE.sequence("door"), HOUR, sequence, [b"image", b"jpeg", b"source", b"door"], size)

    @precondition(lambda self: self._pending())
    @rule(victims=st.lists(which, min_size=1, max_size=2))
    def delete(self, victims: list[int]) -> None:
        for victim in self._entries(victims):
            self.client.xdel("frames", victim.entry_id)
            self._vanish(victim)

    @precondition(lambda self: self._in("waiting"))
    @rule(kept=st.integers(0, 6))
    def trim(self, kept: int) -> None:
        self.client.xtrim("frames", kept, approximate=False)
        there = [entry for entry in self.model.values() if entry.there]
        for entry in there[: max(0, len(there) - kept)]:
            self._vanish(entry)

    def _vanish(self, entry: Entry) -> None:
        entry.there = False
        if entry.state == "waiting":
            entry.state = "gone"

    @precondition(lambda self: self._pending())
    @rule(who=who, wanted=st.lists(st.tuples(which, OUTCOME), max_size=3))
    def destroy_the_group_and_join_again(self, who: int, wanted: list[tuple[int, str]]) -> None:
        """Some worker may settle in between, and has nothing to settle then."""
        self.client.xgroup_destroy("frames", "coatstream")
        for entry in self._pending():
            entry.state = "waiting" if entry.there else "gone"
        self.settle(who, wanted, camera=True, again=False)
        assert self.workers[who].patient.join() != ""
        assert self.workers[who].patient.join() == ""

    # ---- reading

    @precondition(lambda self: self._in("waiting"))
    @rule(who=who, count=st.integers(1, 5), lost=st.booleans())
    def read(self, who: int, count: int, lost: bool) -> None:
        """`lost`: the reply never arrives, and this worker does not know what it has been given."""
        worker = self.workers[who]
        expected = [entry for entry in self.model.values() if entry.state == "waiting"][:count]

        assert read(self.client, worker.name, count) == [entry.entry_id for entry in expected]
        for entry in expected:
            entry.state, entry.deliveries = "pending", 0
            self._give(entry, worker, lost=lost)

    def _give(self, entry: Entry, worker: Worker, *, lost: bool) -> None:
        entry.owner, entry.idle = worker.name, False
        entry.deliveries += 1
        if not lost:
            worker.known.add(entry.entry_id)

    @precondition(lambda self: self._pending())
    @rule(who=who, want=st.integers(1, 4), alone=st.booleans(), patient=st.booleans(), lost=st.booleans())
    def claim(self, who: int, want: int, alone: bool, patient: bool, lost: bool) -> None:
        worker = self.workers[who]
        seen = [entry for entry in self._pending() if entry.idle or not patient]
        found: list[str] = []
        tally: Counter[str] = Counter()
        for entry in seen:
            self._look_at(entry, worker, found, tally, want=want, alone=alone, lost=lost)

        reclaimed = (worker.patient if patient else worker.impatient).reclaim(want, alone=alone)

        assert ids(reclaimed.entries) == found
        assert reclaimed.buried == [b"door"] * tally["buried"]
        assert (reclaimed.trimmed, reclaimed.suspects) == (tally["trimmed"], tally["suspects"] > 0)
        if seen:
            assert not self.client.exists(QUEUE.gate)
        self.client.delete(QUEUE.gate)  # the clock's business, and tested elsewhere

    def _look_at(
        self, entry: Entry, worker: Worker, found: list[str], tally: Counter[str], *, want: int, alone: bool, lost: bool
    ) -> None:
        if entry.owner == worker.name:
            return
        wanted = alone == (entry.deliveries > 0) and len(found) < (1 if alone else want)
        if entry.deliveries < MAX_DELIVERIES and not wanted:
            tally["suspects"] += entry.deliveries > 0
        elif not entry.there:
            entry.state = "trimmed"
            tally["trimmed"] += 1
        elif entry.deliveries >= MAX_DELIVERIES:
            self._finish(entry, "dead")
            tally["buried"] += 1
        else:
            self._give(entry, worker, lost=lost)
            found.append(entry.entry_id)

    # ---- outcomes

    @rule(
        who=who,
        wanted=st.lists(st.tuples(which, OUTCOME), min_size=1, max_size=5),
        camera=st.booleans(),
        again=st.booleans(),
    )
    def settle(self, who: int, wanted: list[tuple[int, str]], camera: bool, again: bool) -> None:
        """Anything that ever was in the queue, whoever has it now: this worker may have had it once.

        `again`: the reply was lost, and the same call is made once more.
        """
        worker = self.workers[who]
        batch = [(entry, state) for number, state in wanted for entry in self._entries([number])]
        outcomes: list[Outcome] = [OUTCOMES[state](entry.entry_id, admitted=entry.admitted) for entry, state in batch]
        expected = [self._settled(entry, state) for entry, state in batch]
        if camera:
            outcomes.append(published(None, frame_id=f"camera {self.cameras}"))
            expected.append(True)
            self.cameras += 1

        assert list(worker.settler.settle(outcomes, now=NOW).done) == expected
        if again:
            assert list(worker.settler.settle(outcomes, now=NOW).done) == expected
        worker.last = outcomes, expected
        worker.known -= {entry.entry_id for entry, _ in batch}

    def _settled(self, entry: Entry, state: str) -> bool:
        if entry.state != "pending":
            return False
        self._finish(entry, state)
        return True

    def _finish(self, entry: Entry, state: str) -> None:
        entry.state, entry.there = state, False
        if entry.admitted:
            self.admitted_bytes = max(0, self.admitted_bytes - entry.admitted)
            self.sources["door"] = max(0, self.sources["door"] - 1)

    @precondition(lambda self: any(worker.last for worker in self.workers))
    @rule(who=who)
    def repeat_the_last_batch(self, who: int) -> None:
        """Much may have happened since."""
        worker = self.workers[who]
        if worker.last is not None:
            outcomes, done = worker.last
            assert list(worker.settler.settle(outcomes, now=NOW).done) == done

    # ---- leases

    @precondition(lambda self: self._pending())
    @rule(who=who, others=st.lists(which, max_size=3))
    def beat(self, who: int, others: list[int]) -> None:
        worker = self.workers[who]
        asked = sorted(worker.known | {entry.entry_id for entry in self._entries(others)})

        lost = worker.patient.beat(asked)

        assert lost == [entry_id for entry_id in asked if not self._is_of(entry_id, worker.name)]
        for entry_id in set(asked) - set(lost):
            entry = self.model[entry_id]
            entry.idle = False
            if not entry.there:
                entry.state = "gone"  # XCLAIM forgets what is not in the stream
        worker.known -= set(lost)

    @precondition(lambda self: self._pending())
    @rule(who=who)
    def fall_silent(self, who: int) -> None:
        """An hour passes for what this worker holds."""
        mine = [entry for entry in self._pending() if entry.owner == self.workers[who].name and entry.there]
        for entry in mine:
            self.client.xclaim(
                "frames",
                "coatstream",
                entry.owner,
                0,
                [entry.entry_id],
                idle=int(HOUR * 1000),
                retrycount=entry.deliveries,
                justid=True,
            )
            entry.idle = True

    @precondition(lambda self: self._pending())
    @rule(who=who, silent=who, want=st.integers(1, 4), alone=st.booleans(), lost=st.booleans())
    def take_over(self, who: int, silent: int, want: int, alone: bool, lost: bool) -> None:
        self.fall_silent(silent)
        self.claim(who, want, alone=alone, patient=True, lost=lost)

    @precondition(lambda self: self._pending())
    @rule(who=who, some=st.lists(which, min_size=1, max_size=4), begun=st.booleans())
    def release(self, who: int, some: list[int], begun: bool) -> None:
        worker = self.workers[who]
        entries = [entry.entry_id for entry in self._entries(some)]
        mine = [entry_id for entry_id in entries if self._is_of(entry_id, worker.name)]

        assert worker.patient.release(entries, begun=begun) == len(mine)
        self._released(mine, begun=begun)
        worker.known -= set(entries)

    @precondition(lambda self: self._pending())
    @rule(who=who)
    def sweep(self, who: int) -> None:
        worker = self.workers[who]
        mine = [entry.entry_id for entry in self._pending() if entry.owner == worker.name]

        assert worker.patient.orphans() == mine
        lost = [entry_id for entry_id in mine if entry_id not in worker.known]
        assert worker.patient.release(lost, begun=False) == len(lost)
        self._released(lost, begun=False)

    def _released(self, some: Sequence[str], *, begun: bool) -> None:
        for entry_id in some:
            entry = self.model[entry_id]
            entry.owner, entry.idle = NOBODY, True
            if not begun:
                entry.deliveries = max(0, entry.deliveries - 1)
            if not entry.there:
                entry.state = "gone"

    # ---- workers come and go

    @precondition(lambda self: self._pending())
    @rule(who=who, at_once=st.booleans())
    def crash(self, who: int, at_once: bool) -> None:
        """`at_once`: its parent knows that it is dead, and its successor takes over."""
        dead = self.workers[who].name
        self.crashed.append(dead)
        self.workers[who] = Worker(f"w{2 + len(self.crashed)}", self.client)
        if at_once:
            self.take_over_from_a_dead_one(who, len(self.crashed) - 1)

    @precondition(lambda self: self.crashed)
    @rule(who=who, which=which)
    def take_over_from_a_dead_one(self, who: int, which: int) -> None:
        dead = self.crashed[which % len(self.crashed)]
        its = [entry.entry_id for entry in self._pending() if entry.owner == dead]

        assert self.workers[who].patient.take_over_from(dead) == len(its)
        self._released(its, begun=True)

    @rule(who=who, flush=st.booleans())
    def tidy_up(self, who: int, flush: bool) -> None:
        """The reaper comes by, a worker leaves and comes back, the server forgets all scripts."""
        if flush:
            self.client.script_flush()
        self.workers[who].patient.reap(0.0)
        self.workers[who].patient.leave()

    # ---- the model

    def _entries(self, numbers: Sequence[int]) -> list[Entry]:
        """Each once; those that are pending have the lowest numbers."""
        order = sorted(self.model.values(), key=lambda entry: entry.state != "pending")
        return [order[at] for at in dict.fromkeys(number % len(order) for number in numbers)] if order else []

    def _pending(self) -> list[Entry]:
        return [entry for entry in self.model.values() if entry.state == "pending"]

    def _is_of(self, entry_id: str, name: str) -> bool:
        entry = self.model[entry_id]
        return entry.state == "pending" and entry.owner == name

    def _in(self, state: str) -> list[str]:
        return [entry.entry_id for entry in self.model.values() if entry.state == state]

    # ---- what holds after every step

    @invariant()
    def each_entry_is_where_the_model_has_it(self) -> None:
        in_stream = [entry_id.decode() for entry_id, _ in self.client.xrange("frames")]
        assert in_stream == [entry.entry_id for entry in self.model.values() if entry.there]
        assert owners(self.client) == {entry.entry_id: (entry.owner, entry.deliveries) for entry in self._pending()}

    @invariant()
    def each_entry_has_one_outcome_at_most(self) -> None:
        labels = [fields for _, fields in self.client.xrange("labels")]
        of_entries = [fields[b"entry_id"].decode() for fields in labels if b"entry_id" in fields]
        letters = [fields for _, fields in self.client.xrange("frames:dead")]
        of_letters = [fields[b"entry_id"].decode() for fields in letters]
        assert len({*of_entries, *of_letters}) == len(of_entries) + len(of_letters)
        assert sorted(of_entries) == self._in("published")
        assert sorted(of_letters) == self._in("dead")
        of_cameras = [fields[b"frame_id"] for fields in labels if b"entry_id" not in fields]
        assert of_cameras == [b"camera %d" % number for number in range(self.cameras)]

    @invariant()
    def the_books_add_up(self) -> None:
        books = audit(self.client, QUEUE)
        counts = Counter(entry.state for entry in self.model.values())
        assert (books.entries_added, books.base) == (len(self.model), 0)
        assert (books.published, books.dropped, books.dead, books.trimmed) == tuple(
            counts[state] for state in ("published", "dropped", "dead", "trimmed")
        )
        pending_and_deleted = sum(not entry.there for entry in self._pending())
        assert books.unaccounted == counts["gone"] + pending_and_deleted
        letters = [fields for _, fields in self.client.xrange("frames:dead")]
        assert books.dead_bytes == sum(len(name) + len(value) for fields in letters for name, value in fields.items())
        assert (books.dead_dropped, books.admitted_bytes) == (0, self.admitted_bytes)
        sources = {name.decode(): int(value) for name, value in self.client.hgetall(QUEUE.sources).items()}
        assert sources == +self.sources


def run(client: Client, *, shrink: bool = True) -> None:
    """Always the same examples, so that a failure can be seen again."""
    machine = type("BoundProtocol", (Protocol,), {"client": client})
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(60 + EXAMPLES)
def test_no_sequence_of_steps_loses_or_doubles_an_entry_or_spoils_the_books(client: Client) -> None:
    run(client)


def broken(script: Script, right: str, wrong: str) -> Script:
    """The same script with one of its lines wrong."""
    assert script.source.count(right) == 1
    made = copy.copy(script)
    made.source = script.source.replace(right, wrong)
    made.sha1 = hashlib.sha1(made.source.encode()).hexdigest()
    return made


MISTAKES: Final = {
    "settling ignores XACK's reply": (
        (settling, "_SETTLE"),
        "if redis.call('XACK', frames, group, entry_id) ~= 1 then return false end",
        "redis.call('XACK', frames, group, entry_id)",
    ),
    "a repeated batch is settled again": (
        (settling, "_SETTLE"),
        "if last_number and tonumber(last_number) >= number then",
        "if false then",
    ),
    "what is settled is not deleted": ((settling, "_SETTLE"), "delete_taken() --", "--"),
    "a worker takes its own entries over": ((group, "_RECLAIM"), "if owner == me then return end", ""),
    "suspects travel in company": ((group, "_RECLAIM"), "elseif deliveries >= 1 then", "elseif deliveries >= 9 then"),
    "the limit of deliveries is one too high": (
        (group, "_RECLAIM"),
        "if deliveries >= max_deliveries then",
        "if deliveries > max_deliveries then",
    ),
    "the delivery limit leaves an entry admitted": (
        (group, "_RECLAIM"),
        "if admitted then unadmit(sources, source, admitted) end",
        "",
    ),
    "what was trimmed is not counted": ((group, "_RECLAIM"), "note('trimmed', 1)", ""),
    "a frame that is sent again is let in again": (
        (admission, "ADMIT"),
        "if tonumber(sequence) <= last[key] then",
        "if false then",
    ),
    "a beat steals": (
        (group, "_BEAT"),
        "if #redis.call('XPENDING', frames, group, ARGV[i], ARGV[i], 1, me) > 0 then",
        "if #redis.call('XPENDING', frames, group, ARGV[i], ARGV[i], 1) > 0 then",
    ),
    "a beat counts as a delivery": ((group, "_BEAT"), "ARGV[i], 'JUSTID')", "ARGV[i])"),
    "a release takes what is somebody else's": (
        (group, "_RELEASE"),
        "local mine = redis.call('XPENDING', frames, group, ARGV[i], ARGV[i], 1, whose)",
        "local mine = redis.call('XPENDING', frames, group, ARGV[i], ARGV[i], 1)",
    ),
    "an entry that nobody has begun keeps its count": (
        (group, "_RELEASE"),
        "math.max(0, deliveries - 1)",
        "deliveries",
    ),
    "a consumer is deleted with what it holds": (
        (group, "_RELEASE"),
        "if leave and #redis.call('XPENDING', frames, group, '-', '+', 1, whose) == 0 then",
        "if leave then",
    ),
    "the reaper deletes a consumer with what it holds": ((group, "_REAP"), "consumer.pending == 0 and", ""),
    "the group begins at the end of the stream": ((group, "_JOIN"), "group, '0', 'MKSTREAM'", "group, '$', 'MKSTREAM'"),
}


@pytest.mark.slow
@ON_ONE_SERVER
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_machine_finds_every_mistake_that_a_script_could_make(
    client: Client, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    (module, name), right, wrong = MISTAKES[mistake]
    monkeypatch.setattr(module, name, broken(getattr(module, name), right, wrong))

    with pytest.raises(AssertionError):
        run(client, shrink=False)
