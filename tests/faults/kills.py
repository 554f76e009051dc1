"""F1, F2, F5, F6, F11, F30: processes that die, stop, stall, and frames that kill."""

import time

from tests.faults import frames
from tests.faults.inside.sitecustomize import KILL, SEGFAULT, STUCK_ONCE
from tests.faults.schedule import FREEZE_SECONDS, Kind, play, schedule
from tests.faults.stage import MIN_IDLE, Stage

TICK = 0.25  # seconds between two looks at what other workers have let lie
CHOSEN_DELIVERIES = 3


def killed(stage: Stage, *, frame_count: int, kills: int, whole: int, workers: int = 4, delay: float = 0.0) -> None:
    """F1: SIGKILL again and again, to the child or to the worker as a whole."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    frames.send(client, sent)
    faults = schedule(stage.rng, frame_count, {Kind.KILL: kills - whole, Kind.KILL_ALL: whole})
    fleet = stage.fleet(server.url, workers, model__noop_delay=delay)
    play(stage, client, fleet, faults)
    stage.settle_up(client, fleet, sent)


def stalled(stage: Stage, *, frame_count: int, kills: int, share: float = 0.02, workers: int = 4) -> None:
    """F2: the same, and some batches stop their process for longer than a lease lasts."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    frames.send(client, sent)
    faults = schedule(stage.rng, frame_count, {Kind.KILL: kills})
    fleet = stage.fleet(server.url, workers, stall=FREEZE_SECONDS, share=share, batch__max_size=8)
    play(stage, client, fleet, faults)
    stage.settle_up(client, fleet, sent)
    stage.findings.at_least("batches stalled", stage.stalls(), 1)


def frozen(stage: Stage, *, frame_count: int, freezes: int, delay: float) -> None:
    """F5: SIGSTOP past the lease, SIGCONT, and the zombie goes on with what is no longer its own."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    frames.send(client, sent)
    faults = schedule(stage.rng, frame_count, {Kind.FREEZE: freezes})
    fleet = stage.fleet(server.url, 3, model__noop_delay=delay, batch__max_size=8)
    play(stage, client, fleet, faults)
    stage.settle_up(client, fleet, sent)


def poisoned(stage: Stage, *, frame_count: int, poison: int, workers: int = 3, delay: float = 0.0) -> None:
    """F6: frames that kill each process that touches them, and innocent ones in the same batches."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    guilty = stage.rng.sample(sent, poison)
    greys = {name: stage.rng.choice((KILL, SEGFAULT)) for name in guilty}
    frames.send(client, sent, greys)
    fleet = stage.fleet(server.url, workers, queue__max_deliveries=CHOSEN_DELIVERIES, model__noop_delay=delay)
    while client.xlen(frames.KEYS.stream):
        fleet.replace_dead()  # controls have no parent
        stage.until(lambda: not client.xlen(frames.KEYS.stream) or not all(m.alive for m in fleet.members), "the end")
    found = stage.settle_up(client, fleet, sent, dead=poison)
    stage.findings.exactly("innocent dead letters", sum(1 for name in found.dead if name not in greys), 0)
    stage.findings.exactly("reasons", dict(found.reasons), {"delivery_limit": poison})
    stage.findings.at_most("process deaths", fleet.crashes(), poison * CHOSEN_DELIVERIES)


def recovered(stage: Stage, *, kills: int) -> None:
    """F11: from the SIGKILL of a whole worker to the label by another."""
    server = stage.server()
    client, sent = server.client(), frames.names(kills)
    fleet = stage.fleet(server.url, 2)
    longest = 0.0
    for name in sent:
        (stage.folder / "stuck").unlink(missing_ok=True)
        [entry] = frames.send(client, [name], {name: STUCK_ONCE})
        stage.until((stage.folder / "stuck").exists, "a worker holds the frame", within=5)
        victim = fleet.of_consumer(frames.pending(client)[entry][0])
        assert victim is not None
        killed_at = time.monotonic()
        victim.kill()
        stage.until(lambda: client.xlen(frames.KEYS.stream) == 0, "another worker labels it", every=0.002)
        longest = max(longest, time.monotonic() - killed_at)
        stage.until_gone(victim)
        fleet.replace_dead()
    stage.settle_up(client, fleet, sent)
    stage.findings.at_most("longest from kill to label", longest, MIN_IDLE + TICK + 0.3, " s")


def everything(stage: Stage, *, frame_count: int, each: int, poison: int, workers: int = 4) -> None:
    """F30: all of it at once."""
    server = stage.server()
    client, proxy = server.client(), stage.proxy(server.port)
    sent = frames.names(frame_count)
    greys = {name: stage.rng.choice((KILL, SEGFAULT)) for name in stage.rng.sample(sent, poison)}
    frames.send(client, sent, greys)
    faults = schedule(stage.rng, frame_count - poison, {kind: each for kind in Kind if kind is not Kind.STOP})
    fleet = stage.fleet(
        proxy.url, workers, stall=FREEZE_SECONDS, share=0.005, queue__max_deliveries=5, batch__max_size=16
    )
    proxy.lose = 0.005
    play(stage, client, fleet, faults)
    stage.empty(client)
    proxy.lose = 0.0
    found = stage.settle_up(client, fleet, sent, dead=poison)
    stage.findings.exactly("innocent dead letters", sum(1 for name in found.dead if name not in greys), 0)
    stage.findings.note("replies lost", proxy.lost)
    stage.findings.note("batches stalled", stage.stalls())
