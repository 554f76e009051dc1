"""Who may use the page and its API: tokens, sessions made of them, reverse proxies. Knows no HTTP server.

Tokens are compared by their digests and in constant time, all of them whatever the first one says.
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import SecretStr

from coatstream.errors import ConfigError
from coatstream.settings.model import HttpSettings

Role = Literal["look", "change"]

SHORTEST_TOKEN: Final = 12  # characters
LARGEST_FILE: Final = 4096  # bytes
SESSION: Final = 12 * 3600.0  # seconds
OPEN_WORDS: Final = "open to anyone"

Network = IPv4Network | IPv6Network


class Access:
    """The rules of one server. `needs_login`: without a token, a session or a proxy, everything is refused.

    `shut`: why everything is refused to everybody; empty where somebody may come in.
    """

    def __init__(
        self,
        tokens: Mapping[Role, str],
        *,
        proxies: tuple[Network, ...] = (),
        proxy_header: str = "",
        proxy_role: Role = "look",
        needs_login: bool,
        shut: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.needs_login = needs_login
        self.shut = shut
        self.has_tokens = bool(tokens)
        self.proxy_header = proxy_header.lower()
        self._digests = {role: _digest(token) for role, token in tokens.items()}
        self._proxies = proxies
        self._proxy_role = proxy_role
        self._key = _digest("session of " + "".join(sorted(digest.hex() for digest in self._digests.values())))
        self._clock = clock

    @classmethod
    def of(cls, http: HttpSettings) -> "Access":
        """Shut under settings by which strangers could look or change. Raises ConfigError for tokens of no use."""
        tokens: dict[Role, str] = {}
        for role, name in (("change", "token"), ("look", "look_token")):
            token = _token(name, getattr(http, name), getattr(http, f"{name}_file"))
            if token is not None:
                tokens[role] = token  # type: ignore[index]
        if len(set(tokens.values())) < len(tokens):
            raise ConfigError("http.token and http.look_token are the same: who may only look could change things")
        proxies = tuple(_network(text) for text in http.trusted_proxies)
        if bool(proxies) != bool(http.proxy_header):
            raise ConfigError("http.trusted_proxies and http.proxy_header need each other: set both, or none")
        named, anyone = bool(tokens or proxies), http.access == OPEN_WORDS
        return cls(
            tokens,
            proxies=proxies,
            proxy_header=http.proxy_header,
            proxy_role=http.proxy_role,
            needs_login=named and not anyone,
            shut="" if named or anyone or is_loopback(http.host) else _shut(http.host),
        )

    def role_of_token(self, token: str) -> Role | None:
        given = _digest(token)
        found = [role for role, digest in self._digests.items() if hmac.compare_digest(digest, given)]
        return found[0] if found else None

    def role_of_proxy(self, client: str, header: str) -> Role | None:
        """`client`: the address of the connection; `header`: what it says of the person."""
        return self._proxy_role if header.strip() and self.is_proxy(client) else None

    def is_proxy(self, client: str) -> bool:
        """Whether this address is in one of the named networks."""
        try:
            address = ip_address(client.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)

    def session(self, role: Role) -> str:
        """What a cookie holds: role, end and signature. It ends with the tokens, too."""
        plain = f"{role}.{int(self._clock() + SESSION)}"
        return f"{plain}.{self._signature(plain)}"

    def role_of_session(self, text: str) -> Role | None:
        plain, _, signature = text.rpartition(".")
        role, _, until = plain.partition(".")
        if not self.has_tokens or not hmac.compare_digest(
            self._signature(plain).encode(), signature.encode("utf-8", "replace")
        ):
            return None
        if role not in get_args(Role) or not until.isdecimal() or int(until) < self._clock():
            return None
        return role  # type: ignore[return-value]

    def _signature(self, plain: str) -> str:
        return hmac.new(self._key, plain.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _shut(host: str) -> str:
    return (
        f"http.host {host} is open to the network, and there is no http.token: set http.token_file (or "
        "http.token, http.trusted_proxies); or http.host: 127.0.0.1; or, for a page that all who reach it may "
        f'use and change, http.access: "{OPEN_WORDS}"'
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class TokenTries:
    """Tries to log in: a burst of BURST from one address, then one in EVERY seconds.

    Of addresses the newest MOST are remembered; what a flood of addresses does is bounded by a bucket for all of them.
    """

    BURST: Final = 5
    EVERY: Final = 6.0  # seconds
    ALL: Final = 50  # the same for all addresses together, ten times as fast
    MOST: Final = 1024

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._tries: OrderedDict[str, _Bucket] = OrderedDict()
        self._all = _Bucket(self.ALL, monotonic())

    def wait(self, client: str) -> float:
        """Seconds until this address may try again; 0: now."""
        now = self._monotonic()
        own = self._tries.get(client)
        lacks = 0.0 if own is None else self._refilled(own, now, self.BURST, self.EVERY)
        return max(lacks, self._refilled(self._all, now, self.ALL, self.EVERY / 10))

    def failed(self, client: str) -> None:
        """Count a wrong token."""
        own = self._tries.setdefault(client, _Bucket(self.BURST, self._monotonic()))
        self._tries.move_to_end(client)
        own.left -= 1
        self._all.left -= 1
        while len(self._tries) > self.MOST:
            self._tries.popitem(last=False)

    @staticmethod
    def _refilled(tries: _Bucket, now: float, most: int, every: float) -> float:
        tries.left = min(most, tries.left + (now - tries.at) / every)
        tries.at = now
        return max(0.0, (1 - tries.left) * every)


def _token(name: str, value: SecretStr | None, path: Path | None) -> str | None:
    if value is not None and path is not None:
        raise ConfigError(f"http.{name} and http.{name}_file are both set: remove one of them")
    token = value.get_secret_value() if value is not None else _read(name, path) if path is not None else None
    if token is None:
        return None
    if len(token.strip()) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"http.{name} must be {SHORTEST_TOKEN} printable ASCII characters or more: `openssl rand -hex 24` makes one"
        )
    return token.strip()


def _read(name: str, path: Path) -> str:
    try:
        if not path.is_file():
            raise ConfigError(f"http.{name}_file: there is no file {path}")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise ConfigError(f"http.{name}_file: {path} is larger than {LARGEST_FILE} bytes, so it holds no token")
        return data.decode().strip()
    except OSError as error:
        raise ConfigError(f"http.{name}_file: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"http.{name}_file: {path} is not text in UTF-8") from None


def _network(text: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"http.trusted_proxies: {text!r} is no network; write 10.0.0.0/8, for instance") from None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
