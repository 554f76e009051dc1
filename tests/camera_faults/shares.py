"""C3, C4, C5: several workers share many cameras; some are killed, stopped, cut off, or join."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from tests.camera_faults import judge
from tests.camera_faults.judge import Window
from tests.camera_faults.lab import Lab
from tests.camera_faults.replicas import Replica
from tests.camera_faults.stage import Stage, TookTooLong, cameras_of
from tests.camera_faults.streams import Tail, poll
from tests.faults.proxy import Proxy
from tests.faults.servers import Server
from tests.support import processes
from tests.support.ports import free_port

FPS: Final = 5.0
SPARE: Final = 1.0  # seconds beyond the lease
HANDED_OVER: Final = 1.0  # seconds after SIGTERM
KEY_FRAMES: Final = 1.0  # seconds between two in the lab's clips: no client can decode a camera before the next one
SHARED_OUT: Final = 10.0  # seconds after which the shares must be fair again
MINGLED: Final = "cameras that two workers labelled at once"
NOW: Final = 1.0  # seconds: who published last in these owns a camera


@dataclass(slots=True)
class Shared:
    """Workers that share a lab of cameras."""

    stage: Stage
    server: Server
    lab: Lab
    tail: Tail
    lease: float
    patience: float = 3 * SHARED_OUT  # seconds: so long is waited for fair shares
    exclusive: bool = True  # False: a control, whose workers all read all cameras

    def start(self, number: int, *, url: str = "") -> list[Replica]:
        """Start this many more workers; return them once they are ready."""
        some = [
            self.stage.replica(
                url or self.server.url,
                cameras=cameras_of(self.lab, FPS, shared=self.exclusive),
                fleet__lease=self.lease,
            )
            for _ in range(number)
        ]
        self.stage.until_ready(*some)
        return some

    def owned(self) -> dict[str, int]:
        return judge.owners(self.tail.since(time.time() - NOW))

    def of(self, replica: Replica) -> list[str]:
        return sorted(name for name, pid in self.owned().items() if pid == replica.pid)

    def fair(self) -> bool:
        """Every camera has one owner, who is to stay, and all of those have as many, or one more or less."""
        owned, pids = self.owned(), [replica.pid for replica in self.stage.replicas]
        alone = len({(label.camera, label.pid) for label in self.tail.since(time.time() - NOW)}) == len(owned)
        staying = set(owned.values()) <= set(pids) and owned.keys() == self.lab.cameras.keys()
        return alone and staying and judge.spread(owned, pids) <= 1

    def mingled(self) -> bool:
        """Whether two workers have labelled one camera at once: a control is to be found out by that."""
        return judge.mingled(self.tail.labels) > 0

    def share_out(self, what: str) -> None:
        """Wait until every worker has its share; in a control, until two workers share a camera."""
        holds = self.fair if self.exclusive else self.mingled
        try:
            took: float | None = self.stage.until(holds, what, within=self.patience)
        except TookTooLong:
            took = None
        self.stage.bars.at_most(f"fair shares {what}", took, SHARED_OUT, " s")
        if took is None:
            counts = sorted(len(self.of(replica)) for replica in self.stage.replicas)
            self.stage.bars.note(f"shares {what}", f"{counts}, {len(self.owned())} of {len(self.lab.cameras)} labelled")

    def elsewhere(self, cameras: Sequence[str], left: int, since: float, within: float) -> dict[str, float | None]:
        """Seconds until each camera was labelled by another worker than `left`; waits for that."""

        def times() -> dict[str, float | None]:
            return judge.first_elsewhere(self.tail.since(since), cameras, left, since)

        poll(lambda: None not in times().values(), until=time.monotonic() + within, every=0.05)
        return times()

    def undisturbed(self, cameras: Sequence[str], begin: float, end: float, what: str) -> None:
        """The rate of cameras that had nothing to do with it."""
        labels = judge.by_camera(self.tail.since(begin - 1))
        shares = [judge.rate_share(labels.get(name, []), [Window(begin, end)], FPS) for name in cameras]
        known = [share for share in shares if share is not None]
        least, most = (min(known) * 100, max(known) * 100) if known else (None, None)
        self.stage.bars.at_least(f"least rate of the others {what}", least, 95.0, " %")
        self.stage.bars.at_most(f"greatest rate of the others {what}", most, 105.0, " %")

    def judge_fences(self) -> None:
        """Never two workers for one camera, in the whole stream."""
        found, bars = judge.fences(self.tail.labels), self.stage.bars
        bars.note("labels", len(self.tail.labels))
        bars.exactly("labels with an older fence than the one before", found.fell, 0)
        bars.exactly("fences of two workers", found.shared, 0)
        bars.exactly("labels without a fence", found.missing, 0)
        bars.exactly("pictures taken before the last one of the worker before", found.together, 0)
        bars.exactly(MINGLED, found.mingled, 0)


def _shared(stage: Stage, cameras: int, lease: float, **control: Any) -> Shared:
    server = stage.server()
    lab = stage.lab(cameras)
    return Shared(stage, server, lab, stage.tail(server), lease, **control)


def takeover(stage: Stage, *, cameras: int, replicas: int, lease: float) -> None:
    """C3: one worker is killed, another one stopped."""
    shared = _shared(stage, cameras, lease)
    shared.start(replicas)
    stage.bars.note("all labelled after", stage.until_labelled(shared.tail, shared.lab), " s")
    try:
        shared.share_out("at first")
        stage.pass_by(lease)
        _killed(shared)
        shared.start(1)
        shared.share_out("with the next worker")
        stage.pass_by(1.0)
        _told_to_stop(shared)
    finally:
        shared.judge_fences()


def _killed(shared: Shared) -> None:
    bars, victim = shared.stage.bars, shared.stage.replicas[0]
    its = shared.of(victim)
    others = sorted(set(shared.lab.cameras) - set(its))
    killed = time.time()
    family = victim.kill()
    shared.stage.gone(victim)
    times = shared.elsewhere(its, victim.pid, killed, shared.lease + 10)
    bars.note("cameras of the killed worker", len(its))
    bars.at_most("labelled elsewhere after SIGKILL", judge.slowest(times.values()), shared.lease + SPARE, " s")
    shared.stage.pass_by(max(0.0, killed + shared.lease + 2 - time.time()))
    shared.undisturbed(others, killed - 1, killed + shared.lease + 1, "around SIGKILL")
    poll(lambda: all(map(processes.ended, family)), until=time.monotonic() + 5)
    bars.exactly("processes that it left behind", sum(not processes.ended(pid) for pid in family), 0)


def _told_to_stop(shared: Shared) -> None:
    bars, victim = shared.stage.bars, shared.stage.replicas[0]
    its = shared.of(victim)
    others = sorted(set(shared.lab.cameras) - set(its))
    told, clock = time.time(), time.monotonic()
    victim.terminate()
    shared.stage.gone(victim)
    times = shared.elsewhere(its, victim.pid, told, 15)
    bars.note("cameras of the stopped worker", len(its))
    known = [seconds for seconds in times.values() if seconds is not None]
    bars.note("median from SIGTERM to the first label elsewhere", median(known) if known else None, " s")
    slowest = judge.slowest(times.values())
    bars.at_most("labelled elsewhere after SIGTERM, key frames 1 s apart", slowest, HANDED_OVER + KEY_FRAMES, " s")
    bars.at_most("the same but for the standby's wait for a key frame", _own_part(shared, times), HANDED_OVER, " s")
    bars.exactly("exit code", victim.process.wait(timeout=30), 0)
    bars.note("exit after", time.monotonic() - clock, " s")
    shared.stage.pass_by(max(0.0, told + 3 - time.time()))
    labels = judge.by_camera(shared.tail.since(told - 1))
    gaps = [judge.longest_gap(labels.get(name, []), told - 0.5, told + 3) for name in its]
    bars.at_most("longest gap of a camera that was handed over", max(gaps, default=None), HANDED_OVER, " s")
    shared.undisturbed(others, told - 1, told + 3, "around SIGTERM")


def _own_part(shared: Shared, times: Mapping[str, float | None]) -> float | None:
    """The slowest, without what no worker can make shorter: the camera sends a standby nothing before a key frame."""
    waits = {name: float(shared.lab.cameras[name].tell("sessions")["wait"]) for name in times}
    return judge.slowest([None if took is None else took - waits[name] for name, took in times.items()])


def scaled(stage: Stage, *, cameras: int, lease: float, most: int, least: int, **control: Any) -> None:
    """C4: from one worker to `most`, and down to `least`."""
    shared = _shared(stage, cameras, lease, **control)
    shared.start(1)
    stage.bars.note("all labelled after", stage.until_labelled(shared.tail, shared.lab), " s")
    stage.pass_by(1.0)
    began = time.time()
    try:
        shared.start(most - 1)
        shared.share_out(f"1 to {most}")
        stage.pass_by(lease)
        leaving = stage.replicas[: most - least]
        for replica in leaving:
            replica.terminate()
            stage.gone(replica)
        shared.share_out(f"{most} to {least}")
        stage.bars.exactly("exit codes", sorted({replica.process.wait(timeout=30) for replica in leaving}), [0])
        stage.pass_by(lease)
    finally:
        shared.judge_fences()
        labels = judge.by_camera(shared.tail.since(began))
        gaps = [judge.longest_gap(labels.get(name, []), began, time.time()) for name in shared.lab.cameras]
        stage.bars.at_most("longest time without a label of a camera", max(gaps), lease + SPARE, " s")


def cut_off(stage: Stage, *, cameras: int, replicas: int, lease: float, troubles: Sequence[str]) -> None:
    """C5: one worker cannot reach the server, or is stopped, for two leases; then it is back."""
    shared = _shared(stage, cameras, lease)
    proxy = stage.proxy(shared.server)
    [away] = shared.start(1, url=proxy.url)
    shared.start(replicas - 1)
    stage.until_labelled(shared.tail, shared.lab)
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "link frozen": (proxy.freeze, proxy.thaw),
        "link cut": (lambda: _cut(proxy), lambda: _mend(proxy, shared.server)),
        "process stopped": (
            lambda: away.signal_all(signal.SIGSTOP),
            lambda: away.signal_all(signal.SIGCONT),
        ),
    }
    try:
        for what in troubles:
            shared.share_out(f"before: {what}")
            _partition(shared, away, what, *ways[what])
    finally:
        shared.judge_fences()


def _partition(
    shared: Shared, away: Replica, what: str, begin: Callable[[], object], end: Callable[[], object]
) -> None:
    bars, stage, lease = shared.stage.bars, shared.stage, shared.lease
    its = shared.of(away)
    began = time.time()
    begin()
    times = shared.elsewhere(its, away.pid, began, lease + 10)
    bars.note(f"cameras of the absent worker: {what}", len(its))
    bars.at_most(f"labelled elsewhere: {what}", judge.slowest(times.values()), lease + SPARE, " s")
    stage.pass_by(max(0.0, began + 2 * lease - time.time()))
    if away.running:  # else no process can close its connections
        watched = max(shared.lab.cameras[name].tell("sessions")["playing"] for name in its)
        bars.at_most(f"clients of a camera of the absent worker: {what}", watched, 1)
    end()
    ended = time.time()
    took = stage.until(lambda: bool(shared.of(away)), f"the absent worker is at work again: {what}", within=40)
    bars.note(f"at work again: {what}", took, " s")
    taken = [label for label in shared.tail.since(began) if label.pid == away.pid]
    bars.exactly(
        f"pictures that it took without a lease: {what}",
        sum(began + lease < label.captured_at < ended for label in taken),
        0,
    )


def _cut(proxy: Proxy) -> None:
    """Every connection breaks, and no server listens there."""
    proxy.target = free_port()
    proxy.cut()


def _mend(proxy: Proxy, server: Server) -> None:
    proxy.target = server.port
