"""Connections to Redis, and the one rule for their failures: any error on a call of ours means Redis is away.

redis-py's own retries are off: it would send a command again that the server may have run already. Who calls decides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from config.settings import QueueSettings, RedisSettings, ResultsSettings
from worker.errors import ConfigError, RedisUnavailable
from worker.redaction import redact

OLDEST_SERVER: Final = (7, 0)

# A redis.Redis. Its type hints give each reply as whatever any client might get (bytes, str, None, awaitables); ours
# get bytes, and a cast at every call would say less than this line.
Client: TypeAlias = Any


def connect(settings: RedisSettings) -> Client:
    """A client that has not connected yet; bytes in, bytes out. Raises ConfigError for a URL that is none."""
    if settings.url is None:
        raise ConfigError(
            "redis.url is not set: say where Redis is, for example COATSTREAM_REDIS__URL=redis://localhost:6379/0"
        )
    options: dict[str, Any] = {
        "decode_responses": False,  # pictures are not text
        "protocol": 2,  # one reply shape on every server version
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": settings.socket_timeout,
        "health_check_interval": 0,
    }
    url = settings.url.get_secret_value()
    if not url.startswith("unix://"):
        options |= {"socket_connect_timeout": settings.connect_timeout, "socket_keepalive": True}
    if settings.username is not None:
        options["username"] = settings.username
    if settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    try:
        return redis.Redis.from_url(url, **options)
    except ValueError:  # its text may quote the password
        raise ConfigError(
            "redis.url cannot be read: it must look like redis://user:password@host:6379/0, special characters in user "
            "and password percent-encoded (or give them as redis.username and redis.password)"
        ) from None


@contextmanager
def calls(what: str) -> Iterator[None]:
    """Turns whatever Redis or the network says during a call into RedisUnavailable: one line, no credentials."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise RedisUnavailable(f"{what}: {describe(error)}") from error


def describe(error: Exception) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return redact(text)[:300]


def address(settings: RedisSettings) -> str:
    """Where Redis is, as it may be shown: put together from the parts that hold no secret."""
    url = urlsplit(settings.url.get_secret_value() if settings.url else "")
    try:
        place = url.path if url.scheme == "unix" else f"{url.hostname or 'localhost'}:{url.port or 6379}{url.path}"
    except ValueError:  # a port that is none: a piece of a password, perhaps
        return f"{url.scheme}://(unreadable)"
    return f"{url.scheme}://{place}"


def check_server(client: Client, settings: RedisSettings) -> str:
    """The server's name and version, if it can serve us. Raises RedisUnavailable or ConfigError (too old)."""
    with calls(f"cannot reach Redis at {address(settings)}"):
        info = client.info("server")
        client.ping()
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST_SERVER:
        raise ConfigError(f"{name} {version} at {address(settings)} is too old: 7.0 or newer is needed")
    return f"{name} {version}"


def check_keys(client: Client, queue: QueueSettings, results: ResultsSettings) -> None:
    """Raises ConfigError if one of our keys holds something else: settling would fail half-way."""
    expected = {
        queue.stream: b"stream",
        queue.dead_stream: b"stream",
        results.stream: b"stream",
        latest_key(results): b"hash",
    }
    for key, kind in expected.items():
        with calls("cannot read the types of our keys"):
            found = client.type(key)
        if found not in (kind, b"none"):
            raise ConfigError(
                f"the key {key} holds a {found.decode()}, not a {kind.decode()}: "
                "rename it, or give coatstream another name for it (queue.stream, queue.dead_stream, results.stream)"
            )


def latest_key(results: ResultsSettings) -> str:
    """The hash of each source's newest label."""
    return f"{results.stream}:latest"


def channel(results: ResultsSettings, source: str) -> str:
    """The Pub/Sub channel of one source's labels."""
    return f"{results.stream}:{source}"
