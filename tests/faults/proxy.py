"""Stands between workers and a server: loses replies, freezes, answers errors in its place, counts commands.

A reply is lost after the server has run the command: the proxy waits for the reply, throws it away and closes.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import hiredis

HANDSHAKE: Final = frozenset({"AUTH", "CLIENT", "HELLO", "READONLY", "SELECT"})
_CHUNK: Final = 256 * 1024

Answer = Callable[[str], bytes | None]  # command name -> a reply in the server's place, or None: forward it


@dataclass(slots=True)
class Proxy:
    """Set its fields from any thread; they hold from the next chunk on.

    port       where it listens, on 127.0.0.1
    target     the server's port
    lose       share of replies that are thrown away, 0..1
    answer     speaks in the server's place
    commands   how often each command came by, handshakes included
    lost       replies that were thrown away
    """

    target: int
    rng: random.Random
    port: int = 0
    lose: float = 0.0
    answer: Answer | None = None
    commands: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    _frozen: bool = False
    _loop: asyncio.AbstractEventLoop | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def tries(self) -> int:
        """Commands that came by; where no client is let in, attempts to connect."""
        commands = self.commands.copy()
        work = sum(count for name, count in commands.items() if name not in HANDSHAKE)
        return max(work, commands["AUTH"])

    def freeze(self) -> None:
        """Nothing passes any more, either way, and no connection breaks."""
        self._frozen = True

    def thaw(self) -> None:
        self._frozen = False

    def cut(self) -> None:
        """Break all connections."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._close_all)

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One connection, until either side leaves."""
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self.target, limit=_CHUNK)
        except OSError:
            to_client.transport.abort()
            return
        self._writers |= {to_client, to_server}
        asked = asyncio.Event()  # set: a request went out since the last reply began
        both = [
            asyncio.ensure_future(self._requests(client, to_server, to_client, asked)),
            asyncio.ensure_future(self._replies(server, to_client, asked)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            self._writers -= {to_client, to_server}
            to_client.transport.abort()
            to_server.transport.abort()

    async def _requests(
        self,
        client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        to_client: asyncio.StreamWriter,
        asked: asyncio.Event,
    ) -> None:
        parser = hiredis.Reader()
        while chunk := await client.read(_CHUNK):
            await self._pass()
            names = list(self._parse(parser, chunk))
            answers = [self.answer(name) for name in names] if self.answer else []
            if answers and all(answer is not None for answer in answers):
                to_client.write(b"".join(answer for answer in answers if answer is not None))
                await to_client.drain()
                continue
            asked.set()
            to_server.write(chunk)
            await to_server.drain()

    def _parse(self, parser: hiredis.Reader, chunk: bytes) -> Iterator[str]:
        parser.feed(chunk)
        while (request := parser.gets()) is not False:
            if isinstance(request, list) and request:
                name = bytes(request[0]).decode("ascii", "replace").upper()
                self.commands[name] += 1
                yield name

    async def _replies(
        self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        while chunk := await server.read(_CHUNK):
            await self._pass()
            if asked.is_set():
                asked.clear()
                if self.rng.random() < self.lose:
                    self.lost += 1
                    return
            to_client.write(chunk)
            await to_client.drain()

    async def _pass(self) -> None:
        while self._frozen:
            await asyncio.sleep(0.005)


@contextmanager
def running_proxy(target: int, rng: random.Random) -> Iterator[Proxy]:
    """A proxy in a thread of its own."""
    proxy = Proxy(target, rng)
    listening = threading.Event()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_main(proxy, listening, stop)), name="proxy", daemon=True)
    thread.start()
    assert listening.wait(5)
    try:
        yield proxy
    finally:
        assert proxy._loop is not None
        proxy._loop.call_soon_threadsafe(stop.set)
        thread.join(5)


async def _main(proxy: Proxy, listening: threading.Event, stop: asyncio.Event) -> None:
    proxy._loop = asyncio.get_running_loop()
    server = await asyncio.start_server(_tracked(proxy), "127.0.0.1", 0, limit=_CHUNK)
    proxy.port = server.sockets[0].getsockname()[1]
    listening.set()
    await stop.wait()
    server.close()
    proxy._close_all()
    for task in list(proxy._tasks):
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*proxy._tasks, return_exceptions=True)


def _tracked(proxy: Proxy) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
    """Connections, each with its task known, so that the end of a test ends them all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        proxy._tasks.add(task)
        try:
            await proxy.serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the end of the test
        finally:
            proxy._tasks.discard(task)

    return serve
