"""What a camera's URL means: a network stream, a device or a file. Opens nothing.

Nothing is left to FFmpeg's own reading of a URL, which knows 36 protocols, local files and playlists among them.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote, unquote, urlsplit

from config.settings import CameraSettings
from worker.errors import ConfigError

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "tcp": 0, "udp": 0}  # 0: the URL must name one
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.,-]*):(?P<slashes>//)?", re.IGNORECASE)


class Kind(StrEnum):
    """What is behind an address."""

    NETWORK = "network"
    DEVICE = "device"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a camera is.

    location      a URL with its credentials, a device's path or a file's path
    host, port    of a network stream, else None
    """

    kind: Kind
    location: str = field(repr=False)
    host: str | None = None
    port: int | None = None


def parse(settings: CameraSettings) -> Address:
    """The address of a camera. Raises ConfigError, which never holds the URL: it may hold a password."""
    url = settings.url.get_secret_value().strip()
    if url.isdecimal():
        return Address(Kind.DEVICE, f"/dev/video{url}")
    if url.startswith("/dev/"):
        return Address(Kind.DEVICE, url)
    match = _SCHEME.match(url)
    scheme = match["scheme"].lower() if match else "file"
    if scheme in _PORTS:
        return _network(settings, url, scheme)
    if scheme == "file" and url:
        return Address(Kind.FILE, _path(settings, url) if match else url)
    # A word before ':' may be the user of `user:password@host`, so only one before '://' is repeated.
    shown = f"begins with {scheme}://" if match and match["slashes"] else "is none that is known"
    raise _wrong(
        settings,
        f"{shown}; give {', '.join(f'{s}://' for s in _PORTS)}, a device index such as 0, or a file's path "
        "(./ before a path with a colon)",
    )


def _network(settings: CameraSettings, url: str, scheme: str) -> Address:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORTS[scheme]
    except ValueError:
        raise _wrong(settings, "cannot be read; write special characters in username and password instead") from None
    if not port or not (host or scheme == "udp"):
        raise _wrong(settings, f"names no {'port' if host else 'host'}")
    if settings.username is not None:
        password = settings.password.get_secret_value() if settings.password else ""
        credentials = f"{quote(settings.username, safe='')}:{quote(password, safe='')}"
        parts = parts._replace(netloc=f"{credentials}@{parts.netloc.rpartition('@')[2]}")
    return Address(Kind.NETWORK, parts.geturl(), host, port)


def _path(settings: CameraSettings, url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise _wrong(settings, "names a file on another machine; write file:///path or just the path")
    return unquote(parts.path)


def _wrong(settings: CameraSettings, why: str) -> ConfigError:
    return ConfigError(f"camera {settings.name!r}: its url {why}")
