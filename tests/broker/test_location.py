"""The URL of Redis taken apart, and what may be shown of it."""

import pytest
from coatstream.broker.location import Location, address, location
from coatstream.errors import ConfigError
from coatstream.settings.model import RedisSettings


def at(url: str, **options: object) -> RedisSettings:
    return RedisSettings.model_validate({"url": url, **options})


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://", Location("redis", (("localhost", 6379),), "")),
        ("redis://h:7/3", Location("redis", (("h", 7),), "/3", db=3)),
        ("redis://[::1]:7", Location("redis", (("::1", 7),), "")),
        ("rediss://me:p%40ss@h", Location("rediss", (("h", 6379),), "", username="me", password="p@ss")),
        ("redis://:p@ss@h?client_name=w", Location("redis", (("h", 6379),), "", client_name="w", password="p@ss")),
        ("redis://h?db=4&username=u&password=p", Location("redis", (("h", 6379),), "", "", 4, None, "u", "p")),
        ("unix:///run/redis%20x.sock?db=2", Location("unix", (), "/run/redis x.sock", db=2)),
        (
            "redis+sentinel://u:p@a:1,b,[::1]:3/mymaster/2",
            Location(
                "redis+sentinel",
                (("a", 1), ("b", 26379), ("::1", 3)),
                "/mymaster/2",
                service="mymaster",
                db=2,
                username="u",
                password="p",
            ),
        ),
        ("rediss+sentinel://a/s", Location("rediss+sentinel", (("a", 26379),), "/s", service="s")),
        ("redis+cluster://a:7000,b:7001", Location("redis+cluster", (("a", 7000), ("b", 7001)), "")),
    ],
)
def test_a_url_is_taken_apart(url: str, parts: Location) -> None:
    assert location(at(url)) == parts


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user:hun ter2@cache.example/3", "redis://cache.example:6379/3"),
        ('rediss://:hunter2"quoted@cache.example:6380', "rediss://cache.example:6380"),
        ("redis://:hunter2@[::1]", "redis://[::1]:6379"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix://me:hunter2@/run/redis.sock?password=hunter2", "unix:///run/redis.sock"),
        ("redis+sentinel://me:hunter2@a,b:7/mymaster/0", "redis+sentinel://a:26379,b:7/mymaster/0"),
        ("rediss+cluster://me:hunter2@a:1,b:2", "rediss+cluster://a:1,b:2"),
        ("redis://user:hunter2#x@host", "redis://(unreadable)"),
        ("redis+cluster://user:hunter2#x@host", "redis+cluster://(unreadable)"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert address(at(url)) == shown


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://user:hunter2#x@host", "percent-encoded"),
        ("redis://user:1234#hunter2@host", "percent-encoded"),
        ("redis://:hunter/2@h", "percent-encoded"),
        ("redis://h:hunter2", "percent-encoded"),
        ("redis://h:65536", "percent-encoded"),
        ("redis://[hunter2", "percent-encoded"),
        ("redis://h/hunter2", "percent-encoded"),
        ("redis://:12?hunter2=3@h", "%3F"),
        ("rediss://h?ssl_cert_reqs=none", "are settings"),
        ("redis://h?decode_responses=true", "are settings"),
        ("redis://a:1,b:2", r"redis\+cluster://"),
        ("redis+sentinel://a:1,b:2", "no service"),
        ("redis+sentinel://a/s/0/hunter2", "no service"),
        ("redis+sentinel://a/s/hunter2", "percent-encoded"),
        ("redis+cluster://a/1", "only number 0"),
        ("redis+cluster://a?db=x", "percent-encoded"),
    ],
)
def test_a_url_that_cannot_be_read_is_one_line_that_quotes_nothing_of_it(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        location(at(url))

    assert "hunter" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_url_is_a_line_that_shows_how_to_set_it() -> None:
    with pytest.raises(ConfigError, match="COATSTREAM_REDIS__URL="):
        location(RedisSettings())
