"""The password in a file: read anew for each connection."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from coatstream.broker.connection import connect
from coatstream.broker.failures import calls
from coatstream.errors import ConfigError, RedisUnavailable
from coatstream.settings.model import RedisSettings

from tests.support.redis_servers import TcpServer, debian_redis, tcp_server


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[TcpServer]:
    with tcp_server(binary=debian_redis() if request.param == "redis" else None) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "COATSTREAM_REDIS__PASSWORD"
    path.write_text("first\n")
    return path


def settings(url: str, file: Path, **options: object) -> RedisSettings:
    return RedisSettings.model_validate({"url": url, "password_file": file, **options})


def rotate(file: Path, password: str) -> None:
    """As Kubernetes does it: the new file takes the old one's place at once."""
    new = file.with_suffix(".new")
    new.write_text(f"{password}\n")
    new.replace(file)


def test_a_rotated_password_is_used_by_new_connections_while_old_ones_go_on(server: TcpServer, file: Path) -> None:
    server.admin.config_set("requirepass", "first")
    with connect(settings(server.url, file)) as client:
        client.ping()
        server.admin.config_set("requirepass", "second")
        assert client.ping(), "an open connection outlives the change"

        rotate(file, "second")
        client.connection_pool.disconnect()

        assert client.ping()


def test_a_user_of_an_acl_can_be_rotated_too_and_its_refusal_is_an_outage_to_be_retried_slowly(
    server: TcpServer, file: Path
) -> None:
    server.admin.execute_command("ACL", "SETUSER", "worker", "on", ">first", "~*", "+@all")
    with connect(settings(server.url, file, username="worker", password="not this one")) as client:
        assert client.acl_whoami() == "worker"
        server.admin.execute_command("ACL", "SETUSER", "worker", ">second", "<first")
        client.connection_pool.disconnect()

        with pytest.raises(RedisUnavailable, match="Redis refuses the login") as refused, calls("reading", client):
            client.ping()
        rotate(file, "second")

        assert refused.value.slow
        assert "first" not in str(refused.value)
        assert client.acl_whoami() == "worker"


def test_a_file_that_goes_away_while_we_run_is_an_outage(server: TcpServer, file: Path) -> None:
    server.admin.config_set("requirepass", "first")
    with connect(settings(server.url, file)) as client:
        file.unlink()

        with pytest.raises(RedisUnavailable, match=f"there is no file {file}") as refused, calls("reading", client):
            client.ping()
        file.write_text("first")

        assert refused.value.slow
        assert client.ping()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"x" * 4097, "larger than 4096 bytes"), (b"\xff\xfe", "not text")],
)
def test_a_file_that_holds_no_password_is_one_line_at_the_start(file: Path, content: bytes, says: str) -> None:
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=says) as caught:
        connect(settings("redis://localhost", file))

    assert str(caught.value).startswith(f"redis.password_file: {file} ")


def test_a_password_of_4096_bytes_is_taken(file: Path) -> None:
    file.write_text("x" * 4096)

    connect(settings("redis://localhost", file)).close()


def test_what_is_no_file_is_one_line_at_the_start(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    for path in (tmp_path, pipe, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=f"there is no file {path}"):
            connect(settings("redis://localhost", path))


@pytest.mark.parametrize("url", ["redis://:pw@localhost", "redis://localhost?password=pw"])
def test_a_password_in_the_url_too_is_refused(file: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="remove one of them"):
        connect(settings(url, file))
