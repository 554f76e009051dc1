"""F26: ten minutes of steady work with stragglers: memory comes back, nothing piles up."""

import time

from coatstream.broker.connection import Client

from tests.faults import frames
from tests.faults.inside.sitecustomize import LONG
from tests.faults.stage import Stage
from tests.support import processes

STRAGGLER_SECONDS = 3.0
LOOKS = 40


def soaked(stage: Stage, *, seconds: float, rate: float, kills: int, share: float = 0.01) -> None:
    """One frame in a hundred keeps its batch for seconds, and now and then a worker dies."""
    server = stage.server()
    client = server.client()
    fleet = stage.fleet(server.url, 2, stall=STRAGGLER_SECONDS, results__max_length=1000, batch__max_size=16)
    _work(stage, client, seconds / 10, rate, share, "warm")
    stage.rng.choice(fleet.members).kill()  # part of the warm-up: the server keeps the scripts of a recovery, too
    time.sleep(0.1)
    fleet.replace_dead()
    _work(stage, client, seconds / 20, rate, share, "warm again")
    stage.empty(client)
    memory, resident = _memory(client), [processes.resident_bytes(member.pid) for member in fleet.members]
    for part in range(kills + 1):
        _work(stage, client, seconds / (kills + 1), rate, share, f"part{part}-")
        if part < kills:
            stage.rng.choice(fleet.members).kill()
            time.sleep(0.1)
            fleet.replace_dead()
    stage.empty(client)
    grown = max(processes.resident_bytes(member.pid) for member in fleet.members) - max(resident)
    stage.until(lambda: len(_consumers(client)) <= len(fleet.members) + 1, "silent consumers are removed", within=60)
    stage.findings.note("frames", frames.added(client))
    stage.findings.at_most("server memory over base", _memory(client) / memory * 100 - 100, 2.0, " %")
    stage.findings.at_most("consumers", len(_consumers(client)), len(fleet.members) + 1)
    stage.findings.at_most("worker memory grown", grown / 2**20, 20.0, " MiB")
    stage.close_books(fleet)


def _work(stage: Stage, client: Client, seconds: float, rate: float, share: float, prefix: str) -> None:
    """Send at this rate for so long."""
    began, number = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * rate) - number
        some = [f"{prefix}{number + index}" for index in range(due)]
        greys = {name: LONG for name in some if stage.rng.random() < share / 16}
        frames.send(client, some, greys)
        number += due
        time.sleep(0.05)


def _memory(client: Client) -> int:
    """What the server holds without labels, which have a bound of their own, and without its clients' buffers, which
    come and go: 20 to 50 kB of 2.2 MB from one look to the next. The least of several looks.
    """
    client.xtrim(frames.KEYS.labels, maxlen=0, approximate=False)
    client.memory_purge()
    looks = []
    for _ in range(LOOKS):
        held = client.info("memory")
        looks.append(int(held["used_memory"]) - int(held["mem_clients_normal"]))
        time.sleep(0.05)
    return min(looks)


def _consumers(client: Client) -> list[object]:
    return list(client.xinfo_consumers(frames.KEYS.stream, frames.KEYS.group))
