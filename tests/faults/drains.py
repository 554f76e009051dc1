"""F12, F13: the end of a worker, in the middle of everything."""

import signal
import time

from tests.faults import frames
from tests.faults.fleet import Member
from tests.faults.stage import Stage
from tests.faults.traffic import Traffic, Until, running_traffic

BATCH_SECONDS = 0.02


def rolling(stage: Stage, *, stops: int, rate: float, pause: float, workers: int = 2) -> None:
    """F12: one worker after the other is replaced under load, the new one first, as a rollout does."""
    server = stage.server()
    client = server.client()
    fleet = stage.fleet(server.url, workers, model__noop_delay=BATCH_SECONDS)
    frames.send(client, frames.names(100, "warm"))
    stage.empty(client)
    slowest, most, codes = 0.0, 0, set[int]()
    with running_traffic(Traffic(server.client, rate, Until.ANSWERED)) as traffic:
        for _ in range(stops):
            fleet.start(1)
            time.sleep(pause)
            oldest = fleet.members.pop(0)
            seconds, code = _exit(oldest)
            slowest, codes = max(slowest, seconds), codes | {code}
            most = max([most, *(count for _, count in frames.pending(client).values())])
    found = stage.settle_up(client, fleet, [*traffic.sent, *frames.names(100, "warm")])
    stage.findings.exactly("exit codes of the stopped", sorted(codes), [0])
    stage.findings.at_most("highest delivery count", most, 1)
    stage.findings.at_most("longest latency", found.latency, 0.5, " s")
    stage.findings.at_most("longest exit", slowest, BATCH_SECONDS + 2, " s")


def _exit(member: Member) -> tuple[float, int]:
    """SIGTERM, and how long until it is gone, and its code."""
    told = time.monotonic()
    member.process.send_signal(signal.SIGTERM)
    code = member.process.wait(timeout=30)
    return time.monotonic() - told, code


def without_server(stage: Stage, *, timeout: float, socket_timeout: float, frame_count: int) -> None:
    """F13: SIGTERM while the server is frozen. The worker ends in time, and another one does its frames."""
    server = stage.server()
    client, sent = server.client(), frames.names(frame_count)
    fleet = stage.fleet(
        server.url,
        1,
        model__noop_delay=0.05,
        batch__max_size=8,
        drain__timeout=timeout,
        redis__socket_timeout=socket_timeout,
    )
    frames.send(client, sent)
    stage.next_label(client)
    server.freeze()
    time.sleep(0.2)
    [member] = fleet.members
    seconds, code = _exit(member)
    server.thaw()
    stage.findings.exactly("exit code", code, 1)
    stage.findings.at_most("exit after", seconds, timeout + 2, " s")
    fleet.members.remove(member)
    fleet.start(1)
    stage.settle_up(client, fleet, sent)
