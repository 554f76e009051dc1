"""What a camera's URL means: a network stream, a device, a file or a folder. Opens nothing, and asks no file system:
one that hangs would hold up every caller, the fleet's thread among them.

Nothing is left to FFmpeg's own reading of a URL, which knows 36 protocols, local files and playlists among them.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote, unquote, urlsplit

from coatstream.errors import ConfigError, redact
from coatstream.settings.model import CameraSettings

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "tcp": 0, "udp": 0}  # 0: the URL must name one
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.,-]*):(?P<slashes>//)?", re.IGNORECASE)


class Kind(StrEnum):
    """What is behind an address."""

    NETWORK = "network"
    DEVICE = "device"
    FILE = "file"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a camera is.

    location            a URL with its credentials, or the path of a device, a file or a folder
    scheme, host, port  of a network stream, else None
    """

    kind: Kind
    location: str = field(repr=False)
    host: str | None = None
    port: int | None = None
    scheme: str | None = None

    @property
    def is_rtsp(self) -> bool:
        return self.scheme in ("rtsp", "rtsps")

    @property
    def is_http(self) -> bool:
        return self.scheme in ("http", "https")

    @property
    def is_hls(self) -> bool:
        """A playlist of short files over HTTP: its pictures come in bursts."""
        return self.is_http and urlsplit(self.location).path.lower().endswith(".m3u8")

    @property
    def is_secure(self) -> bool:
        return self.scheme in ("rtsps", "https")

    @property
    def is_packets(self) -> bool:
        """There is no connection: packets come, or do not."""
        return self.scheme == "udp"


def parse(settings: CameraSettings, *, password: str | None = None) -> Address:
    """The address of a camera, with `password` instead of that of the settings if one is given.

    Raises ConfigError, which never holds the URL: it may hold a password.
    """
    url = settings.url.get_secret_value().strip()
    if url.isdecimal():
        return Address(Kind.DEVICE, f"/dev/video{url}")
    if url.startswith("/dev/"):
        return Address(Kind.DEVICE, url)
    match = _SCHEME.match(url)
    scheme = match["scheme"].lower() if match else "file"
    if scheme in _PORTS:
        return _network(settings, url, scheme, password)
    if scheme == "file" and url:
        return _local(_path(settings, url) if match else url)
    # A word before ':' may be the user of `user:password@host`, so only one before '://' is repeated.
    shown = f"begins with {scheme}://" if match and match["slashes"] else "is none that is known"
    raise _wrong(
        settings,
        f"{shown}; give {', '.join(f'{s}://' for s in _PORTS)}, a device index such as 0, or a file's path "
        "or a folder's (./ before a path with a colon)",
    )


def _local(path: str) -> Address:
    """A folder is what is written like one. That a path without the slash leads to one too, its reader sees."""
    return Address(Kind.FOLDER if path.endswith("/") else Kind.FILE, path)


def _network(settings: CameraSettings, url: str, scheme: str, password: str | None) -> Address:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORTS[scheme]
    except ValueError:
        raise _wrong(
            settings,
            "cannot be read: its port must be a number from 1 to 65535; where user or password hold special "
            "characters, write them in username and password instead",
        ) from None
    if not port or not (host or scheme == "udp"):
        raise _wrong(settings, f"names no {'port' if host else 'host'}")
    if scheme in ("tcp", "udp") and (parts.query or parts.fragment):  # FFmpeg's own: ?listen=1 opens a port here
        raise _wrong(settings, f"names options after its port; {scheme}:// takes none")
    if credentials := _credentials(settings, parts.username, password):
        parts = parts._replace(netloc=f"{credentials}@{parts.netloc.rpartition('@')[2]}")
    elif parts.username and parts.password is None:  # FFmpeg sends no user that comes without a colon
        parts = parts._replace(netloc=parts.netloc.replace("@", ":@", 1))
    return Address(Kind.NETWORK, parts.geturl(), host, port, scheme)


def public_url(settings: CameraSettings) -> str:
    """Where a camera is, for lists: its scheme, host and port, or the path of what is on this machine.

    Never path and query of a URL: cameras take passwords there, in more forms than can be told apart.
    """
    try:
        address = parse(settings)
    except ConfigError:
        return "unreadable"
    if address.scheme is None:
        return redact(address.location)
    host = address.host or ""
    return f"{address.scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"


def _credentials(settings: CameraSettings, user_in_url: str | None, password: str | None) -> str | None:
    """`user:password`, encoded, where they are not the URL's own."""
    user = settings.username
    if user is None and password is not None and user_in_url:
        user = unquote(user_in_url)
    if user is None:
        return None
    if password is None:
        password = settings.password.get_secret_value() if settings.password else ""
    return f"{quote(user, safe='')}:{quote(password, safe='')}"


def _path(settings: CameraSettings, url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _wrong(settings, "cannot be read; write file:///path or just the path") from None
    if parts.netloc not in ("", "localhost"):
        raise _wrong(settings, "names a file on another machine; write file:///path or just the path")
    return unquote(parts.path)


def _wrong(settings: CameraSettings, why: str) -> ConfigError:
    return ConfigError(f"camera {settings.name!r}: its url {why}")
