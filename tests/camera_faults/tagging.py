"""C6: tags over kills of the worker and restarts of the server."""

import json
import signal
import time
from typing import Final

from redis.exceptions import RedisError

from tests.camera_faults import judge
from tests.camera_faults.lab import Lab
from tests.camera_faults.replicas import Replica
from tests.camera_faults.stage import Stage, cameras_of
from tests.camera_faults.streams import EVENTS, TagEvent, Tail, poll, present_tags, tag_events
from tests.faults.servers import Server

FPS: Final = 5.0
MIN_DURATION: Final = 0.5
SCENE: Final = 4.0  # seconds: the clip is dark for so long, then light for so long
LEASE: Final = 1.5
# The noop engine's class is the picture's brightness: each of the two scenes is some classes wide.
CLASSES: Final = {"dark": range(100, 301), "light": range(700, 901)}
TAGS: Final[dict[str, object]] = {
    "tags__groups": json.dumps({tag: [f"{some.start}-{some.stop - 1}"] for tag, some in CLASSES.items()}),
    "tags__include": json.dumps(list(CLASSES)),
    "tags__memory": 0.3,
    "tags__start_at": 0.4,
    "tags__end_below": 0.2,
    "tags__min_duration": MIN_DURATION,
    "tags__min_gap": 0.3,
    "tags__lost_after": 20.0,
    "fleet__lease": LEASE,
}


def tagged(stage: Stage, *, cameras: int, kills: int, restarts: int) -> None:
    """C6, whole."""
    server = stage.server("--appendonly", "yes", "--appendfsync", "always")
    lab = stage.lab(cameras, clip="scenes")
    tail = stage.tail(server)
    settings = {**TAGS, "cameras": cameras_of(lab, FPS)}
    worker = stage.replica(server.url, **settings)
    stage.until_ready()
    stage.until_labelled(tail, lab)
    try:
        stage.until(lambda: len(_events(server)) >= 2 * cameras, "the first tags", within=6 * SCENE)
        for blow in sorted(["kill"] * kills + ["restart"] * restarts, key=lambda _: stage.rng.random()):
            stage.pass_by(stage.rng.uniform(0.3, SCENE))
            worker = _killed(stage, server, worker, settings) if blow == "kill" else _restarted(stage, server, worker)
            stage.until_labelled(tail, lab)
        stage.pass_by(SCENE / 2)
    finally:
        _judge(stage, server, lab, tail)


def _killed(stage: Stage, server: Server, worker: Replica, settings: dict[str, object]) -> Replica:
    """SIGKILL for all of it, and a successor that knows nothing of it."""
    worker.kill()
    stage.gone(worker)
    successor = stage.replica(server.url, **settings)
    stage.until_ready(successor)
    return successor


def _restarted(stage: Stage, server: Server, worker: Replica) -> Replica:
    """The server dies and is started again on its append-only file."""
    server.kill()
    stage.pass_by(stage.rng.uniform(0.2, 1.5))
    server.start()
    return worker


def _events(server: Server) -> list[TagEvent]:
    client = server.client()
    try:
        return tag_events(client)
    finally:
        client.close()


def _judge(stage: Stage, server: Server, lab: Lab, tail: Tail) -> None:
    for replica in stage.replicas:  # nothing moves while both are read
        replica.signal_all(signal.SIGSTOP)
    try:
        _judge_still(stage, server, lab, tail)
    finally:
        for replica in stage.replicas:
            replica.signal_all(signal.SIGCONT)
    stage.bars.note("labels", len(tail.labels))


def _judge_still(stage: Stage, server: Server, lab: Lab, tail: Tail) -> None:
    bars, client = stage.bars, server.client()
    try:
        poll(lambda: _quiet(server), until=time.monotonic() + 3, every=0.2)
        events, present = tag_events(client), present_tags(client, sorted(lab.cameras))
    except (RedisError, OSError) as trouble:
        bars.broken(f"the server does not answer: {trouble}")
        return
    story = judge.tag_story(events)
    bars.note("tags started", story.started)
    bars.note("tags ended", story.ended)
    bars.exactly("starts and ends that do not alternate", list(story.twice)[:5], [])
    bars.exactly("ends of another tag than the one that started", story.strange, 0)
    bars.exactly("tags in the hashes that the events do not leave open", sorted(present - story.open), [])
    bars.exactly("tags that the events leave open and no hash has", sorted(story.open - present), [])
    durations = [float(event.detail.get("duration", 0)) for event in events if not event.started]
    bars.at_least("shortest tag", min(durations, default=None), MIN_DURATION, " s")
    seen = judge.scenes(tail.labels, CLASSES)
    lost, stuck = judge.untold(seen, events)
    bars.note("scenes seen by labels without a pause", sum(one.end - one.begin >= judge.WHOLE for one in seen))
    bars.exactly("scenes without their tag", lost[:3], [])
    bars.exactly("scenes with the tag of another one", stuck[:3], [])


def _quiet(server: Server) -> bool:
    """Whether nothing is on its way to the stream any more."""
    client = server.client()
    before = client.xlen(EVENTS)
    time.sleep(0.1)
    return bool(client.xlen(EVENTS) == before)
