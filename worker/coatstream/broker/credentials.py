"""The password for Redis. A password file is read for each connection, so that a new password needs no restart."""

from pathlib import Path
from typing import Any, Final

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from coatstream.broker.location import Location
from coatstream.errors import ConfigError
from coatstream.settings.model import RedisSettings

MAX_BYTES: Final = 4096  # of a password file


class PasswordFile(CredentialProvider):
    """Reads the password each time redis-py opens a connection."""

    def __init__(self, path: Path, username: str | None) -> None:
        self._path = path
        self._username = username

    def read(self) -> str:
        """The password. Raises ConfigError."""
        path = self._path
        try:
            if not path.is_file():  # reading a pipe would block
                raise ConfigError(f"redis.password_file: there is no file {path}")
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"redis.password_file: {path} cannot be read ({error.strerror})") from None
        if len(data) > MAX_BYTES:
            raise ConfigError(f"redis.password_file: {path} is larger than {MAX_BYTES} bytes, so it holds no password")
        try:
            password = data.decode().strip()  # like the other secret files
        except UnicodeDecodeError:
            raise ConfigError(f"redis.password_file: {path} is not text in UTF-8") from None
        if not password:
            raise ConfigError(f"redis.password_file: {path} is empty")
        return password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """For redis-py. A file that cannot be read now may be back soon, so this counts as an outage."""
        try:
            password = self.read()
        except ConfigError as error:
            raise AuthenticationError(str(error)) from None
        return (self._username, password) if self._username else (password,)


def credentials(settings: RedisSettings, place: Location) -> dict[str, Any]:
    """Options for redis-py. The URL is stronger than redis.username and redis.password. Raises ConfigError."""
    username = place.username or settings.username
    if settings.password_file is not None:
        if place.password is not None:
            raise ConfigError("redis.url holds a password, and redis.password_file is set too: remove one of them")
        file = PasswordFile(settings.password_file, username)
        file.read()
        return {"credential_provider": file}
    password = place.password or (settings.password.get_secret_value() if settings.password else None)
    found = {"username": username, "password": password}
    return {name: value for name, value in found.items() if value is not None}
