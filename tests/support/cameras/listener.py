"""A TCP server on 127.0.0.1, up while its `with` block runs: one thread a connection. Knows no protocol."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from ssl import SSLContext
from typing import Self


class Listener:
    """Hands each connection to `handle(connection, closing)` in a thread of its own.

    `closing` is set when the server goes; whoever waits, waits on it. An OSError or ValueError of a handler means that
    the client is gone. With `tls`, the connection is secured first. `port` 0 is any free one.
    """

    def __init__(
        self,
        handle: Callable[[socket.socket, threading.Event], None],
        *,
        tls: SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.port = port
        self._tls = tls
        self._handle = handle
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = self._socket.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Die: every connection breaks off, no further one is taken. May be called twice."""
        self._closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._socket.close()
        for thread in self._threads:
            thread.join(timeout=5)

    def hang_up(self) -> None:
        """Break off every connection; new ones are taken."""
        for one in list(self._connections):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):
            if self._tls is None:
                self._handle(connection, self._closing)
            else:
                with self._tls.wrap_socket(connection, server_side=True) as secured:
                    self._handle(secured, self._closing)
        self._connections.discard(connection)
