"""The scale test: `python -m tests.deploy.scale [--frames N] [--kills N]`. One JSON line; exit 1: a promise broke.

An autoscaler's stand-in follows KEDA's formula, ceil(frames in the stream / streamLength), with the behavior of
deploy/k8s/components/keda at ten times its pace. Workers are real processes with the noop engine, on a pair of Redis
under Sentinels. Meanwhile some are killed or frozen, all are replaced once (a rolling upgrade), and Redis fails over.
"""

import argparse
import collections
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import redis
from coatstream.settings.model import QueueSettings

from tests.support.pictures import jpeg
from tests.support.ports import HOST
from tests.support.redis_servers import SentinelPair, sentinel_pair

STREAM_LENGTH, LEAST, MOST = 100, 1, 6
SYNC, WINDOW, STEP = 3.0, 10.0, 5.0  # seconds: between looks, of calm before fewer are wanted, between two that go
FROZEN = 25.0  # seconds of a freeze: longer than queue.min_idle
QUEUE = QueueSettings()
MIN_IDLE = QUEUE.min_idle  # seconds that what a lost worker holds stays with it
LONGEST_DRAIN = 5.0  # seconds from SIGTERM to the exit
SETTINGS = {
    "MODEL__ENGINE": "noop",
    "MODEL__NOOP_DELAY": "0.05",
    "MODEL__STREAMS": "1",
    "QUEUE__DECODE_THREADS": "1",
    "HTTP__PORT": "0",
    "RESULTS__MAX_LENGTH": "1000000",
}


@dataclass
class Member:
    """One worker and what was done to it."""

    process: "subprocess.Popen[bytes]"
    log: BinaryIO
    began: float
    stopping: float = 0.0
    killed: bool = False
    frozen_until: float = 0.0


@dataclass
class Outcome:
    """What is reported."""

    exits: "collections.Counter[str]" = field(default_factory=collections.Counter)
    stops: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    losses: dict[bytes, int] = field(default_factory=dict)  # of an entry: how many workers were lost that had it
    last_words: list[str] = field(default_factory=list)  # of those that ended as they should not, or late


class Fleet:
    """The workers, and the stand-in for KEDA."""

    def __init__(self, pair: SentinelPair, rng: random.Random) -> None:
        self._pair = pair
        self._rng = rng
        self._members: list[Member] = []
        self._wishes: collections.deque[tuple[float, int]] = collections.deque()
        self._want = LEAST
        self._looked = self._shrunk = 0.0
        self.outcome = Outcome()

    def tick(self, length: int) -> None:
        """Look at the stream as KEDA would, start and stop workers, wake frozen ones, count those that ended."""
        now = time.monotonic()
        if now - self._looked >= SYNC:
            self._looked = now
            self._wish(now, max(LEAST, min(MOST, math.ceil(length / STREAM_LENGTH))))
            self.outcome.replicas.append(len(self.live()))
        while len(self.live()) < self._want:
            self.start()
        while len(self.live()) > self._want:
            self.stop(self._rng.choice(self.live()))
        for member in self._members:
            if member.frozen_until and now >= member.frozen_until:
                self._thaw(member)
        self._reap()

    def _wish(self, now: float, desired: int) -> None:
        self._wishes.append((now, desired))
        while self._wishes[0][0] < now - WINDOW:
            self._wishes.popleft()
        if desired > self._want:
            self._want = min(desired, max(self._want * 2, self._want + 2))
        elif max(wish for _, wish in self._wishes) < self._want and now - self._shrunk >= STEP:
            self._want, self._shrunk = self._want - 1, now

    def live(self) -> list[Member]:
        return [member for member in self._members if not member.stopping and member.process.poll() is None]

    def start(self) -> None:
        variables = {f"COATSTREAM_{key}": value for key, value in SETTINGS.items()}
        variables |= {"COATSTREAM_REDIS__URL": self._pair.url, "OMP_NUM_THREADS": "1"}
        log: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  (for as long as the worker)
        process = subprocess.Popen(
            [sys.executable, "-m", "coatstream", "run"],
            env=os.environ | variables,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        self._members.append(Member(process, log, time.monotonic()))

    def stop(self, member: Member) -> None:
        member.stopping = time.monotonic()
        member.process.send_signal(signal.SIGTERM)

    def kill(self) -> bool:
        """A worker and its child, at once."""
        if settled := [m for m in self.live() if time.monotonic() - m.began > 5]:
            member = self._rng.choice(settled)
            member.killed = True
            self._signal(member, signal.SIGKILL)
        return bool(settled)

    def _thaw(self, member: Member) -> None:
        """A frozen worker hears SIGTERM only now."""
        if member.frozen_until:
            member.frozen_until = 0.0
            self._signal(member, signal.SIGCONT)
            member.stopping = member.stopping and time.monotonic()

    def freeze(self) -> bool:
        if settled := [m for m in self.live() if time.monotonic() - m.began > 5 and not m.frozen_until]:
            member = self._rng.choice(settled)
            member.frozen_until = time.monotonic() + FROZEN
            self._signal(member, signal.SIGSTOP)
        return bool(settled)

    def upgrade(self) -> bool:
        """A new worker for each that is there, then the old ones go."""
        old = [member for member in self.live() if not member.frozen_until]
        for _ in old:
            self.start()
        for member in old:
            self.stop(member)
        return True

    def end(self) -> None:
        for member in self.live():
            self._thaw(member)
            self.stop(member)
        ends = time.monotonic() + 60
        while self._members and time.monotonic() < ends:
            self._reap()
            time.sleep(0.05)

    def _reap(self) -> None:
        for member in [m for m in self._members if m.process.poll() is not None]:
            self._members.remove(member)
            code = member.process.returncode
            how = "SIGKILL" if member.killed else "SIGTERM" if member.stopping else "itself"
            self.outcome.exits[f"{how} -> {code}"] += 1
            took = time.monotonic() - member.stopping if member.stopping else 0.0
            if member.stopping and not member.killed:
                self.outcome.stops.append(took)
            if not member.killed and (code or how == "itself" or took > LONGEST_DRAIN):
                self.outcome.last_words.append(f"{how} -> {code} after {took:.1f} s: {_tail(member.log)}")
            member.log.close()

    @staticmethod
    def _signal(member: Member, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(member.process.pid, number)


def _tail(log: BinaryIO, most: int = 2000) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - most))
    return log.read().decode(errors="replace")


class Feeder(threading.Thread):
    """Puts frames at a low, a high and a low rate, and tries each again until Redis has it on the replica, too."""

    def __init__(self, pair: SentinelPair, frames: int, peak: float) -> None:
        super().__init__(daemon=True)
        self._pair = pair
        self._frames = frames
        self._peak = peak
        self.fed = 0

    def run(self) -> None:
        picture = jpeg(64, 64)
        client, began, due = self._client(), time.monotonic(), 0.0
        while self.fed < self._frames:
            share = self.fed / self._frames
            rate = self._peak * (0.2 if share < 0.1 else 1.0 if share < 0.9 else 0.1)
            due += rate * 0.05
            client = self._put(client, picture, int(due) - self.fed)
            time.sleep(max(0.0, began + 0.05 - time.monotonic()))
            began = time.monotonic()

    def _put(self, client: redis.Redis, picture: bytes, count: int) -> redis.Redis:
        first, last = self.fed, min(self._frames, self.fed + max(0, count))
        while first < last:
            try:
                pipe = client.pipeline(transaction=False)
                for number in range(first, last):
                    pipe.xadd("frames", {"image": picture, "source": f"s{number % 8}", "frame_id": f"{number:07d}"})
                pipe.execute()
                if client.wait(1, 2000) >= 1:
                    self.fed = first = last
            except redis.RedisError:  # the failover: what was put may be put once more
                time.sleep(0.5)
                client = self._client()
        return client

    def _client(self) -> redis.Redis:
        return redis.Redis(HOST, self._pair.primary_port(), socket_timeout=5)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--peak", type=float, default=700.0, help="frames/s")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--freezes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=4)
    options = parser.parse_args()
    with sentinel_pair() as pair:
        report = played(pair, options, random.Random(options.seed))
    print(json.dumps(report))
    return int(bool(report["broken"]))


def played(pair: SentinelPair, options: argparse.Namespace, rng: random.Random) -> dict[str, object]:
    fleet, feeder = Fleet(pair, rng), Feeder(pair, options.frames, options.peak)
    acts = ["kill"] * options.kills + ["freeze"] * options.freezes + ["upgrade", "failover"]
    rng.shuffle(acts)
    places = sorted(rng.uniform(0.1, 0.9) * options.frames for _ in acts)
    feeder.start()
    calm = 0.0
    while feeder.is_alive() or calm < WINDOW + MOST * STEP:
        length = _length(pair, fleet.outcome.losses)
        fleet.tick(length)
        if places and feeder.fed >= places[0] and _act(acts[0], fleet, pair):
            places.pop(0), acts.pop(0)
        calm = calm + 0.1 if not feeder.is_alive() and length == 0 else 0.0
        time.sleep(0.1)
    fleet.end()
    return _report(pair, feeder.fed, fleet.outcome)


def _length(pair: SentinelPair, losses: dict[bytes, int]) -> int:
    """As KEDA's fallback has it: while Redis cannot be asked, as many as were wanted last.

    Notes what idles: living workers renew their leases.
    """
    try:
        with redis.Redis(HOST, pair.primary_port(), socket_timeout=1) as client:
            length = int(client.xlen("frames"))
            with suppress(redis.ResponseError):  # no worker has made the group yet
                losses |= {entry["message_id"]: int(entry["times_delivered"]) for entry in _idle(client)}
            return length
    except redis.RedisError:
        return STREAM_LENGTH * 2


def _idle(client: redis.Redis) -> list[Any]:
    half = int(MIN_IDLE / 2 * 1000)
    return cast("list[Any]", client.xpending_range("frames", QUEUE.group, "-", "+", 1000, idle=half))


def _act(act: str, fleet: Fleet, pair: SentinelPair) -> bool:
    if act != "failover":
        return bool({"kill": fleet.kill, "freeze": fleet.freeze, "upgrade": fleet.upgrade}[act]())
    with pair.sentinel() as sentinel:
        sentinel.execute_command("SENTINEL FAILOVER", "mymaster")
    return True


def _report(pair: SentinelPair, fed: int, outcome: Outcome) -> dict[str, object]:
    with redis.Redis(HOST, pair.primary_port()) as client:
        labels = list(_labels(client))
        dead, left = client.xlen("frames:dead"), client.xlen("frames")
    frames = {label.frame for label in labels}
    ages = sorted(label.published - label.captured for label in labels)
    stops = sorted(outcome.stops)
    queueing, beyond = waits(labels)
    oldest = sorted(labels, key=lambda label: label.captured - label.published)[:5]
    report: dict[str, object] = {
        "fed": fed,
        "labelled": len(frames),
        "doubled": len(labels) - len({label.entry for label in labels}),
        "dead": dead,
        "lost": fed - len(frames) - dead,
        "left": left,
        "age_p50": round(ages[len(ages) // 2], 2),
        "age_p99": round(ages[len(ages) * 99 // 100], 2),
        "age_max": round(ages[-1], 2),
        "backlog_over_capacity_max": round(queueing, 2),
        "beyond_it_max": round(beyond, 2),
        "oldest": [  # age, and how many workers were lost that had it
            (round(label.published - label.captured, 2), outcome.losses.get(label.entry, 0)) for label in oldest
        ],
        "exits": dict(outcome.exits),
        "sigterm_to_exit_max": round(stops[-1], 2) if stops else 0.0,
        "replicas": [min(outcome.replicas), max(outcome.replicas), outcome.replicas[-1]],
    }
    broken = {
        "lost": report["lost"] != 0,
        "doubled": report["doubled"] != 0,
        "exits": any(not how.startswith("SIGKILL") and how != "SIGTERM -> 0" for how in outcome.exits),
        "drain": bool(stops) and stops[-1] > LONGEST_DRAIN,
        "age": any(
            label.published - label.captured > MIN_IDLE * max(1, outcome.losses.get(label.entry, 0)) + queueing
            for label in labels
        ),
    }
    return report | {"broken": [name for name, is_so in broken.items() if is_so], "last_words": outcome.last_words}


@dataclass(frozen=True, slots=True)
class Label:
    """What a label says of its frame; seconds of the Unix epoch."""

    entry: bytes
    frame: bytes
    captured: float
    published: float


def _labels(client: redis.Redis) -> Iterator[Label]:
    start = "-"
    while rows := cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange("labels", min=start, count=5000)):
        for _, fields in rows:
            times = float(fields[b"captured_at"]), float(fields[b"published_at"])
            yield Label(fields[b"entry_id"], fields[b"frame_id"], *times)
        start = "(" + rows[-1][0].decode()


def waits(labels: Sequence[Label]) -> tuple[float, float]:
    """The longest that the backlog made a frame wait, and the longest that one waited beyond that, in seconds.

    In turn, the n-th frame to come would have the n-th label to be published: that is the backlog it met, over the
    capacity that there then was. What a killed or frozen worker held comes later than its turn.
    """
    came = sorted(labels, key=lambda label: label.captured)
    turns = sorted(label.published for label in labels)
    pairs = list(zip(came, turns, strict=True))
    return max(turn - label.captured for label, turn in pairs), max(label.published - turn for label, turn in pairs)


if __name__ == "__main__":
    sys.exit(main())
