"""Drives steps on the calling thread, over a client's pool of connections."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

from coatstream.broker.cluster import Cluster
from coatstream.broker.connection import Client
from coatstream.broker.failures import REDIRECTIONS, RefusedCall, calls, drop_connections, is_stale
from coatstream.broker.steps import Call, Command, Do, Enter, Steps, Wait
from coatstream.errors import RedisUnavailable

T = TypeVar("T")

BEATS: int = 3  # pings of a silent subscription within the socket's time-out
LEAST: float = 0.05  # seconds that a reply may take, however near the caller's deadline is


class Driver:
    """May be used from any number of threads: each call has a connection of its own while it lasts."""

    event = threading.Event
    lock = threading.Lock

    def __init__(self, client: Client) -> None:
        self._client = client
        self._busy: set[Any] = set()  # connections that wait for a reply

    def run(self, steps: Steps[T], *, deadline: float | None = None) -> T:
        """All steps, in this thread. Raises what the generator raises.

        deadline  on the monotonic clock: no reply is waited for longer, even where a socket's time-out is
        """
        try:
            step = next(steps)
            while True:
                try:
                    result = self._do(step, deadline)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def interrupt(self) -> None:
        """Fail the calls that wait for a reply in other threads, at once."""
        for connection in tuple(self._busy):
            connection.disconnect()

    def subscription(self, key: str) -> "BlockingSubscription":
        """A subscription that has not begun, on the node of the key."""
        return BlockingSubscription(self, key)

    def pool(self, key: str) -> Any:
        """The connections to the server that has the key."""
        client = self._client
        owner = client.node_of(client.slot_of([key])) if isinstance(client, Cluster) else client
        return owner.connection_pool

    def _do(self, step: Call | Wait | Enter | Do, deadline: float | None) -> Any:
        match step:
            case Call():
                return self._call(step, time_left(deadline))
            case Wait(event=threading.Event() as event, seconds=seconds):
                return event.wait(seconds)
            case Enter(lock=lock, seconds=seconds):
                return lock.acquire(timeout=-1 if seconds is None else max(0.0, seconds))  # type: ignore[attr-defined]
            case Do(function=function, arguments=arguments):
                return function(*arguments)
        raise AssertionError(step)

    def _call(self, call: Call, within: float | None) -> list[Any]:
        with calls(call.what, self._client):
            pool = self.pool(call.key)
            connection = pool.get_connection()
            self._busy.add(connection)
            try:
                replies = exchange(connection, call.commands, within)
            except (
                AttributeError,
                TypeError,
                ValueError,
            ) as error:  # `interrupt` closed it between two lines of redis-py
                raise OSError("the connection was closed") from error
            finally:
                self._busy.discard(connection)
                pool.release(connection)
        if any(map(is_stale, replies)):
            drop_connections(self._client)
        if isinstance(self._client, Cluster) and any(isinstance(reply, REDIRECTIONS) for reply in replies):
            self._client.look_around()
            raise RedisUnavailable(f"{call.what}: the cluster has moved {call.key} to another node")
        return replies


def time_left(deadline: float | None) -> float | None:
    """Seconds for one reply; None: as long as the socket's time-out."""
    return None if deadline is None else max(LEAST, deadline - time.monotonic())


def exchange(connection: Any, commands: Sequence[Command], within: float | None = None) -> list[Any]:
    """One round trip. A connection on which it failed is closed: what was not read would be the next call's reply.

    within  seconds in which the reply must begin, where that is less than the socket's time-out
    """
    replies: list[Any] = []
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        limit = connection.socket_timeout
        if within is not None and (limit is None or within < limit) and not connection.can_read(within):
            raise TimeoutError("no reply came within the time that was left")
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except RefusedCall as error:
                replies.append(error)
    except BaseException:
        connection.disconnect()
        raise
    return replies


class BlockingSubscription:
    """One connection that listens on channels. `open`, `receive`: from one thread; `tell`, `close`: from any."""

    def __init__(self, driver: Driver, key: str) -> None:
        self._driver = driver
        self._key = key
        self._pool: Any = None
        self._connection: Any = None
        self._writing = threading.Lock()
        self._silent = 0
        self._closed = False

    def open(self, channels: Sequence[str]) -> None:
        """Begin, or begin again. Raises RedisUnavailable and RedisRefuses."""
        self._let_go()
        with calls("the channels of labels cannot be listened to"):
            if self._closed:
                raise OSError("closed")
            pool = self._driver.pool(self._key)
            connection = pool.get_connection()
            with self._writing:
                self._pool, self._connection, self._silent = pool, connection, 0
                if channels:
                    connection.send_command("SUBSCRIBE", *channels)

    def tell(self, *command: str) -> None:
        """Send a command whose reply `receive` returns. Nothing happens while there is no connection."""
        with self._writing, suppress(Exception):  # `receive` raises what is wrong
            if self._connection is not None:
                self._connection.send_command(*command)

    def receive(self) -> Any:
        """The next message or reply; None where nothing came for a while. Raises RedisUnavailable and RedisRefuses."""
        connection = self._connection
        with calls("the channels of labels cannot be listened to"):
            try:
                if self._closed:
                    raise OSError("closed")
                if connection.can_read(connection.socket_timeout / BEATS):
                    self._silent = 0
                    return connection.read_response()
            except (AttributeError, TypeError, ValueError) as error:
                raise OSError("the connection was closed") from error
            self._silent += 1
            if self._silent > BEATS:
                raise TimeoutError("the server is silent")
        self.tell("PING")
        return None

    def close(self) -> None:
        """End for good, and wake the thread that receives."""
        self._closed = True
        if self._connection is not None:
            self._connection.disconnect()

    def _let_go(self) -> None:
        with self._writing:
            pool, connection, self._pool, self._connection = self._pool, self._connection, None, None
        if connection is not None:
            connection.disconnect()
            pool.release(connection)

    def leave(self) -> None:
        """Give the connection back, once nothing receives any more."""
        self._let_go()
