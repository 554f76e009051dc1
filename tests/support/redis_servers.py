"""Redis in the shapes that production has: over TLS, as a pair under Sentinels, as a cluster. Real servers, our own.

All are context managers; Valkey from its pip package unless a `binary` is given. A server's `process` may be stopped or
killed by a test.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
import trustme
from coatstream.broker.embedded import EmbeddedServer, embedded_server, valkey_binary
from redis.exceptions import RedisError

from tests.support.absence import missing
from tests.support.ports import HOST, free_port
from tests.support.workers import eventually

SERVICE = "mymaster"
SLOTS = 16_384


@dataclass(frozen=True, slots=True)
class TcpServer:
    """A server that listens on TCP; `admin` is a client over its Unix socket, for the test's own use."""

    server: EmbeddedServer
    port: int
    admin: redis.Redis

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        return self.server.process


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A server that speaks TLS only, as `localhost` and 127.0.0.1; the files are PEM."""

    port: int
    ca: Path
    certificate: Path
    key: Path

    @property
    def url(self) -> str:
        return f"rediss://{HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class SentinelPair:
    """A primary (`first`, when it starts), a replica (`second`), and the Sentinels' ports."""

    first: TcpServer
    second: TcpServer
    sentinels: tuple[int, ...]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'{HOST}:{port}' for port in self.sentinels)}/{SERVICE}/0"

    def sentinel(self) -> redis.Redis:
        """A client of the first Sentinel."""
        return redis.Redis(HOST, self.sentinels[0], decode_responses=True)

    def primary_port(self) -> int:
        """The primary's port, as the Sentinel names it."""
        with self.sentinel() as sentinel:
            return int(sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)[1])


@dataclass(frozen=True, slots=True)
class ClusterServers:
    """The primaries of a cluster."""

    nodes: tuple[TcpServer, ...]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in self.nodes)}"


def debian_redis() -> str:
    """Debian's redis-server: Redis itself, and the one with TLS."""
    binary = shutil.which("redis-server")
    if binary is None:
        missing("no redis-server on this machine (apt-get install redis-server)")
    return binary


@contextmanager
def tcp_server(*options: str, binary: str | None = None) -> Iterator[TcpServer]:
    """One server on TCP; `options` are its own."""
    port = free_port()
    with (
        embedded_server("--port", str(port), "--bind", HOST, *options, binary=binary) as server,
        redis.Redis.from_url(server.url) as admin,
    ):
        yield TcpServer(server, port, admin)


@contextmanager
def tls_server(authority: trustme.CA, *, ask_clients: bool = False, bind: str = HOST) -> Iterator[TlsServer]:
    """A server whose certificate `authority` has signed; `ask_clients`: each client needs a certificate, too."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        ca, certificate, key = (Path(folder) / name for name in ("ca.pem", "cert.pem", "key.pem"))
        issued = authority.issue_cert("localhost", HOST)
        authority.cert_pem.write_to_path(ca)
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        options = {
            "--tls-port": str(port),
            "--bind": bind,
            "--tls-ca-cert-file": str(ca),
            "--tls-cert-file": str(certificate),
            "--tls-key-file": str(key),
            "--tls-auth-clients": "yes" if ask_clients else "no",
        }
        with embedded_server(*(word for pair in options.items() for word in pair), binary=debian_redis()):
            yield TlsServer(port, ca, certificate, key)


@contextmanager
def sentinel_pair(*options: str, sentinels: int = 1) -> Iterator[SentinelPair]:
    """A primary, a replica that has caught up, and Sentinels that know both; `options` are for both servers."""
    options = ("--shutdown-timeout", "0", *options)  # a primary that is stopped waits for no replica
    with ExitStack() as stack:
        first = stack.enter_context(tcp_server("--repl-diskless-sync-delay", "0", *options))
        second = stack.enter_context(tcp_server("--replicaof", f"{HOST} {first.port}", *options))
        eventually(lambda: second.admin.info("replication")["master_link_status"] == "up", "the replica caught up")
        ports = tuple(stack.enter_context(_sentinel(first.port, quorum=sentinels // 2 + 1)) for _ in range(sentinels))
        for port in ports:
            with redis.Redis(HOST, port, decode_responses=True) as sentinel:
                eventually(lambda: _knows(sentinel, sentinels), "the Sentinel knows the replica")
        yield SentinelPair(first, second, ports)


@contextmanager
def cluster(nodes: int = 3, *options: str, binary: str | None = None) -> Iterator[ClusterServers]:
    """A cluster of `nodes` primaries without replicas, with all slots served."""
    bus = [free_port() for _ in range(nodes)]
    with ExitStack() as stack:
        servers = tuple(
            stack.enter_context(
                tcp_server("--cluster-enabled", "yes", "--cluster-port", str(port), *options, binary=binary)
            )
            for port in bus
        )
        for number, node in enumerate(servers):
            node.admin.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            share = SLOTS * number // nodes, SLOTS * (number + 1) // nodes - 1
            node.admin.execute_command("CLUSTER ADDSLOTSRANGE", *share)
            if number:
                node.admin.execute_command("CLUSTER MEET", HOST, servers[0].port, bus[0])
        for node in servers:
            eventually(lambda: _is_whole(node, nodes), "the cluster's node knows the others")  # noqa: B023
        yield ClusterServers(servers)


@contextmanager
def _sentinel(primary: int, *, quorum: int) -> Iterator[int]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "sentinel.conf"  # it writes into it
        settings.write_text(
            f"port {port}\nbind {HOST}\ndir {folder}\nlogfile {folder}/log\n"
            f"sentinel monitor {SERVICE} {HOST} {primary} {quorum}\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        process = subprocess.Popen([valkey_binary(), str(settings), "--sentinel"], stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(HOST, port) as client:
                eventually(lambda: _answers(client), "the Sentinel answers")
            yield port
        finally:
            process.kill()
            process.wait(timeout=5)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def _knows(sentinel: redis.Redis, sentinels: int) -> bool:
    state = sentinel.execute_command("SENTINEL MASTER", SERVICE)
    replicas = sentinel.execute_command("SENTINEL REPLICAS", SERVICE)
    return (
        int(state["num-other-sentinels"]) == sentinels - 1
        and [replica["master-link-status"] for replica in replicas] == ["ok"]  # else it promotes no replica
    )


def _is_whole(node: TcpServer, nodes: int) -> bool:
    state = node.admin.execute_command("CLUSTER INFO")
    return state["cluster_state"] == "ok" and int(state["cluster_known_nodes"]) == nodes
