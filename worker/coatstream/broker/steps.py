"""Protocols with Redis that are written once, for threads and for event loops.

A generator of steps does no I/O: it yields what it wants done, and is sent the result. `broker.driver` does that on a
thread, `broker.async_driver` on an event loop. An error of a step is raised where the step was yielded.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from redis.exceptions import NoScriptError

from coatstream.broker.failures import calls
from coatstream.broker.script import Script

Command: TypeAlias = tuple[str | bytes | int | float, ...]
T = TypeVar("T")


class Signal(Protocol):
    """threading.Event or asyncio.Event."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...


class Lock(Protocol):
    """threading.Lock or asyncio.Lock."""

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """Commands that one server runs in turn on one connection, in one round trip.

    what  begins the message of an error: "labels cannot be read"
    key   on a cluster the node that has this key is asked

    The result is a list with the server's reply to each; where a reply is an error, that error is in the list. Raises
    RedisUnavailable and RedisRefuses.
    """

    what: str
    key: str
    commands: Sequence[Command]


@dataclass(frozen=True, slots=True)
class Wait:
    """For the event, or so many seconds; None: for ever. The result is whether the event is set."""

    event: Signal
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Enter:
    """The lock, which the generator releases itself. The result is False where it was not free in time."""

    lock: Lock
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Do:
    """A function of the driver's own: a coroutine function where an event loop drives."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


Steps: TypeAlias = Generator[Call | Wait | Enter | Do, Any, T]


def run_script(
    script: Script,
    what: str,
    *,
    keys: Sequence[str],
    args: Sequence[str | bytes | int | float],
    behind: Sequence[Command] = (),
) -> Steps[list[Any]]:
    """The replies to the script and to the commands behind it, which share its connection and its round trip.

    Two round trips where the server has forgotten the script (restart, failover, SCRIPT FLUSH).
    """
    replies: list[Any] = yield Call(what, keys[0], [script.by_hash(keys, args), *behind])
    if isinstance(replies[0], NoScriptError):
        replies = yield Call(what, keys[0], [script.by_text(keys, args), *behind])
    return replies


def checked(what: str, reply: Any) -> Any:
    """The reply, if it is no error. Raises RedisUnavailable and RedisRefuses."""
    if isinstance(reply, Exception):
        with calls(what):
            raise reply
    return reply
