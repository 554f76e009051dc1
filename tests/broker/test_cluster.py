"""A real cluster of three nodes: what leads where, and that nothing is sent twice."""

import signal
from collections.abc import Iterator

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.failures import calls
from coatstream.broker.keys import Queue, partitions, queues_of
from coatstream.broker.preflight import check_rights, check_server, check_slots, check_types, server_infos
from coatstream.broker.script import Script
from coatstream.errors import ConfigError, RedisRefuses, RedisUnavailable
from coatstream.settings.model import RedisSettings, SettingsTree
from redis.crc import key_slot
from redis.exceptions import ClusterCrossSlotError, RedisClusterException, RedisError, ResponseError

from tests.support.ports import free_port
from tests.support.redis_servers import ClusterServers, TcpServer, cluster, tcp_server

QUEUE = Queue("{door}frames", "coatstream", "{door}frames:dead", "{door}labels")


@pytest.fixture(scope="module")
def servers() -> Iterator[ClusterServers]:
    with cluster() as made:
        yield made


@pytest.fixture
def client(servers: ClusterServers) -> Iterator[Client]:
    for node in servers.nodes:
        node.admin.flushall()
        node.admin.config_resetstat()
    with connect(at(servers)) as made:
        yield made


def at(servers: ClusterServers, **options: object) -> RedisSettings:
    return RedisSettings.model_validate({"url": servers.url, "socket_timeout": 2, **options})


def home(servers: ClusterServers, key: str) -> TcpServer:
    """The node that has the key's slot."""
    return servers.nodes[key_slot(key.encode()) * len(servers.nodes) // 16_384]


def test_our_scripts_run_on_keys_with_one_tag(client: Client, servers: ClusterServers) -> None:
    client.xadd(QUEUE.stream, {"image": "x"})
    client.xgroup_create(QUEUE.stream, QUEUE.group, id="0")
    measure = Script("queue/measure")

    first = measure(client, keys=[QUEUE.stream, QUEUE.dead], args=[QUEUE.group])
    again = measure(client, keys=[QUEUE.stream, QUEUE.dead], args=[QUEUE.group])

    assert first[2] == again[2] == 1
    assert home(servers, QUEUE.stream).admin.exists(QUEUE.stream)


def test_the_streams_commands_work_and_need_no_question_about_keys(client: Client, servers: ClusterServers) -> None:
    stream, group = QUEUE.stream, QUEUE.group
    entry = client.xadd(stream, {"image": "x"})
    client.xgroup_create(stream, group, id="0")
    read = client.xreadgroup(group, "STREAMS", {stream: ">"}, count=1, block=10)  # a consumer may have that name
    client.xgroup_delconsumer(stream, group, "nobody")

    assert read == [[stream.encode(), [(entry, {b"image": b"x"})]]]
    assert client.xread({stream: "0"})[0][1][0][0] == entry
    assert client.xinfo_groups(stream)[0]["pending"] == 1
    assert client.xinfo_stream(stream)["length"] == client.xlen(stream) == client.exists(stream, stream) - 1 == 1
    assert client.xpending(stream, group)["pending"] == 1
    assert client.xack(stream, group, entry) == client.xdel(stream, entry) == client.delete(stream) == 1
    assert not any(
        "command|getkeys" in name or "COMMAND GETKEYS" in name
        for node in servers.nodes
        for name in node.admin.info("commandstats")
    )


def test_a_pipeline_goes_to_one_node_with_scripts_and_commands_that_have_no_key(client: Client) -> None:
    pipe = client.pipeline(transaction=False)
    pipe.time()
    pipe.xadd("{door}frames", {"image": "x"})
    pipe.eval("return redis.call('XLEN', KEYS[1])", 1, "{door}frames")
    pipe.type("{door}labels")
    (seconds, _), _, entries, kind = pipe.execute()

    assert seconds > 1_700_000_000
    assert entries == 1
    assert kind == b"none"


def test_an_error_within_a_pipeline_is_raised_or_returned(client: Client) -> None:
    client.set("{door}text", "x")
    pipe = client.pipeline()
    pipe.xlen("{door}text")
    pipe.xlen("{door}frames")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        pipe.execute()

    pipe.xlen("{door}text")
    pipe.xlen("{door}frames")
    first, second = pipe.execute(raise_on_error=False)

    assert isinstance(first, ResponseError)
    assert second == 0


def test_keys_of_several_slots_are_refused(client: Client) -> None:
    pipe = client.pipeline()
    pipe.xlen("frames")
    pipe.xlen("labels")
    calls_ = (
        pipe.execute,
        lambda: client.eval("return 0", 2, "frames", "labels"),
        lambda: client.eval("return redis.call('XLEN', 'labels')", 1, "frames"),
        lambda: client.exists("frames", "labels"),
    )

    for call in calls_:
        with pytest.raises(RedisRefuses, match="one hash tag"), calls("frames cannot be read", client):
            call()


def test_a_transaction_is_refused(client: Client) -> None:
    with pytest.raises(RedisClusterException, match="transactions"):
        client.pipeline(transaction=True)


def test_a_lost_reply_is_an_outage_and_nothing_is_sent_twice(servers: ClusterServers, client: Client) -> None:
    node = home(servers, "{door}frames")
    with connect(at(servers, socket_timeout=0.3)) as impatient:
        for send in (_xadd, _xadd_in_a_pipeline):
            impatient.xlen("{door}frames")  # so that a connection is open, and the command itself is what gets no reply
            node.process.send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(RedisUnavailable), calls("frames cannot be added", impatient):
                    send(impatient)
            finally:
                node.process.send_signal(signal.SIGCONT)

        assert impatient.xlen("{door}frames") == 2, "each was run once, when the server went on"


def _xadd(client: Client) -> None:
    client.xadd("{door}frames", {"image": "x"})


def _xadd_in_a_pipeline(client: Client) -> None:
    pipe = client.pipeline()
    pipe.xadd("{door}frames", {"image": "x"})
    pipe.execute()


def test_a_slot_that_moves_is_followed(servers: ClusterServers, client: Client) -> None:
    stream, slot = "{moved}frames", key_slot(b"{moved}frames")
    old = home(servers, stream)
    new = next(node for node in servers.nodes if node is not old)
    ids = {node.port: node.admin.execute_command("CLUSTER MYID").decode() for node in servers.nodes}
    _xadd_to(client, stream)
    new.admin.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[old.port])
    old.admin.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[new.port])
    try:
        old.admin.execute_command("MIGRATE", "127.0.0.1", new.port, stream, 0, 2000)
        _xadd_to(client, stream)  # ASK
    finally:
        for node in (new, old, *servers.nodes):
            node.admin.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[new.port])
    _xadd_to(client, stream)  # MOVED

    assert client.xlen(stream) == 6
    assert new.admin.exists(stream)


def _xadd_to(client: Client, stream: str) -> None:
    """One command, and the same in a pipeline."""
    client.xadd(stream, {"image": "x"})
    pipe = client.pipeline()
    pipe.time()
    pipe.xadd(stream, {"image": "x"})
    pipe.execute()


def test_a_node_that_is_gone_is_an_outage_for_its_own_keys_only() -> None:
    with cluster(3, "--cluster-require-full-coverage", "no") as servers, connect(at(servers)) as client:
        keys = {home(servers, key).port: key for key in map(str, range(50))}
        gone = servers.nodes[0]
        gone.process.kill()
        gone.process.wait()

        for port, key in keys.items():
            pipe = client.pipeline()
            pipe.xlen(key)
            for call in (lambda key=key: client.xlen(key), pipe.execute):
                if port == gone.port:
                    with pytest.raises(RedisUnavailable), calls("frames cannot be read", client):
                        call()
                else:
                    call()


def test_nobody_there_is_an_outage_without_the_password() -> None:
    url = f"redis+cluster://:hunter2@127.0.0.1:{free_port()},127.0.0.1:{free_port()}"

    with pytest.raises(RedisUnavailable, match=r"cannot reach the cluster at redis\+cluster://127") as caught:
        connect(RedisSettings.model_validate({"url": url}))

    assert "Connection refused" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_wrong_password_is_an_outage_to_be_retried_slowly(servers: ClusterServers) -> None:
    with pytest.raises(RedisUnavailable, match="refuses the login") as caught:
        connect(at(servers, username="nobody", password="hunter2"))

    assert caught.value.slow


def test_a_user_without_the_right_to_ask_for_the_slots_is_a_refusal(servers: ClusterServers) -> None:
    for node in servers.nodes:
        node.admin.execute_command("ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all", "-cluster")

    with pytest.raises(RedisRefuses, match=r"lacks a right.*cluster"):
        connect(at(servers, username="worker", password="pw"))


def test_a_server_that_is_no_cluster_is_a_refusal() -> None:
    with tcp_server() as server, pytest.raises(RedisRefuses, match="is no cluster: write redis://"):
        connect(RedisSettings.model_validate({"url": server.url.replace("redis", "redis+cluster", 1)}))


def test_slots_that_nobody_serves_are_an_outage() -> None:
    with tcp_server("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        with (
            connect(RedisSettings.model_validate({"url": server.url})) as plain,
            pytest.raises(RedisUnavailable, match="does not serve all its slots"),
            calls("frames cannot be read", plain),
        ):
            plain.xlen("frames")
        with pytest.raises(RedisUnavailable, match="not covered"):
            connect(RedisSettings.model_validate({"url": server.url.replace("redis", "redis+cluster", 1)}))


class TestAtTheStart:
    def test_a_cluster_is_told_with_its_version(self, servers: ClusterServers, client: Client) -> None:
        assert check_server(client, at(servers)).startswith("Valkey ")
        assert len(server_infos(client)) == 3

    def test_a_single_node_is_refused_with_the_right_way_to_write_it(self, servers: ClusterServers) -> None:
        settings = RedisSettings.model_validate({"url": servers.nodes[0].url})

        with connect(settings) as plain, pytest.raises(ConfigError, match=r"write redis\+cluster://"):
            check_server(plain, settings)

    def test_a_node_that_is_asked_for_keys_of_another_is_a_refusal(self, servers: ClusterServers) -> None:
        node = next(node for node in servers.nodes if node is not home(servers, "frames"))

        with (
            connect(RedisSettings.model_validate({"url": node.url})) as plain,
            pytest.raises(RedisRefuses, match=r"write redis\+cluster://"),
            calls("frames cannot be read", plain),
        ):
            plain.xlen("frames")

    def test_keys_of_a_queue_in_one_slot_are_well(self, client: Client) -> None:
        check_slots(client, QUEUE.keys)
        check_types(client, QUEUE.types)
        for part in partitions(QUEUE, 3):
            check_slots(client, part.keys)

    def test_keys_of_a_queue_in_several_slots_are_named_with_a_tag_that_helps(self, client: Client) -> None:
        [queue] = queues_of(SettingsTree())

        with pytest.raises(ConfigError) as caught:
            check_slots(client, queue.keys)

        assert str(caught.value).startswith("the keys frames and frames:dead lie in different slots of the cluster: ")
        assert "{frames}, {frames}:dead and {frames}:labels" in str(caught.value)
        tagged = Queue("{frames}", "g", "{frames}:dead", "{frames}:labels")
        check_slots(client, tagged.keys)

    def test_rights_are_asked_of_the_node_that_has_the_key(self, servers: ClusterServers) -> None:
        for node in servers.nodes:
            node.admin.execute_command("ACL", "SETUSER", "worker", "on", ">pw", "allkeys", "allchannels", "+@all")
        with connect(at(servers, username="worker", password="pw")) as client:
            check_rights(client, QUEUE.rights)
            home(servers, QUEUE.stream).admin.execute_command("ACL", "SETUSER", "worker", "-xadd", "resetchannels")

            with pytest.raises(ConfigError, match=r"the Redis user worker lacks: XADD on \{door\}frames, "):
                check_rights(client, QUEUE.rights)


def test_the_errors_of_redis_py_are_known_to_be_of_two_families() -> None:
    """Where this changes, `calls` need not name both."""
    assert not issubclass(RedisClusterException, RedisError)
    assert issubclass(ClusterCrossSlotError, RedisError)
