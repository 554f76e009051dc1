"""What is made of Redis' errors, each provoked on a real server."""

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from coatstream.broker.connection import Client, connect
from coatstream.broker.failures import calls
from coatstream.errors import RedisRefuses, RedisUnavailable
from coatstream.settings.model import RedisSettings
from redis.exceptions import RedisError

from tests.support.ports import free_port
from tests.support.redis_servers import TcpServer, debian_redis, tcp_server
from tests.support.workers import eventually

SCRIPT_ADD = "return redis.call('XADD', KEYS[1], '*', 'f', 'v')"
SCRIPT_FOR_EVER = "while true do end"


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[TcpServer]:
    """A server that a test may ruin."""
    with tcp_server("--enable-protected-configs", "local", binary=binary_of(request.param)) as made:
        yield made


def binary_of(kind: str) -> str | None:
    return debian_redis() if kind == "redis" else None


def at(server: TcpServer, **options: object) -> Client:
    return connect(RedisSettings.model_validate({"url": server.url, "socket_timeout": 2, **options}))


@pytest.fixture
def client(server: TcpServer) -> Iterator[Client]:
    with at(server) as made:
        yield made


def outage(call: Callable[[], object], client: Client = None) -> RedisUnavailable:
    with pytest.raises(RedisUnavailable) as caught, calls("labels could not be published", client):
        call()
    assert_one_line(caught.value)
    return caught.value


def refusal(call: Callable[[], object], client: Client = None) -> RedisRefuses:
    with pytest.raises(RedisRefuses) as caught, calls("labels could not be published", client):
        call()
    assert_one_line(caught.value)
    return caught.value


def assert_one_line(error: Exception) -> None:
    assert str(error).startswith("labels could not be published: ")
    assert len(str(error).splitlines()) == 1
    assert "user_script" not in str(error), "where in a script of ours it was is no news for a person"


def both_ways(client: Client, key: str) -> list[Callable[[], object]]:
    """A write of ours, and the same from within a script."""
    return [lambda: client.xadd(key, {"f": "v"}), lambda: client.eval(SCRIPT_ADD, 1, key)]


@contextmanager
def in_background(call: Callable[[], object]) -> Iterator[None]:
    def quietly() -> None:
        with suppress(RedisError):
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    yield
    thread.join(5)
    assert not thread.is_alive()


def test_nobody_there_is_an_outage_without_the_password() -> None:
    settings = RedisSettings.model_validate({"url": f"redis://:hunter2@127.0.0.1:{free_port()}"})

    with connect(settings) as client:
        trouble = outage(client.ping, client)

    assert "Connection refused" in str(trouble)
    assert "hunter2" not in str(trouble)
    assert not trouble.slow


def test_a_server_that_does_not_answer_in_time_is_an_outage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with connect(RedisSettings.model_validate({"url": url, "socket_timeout": 0.1})) as client:
            assert "Timeout" in str(outage(client.ping, client))


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_loading_is_an_outage(kind: str) -> None:
    binary = binary_of(kind)
    with (
        tcp_server("--repl-diskless-sync-delay", "0", binary=binary) as primary,
        tcp_server("--loading-process-events-interval-bytes", "1024", "--key-load-delay", "50000", binary=binary) as it,
        at(it) as client,
    ):
        for number in range(40):  # it takes in one every 50 ms, and looks at its clients after each kB that it reads
            primary.admin.set(f"key-{number}", random.Random(number).randbytes(2000))
        it.admin.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        troubles: list[RedisUnavailable] = []

        def is_loading() -> bool:
            try:
                with calls("labels could not be published", client):
                    client.xlen("frames")
            except RedisUnavailable as trouble:
                troubles.append(trouble)
            return bool(troubles)

        eventually(is_loading, "it loads")

    assert_one_line(troubles[0])
    assert "is loading its data" in str(troubles[0])


def test_a_disk_that_cannot_be_written_is_an_outage(server: TcpServer, client: Client) -> None:
    (server.server.folder / "dump" / "full").mkdir(parents=True)  # in the dump's place
    server.admin.config_set("dbfilename", "dump")
    server.admin.config_set("save", "3600 1")
    server.admin.bgsave()
    eventually(lambda: server.admin.info("persistence")["rdb_last_bgsave_status"] == "err", "the dump failed")

    for write in both_ways(client, "frames"):
        assert "look at its disk and its log (MISCONF" in str(outage(write, client))
    server.admin.config_set("save", "")  # else it would not end before it has saved


def test_a_full_server_is_an_outage(server: TcpServer, client: Client) -> None:
    server.admin.config_set("maxmemory", 1)

    for write in both_ways(client, "frames"):
        assert "or raise maxmemory (" in str(outage(write, client))


def test_too_few_replicas_are_an_outage_that_drops_the_connections(server: TcpServer, client: Client) -> None:
    server.admin.config_set("min-replicas-to-write", 1)
    for write in both_ways(client, "frames"):
        before = client.client_id()

        assert "min-replicas-to-write" in str(outage(write, client))
        assert client.client_id() != before


def test_a_replica_is_an_outage_that_drops_the_connections(server: TcpServer, client: Client) -> None:
    server.admin.execute_command("REPLICAOF", "127.0.0.1", 1)
    for write in both_ways(client, "frames"):
        before = client.client_id()

        assert "is a replica" in str(outage(write, client))
        assert client.client_id() != before


def test_other_outages_keep_the_connections(server: TcpServer, client: Client) -> None:
    server.admin.config_set("maxmemory", 1)
    before = client.client_id()

    outage(lambda: client.xadd("frames", {"f": "v"}), client)

    assert client.client_id() == before


def test_a_replica_that_lost_its_primary_is_an_outage_that_drops_the_connections(
    server: TcpServer, client: Client
) -> None:
    server.admin.config_set("replica-serve-stale-data", "no")
    server.admin.execute_command("REPLICAOF", "127.0.0.1", 1)
    before = client.connection_pool._available_connections

    assert "has lost its primary" in str(outage(lambda: client.xlen("frames"), client))
    assert all(connection._sock is None for connection in before)


def test_a_read_that_is_cut_off_because_the_primary_becomes_a_replica_is_an_outage(
    server: TcpServer, client: Client
) -> None:
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    troubles: list[RedisUnavailable] = []

    def read() -> None:
        troubles.append(outage(lambda: client.xreadgroup("coatstream", "me", {"frames": ">"}, block=1500), client))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    eventually(lambda: server.admin.info("clients")["blocked_clients"] == 1, "the read waits")
    server.admin.execute_command("REPLICAOF", "127.0.0.1", 1)
    thread.join(5)

    assert "is a replica" in str(troubles[0])
    assert "UNBLOCKED" in str(troubles[0])


def test_a_group_that_is_gone_is_an_outage(client: Client) -> None:
    read = lambda: client.xreadgroup("coatstream", "me", {"frames": ">"})  # noqa: E731
    look = lambda: client.eval("return redis.call('XPENDING', KEYS[1], 'coatstream')", 1, "frames")  # noqa: E731

    for call in (read, look):
        assert "makes them again" in str(outage(call, client))


def test_a_stream_that_is_deleted_under_a_waiting_read_is_an_outage(server: TcpServer, client: Client) -> None:
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    troubles: list[RedisUnavailable] = []

    def read() -> None:
        troubles.append(outage(lambda: client.xreadgroup("coatstream", "me", {"frames": ">"}, block=1500), client))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    eventually(lambda: server.admin.info("clients")["blocked_clients"] == 1, "the read waits")
    server.admin.delete("frames")
    thread.join(5)

    assert "makes them again" in str(troubles[0])


def test_a_script_that_holds_redis_up_is_an_outage(server: TcpServer, client: Client) -> None:
    server.admin.config_set("lua-time-limit", 10)
    with in_background(lambda: at(server).eval(SCRIPT_FOR_EVER, 0)):

        def is_busy() -> bool:
            try:
                client.xlen("frames")
            except RedisError:
                return True
            return False

        eventually(is_busy, "the script runs")
        trouble = outage(lambda: client.xlen("frames"), client)
        server.admin.script_kill()

    assert "SCRIPT KILL" in str(trouble)


def test_a_wrong_password_and_none_are_outages_to_be_retried_slowly(server: TcpServer) -> None:
    server.admin.config_set("requirepass", "right")

    for options in ({}, {"password": "hunter2"}, {"username": "nobody", "password": "hunter2"}):
        with at(server, **options) as client:
            trouble = outage(client.ping, client)

        assert trouble.slow
        assert "Redis refuses the login" in str(trouble)
        assert "hunter2" not in str(trouble)


def test_a_server_with_too_many_clients_is_an_outage(server: TcpServer) -> None:
    server.admin.config_set("maxclients", 1)

    with at(server) as client:
        assert "maxclients" in str(outage(client.ping, client))


def test_a_missing_right_is_a_refusal(server: TcpServer) -> None:
    server.admin.execute_command("ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all", "-xadd")
    with at(server, username="worker", password="pw") as client:
        for write in both_ways(client, "frames"):
            assert "ACL SETUSER" in str(refusal(write, client))

    server.admin.execute_command("ACL", "SETUSER", "worker", "+xadd", "resetkeys", "~frames")
    with at(server, username="worker", password="pw") as client:
        client.xadd("frames", {"f": "v"})
        hidden = "return redis.call('XADD', 'labels', '*', 'f', 'v')"
        for call in (*both_ways(client, "labels"), lambda: client.eval(hidden, 0)):
            assert "ACL SETUSER" in str(refusal(call, client))


def test_a_right_that_a_script_finds_missing_without_raising_is_a_refusal(server: TcpServer) -> None:
    server.admin.execute_command("ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all", "-xadd")
    with at(server, username="worker", password="pw") as client:
        script = SCRIPT_ADD.replace("call", "pcall")

        assert "ACL SETUSER" in str(refusal(lambda: client.eval(script, 1, "frames"), client))


def test_a_key_that_holds_something_else_is_a_refusal(client: Client) -> None:
    client.set("frames", "a text")

    for write in both_ways(client, "frames"):
        assert "`coatstream check` names the key" in str(refusal(write, client))


def test_a_command_that_the_server_does_not_know_is_a_refusal_that_quotes_no_arguments(client: Client) -> None:
    for call in (
        lambda: client.execute_command("NOSUCH", "hunter2"),
        lambda: client.execute_command("XGROUP", "NOSUCH", "hunter2"),
        lambda: client.eval("return redis.call('NOSUCH')", 0),
    ):
        trouble = refusal(call, client)

        assert "lacks a command" in str(trouble)
        assert "hunter2" not in str(trouble)


def test_a_server_without_auth_does_not_make_us_say_the_password() -> None:
    with (
        tcp_server("--rename-command", "AUTH", "", binary=debian_redis()) as server,
        at(server, username="me", password="hunter2") as client,
    ):
        assert "hunter2" not in str(refusal(client.ping, client))


def test_what_is_no_error_of_redis_goes_through() -> None:
    with pytest.raises(ZeroDivisionError), calls("labels could not be published"):
        1 / 0  # noqa: B018
