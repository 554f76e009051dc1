"""Clients of each kind of Redis, made from the settings."""

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import EmbeddedServer
from coatstream.broker.failures import calls
from coatstream.broker.preflight import check_server
from coatstream.errors import ConfigError, RedisRefuses, RedisUnavailable
from coatstream.settings.model import RedisSettings

from tests.support.ports import HOST, free_port
from tests.support.redis_servers import SentinelPair, sentinel_pair, tcp_server, tls_server
from tests.support.workers import eventually


def at(url: str, **options: object) -> RedisSettings:
    return RedisSettings.model_validate({"url": url, "socket_timeout": 2, **options})


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    settings = at(f"redis://:hun ter2@{HOST}:{free_port()}/0")

    with (
        connect(settings) as client,
        pytest.raises(RedisUnavailable, match=r"cannot reach Redis at redis://127\.0\.0\.1:\d+/0") as caught,
    ):
        check_server(client, settings)

    assert "hun" not in str(caught.value)


def test_a_redis_py_that_cannot_be_told_how_much_to_read_is_not_told(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before version 8, which pyproject.toml allows."""

    class Older(redis.Redis):
        def __init__(self, *place: Any, **options: Any) -> None:
            if "socket_read_size" in options:
                raise TypeError("Redis.__init__() got an unexpected keyword argument 'socket_read_size'")
            super().__init__(*place, **options)

    monkeypatch.setattr(redis, "Redis", Older)

    with connect(at(redis_url)) as made:
        assert made.ping()


def test_user_and_password_may_be_apart_from_the_url(client: Client, redis_url: str) -> None:
    client.execute_command("ACL", "SETUSER", "worker", "on", ">p@ss:w/rd", "~*", "&*", "+@all")
    try:
        with connect(at(redis_url, username="worker", password="p@ss:w/rd")) as made:
            assert made.acl_whoami() == "worker"
        with connect(at(redis_url.replace("unix://", "unix://worker:p%40ss%3Aw%2Frd@"), password="not this")) as made:
            assert made.acl_whoami() == "worker"
    finally:
        client.execute_command("ACL", "DELUSER", "worker")


def test_database_and_name_of_the_client_may_be_in_the_url(redis_url: str, redis_server: EmbeddedServer) -> None:
    with connect(at(f"{redis_url}?db=3&client_name=door")) as made:
        made.set("frame", "x")
        mine = made.client_info()

    assert (int(mine["db"]), mine["name"]) == (3, "door")


def test_a_server_on_tcp_with_a_database() -> None:
    with tcp_server() as server, connect(at(f"{server.url}/5")) as client:
        client.set("frame", b"\xff\xfe")

        assert client.get("frame") == b"\xff\xfe"
        assert server.admin.info("keyspace")["db5"]["keys"] == 1


def test_a_command_whose_reply_is_lost_is_not_sent_again() -> None:
    with tcp_server() as server, connect(at(server.url, socket_timeout=0.2)) as client:
        for send in (client.xadd, _xadd_in_a_pipeline(client)):
            client.ping()  # so that a connection is open, and the command itself is what gets no reply
            server.process.send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(RedisUnavailable), calls("frames cannot be added", client):
                    send("frames", {"image": "x"})
            finally:
                server.process.send_signal(signal.SIGCONT)

        assert client.xlen("frames") == 2, "each was run once, when the server went on"


def _xadd_in_a_pipeline(client: Client) -> Callable[[str, dict[str, str]], None]:
    def send(stream: str, fields: dict[str, str]) -> None:
        pipe = client.pipeline(transaction=False)
        pipe.xadd(stream, fields)
        pipe.execute()

    return send


class TestOverTls:
    AUTHORITY = trustme.CA()

    def test_a_certificate_of_the_given_authority_is_trusted(self) -> None:
        with tls_server(self.AUTHORITY) as server:
            for host in (HOST, "localhost"):
                settings = at(f"rediss://{host}:{server.port}", tls_ca=server.ca)
                with connect(settings) as client:
                    assert check_server(client, settings).startswith("Redis ")

    def test_a_certificate_of_nobody_known_is_an_outage(self, tmp_path: Path) -> None:
        stranger = tmp_path / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(stranger)
        with tls_server(self.AUTHORITY) as server:
            for options in ({}, {"tls_ca": stranger}):
                settings = at(server.url, **options)
                with connect(settings) as client, pytest.raises(RedisUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                    check_server(client, settings)

    def test_a_certificate_for_another_host_is_an_outage(self) -> None:
        with tls_server(self.AUTHORITY, bind="127.0.0.2") as server:
            settings = at(f"rediss://127.0.0.2:{server.port}", tls_ca=server.ca)
            with connect(settings) as client, pytest.raises(RedisUnavailable, match="IP address mismatch"):
                check_server(client, settings)

    def test_a_server_that_asks_for_a_certificate_gets_ours(self, tmp_path: Path) -> None:
        certificate, key = _certificate(self.AUTHORITY, tmp_path)
        with tls_server(self.AUTHORITY, ask_clients=True) as server:
            settings = at(server.url, tls_ca=server.ca, tls_cert=certificate, tls_key=key)
            with connect(settings) as client:
                assert check_server(client, settings)

            settings = at(server.url, tls_ca=server.ca)
            with connect(settings) as client, pytest.raises(RedisUnavailable, match="cannot reach Redis at rediss://"):
                check_server(client, settings)

    def test_plain_words_to_a_tls_server_are_an_outage(self) -> None:
        with tls_server(self.AUTHORITY) as server:
            settings = at(server.url.replace("rediss", "redis"))
            with connect(settings) as client, pytest.raises(RedisUnavailable):
                check_server(client, settings)

    def test_the_url_cannot_switch_the_verification_off(self) -> None:
        with tls_server(self.AUTHORITY) as server, pytest.raises(ConfigError, match="are settings"):
            connect(at(f"{server.url}?ssl_cert_reqs=none"))

    def test_files_that_are_not_there_or_of_no_use_are_one_line(self, tmp_path: Path) -> None:
        certificate, key = _certificate(self.AUTHORITY, tmp_path)
        _, other = _certificate(self.AUTHORITY, tmp_path / "other")
        rubbish = tmp_path / "rubbish.pem"
        rubbish.write_text("no certificate")
        url = "rediss://localhost"
        wrong: list[tuple[dict[str, object], str]] = [
            ({"tls_ca": tmp_path / "absent"}, f"redis.tls_ca: there is no file {tmp_path}/absent"),
            ({"tls_ca": tmp_path}, "redis.tls_ca: there is no file"),
            ({"tls_ca": rubbish}, "holds no certificates in PEM form"),
            ({"tls_cert": certificate, "tls_key": tmp_path / "absent"}, "redis.tls_key: there is no file"),
            ({"tls_cert": certificate, "tls_key": other}, "with its own key"),
            ({"tls_cert": certificate, "tls_key": _encrypted(key, tmp_path)}, "not encrypted"),
            ({"tls_cert": rubbish, "tls_key": key}, "no certificate with its own key"),
            ({"tls_key": key}, "redis.tls_key is set without redis.tls_cert"),
        ]

        for options, says in wrong:
            with pytest.raises(ConfigError, match=re.escape(says)):
                connect(at(url, **options))

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("redis://h", "needs rediss://"),
            ("redis+sentinel://h/s", r"needs rediss\+sentinel://"),
            ("redis+cluster://h", r"needs rediss\+cluster://"),
            ("unix:///run/redis.sock", "a Unix socket has no TLS"),
        ],
    )
    def test_tls_settings_without_tls_in_the_url_are_refused(self, url: str, says: str, tmp_path: Path) -> None:
        certificate, _ = _certificate(self.AUTHORITY, tmp_path)

        with pytest.raises(ConfigError, match=says):
            connect(at(url, tls_ca=certificate))


def _certificate(authority: trustme.CA, folder: Path) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    issued = authority.issue_cert("worker")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    return folder / "cert.pem", folder / "key.pem"


def _encrypted(key: Path, folder: Path) -> Path:
    from cryptography.hazmat.primitives import serialization as form

    loaded = form.load_pem_private_key(key.read_bytes(), None)
    path = folder / "encrypted.pem"
    path.write_bytes(
        loaded.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret"))
    )
    return path


@pytest.fixture(scope="module")
def steady() -> Iterator[SentinelPair]:
    """For tests that change nothing of it."""
    with sentinel_pair() as made:
        yield made


@pytest.fixture
def pair() -> Iterator[SentinelPair]:
    with sentinel_pair() as made:
        yield made


class TestWithSentinels:
    def test_the_primary_is_found_also_where_the_first_sentinel_is_gone(self, steady: SentinelPair) -> None:
        url = steady.url.replace("redis+sentinel://", f"redis+sentinel://{HOST}:{free_port()},")
        settings = at(url)

        with connect(settings) as client:
            assert check_server(client, settings).startswith("Valkey ")
            client.xadd("frames", {"image": "x"})

        assert steady.first.admin.xlen("frames") == 1

    def test_after_a_crash_of_the_primary_calls_go_to_the_new_one(self, pair: SentinelPair) -> None:
        with connect(at(pair.url)) as client:
            client.xadd("frames", {"image": "x"})
            eventually(lambda: pair.second.admin.xlen("frames") == 1, "the replica has it")
            pair.first.process.kill()
            troubles: list[RedisUnavailable] = []

            def works() -> bool:
                try:
                    with calls("frames cannot be added", client):
                        client.xadd("frames", {"image": "y"})
                except RedisUnavailable as trouble:
                    troubles.append(trouble)
                    return False
                return True

            eventually(works, "the new primary takes frames")

        assert troubles
        assert not any(trouble.slow for trouble in troubles)
        assert pair.second.admin.xlen("frames") == 2

    def test_after_a_planned_failover_the_old_primary_is_left(self, pair: SentinelPair) -> None:
        with connect(at(pair.url)) as client, pair.sentinel() as sentinel:
            client.xadd("frames", {"image": "x"})
            sentinel.execute_command("SENTINEL FAILOVER", "mymaster")
            eventually(lambda: pair.primary_port() == pair.second.port, "the Sentinel names the other one")
            pair.first.admin.replicaof("127.0.0.1", pair.second.port)  # as the Sentinel does some 10 s later

            def works() -> bool:
                try:
                    with calls("frames cannot be added", client):
                        client.xadd("frames", {"image": "y"})
                except RedisUnavailable:
                    return False
                return True

            eventually(works, "calls find the new primary")

        assert pair.second.admin.info("replication")["role"] == "master"

    def test_sentinels_have_user_and_password_of_their_own(self, pair: SentinelPair) -> None:
        with pair.sentinel() as sentinel:
            sentinel.execute_command("ACL", "SETUSER", "asker", "on", ">theirs", "+@all")
            sentinel.execute_command("ACL", "SETUSER", "default", "off")
        pair.first.admin.config_set("requirepass", "ours")
        url = pair.url.replace("redis+sentinel://", "redis+sentinel://:ours@")

        with connect(at(url, sentinel_username="asker", sentinel_password="theirs")) as client:
            assert client.ping()
        with (
            connect(at(url)) as client,
            pytest.raises(RedisUnavailable, match="no Sentinel names a primary") as caught,
            calls("frames cannot be read", client),
        ):
            client.ping()

        assert "ours" not in str(caught.value)

    def test_a_service_that_nobody_knows_is_an_outage_that_names_it(self, steady: SentinelPair) -> None:
        with (
            connect(at(steady.url.replace("mymaster", "yourmaster"))) as client,
            pytest.raises(RedisUnavailable, match=r"No master found for 'yourmaster'\)"),
            calls("frames cannot be read", client),
        ):
            client.ping()

    def test_a_server_that_is_no_sentinel_is_a_refusal(self) -> None:
        with (
            tcp_server() as server,
            connect(at(f"redis+sentinel://{HOST}:{server.port}/mymaster")) as client,
            pytest.raises(RedisRefuses, match="this is no Sentinel"),
            calls("frames cannot be read", client),
        ):
            client.ping()

    def test_closing_the_client_closes_its_connections_to_the_sentinels(self, steady: SentinelPair) -> None:
        with steady.sentinel() as sentinel:
            before = len(sentinel.client_list())
            with connect(at(steady.url)) as client:
                client.ping()
                assert len(sentinel.client_list()) == before + 1

            eventually(lambda: len(sentinel.client_list()) == before, "the connection is closed")
