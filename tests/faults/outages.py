"""F15, F18 to F21, F23: a server that is away, empty, full, of the wrong mind, or behind another password."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

from coatstream.broker.connection import Client

from tests.faults import frames
from tests.faults.fleet import Fleet, Member
from tests.faults.proxy import HANDSHAKE, Proxy
from tests.faults.servers import REDIS, Server
from tests.faults.stage import Stage
from tests.faults.traffic import Traffic, Until, running_traffic

PASSWORD, OTHER_PASSWORD = "old-password", "new-password"
BURST: Final = 24  # frames that are in work when a trouble begins
OVER: Final = 2**19  # bytes
RESUMED: Final = 2.0  # seconds


def restarted(stage: Stage, *, times: int, rate: float, down: float, fsync: str, workers: int = 1) -> None:
    """F15: the server is killed and started again on its append-only file; a frame on disk is a frame done."""
    server = stage.server("--appendonly", "yes", "--appendfsync", fsync)
    on_disk = server.kind != REDIS  # Debian's 7.0 has no WAITAOF
    fleet = stage.fleet(server.url, workers, process__restarts_per_minute=0)
    slowest, busiest = 0.0, 0.0
    with running_traffic(Traffic(server.client, rate, Until.ON_DISK if on_disk else Until.ANSWERED)) as traffic:
        for _ in range(times):
            stage.next_label(server.client())
            time.sleep(0.5)
            server.kill()
            used = [member.cpu_seconds() for member in fleet.members]
            time.sleep(down)
            spent = [member.cpu_seconds() - old for member, old in zip(fleet.members, used, strict=True)]
            busiest = max(busiest, *(seconds / down for seconds in spent))
            server.start()
            slowest = max(slowest, stage.next_label(server.client()))
    client = server.client()
    found = stage.settle_up(client, fleet, traffic.accepted)
    stage.findings.note("doubtful", f"{len(traffic.doubtful):,}, of them {_settled(found, traffic.doubtful):,} done")
    stage.findings.at_most("resumed after", slowest, RESUMED, " s")
    stage.findings.at_most("processor while down", busiest, 0.2, " cores")


def _settled(found: frames.Outcomes, some: list[str]) -> int:
    return sum(1 for name in some if found.labels[name])


def emptied(stage: Stage, *, frame_count: int) -> None:
    """F18: the stream or its group disappears under workers that wait for frames."""
    server = stage.server()
    client = server.client()
    fleet = stage.fleet(server.url, 2)
    losses: dict[str, Callable[[], object]] = {
        "FLUSHALL": client.flushall,
        "DEL": lambda: client.delete(frames.KEYS.stream),
        "XGROUP DESTROY": lambda: client.xgroup_destroy(frames.KEYS.stream, frames.KEYS.group),
        "RENAME": lambda: client.rename(frames.KEYS.stream, "elsewhere"),
    }
    slowest = 0.0
    for number, (name, lose) in enumerate(losses.items()):
        stage.until(lambda: _has_group(client), "the group is there", within=10)
        made = _groups_made(fleet)
        lose()
        slowest = max(slowest, stage.until(lambda: _has_group(client), f"the group again after {name}", within=10))
        sent = frames.names(frame_count, f"after{number}-")
        frames.send(client, sent)
        stage.empty(client)
        found = frames.outcomes(client)
        stage.findings.exactly(f"done after {name}", sum(1 for one in sent if found.labels[one] == 1), frame_count)
        stage.until(partial(_made_once_more, fleet, made), f"{name} is counted once", within=5)
    stage.close_books(fleet)
    stage.findings.note("frames", frame_count * len(losses))
    stage.findings.at_most("group made again after", slowest, 1.0, " s")


def _has_group(client: Client) -> bool:
    return bool(client.exists(frames.KEYS.stream) and client.xinfo_groups(frames.KEYS.stream))


def _made_once_more(fleet: Fleet, before: int) -> bool:
    return _groups_made(fleet) == before + 1


def _groups_made(fleet: Fleet) -> int:
    return int(sum(member.total("coatstream_queue_groups_made_total") for member in fleet.members))


def full(stage: Stage, *, megabytes: int, patience: float | None = None) -> None:
    """F19: memory is full of frames. Only settling them frees it, within `patience` seconds where that is given."""
    server = stage.server()
    client = server.client()
    fleet = stage.fleet(server.url, 1)
    stage.until(lambda: _has_group(client), "the group is there", within=10)
    stopped = [member.freeze() for member in fleet.members]
    used = int(client.info("memory")["used_memory"])
    client.config_set("maxmemory", used + megabytes * 2**20)
    sent = _fill(client)
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) - OVER)  # and not just by a hair
    stage.findings.note("frames", len(sent))
    fleet.wake(stopped)
    try:
        stage.empty(client, within=patience)
    finally:
        stage.findings.exactly("frames stuck", client.xlen(frames.KEYS.stream), 0)
    stage.settle_up(client, fleet, sent)


def _fill(client: Client) -> list[str]:
    """Send until the server takes no more."""
    sent: list[str] = []
    while True:
        pipe = client.pipeline(transaction=False)
        some = frames.names(50, f"m{len(sent)}-")
        for name in some:
            pipe.xadd(frames.KEYS.stream, frames.fields(name, side=64))
        replies = pipe.execute(raise_on_error=False)
        sent += [name for name, reply in zip(some, replies, strict=True) if not isinstance(reply, Exception)]
        if any(isinstance(reply, Exception) for reply in replies):
            return sent


def misnamed(stage: Stage, *, frame_count: int) -> None:
    """F20: a key of ours holds something else. Nothing is settled; the worker logs one line and ends."""
    server = stage.server()
    client = server.client()
    for key in (frames.KEYS.labels, frames.KEYS.dead):
        client.flushall()
        fleet = stage.fleet(server.url, 1, model__noop_delay=0.05, batch__max_size=4)
        client.set(key, "mine")
        frames.send(client, frames.names(frame_count))
        [member] = fleet.members
        stage.until_gone(member)
        lines = member.plain_lines()
        stage.findings.exactly(f"exit code ({key})", member.process.returncode, 2)
        stage.findings.exactly(f"lines for a person ({key})", len(lines), 1)
        stage.findings.exactly(f"names the key ({key})", key in " ".join(lines), True)
        stage.findings.exactly(f"frames kept ({key})", client.xlen(frames.KEYS.stream), frame_count)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What the server answers for a while, and how the test makes it do so and ends that."""

    word: str
    begin: Callable[[], object]
    end: Callable[[], object]


def refused(stage: Stage, *, seconds: float) -> None:
    """F21: errors that pass. The worker waits, asks seldom, and goes on."""
    server = stage.server("--requirepass", PASSWORD)
    client, proxy = server.client(), stage.proxy(server.port)
    url = proxy.url.replace("redis://", f"redis://:{PASSWORD}@")
    fleet = stage.fleet(url, 1, model__noop_delay=0.1, batch__max_size=4, queue__min_idle=15)
    sent: list[str] = []
    endured: list[Endured] = []
    for trouble in _troubles(server, client, proxy):
        some = frames.names(BURST, trouble.word)
        frames.send(client, some)
        sent += some
        endured.append(_endure(stage, client, proxy, fleet.members[0], trouble, seconds))
    stage.settle_up(client, fleet, sent)
    findings = stage.findings
    slowest, busiest = max(endured, key=lambda e: e.resumed), max(endured, key=lambda e: e.commands)
    findings.at_most(f"slowest to resume ({slowest.word})", slowest.resumed, RESUMED, " s")
    findings.at_most(f"most commands ({busiest.word})", busiest.commands, 10, "/s")
    findings.exactly("ready meanwhile", [e.word for e in endured if e.ready], [])
    findings.exactly("unhealthy meanwhile", [e.word for e in endured if not e.healthy], [])
    findings.exactly("ended by", [e.word for e in endured if not e.lived], [])


@dataclass(frozen=True, slots=True)
class Endured:
    """How the worker took one trouble. `commands`: a second; `resumed`: seconds after its end."""

    word: str
    commands: float
    ready: bool
    healthy: bool
    lived: bool
    resumed: float


def _endure(stage: Stage, client: Client, proxy: Proxy, member: Member, trouble: Trouble, seconds: float) -> Endured:
    stage.next_label(client)
    child = member.pid
    trouble.begin()
    time.sleep(0.3)  # until every connection has heard of it
    asked, heard = proxy.tries(), time.monotonic()
    time.sleep(seconds)
    commands = (proxy.tries() - asked) / (time.monotonic() - heard)
    ready, healthy = member.probe("/readyz") == HTTPStatus.OK, member.probe("/healthz") == HTTPStatus.OK
    left = client.xlen(frames.KEYS.stream)
    trouble.end()
    resumed = stage.until(lambda: client.xlen(frames.KEYS.stream) < left, f"labels after {trouble.word}", within=15)
    stage.empty(client)
    return Endured(trouble.word, commands, ready, healthy, member.pid == child, resumed)


def _troubles(server: Server, client: Client, proxy: Proxy) -> Iterator[Trouble]:
    """Real ones where the server can be brought to them; LOADING is spoken by the proxy."""
    yield Trouble("READONLY", lambda: client.replicaof("127.0.0.1", 1), lambda: client.replicaof("NO", "ONE"))
    yield Trouble(
        "NOREPLICAS",
        lambda: client.config_set("min-replicas-to-write", 1),
        lambda: client.config_set("min-replicas-to-write", 0),
    )
    yield Trouble("MISCONF", lambda: _break_saving(server, client), lambda: _mend_saving(server, client))
    yield Trouble(
        "LOADING", lambda: _speak(proxy, b"-LOADING server is loading the dataset in memory\r\n"), lambda: _speak(proxy)
    )
    yield Trouble(
        "WRONGPASS",
        lambda: _change_password(client, OTHER_PASSWORD),
        lambda: client.config_set("requirepass", PASSWORD),
    )


def _break_saving(server: Server, client: Client) -> None:
    """A folder where the snapshot should be written."""
    (server.folder / "dump.rdb").mkdir()
    client.config_set("save", "3600 1000000")
    _save(client)
    assert client.info("persistence")["rdb_last_bgsave_status"] == "err"


def _mend_saving(server: Server, client: Client) -> None:
    (server.folder / "dump.rdb").rmdir()
    _save(client)
    assert client.info("persistence")["rdb_last_bgsave_status"] == "ok"
    client.config_set("save", "")


def _save(client: Client) -> None:
    client.bgsave()
    ends = time.monotonic() + 10
    while client.info("persistence")["rdb_bgsave_in_progress"]:
        assert time.monotonic() < ends
        time.sleep(0.005)


def _speak(proxy: Proxy, error: bytes = b"") -> None:
    """The proxy answers everything but handshakes with this error; without one it forwards again."""
    proxy.answer = (lambda name: b"+OK\r\n" if name in HANDSHAKE else error) if error else None


def _change_password(client: Client, password: str) -> None:
    """And no client stays connected but this one."""
    client.config_set("requirepass", password)
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def rotated(stage: Stage, *, rotations: int, frame_count: int) -> None:
    """F23: the server's password changes, every connection breaks, and the file follows a little later."""
    server = stage.server("--requirepass", PASSWORD)
    client = server.client()
    file = stage.folder / "password"
    file.write_text(PASSWORD)
    fleet = stage.fleet(server.url, 1, model__noop_delay=0.1, batch__max_size=8, redis__password_file=str(file))
    slowest, sent = 0.0, list[str]()
    for number in range(rotations):
        some = frames.names(frame_count, f"rotation{number}-")
        sent += some
        frames.send(client, some)
        stage.next_label(client)
        _change_password(client, f"password-{number}")
        time.sleep(0.5)
        file.write_text(f"password-{number}")
        slowest = max(slowest, stage.next_label(client))
        stage.empty(client)
    stage.settle_up(client, fleet, sent)
    stage.findings.at_most("new connections after", slowest, 5.0, " s")
