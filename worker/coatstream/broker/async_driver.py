"""Drives steps on an event loop, over connections of its own."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from inspect import signature
from typing import Any, Final, Self, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from coatstream.broker.cluster import Cluster
from coatstream.broker.connection import connect, connection_options, sentinel_options
from coatstream.broker.driver import BEATS, time_left
from coatstream.broker.failures import REDIRECTIONS, RefusedCall, calls, is_stale
from coatstream.broker.location import location
from coatstream.broker.steps import Call, Command, Do, Enter, Steps, Wait
from coatstream.errors import RedisUnavailable
from coatstream.settings.model import RedisSettings

T = TypeVar("T")

AT_ONCE: Final = 0.01  # seconds to take a lock that is free: with none left, `asyncio.wait_for` does not even try
_KNOWN: Final = frozenset(signature(Redis).parameters)


class AsyncDriver:
    """May be used by any number of tasks of one loop: each call has a connection of its own while it lasts."""

    event = asyncio.Event
    lock = asyncio.Lock

    def __init__(self, settings: RedisSettings, cluster: Cluster | None) -> None:
        """`cluster` is asked only which node has which slot."""
        self._settings = settings
        self._cluster = cluster
        self._place = location(settings)
        self._clients: dict[tuple[str, int], Any] = {}  # a cluster has one for each node
        self._sentinels: list[Any] = []
        self._busy: set[Any] = set()  # connections that wait for a reply

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: RedisSettings) -> AsyncIterator[Self]:
        """One that has not connected yet, closed on leaving. Raises ConfigError; of a cluster RedisUnavailable too."""
        is_cluster = location(settings).kind == "cluster"
        cluster: Any = await asyncio.to_thread(connect, settings) if is_cluster else None
        driver = cls(settings, cluster)
        try:
            yield driver
        finally:
            for client in (*driver._clients.values(), *driver._sentinels):
                await client.aclose()
            if cluster is not None:
                await asyncio.to_thread(cluster.close)

    async def run(self, steps: Steps[T], *, deadline: float | None = None) -> T:
        """All steps. Raises what the generator raises. `deadline`: as `Driver.run`."""
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._do(step, deadline)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def interrupt(self) -> None:
        """Fail the calls that wait for a reply in other tasks, at once."""
        for connection in tuple(self._busy):
            await connection.disconnect(nowait=True)

    def subscription(self, key: str) -> "AsyncSubscription":
        """A subscription that has not begun, on the node of the key."""
        return AsyncSubscription(self, key)

    def pool(self, key: str) -> Any:
        """The connections to the server that has the key."""
        address = ("", 0)
        if self._cluster is not None:
            node = self._cluster.nodes_manager.get_node_from_slot(self._cluster.slot_of([key]))
            address = (node.host, node.port)
        if address not in self._clients:
            self._clients[address] = self._client(*address)
        return self._clients[address].connection_pool

    def _client(self, host: str, port: int) -> Any:
        place = self._place
        options = {name: value for name, value in connection_options(self._settings).items() if name in _KNOWN}
        options["retry"] = Retry(NoBackoff(), 0)
        match place.kind:
            case "cluster":
                return Redis(host=host, port=port, **options)
            case "socket":
                return Redis(unix_socket_path=place.path, db=place.db, **options)
            case "sentinel":
                sentinel = Sentinel(place.hosts, sentinel_kwargs=sentinel_options(self._settings, options))
                self._sentinels += sentinel.sentinels
                return sentinel.master_for(place.service, db=place.db, **options)
        [(host, port)] = place.hosts
        return Redis(host=host, port=port, db=place.db, **options)

    async def _do(self, step: Call | Wait | Enter | Do, deadline: float | None) -> Any:
        match step:
            case Call():
                return await self._call(step, time_left(deadline))
            case Wait(event=asyncio.Event() as event, seconds=seconds):
                return event.is_set() or await _within(event.wait(), seconds)
            case Enter(lock=asyncio.Lock() as lock, seconds=seconds):
                least = 0.0 if lock.locked() else AT_ONCE
                return await _within(lock.acquire(), None if seconds is None else max(seconds, least))
            case Do(function=function, arguments=arguments):
                return await function(*arguments)
        raise AssertionError(step)

    async def _call(self, call: Call, within: float | None) -> list[Any]:
        try:
            with calls(call.what):
                replies = await self._round_trip(call, within)
        except RedisUnavailable:
            await self._look_around()
            raise
        moved = self._cluster is not None and any(isinstance(reply, REDIRECTIONS) for reply in replies)
        if moved or any(map(is_stale, replies)):
            await self._look_around()
        if moved:
            raise RedisUnavailable(f"{call.what}: the cluster has moved {call.key} to another node")
        return replies

    async def _round_trip(self, call: Call, within: float | None) -> list[Any]:
        pool = self.pool(call.key)
        try:
            async with asyncio.timeout(within):
                connection = await pool.get_connection()
                self._busy.add(connection)
                try:
                    return await _exchange(connection, call.commands)
                finally:
                    self._busy.discard(connection)
                    await pool.release(connection)
        except TimeoutError as error:
            raise TimeoutError(str(error) or "no reply came within the time that was left") from None

    async def _look_around(self) -> None:
        """Drop idle connections; of a cluster ask anew who has which slot."""
        with suppress(Exception):
            if self._cluster is not None:
                await asyncio.to_thread(self._cluster.look_around)
            for client in self._clients.values():
                await client.connection_pool.disconnect(inuse_connections=False)


async def _within(waiting: Any, seconds: float | None) -> bool:
    try:
        return bool(await asyncio.wait_for(waiting, None if seconds is None else max(0.0, seconds)))
    except TimeoutError:
        return False


async def _exchange(connection: Any, commands: Sequence[Command]) -> list[Any]:
    """As `driver.exchange`; a task that is cancelled closes the connection too."""
    replies: list[Any] = []
    try:
        await connection.send_packed_command(connection.pack_commands(commands))
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except RefusedCall as error:
                replies.append(error)
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return replies


class AsyncSubscription:
    """As `BlockingSubscription`. A server that is silent for the socket's time-out, pings and all, is given up."""

    def __init__(self, driver: AsyncDriver, key: str) -> None:
        self._driver = driver
        self._key = key
        self._pool: Any = None
        self._connection: Any = None
        self._reading: asyncio.Future[Any] | None = None  # kept over the pauses: to cut a read off would lose what came

    async def open(self, channels: Sequence[str]) -> None:
        await self.leave()
        with calls("the channels of labels cannot be listened to"):
            self._pool = self._driver.pool(self._key)
            self._connection = await self._pool.get_connection()
            if channels:
                await self._connection.send_command("SUBSCRIBE", *channels)

    async def tell(self, *command: str) -> None:
        with suppress(Exception):
            if self._connection is not None:
                await self._connection.send_command(*command)

    async def receive(self) -> Any:
        with calls("the channels of labels cannot be listened to"):
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._connection.read_response())
            done, _ = await asyncio.wait((self._reading,), timeout=self._connection.socket_timeout / BEATS)
            if done:
                reading, self._reading = self._reading, None
                return reading.result()
        await self.tell("PING")
        return None

    async def leave(self) -> None:
        pool, connection, self._pool, self._connection = self._pool, self._connection, None, None
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
        if connection is not None:
            await connection.disconnect(nowait=True)
            await pool.release(connection)
