"""Servers that a fault test may kill, freeze and start again on what they left on disk. Knows nothing of workers."""

import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from coatstream.broker.connection import Client
from coatstream.broker.embedded import valkey_binary
from redis.exceptions import RedisError

from tests.support.absence import missing
from tests.support.ports import free_port

VALKEY, REDIS = "valkey", "redis"
KINDS = (VALKEY, REDIS)

START_TIMEOUT = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)  # here, since threads may run when we fork: the child must not load anything


def binary(kind: str) -> str:
    """The path of a server of this kind; skips the test where there is none."""
    if kind == VALKEY:
        return valkey_binary()
    if (found := shutil.which("redis-server")) is None:
        missing("no redis-server on this machine (apt-get install redis-server)")
    return found


def available(kind: str) -> bool:
    return kind == VALKEY or shutil.which("redis-server") is not None


@dataclass(slots=True)
class Server:
    """One server process on a port of its own. Its folder outlives it, so that it can be started again."""

    kind: str
    folder: Path
    port: int
    options: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    password: str | None = None
    _clients: list[Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        self.wait_until_up()

    def launch(self) -> None:
        """Start it; it may still be loading."""
        arguments = [
            *(binary(self.kind), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--logfile", str(self.folder / "log"), "--save", "", "--maxmemory-policy", "noeviction", *self.options),
        ]
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )

    def wait_until_up(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT
        client = self.client()
        while True:
            try:
                client.ping()
            except (RedisError, OSError):
                assert self.process.poll() is None, f"the server ended: {self.last_words()}"
                assert time.monotonic() < deadline, f"the server does not answer: {self.last_words()}"
                time.sleep(0.005)
            else:
                return

    def client(self, *, timeout: float = 5.0) -> Client:
        """A client for the harness itself: every call is tried once."""
        made = redis.Redis(
            port=self.port,
            protocol=2,
            socket_timeout=timeout,
            password=self.password,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        )
        self._clients.append(made)
        return made

    def kill(self) -> None:
        """SIGKILL: nothing is written any more."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=START_TIMEOUT)

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def last_words(self) -> str:
        log = self.folder / "log"
        return " / ".join(log.read_text(errors="replace").splitlines()[-3:]) if log.exists() else "no log"

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=START_TIMEOUT)


@contextmanager
def running_server(kind: str, *options: str) -> Iterator[Server]:
    """A server with options of its own (`--appendonly`, `yes`) in a folder of its own; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="coatstream-faults-"))
    server = Server(kind, folder, free_port(), options, password=_option(options, "--requirepass"))
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def _option(options: tuple[str, ...], name: str) -> str | None:
    return options[options.index(name) + 1] if name in options else None


def _end_with_parent() -> None:
    """Runs in the child before it becomes the server: it ends with the harness, however that ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
