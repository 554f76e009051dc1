"""The password that is shown to Redis. One in a file is read anew for each connection: a rotation needs no restart."""

from pathlib import Path
from typing import Any, Final

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from coatstream.broker.location import Location
from coatstream.errors import ConfigError
from coatstream.settings.model import RedisSettings

MAX_BYTES: Final = 4096  # of a password file


class PasswordFile(CredentialProvider):
    """Reads the password when redis-py opens a connection."""

    def __init__(self, path: Path, username: str | None) -> None:
        self._path = path
        self._username = username

    def read(self) -> str:
        """The password. Raises ConfigError."""
        path = self._path
        try:
            if not path.is_file():  # a pipe, say, would be waited for
                raise ConfigError(f"redis.password_file: there is no file {path}")
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"redis.password_file: {path} cannot be read ({error.strerror})") from None
        if len(data) > MAX_BYTES:
            raise ConfigError(f"redis.password_file: {path} is larger than {MAX_BYTES} bytes, so it holds no password")
        try:
            password = data.decode().strip()  # as the other secret files are read
        except UnicodeDecodeError:
            raise ConfigError(f"redis.password_file: {path} is not text in UTF-8") from None
        if not password:
            raise ConfigError(f"redis.password_file: {path} is empty")
        return password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """What redis-py asks for. A file that cannot be read now may be there again soon: that is an outage."""
        try:
            password = self.read()
        except ConfigError as error:
            raise AuthenticationError(str(error)) from None
        return (self._username, password) if self._username else (password,)


def credentials(settings: RedisSettings, place: Location) -> dict[str, Any]:
    """Options for redis-py. What the URL holds wins over redis.username and redis.password. Raises ConfigError."""
    username = place.username or settings.username
    if settings.password_file is not None:
        if place.password is not None:
            raise ConfigError("redis.url holds a password, and redis.password_file is set too: take one of them away")
        file = PasswordFile(settings.password_file, username)
        file.read()
        return {"credential_provider": file}
    password = place.password or (settings.password.get_secret_value() if settings.password else None)
    found = {"username": username, "password": password}
    return {name: value for name, value in found.items() if value is not None}
