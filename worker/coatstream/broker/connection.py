"""Clients of Redis, made from the settings: one server, a socket, the primary that Sentinels name, or a cluster.

redis-py's own retries are off, because it would repeat a command that the server may have run. The caller decides.
"""

import ssl
from inspect import signature
from typing import Any, Final, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from coatstream.broker.cluster import Cluster
from coatstream.broker.credentials import credentials
from coatstream.broker.failures import calls
from coatstream.broker.location import Location, address, location
from coatstream.errors import ConfigError
from coatstream.settings.model import RedisSettings

__all__ = ["Client", "address", "connect"]

# A redis.Redis or a Cluster. Their type hints allow every reply that any client could get (bytes, str, None,
# awaitables); these clients get bytes, and a cast at every call would tell less than this line.
Client: TypeAlias = Any

# Bytes of one read from the socket. A batch of pictures is a megabyte. With redis-py's 64 KiB it takes 16 reads, each
# of which releases the interpreter lock and waits for it, and a sixth more processor time (bench/read_size.py).
READ_SIZE: Final = 256 * 1024


def connect(settings: RedisSettings) -> Client:
    """A client that has not connected yet; bytes in, bytes out. Raises ConfigError.

    The client of a cluster has connected to ask for the slots, and so may raise RedisUnavailable.
    """
    place = location(settings)
    options = connection_options(settings)
    host, port = place.hosts[0] if place.hosts else ("", 0)
    match place.kind:
        case "server":
            return redis.Redis(host, port, place.db, **options, **_retry())
        case "socket":
            return redis.Redis(unix_socket_path=place.path, db=place.db, **options, **_retry())
        case "sentinel":
            return _primary(settings, place, options | _retry())
        case "cluster":
            with calls(f"cannot reach the cluster at {place}"):
                return Cluster(startup_nodes=[ClusterNode(*node) for node in place.hosts], **options, **_retry())


def _primary(settings: RedisSettings, place: Location, options: dict[str, Any]) -> Client:
    """A client that asks the Sentinels for the primary at each new connection."""
    sentinels = Sentinel(place.hosts, sentinel_kwargs=sentinel_options(settings, options))
    return sentinels.master_for(place.service, connection_pool_class=_SentinelPool, db=place.db, **options)


class _SentinelPool(SentinelConnectionPool):
    """Closes its connections to the Sentinels too."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                sentinel.close()


def sentinel_options(settings: RedisSettings, options: dict[str, Any]) -> dict[str, Any]:
    """Those of a client of the Sentinels: the primary's `options` with the Sentinels' own user."""
    secret = settings.sentinel_password
    own = {"username": settings.sentinel_username, "password": secret.get_secret_value() if secret else None}
    return {name: value for name, value in options.items() if name not in {*own, "credential_provider"}} | own


def connection_options(settings: RedisSettings) -> dict[str, Any]:
    """What redis-py's clients are given, whatever their kind. Raises ConfigError."""
    place = location(settings)
    options: dict[str, Any] = {
        "decode_responses": False,  # pictures are not text
        "protocol": 2,  # one reply shape on every server version
        "socket_timeout": settings.socket_timeout,
        "client_name": place.client_name,
    }
    if "socket_read_size" in signature(redis.Redis).parameters:  # from redis-py 8 on
        options["socket_read_size"] = READ_SIZE
    if place.kind != "socket":
        options |= {"socket_connect_timeout": settings.connect_timeout, "socket_keepalive": True}
    return options | credentials(settings, place) | _tls(settings, place)


def _retry() -> dict[str, Any]:
    return {"retry": Retry(NoBackoff(), 0)}


def _tls(settings: RedisSettings, place: Location) -> dict[str, Any]:
    """TLS options. The certificate and the host's name are always verified. Raises ConfigError."""
    files = {"tls_ca": settings.tls_ca, "tls_cert": settings.tls_cert, "tls_key": settings.tls_key}
    given = {name: path for name, path in files.items() if path is not None}
    if not place.tls:
        if given:
            raise ConfigError(
                f"redis.{next(iter(given))} is set, but redis.url begins with {place.scheme}://: TLS needs "
                f"{place.scheme.replace('redis', 'rediss', 1)}://"
                if place.kind != "socket"
                else f"redis.{next(iter(given))} is set, but a Unix socket has no TLS: remove it"
            )
        return {}
    for name, path in given.items():
        if not path.is_file():
            raise ConfigError(f"redis.{name}: there is no file {path}")
    _load(settings)
    return {
        "ssl": True,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": str(settings.tls_ca) if settings.tls_ca else None,
        "ssl_certfile": str(settings.tls_cert) if settings.tls_cert else None,
        "ssl_keyfile": str(settings.tls_key) if settings.tls_key else None,
        "ssl_password": "",  # an encrypted key is an error, not a question on the terminal
    }


def _load(settings: RedisSettings) -> None:
    """Read the files once, as each connection will. Raises ConfigError."""
    context = ssl.create_default_context()
    if settings.tls_ca:
        try:
            context.load_verify_locations(settings.tls_ca)
        except (ssl.SSLError, OSError):
            raise ConfigError(f"redis.tls_ca: {settings.tls_ca} holds no certificates in PEM form") from None
    if settings.tls_key and not settings.tls_cert:
        raise ConfigError("redis.tls_key is set without redis.tls_cert: a key is of no use without its certificate")
    if settings.tls_cert:
        try:
            context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
        except (ssl.SSLError, OSError):
            raise ConfigError(
                f"redis.tls_cert: {settings.tls_cert} and redis.tls_key are no certificate with its own key, "
                "both in PEM form and not encrypted"
            ) from None
