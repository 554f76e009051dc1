"""Reads streams of results on and on: from a given place, over outages, alone or as a member of a consumer group.

`Follower` knows the protocol and does no I/O; `StreamReader` and `AsyncStreamReader` drive it.
"""

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from coatstream.broker.async_driver import AsyncDriver
from coatstream.broker.connection import Client, connect
from coatstream.broker.driver import Driver
from coatstream.broker.failures import code_of
from coatstream.broker.steps import Call, Command, Signal, Steps, Wait, checked
from coatstream.errors import REDIS_TROUBLE, RedisUnavailable, Retries
from coatstream.results.since import entry_before
from coatstream.settings.direct import settings_for
from coatstream.settings.model import SettingsTree

READ_COUNT: Final = 256  # entries of one reply: some 300 kB of labels
GROUP_COUNT: Final = 16  # the same for a member of a group: another member cannot have what waits here
MOST_OWNED: Final = 10_000  # entries of one answer to what a member owns
LONGEST_BLOCK: Final = 1.0  # seconds that one call waits
ACK_EVERY: Final = 1.0  # seconds: what was handled longer ago is acknowledged, though nothing new is read

ItemT = TypeVar("ItemT")
Parse = Callable[[str, Mapping[bytes, bytes]], ItemT | None]  # entry id and fields; None: the entry is not ours
OnTrouble = Callable[[RedisUnavailable], None]


def warn(trouble: RedisUnavailable) -> None:
    """One line in the program's own log at the beginning of an outage."""
    logging.getLogger("coatstream").warning("%s; trying again until Redis is back", trouble)


@dataclass(frozen=True, slots=True)
class Feed(Generic[ItemT]):
    """What is read. `what` begins the message of an error; `streams` are those of an installation."""

    what: str
    streams: Callable[[SettingsTree], Sequence[str]]
    parse: Parse[ItemT]


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group of the reader's own, and this reader's name in it.

    redeliver_after  seconds after which an entry that a member holds and has not acknowledged goes to another
    """

    name: str
    consumer: str
    redeliver_after: float = 60.0


def group_of(name: str | None, consumer: str | None, redeliver_after: float) -> Group | None:
    """The group that was asked for; a consumer without a name is given one of its own."""
    own = consumer or f"{socket.gethostname()}-{secrets.token_hex(4)}"
    return None if name is None else Group(name, own, redeliver_after)


class Follower(Generic[ItemT]):
    """Where one reader stands in each stream. Used by one caller at a time.

    Of a group, an item counts as handled when the next is asked for; it is acknowledged with the next read.
    """

    def __init__(
        self,
        streams: Sequence[str],
        feed: "Feed[ItemT]",
        *,
        after: str | None,
        block: float,
        stop: Signal,
        group: Group | None = None,
        on_trouble: OnTrouble = warn,
    ) -> None:
        """`after`: None: after the newest entry. `block`: seconds."""
        self._streams = tuple(streams)
        self._turn = cycle(self._streams)
        self._parse = feed.parse
        self._what = feed.what
        self._after = dict.fromkeys(self._streams, after)
        self._block = block / len(self._streams)
        self._stop = stop
        self._on_trouble = on_trouble
        self._ready: deque[tuple[str, str, ItemT]] = deque()  # stream, entry, item
        self._membership = {stream: _Membership(stream, group) for stream in self._streams} if group else {}

    def start(self) -> Steps[None]:
        """Fix where reading begins. Raises RedisUnavailable and RedisRefuses."""
        for stream in self._streams:
            if stream in self._membership:
                yield from self._join(self._membership[stream], self._after[stream] or "$")
            elif self._after[stream] is None:
                (reply,) = yield Call(self._what, stream, [("XREVRANGE", stream, "+", "-", "COUNT", 1)])
                newest = checked(self._what, reply)
                self._after[stream] = newest[0][0].decode() if newest else "0-0"

    def read(self) -> Steps[list[ItemT]]:
        """What came since the last call; empty if nothing did within `block`. Raises RedisUnavailable."""
        self._finish_item()
        if not self._ready:
            yield from self._fill()
        found = list(self._ready)
        self._ready.clear()
        for stream, entry_id, _ in found:
            self._hand_out(stream, entry_id)
        return [item for _, _, item in found]

    def next(self, timeout: float | None = None) -> Steps[ItemT | None]:
        """The next one, over outages; None after `timeout` seconds, or where `stop` is set. Raises RedisRefuses."""
        self._finish_item()
        yield from self._acknowledge_in_time()
        yield from self._renew_in_time()
        deadline, retries = time.monotonic() + (float("inf") if timeout is None else timeout), Retries()
        while not self._ready and not self._stop.is_set():
            left = max(0.0, deadline - time.monotonic())
            behind = self._is_behind()
            try:
                yield from self._fill(left)
            except RedisUnavailable as trouble:
                behind = False
                if self._stop.is_set():
                    return None
                if not retries.failures:
                    self._on_trouble(trouble)
                yield Wait(self._stop, min(retries.failed(trouble), left))
            if time.monotonic() >= deadline and not behind:
                break
        if not self._ready:
            return None
        stream, entry_id, item = self._ready.popleft()
        self._hand_out(stream, entry_id)
        return item

    def finish(self, *, well: bool) -> Steps[None]:
        """No more is read. `well`: what was handed out last is handled as well. Raises RedisUnavailable."""
        if well:
            self._finish_item()
        for member in self._membership.values():
            yield from member.leave(self._what)

    # ---- acknowledgements

    def _hand_out(self, stream: str, entry_id: str) -> None:
        if stream in self._membership:
            self._membership[stream].in_hand.append(entry_id)

    def _finish_item(self) -> None:
        for member in self._membership.values():
            member.finish_item()

    def _acknowledge_in_time(self) -> Steps[None]:
        for member in self._membership.values():
            if member.is_due():
                try:
                    yield from member.acknowledge(self._what)
                except RedisUnavailable:
                    return  # it goes with the next read

    def _renew_in_time(self) -> Steps[None]:
        """Keep what waits here from members for which it would be due; what another has taken already is its."""
        for stream, member in self._membership.items():
            waiting = [entry_id for of, entry_id, _ in self._ready if of == stream]
            if waiting and member.must_renew():
                try:
                    taken = yield from member.renew(self._what, waiting)
                except REDIS_TROUBLE:
                    return  # the next call tries again; a user without the right to XCLAIM reads on as well
                kept = [item for item in self._ready if item[0] != stream or item[1] not in taken]
                self._ready = deque(kept)

    def _is_behind(self) -> bool:
        """The next look is for what was lost, and one for new entries comes after it."""
        return any(member.lost is not None for member in self._membership.values())

    def _join(self, member: "_Membership", after: str) -> Steps[None]:
        (reply,) = yield Call(self._what, member.stream, [member.creation(after)])
        if not (isinstance(reply, Exception) and "BUSYGROUP" in str(reply)):
            checked(self._what, reply)
        member.joined = True

    # ---- reading

    def _fill(self, longest: float = float("inf")) -> Steps[None]:
        """Look at each stream once; the first wait is `block`, and there is no other once something was found."""
        for _ in self._streams:
            stream = next(self._turn)
            block = 0.0 if self._ready else min(self._block, longest)
            entries = yield from (self._of_group(stream, block) if self._membership else self._alone(stream, block))
            for entry_id, flat in entries:
                item = None if flat is None else self._parse(entry_id, dict(zip(flat[::2], flat[1::2], strict=True)))
                if item is not None:
                    self._ready.append((stream, entry_id, item))
                elif stream in self._membership:  # deleted meanwhile, or a stranger's
                    self._membership[stream].handled.append(entry_id)

    def _alone(self, stream: str, block: float) -> Steps["_Entries"]:
        if self._after[stream] is None:
            yield from self.start()
        command = ("XREAD", "COUNT", READ_COUNT, *_blocking(block), "STREAMS", stream, self._after[stream] or "0-0")
        (reply,) = yield Call(self._what, stream, [command])
        entries = _entries(checked(self._what, reply))
        if entries:
            self._after[stream] = entries[-1][0]
        return entries

    def _of_group(self, stream: str, block: float) -> Steps["_Entries"]:
        member = self._membership[stream]
        if not member.joined:  # the group had vanished, and with it what it had not delivered: all of that is new
            yield from self._join(member, self._after[stream] or "0-0")
        known = member.known | {entry_id for of, entry_id, _ in self._ready if of == stream}
        try:
            entries = yield from member.read(self._what, block, known)
        except RedisUnavailable as trouble:
            member.lost = "0-0"
            member.joined = code_of(trouble.__cause__ or trouble) != "NOGROUP"
            raise
        for entry_id, _ in entries:
            self._after[stream] = max(self._after[stream] or "0-0", entry_id, key=_order)
        return entries


_Entries = list[tuple[str, list[bytes] | None]]  # id, and names and values in turn; None: deleted


class _Membership:
    """This reader's place in the group of one stream.

    in_hand   entries that were handed out and may be in work
    handled   those that are to be acknowledged
    lost      from this id on there may be entries that are ours and that no reply has brought; None: there are none
    """

    def __init__(self, stream: str, group: Group) -> None:
        self.stream = stream
        self.in_hand: list[str] = []
        self.handled: list[str] = []
        self.lost: str | None = "0-0"
        self.joined = False
        self._group = group
        self._acknowledged_at = self._claimed_at = self._renewed_at = time.monotonic()

    @property
    def known(self) -> set[str]:
        return {*self.in_hand, *self.handled}

    def creation(self, after: str) -> Command:
        return ("XGROUP", "CREATE", self.stream, self._group.name, after, "MKSTREAM")

    def finish_item(self) -> None:
        self.handled += self.in_hand
        self.in_hand = []

    def is_due(self) -> bool:
        return bool(self.handled) and time.monotonic() - self._acknowledged_at >= ACK_EVERY

    def acknowledge(self, what: str) -> Steps[None]:
        handled = self.handled
        replies = yield Call(what, self.stream, self._acknowledgement())
        self._acknowledged(what, handled, replies)

    def must_renew(self) -> bool:
        return time.monotonic() - self._renewed_at >= self._group.redeliver_after / 3

    def renew(self, what: str, waiting: Sequence[str]) -> Steps[set[str]]:
        """Begin the time of these entries anew. Returns those that another member has taken.

        XCLAIM takes an entry from any member. So it is given the ids that are still ours, and the least idle time: what
        another member takes in between has a shorter one. What was trimmed from the stream, no other member can have.
        """
        name, consumer, begun = self._group.name, self._group.consumer, time.monotonic()
        first, last = min(waiting, key=_order), max(waiting, key=_order)
        pending = ("XPENDING", self.stream, name, first, last, MOST_OWNED, consumer)
        reply, oldest = yield Call(what, self.stream, [pending, ("XRANGE", self.stream, "-", "+", "COUNT", 1)])
        idle = {row[0].decode(): row[2] for row in checked(what, reply)}
        begin = [_order(entry_id) for entry_id, _ in _parsed(checked(what, oldest))]
        ours = [entry_id for entry_id in waiting if entry_id in idle]
        if ours:
            least = min(idle[entry_id] for entry_id in ours)
            claim = ("XCLAIM", self.stream, name, consumer, least, *ours, "JUSTID")
            (reply,) = yield Call(what, self.stream, [claim])
            ours = [entry_id.decode() for entry_id in checked(what, reply)]
        self._renewed_at = begun
        return {entry_id for entry_id in waiting if entry_id not in ours and begin and _order(entry_id) >= begin[0]}

    def read(self, what: str, block: float, known: set[str]) -> Steps[_Entries]:
        """Ours that were lost, then those of members that are silent, then new ones. Acknowledges on the way."""
        handled = self.handled
        command = self._command(block)
        *replies, reply = yield Call(what, self.stream, [*self._acknowledgement(), command])
        self._acknowledged(what, handled, replies)
        self._renewed_at = time.monotonic()
        found = checked(what, reply)
        entries = _parsed(found[1]) if command[0] == "XAUTOCLAIM" else _entries(found)
        if self.lost is not None and command[0] != "XAUTOCLAIM":
            self.lost = entries[-1][0] if entries else None
        return [(entry_id, flat) for entry_id, flat in entries if entry_id not in known]

    def leave(self, what: str) -> Steps[None]:
        """Acknowledge, and delete this consumer unless the group still counts something as its own."""
        name, consumer = self._group.name, self._group.consumer
        yield from self.acknowledge(what)
        (reply,) = yield Call(what, self.stream, [("XPENDING", self.stream, name, "-", "+", 1, consumer)])
        if reply == []:
            yield Call(what, self.stream, [("XGROUP", "DELCONSUMER", self.stream, name, consumer)])

    def _command(self, block: float) -> Command:
        group, now = self._group, time.monotonic()
        read = ("XREADGROUP", "GROUP", group.name, group.consumer, "COUNT", GROUP_COUNT)
        if self.lost is not None:
            return (*read, "STREAMS", self.stream, self.lost)
        if now - self._claimed_at >= group.redeliver_after / 2:
            self._claimed_at = now
            idle = int(group.redeliver_after * 1000)
            return ("XAUTOCLAIM", self.stream, group.name, group.consumer, idle, "0-0", "COUNT", GROUP_COUNT)
        return (*read, *_blocking(block), "STREAMS", self.stream, ">")

    def _acknowledgement(self) -> Sequence[Command]:
        return [("XACK", self.stream, self._group.name, *self.handled)] if self.handled else []

    def _acknowledged(self, what: str, handled: Sequence[str], replies: Sequence[Any]) -> None:
        for reply in replies:
            checked(what, reply)
        self.handled = [entry_id for entry_id in self.handled if entry_id not in handled]
        self._acknowledged_at = time.monotonic()


def _blocking(seconds: float) -> Command:
    return ("BLOCK", max(1, int(seconds * 1000))) if seconds > 0 else ()


def _entries(reply: Any) -> _Entries:
    """Of XREAD's and XREADGROUP's reply about one stream; nil where it timed out."""
    return _parsed(reply[0][1]) if reply else []


def _parsed(entries: Sequence[Any]) -> _Entries:
    return [(entry_id.decode(), flat) for entry_id, flat in entries]


def _order(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))


class StreamReader(Generic[ItemT]):
    """Reads on where it left off, also after a failure. Used from one thread; `close` from any.

    A loop over it waits for what comes next, over outages, until it is closed:

        with LabelReader.connect("redis://localhost:6379/0") as labels:
            for label in labels:
                ...
    """

    feed: ClassVar[Feed[Any]]

    def __init__(
        self,
        client: Client,
        streams: Sequence[str],
        *,
        after: str | None = None,
        block: float = LONGEST_BLOCK,
        group: Group | None = None,
        on_trouble: OnTrouble = warn,
    ) -> None:
        """
        streams     more than one where a queue is spread over a cluster; they are looked at in turn then
        after       the entry after which reading begins; None: after the newest one, which the first call finds out
        block       seconds to wait for something new; less than the connection's socket timeout
        on_trouble  called at the beginning of an outage
        """
        self._driver = Driver(client)
        self._stop = threading.Event()
        self._follower = Follower(
            streams,
            self.feed,
            after=after,
            block=block,
            stop=self._stop,
            group=group,
            on_trouble=on_trouble,
        )

    @classmethod
    @contextmanager
    def connect(
        cls,
        where: str | SettingsTree,
        *,
        since: str | float | datetime | None = None,
        group: str | None = None,
        consumer: str | None = None,
        redeliver_after: float = 60.0,
        on_trouble: OnTrouble = warn,
    ) -> Iterator[Self]:
        """A reader with a client of its own.

        where            the URL of Redis, or settings
        since            where reading begins: Unix seconds, a datetime or ISO text, an age (`10m`), or the id after
                         which it goes on (`.entry` of what was read last); None: with what is published from now on
        group            the name of a consumer group: its members share all that comes, and each item is handled at
                         least once, over crashes and restarts. `since` counts when the group is made. An item counts as
                         handled when the next is asked for, or when the block is left without an exception
        consumer         this reader's name in the group; None: one of its own
        redeliver_after  seconds after which what a silent member holds goes to another

        Raises ConfigError, RedisRefuses, and RedisUnavailable where Redis cannot be reached at the start.
        """
        settings = settings_for(where)
        after, block = _begin(settings, since)
        with connect(settings.redis) as client:
            members = group_of(group, consumer, redeliver_after)
            streams = cls.feed.streams(settings)
            reader = cls(client, streams, after=after, block=block, group=members, on_trouble=on_trouble)
            reader.start()
            try:
                yield reader
            except BaseException:
                reader._finish(well=False)
                raise
            reader._finish(well=True)

    def start(self) -> None:
        """Fix where reading begins, unless that is known. Raises RedisUnavailable and RedisRefuses."""
        self._driver.run(self._follower.start())

    def read(self) -> list[ItemT]:
        """What came since the last call, each stream's oldest first; empty if nothing did within `block`.

        Entries that coatstream did not write are passed over. Raises RedisUnavailable and RedisRefuses.
        """
        return self._driver.run(self._follower.read())

    def next(self, timeout: float | None = None) -> ItemT | None:
        """The next one, over outages; None where none came within `timeout` seconds, or the reader was closed.

        Raises RedisRefuses.
        """
        return self._driver.run(self._follower.next(timeout))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ItemT:
        item = self.next()
        if item is None:
            raise StopIteration
        return item

    def close(self) -> None:
        """End the loop, at once, also one that waits in another thread."""
        self._stop.set()
        self._driver.interrupt()

    def _finish(self, *, well: bool) -> None:
        with suppress(*REDIS_TROUBLE):  # then what was handled last comes again: at least once
            self._driver.run(self._follower.finish(well=well))


class AsyncStreamReader(Generic[ItemT]):
    """`StreamReader` for an event loop; all its methods mean the same. Made by `connect`."""

    feed: ClassVar[Feed[Any]]

    def __init__(
        self,
        driver: AsyncDriver,
        streams: Sequence[str],
        *,
        after: str | None,
        block: float,
        group: Group | None,
        on_trouble: OnTrouble,
    ) -> None:
        self._driver = driver
        self._stop = asyncio.Event()
        self._follower = Follower(
            streams,
            self.feed,
            after=after,
            block=block,
            stop=self._stop,
            group=group,
            on_trouble=on_trouble,
        )

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        where: str | SettingsTree,
        *,
        since: str | float | datetime | None = None,
        group: str | None = None,
        consumer: str | None = None,
        redeliver_after: float = 60.0,
        on_trouble: OnTrouble = warn,
    ) -> AsyncIterator[Self]:
        """As `StreamReader.connect`."""
        settings = settings_for(where)
        after, block = _begin(settings, since)
        async with AsyncDriver.connect(settings.redis) as driver:
            members = group_of(group, consumer, redeliver_after)
            streams = cls.feed.streams(settings)
            reader = cls(driver, streams, after=after, block=block, group=members, on_trouble=on_trouble)
            await driver.run(reader._follower.start())
            try:
                yield reader
            except BaseException:
                await reader._finish(well=False)
                raise
            await reader._finish(well=True)

    async def read(self) -> list[ItemT]:
        """As `StreamReader.read`."""
        return await self._driver.run(self._follower.read())

    async def next(self, timeout: float | None = None) -> ItemT | None:
        """As `StreamReader.next`."""
        return await self._driver.run(self._follower.next(timeout))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ItemT:
        item = await self.next()
        if item is None:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the loop, at once, also one that waits in another task."""
        self._stop.set()
        await self._driver.interrupt()

    async def _finish(self, *, well: bool) -> None:
        with suppress(*REDIS_TROUBLE):
            await self._driver.run(self._follower.finish(well=well))


def _begin(settings: SettingsTree, since: str | float | datetime | None) -> tuple[str | None, float]:
    """The entry after which reading begins, and the seconds that one call waits. Raises ConfigError."""
    after = None if since is None else entry_before(since, now=time.time())
    return after, min(LONGEST_BLOCK, settings.redis.socket_timeout / 5)
