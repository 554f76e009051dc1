"""F16, F17, F29: more than one server. What was replicated survives, and the workers follow the primary."""

import signal
import time

import redis
from coatstream.broker.connection import Client
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.faults import frames
from tests.faults.schedule import Kind, play, schedule
from tests.faults.stage import Stage
from tests.faults.traffic import Traffic, Until, running_traffic
from tests.support import redis_servers

RESUMED = 5.0  # seconds
DOOR = frames.Keys("{door}frames", "{door}labels", "{door}frames:dead")


def promoted(stage: Stage, *, rate: float, before: float, frozen: float, workers: int = 1) -> None:
    """F16: the replica's link freezes, the primary dies, the replica takes over with what it has."""
    primary = stage.server("--repl-diskless-sync-delay", "0")
    link = stage.proxy(primary.port)
    replica = stage.server("--replicaof", f"127.0.0.1 {link.port}")
    follower = replica.client()
    stage.until(lambda: follower.info("replication")["master_link_status"] == "up", "the replica has caught up")
    name = stage.proxy(primary.port)  # the address under which workers and producers know the primary
    fleet = stage.fleet(name.url, workers)
    with running_traffic(Traffic(lambda: _client(name.port), rate, Until.REPLICATED)) as traffic:
        time.sleep(before)
        link.freeze()
        time.sleep(frozen)
        primary.kill()
        follower.replicaof("NO", "ONE")
        name.target = replica.port
        name.cut()
        resumed = stage.next_label(follower)
        time.sleep(before)
    stage.empty(follower)
    stage.close_books(fleet)
    _judge(stage, follower, traffic, resumed)
    stage.findings.at_least("doubtful", len(traffic.doubtful), 1)


def _judge(stage: Stage, client: Client, traffic: Traffic, resumed: float) -> None:
    found = frames.outcomes(client)
    stage.findings.at_least("accepted", len(traffic.accepted), 1)
    stage.findings.exactly("accepted frames lost", found.lost(traffic.accepted), 0)
    stage.findings.exactly("doubled", found.doubled(), 0)
    stage.findings.at_most("resumed after", resumed, RESUMED, " s")


def _client(port: int) -> Client:
    return redis.Redis(port=port, protocol=2, socket_timeout=2, retry=Retry(NoBackoff(), 0))


def failed_over(stage: Stage, *, rate: float, before: float, planned: bool, workers: int = 1) -> None:
    """F17: a failover that a Sentinel makes, because the primary died or because the test asks for it.

    When it is planned, the old primary goes on as one for ten seconds until Sentinel tells it otherwise. What ends that
    at once is `min-replicas-to-write`: it has no replica any more. (The new one has none either, with two servers.)
    """
    pair = stage.enter(redis_servers.sentinel_pair("--min-replicas-max-lag", "1"))
    fleet = stage.fleet(pair.url, workers)
    pair.first.admin.config_set("min-replicas-to-write", 1)
    second = _client(pair.second.port)
    stage.enter(second)
    first_port = pair.first.port
    with running_traffic(Traffic(lambda: _client(pair.primary_port()), rate, Until.REPLICATED)) as traffic:
        time.sleep(before)
        began = time.monotonic()
        if planned:
            with pair.sentinel() as sentinel:
                sentinel.execute_command("SENTINEL", "FAILOVER", redis_servers.SERVICE)
        else:
            pair.first.process.send_signal(signal.SIGKILL)
        stage.until(lambda: pair.primary_port() != first_port, "the Sentinel names another primary", within=15)
        stage.next_label(second)
        resumed = time.monotonic() - began
        time.sleep(before)
    stage.empty(second)
    stage.close_books(fleet)
    _judge(stage, second, traffic, resumed)


def clustered(stage: Stage, *, frame_count: int, kills: int, workers: int = 2) -> None:
    """F29: a cluster of three, all keys of a queue in one slot, and workers that are killed."""
    servers = stage.enter(redis_servers.cluster())
    [home] = [node for node in servers.nodes if _owns(_client(node.port), DOOR.stream)]
    client, sent = _client(home.port), frames.names(frame_count)
    frames.send(client, sent, keys=DOOR)
    faults = schedule(stage.rng, frame_count, {Kind.KILL: kills})
    fleet = stage.fleet(
        servers.url,
        workers,
        queue__stream=DOOR.stream,
        queue__dead_stream=DOOR.dead,
        results__stream=DOOR.labels,
    )
    play(stage, client, fleet, faults, DOOR)
    stage.settle_up(client, fleet, sent, keys=DOOR)


def _owns(client: Client, key: str) -> bool:
    try:
        client.exists(key)
    except RedisError:  # MOVED
        return False
    return True
