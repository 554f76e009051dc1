"""Where Redis is: the URL taken apart, and its text without secrets. Connects to no server.

redis-py's own parser is not used: it knows no Sentinels, lets a query turn off the verification of certificates, and
quotes passwords in its errors.
"""

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from coatstream.errors import ConfigError
from coatstream.settings.model import RedisSettings

ServerKind = Literal["server", "socket", "sentinel", "cluster"]

_KINDS: Final[dict[str, ServerKind]] = {
    "redis": "server",
    "rediss": "server",
    "unix": "socket",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_PORTS: Final[dict[ServerKind, int]] = {"server": 6379, "socket": 0, "sentinel": 26379, "cluster": 6379}
_HOST: Final = re.compile(r"(?P<host>\[[0-9A-Za-z:.%]+\]|[^\s:@\[\],]*)(:(?P<port>\d{1,5}))?")
_OPTIONS: Final = frozenset({"db", "client_name", "username", "password"})

UNREADABLE: Final = (
    "redis.url cannot be read: it must look like redis://user:password@host:6379/0, unix:///path, "
    "redis+sentinel://host:26379/name/0 or redis+cluster://host:6379, special characters in user and password "
    "percent-encoded (or give them as redis.username and redis.password)"
)


@dataclass(frozen=True, slots=True)
class Location:
    """One URL. `hosts` may be several for Sentinels and clusters and is empty for a socket, which has a `path`."""

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    service: str = ""
    db: int = 0
    client_name: str | None = None
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def kind(self) -> ServerKind:
        return _KINDS[self.scheme]

    @property
    def tls(self) -> bool:
        return self.scheme.startswith("rediss")

    def __str__(self) -> str:
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{self.scheme}://{hosts}{self.path}"


def location(settings: RedisSettings) -> Location:
    """The place that redis.url names. Raises ConfigError, which quotes nothing of the URL."""
    if settings.url is None:
        raise ConfigError(
            "redis.url is not set: say where Redis is, for example COATSTREAM_REDIS__URL=redis://localhost:6379/0"
        )
    try:
        return _parsed(urlsplit(settings.url.get_secret_value()))
    except ValueError:  # its text may quote the password
        raise ConfigError(UNREADABLE) from None


def address(settings: RedisSettings) -> str:
    """Where Redis is, made of the parts of the URL that hold no secret."""
    try:
        return str(location(settings))
    except ConfigError:
        scheme = settings.url.get_secret_value().partition("://")[0] if settings.url else ""
        return f"{scheme}://(unreadable)"


def _parsed(url: SplitResult) -> Location:
    """Raises ValueError and ConfigError."""
    kind = _KINDS[url.scheme]
    if url.fragment:  # probably a '#' of the password
        raise ValueError(url.scheme)
    userinfo, _, netloc = url.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    options = _options(url.query)
    service, database = _path(kind, url.path)
    return Location(
        scheme=url.scheme,
        hosts=() if kind == "socket" else _hosts(netloc, kind),
        path=unquote(url.path) if kind == "socket" else url.path,
        service=service,
        db=int(options.get("db", database) or 0),
        client_name=options.get("client_name"),
        username=unquote(username) or options.get("username"),
        password=unquote(password) or options.get("password"),
    )


def _hosts(netloc: str, kind: ServerKind) -> tuple[tuple[str, int], ...]:
    found = []
    for part in netloc.split(","):
        match = _HOST.fullmatch(part)
        if match is None or int(match["port"] or 0) > 65_535:
            raise ValueError(kind)
        host = unquote(match["host"]).strip("[]") or "localhost"
        found.append((host, int(match["port"] or _PORTS[kind])))
    if len(found) > 1 and kind == "server":
        raise ConfigError(
            "redis.url names several hosts: write redis+cluster:// for a cluster, or redis+sentinel:// for Sentinels"
        )
    return tuple(found)


def _path(kind: ServerKind, path: str) -> tuple[str, str]:
    """The Sentinels' name of the service, and the number of the database."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if kind == "socket":
        return "", ""
    if kind == "sentinel":
        if not parts[0] or len(parts) > 2:
            raise ConfigError(
                "redis.url names no service for the Sentinels: write redis+sentinel://host:26379/NAME/0, with the name "
                "that `sentinel monitor` gave it (often mymaster)"
            )
        return parts[0], parts[1] if len(parts) == 2 else ""
    if kind == "cluster" and parts[0] not in ("", "0"):
        raise ConfigError("redis.url names a database: a cluster has only number 0, so leave it out")
    return "", "/".join(parts)


def _options(query: str) -> dict[str, str]:
    """The part after `?`. Other options would undo what `connect` promises, or are part of a password."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not options.keys() <= _OPTIONS:
        raise ConfigError(
            "redis.url has something after '?' that is none of db, client_name, username, password: time-outs and TLS "
            "are settings (redis.socket_timeout, redis.tls_ca), and a '?' in a password is written %3F"
        )
    return options
