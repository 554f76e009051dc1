"""A mixed fleet: workers of the last release and of this tree share one server, one queue and the same cameras."""

import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Final

from coatstream.broker.fleet_keys import FleetKeys
from coatstream.cameras.fleet.leases import holders

from tests.camera_faults import judge
from tests.camera_faults.lab import Lab, running_lab
from tests.camera_faults.stage import cameras_of
from tests.camera_faults.streams import Tail, present_tags, tag_events, tailing
from tests.camera_faults.tagging import TAGS
from tests.faults import frames
from tests.faults.cases import Case
from tests.faults.findings import Findings
from tests.faults.fleet import Fleet
from tests.faults.schedule import Fault, Kind, play, schedule
from tests.faults.servers import Server
from tests.faults.stage import Stage
from tests.support.threads import in_background
from tests.support.workers import THIS_TREE, Program
from tests.upgrade import release

RELEASES: Final = ("the last release", "this tree")  # a member's `kind` is the place in here
WORKERS: Final = 4  # two of each
FPS: Final = 5.0
LOOKED: Final = 0.1  # seconds between two looks at cameras and processes
LABELLED_WITHIN: Final = 40.0  # seconds


@dataclass(slots=True)
class Watch:
    """What is seen from outside while the fleet works.

    kinds    process id -> the place of its release in RELEASES
    readers  the most clients that one camera ever served at once
    """

    fleet: Fleet
    lab: Lab
    kinds: dict[int, int] = field(default_factory=dict)
    readers: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.wait(LOOKED):
            self.kinds |= {member.pid: member.kind for member in list(self.fleet.members)}
            playing = (camera.tell("sessions")["playing"] for camera in self.lab.cameras.values())
            self.readers = max(self.readers, *playing)

    def stop(self) -> None:
        self._stop.set()


def mixed(
    stage: Stage, old: Program, frame_count: int, kills: int, whole: int, stops: int, cameras: int, delay: float
) -> None:
    """`kills` SIGKILLs of the process that works, `whole` of a worker with its parent, `stops` by SIGTERM."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    lab = stage.enter(running_lab(cameras, clip="scenes"))
    tail = stage.enter(tailing(server.client()))
    shared: dict[str, Any] = {**TAGS, "cameras": cameras_of(lab, FPS), "model__noop_delay": delay}
    fleet = stage.fleet(server.url, WORKERS, programs=(old, THIS_TREE), **shared)
    stage.until(lambda: lab.cameras.keys() <= tail.cameras(1.0), "every camera is labelled", within=LABELLED_WITHIN)
    frames.send(client, sent)
    faults = schedule(stage.rng, frame_count, {Kind.KILL: kills, Kind.KILL_ALL: whole, Kind.STOP: stops})
    watch = Watch(fleet, lab)
    with in_background(watch.run, stop=watch.stop, name="watch"):
        play(stage, client, fleet, _in_turn(faults))
        stage.empty(client)
        lab.tell_all("silence")  # a ledger balances once no picture is on its way
        stage.settle_up(client, fleet, sent)
    stage.findings.exactly("exit codes of replaced workers", sorted({*fleet.ended, 0, -9}), [-9, 0])
    _judge_cameras(stage.findings, server, lab, tail, watch)


def _in_turn(faults: list[Fault]) -> list[Fault]:
    """The same faults, but one hits the last release, the next one this tree. A fleet lists its members by kind."""
    return [
        replace(fault, victim=(number % len(RELEASES) + fault.victim) / len(RELEASES))
        for number, fault in enumerate(faults)
    ]


def _judge_cameras(findings: Findings, server: Server, lab: Lab, tail: Tail, watch: Watch) -> None:
    labels = [label for label in tail.labels if label.camera in lab.cameras]
    found = judge.fences(labels)
    # The owner, a standby that opens it before it takes over, and for a moment connections of killed workers
    findings.note("most clients of a camera at once", watch.readers)
    findings.exactly("cameras that two workers labelled at once", found.mingled, 0)
    findings.exactly("labels with an older fence", found.fell, 0)
    findings.exactly("fences of two workers", found.shared, 0)
    findings.exactly("camera labels without a fence", found.missing, 0)
    findings.exactly("pictures older than the last one of the worker before", found.together, 0)
    _judge_shares(findings, lab, tail, watch)
    client = server.client()
    findings.exactly("cameras leased after the drain", sorted(holders(client, FleetKeys())), [])
    story = judge.tag_story(tag_events(client))
    findings.note("tags started", story.started)
    findings.exactly("tags started or ended twice", list(story.twice), [])
    findings.exactly("ends of another tag than the one that started", story.strange, 0)
    present = present_tags(client, sorted(lab.cameras))
    findings.exactly("tags that events and hashes do not agree on", sorted(present ^ story.open), [])


def _judge_shares(findings: Findings, lab: Lab, tail: Tail, watch: Watch) -> None:
    """Both releases must have worked on both: else nothing was mixed."""
    counts = Counter((label.camera in lab.cameras, watch.kinds.get(label.pid)) for label in tail.labels)
    for kind, name in enumerate(RELEASES):
        findings.at_least(f"frames labelled by {name}", counts[False, kind], 1)
        findings.at_least(f"camera pictures labelled by {name}", counts[True, kind], 1)


def case(commit: str) -> Case:
    """The mixed fleet as the harness plays it. Raises release.NotHere."""
    old = release.program(commit)

    def played(stage: Stage, **size: object) -> None:
        mixed(stage, old, **size)  # type: ignore[arg-type]

    return Case(
        "U1",
        f"two workers of {commit} and two of this tree",
        "lost 0, doubled 0, no camera read twice, all drained",
        played,
        quick={"frame_count": 3_000, "kills": 4, "whole": 2, "stops": 2, "cameras": 3, "delay": 0.2},
        full={"frame_count": 20_000, "kills": 16, "whole": 8, "stops": 8, "cameras": 3, "delay": 0.25},
        quick_limit=300.0,
        full_limit=600.0,
        command=f"python -m tests.upgrade --from {commit}",
    )
