"""Connections, and what may be shown of them."""

import pytest

from config.settings import RedisSettings
from worker.broker.connection import Client, address, connect
from worker.broker.preflight import check_server
from worker.errors import ConfigError, RedisUnavailable


def at(url: str, **options: object) -> RedisSettings:
    return RedisSettings.model_validate({"url": url, **options})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user:hun ter2@cache.example/3", "redis://cache.example:6379/3"),
        ('rediss://:hunter2"quoted@cache.example:6380', "rediss://cache.example:6380"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis://user:hunter2#x@host", "redis://(unreadable)"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert address(at(url)) == shown


@pytest.mark.parametrize("url", ["redis://user:hunter2#x@host", "redis://:hunter/2@h", "redis://h:hunter2"])
def test_a_url_that_cannot_be_read_is_one_line_that_quotes_nothing_of_it(url: str) -> None:
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        connect(at(url))

    assert "hunter" not in str(caught.value)


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    settings = at("redis://:hun ter2@127.0.0.1:1/0")

    with (
        connect(settings) as client,
        pytest.raises(RedisUnavailable, match=r"cannot reach Redis at redis://127\.0\.0\.1:1") as caught,
    ):
        check_server(client, settings)

    assert "hun" not in str(caught.value)


def test_user_and_password_may_be_apart_from_the_url(client: Client, redis_url: str) -> None:
    client.execute_command("ACL", "SETUSER", "worker", "on", ">p@ss:w/rd", "~*", "&*", "+@all")
    try:
        settings = at(redis_url, username="worker", password="p@ss:w/rd")
        with connect(settings) as made:
            server = check_server(made, settings)
    finally:
        client.execute_command("ACL", "DELUSER", "worker")

    assert server.split()[0] in ("Redis", "Valkey")
