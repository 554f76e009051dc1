"""F3, F4, F22: replies that are lost after the server has acted, cut connections, forgotten scripts."""

import time

from tests.faults import frames
from tests.faults.stage import Stage


def lost_replies(stage: Stage, *, frame_count: int, share: float = 0.02, workers: int = 2) -> None:
    """F3: the worker cannot know whether its command ran, and must be right to try it again either way."""
    server = stage.server()
    client, proxy = server.client(), stage.proxy(server.port)
    sent = frames.names(frame_count)
    frames.send(client, sent)
    fleet = stage.fleet(proxy.url, workers, batch__max_size=8)
    proxy.lose = share
    stage.empty(client)
    proxy.lose = 0.0
    stage.settle_up(client, fleet, sent)
    stage.findings.at_least("replies lost", proxy.lost, 1)


def orphans(stage: Stage, *, frame_count: int, drained_within: float) -> None:
    """F4: frames that were delivered in a lost reply are found long before their lease ends."""
    server = stage.server()
    client, proxy = server.client(), stage.proxy(server.port)
    fleet = stage.fleet(proxy.url, 2, queue__min_idle=30)
    sent = frames.names(frame_count)
    proxy.lose = 0.05
    began = time.monotonic()
    frames.send(client, sent)
    stage.empty(client)
    seconds = time.monotonic() - began
    proxy.lose = 0.0
    stage.settle_up(client, fleet, sent)
    stage.findings.at_least("replies lost", proxy.lost, 1)
    stage.findings.at_most("drained in", seconds, drained_within, " s")


def flushed(stage: Stage, *, frame_count: int, seconds: float, delay: float) -> None:
    """F22: every 0.2 s the server forgets all scripts and closes every connection."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    frames.send(client, sent)
    fleet = stage.fleet(server.url, 2, model__noop_delay=delay)
    rounds, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        client.script_flush()
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        rounds += 1
        time.sleep(0.2)
    stage.findings.at_least("frames left under fire", client.xlen(frames.KEYS.stream), 1)
    stage.settle_up(client, fleet, sent)
    stage.findings.note("rounds", rounds)
