"""Puts pictures into the frames stream: bounded, each one once, and with back-pressure for the program that makes them.

    with Producer.connect("redis://localhost:6379/0") as producer:
        producer.put(Picture(jpeg, source="door-1"))
        label = producer.classify(Picture(jpeg, source="door-1"), timeout=5)

Decodes nothing. A plain XADD does as well, but knows no bound: use this class when the producer must know that the
queue is full, or what became of a frame. `AsyncProducer` is the same for an event loop.
"""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Self, TypeVar

from coatstream.broker.async_driver import AsyncDriver
from coatstream.broker.connection import Client, connect
from coatstream.broker.driver import Driver
from coatstream.broker.keys import Queue, queues_of
from coatstream.broker.preflight import check_rights, check_server, check_slots, check_types
from coatstream.broker.steps import Enter, Lock, Signal, Steps
from coatstream.errors import ConfigError
from coatstream.queue.producing.admission import admission_keys, admission_rights, admission_types
from coatstream.queue.producing.awaiting import Awaiting, Subscription, seconds_of
from coatstream.queue.producing.outbox import AS_USUAL, Outbox, Terms
from coatstream.queue.producing.picture import Picture
from coatstream.results.documents import LabelDocument
from coatstream.settings.direct import settings_for
from coatstream.settings.model import QueueSettings, SettingsTree

T = TypeVar("T")

WHILE_CLOSING = 5.0  # seconds that the listening thread has to end


def _ignore(_seconds: float, _why: str) -> None:
    """The default of `on_wait`: does nothing."""


class _Counts:
    """Every frame that was put is counted once: put = sent + refused + doubtful + held."""

    _outbox: Outbox

    @property
    def sent(self) -> int:
        """Frames that the server has, as safely as was asked for."""
        return self._outbox.sent

    @property
    def duplicates(self) -> int:
        """Those of them that it had before: they came again, and were not taken twice."""
        return self._outbox.duplicates

    @property
    def refused(self) -> int:
        """Frames for which there was no room, and that were dropped."""
        return self._outbox.refused

    @property
    def doubtful(self) -> int:
        """Frames that were given up with `forget` while it was not known whether they had arrived."""
        return self._outbox.doubtful

    @property
    def held(self) -> int:
        """Frames that were put and are neither sent nor given up."""
        return self._outbox.held

    @property
    def unsure(self) -> int:
        """How many of those were sent, and no answer came: they may have arrived."""
        return self._outbox.unsure


class Producer(_Counts):
    """The way into one queue, whose partitions are `queues`; a source always goes to the same of them.

    May be used from any number of threads: frames are sent by one at a time, and all wait together for what becomes of
    theirs.
    """

    def __init__(
        self,
        client: Client,
        queues: Sequence[Queue],
        limits: QueueSettings,
        terms: Terms = AS_USUAL,
        *,
        stop: threading.Event | None = None,
        on_wait: Callable[[float, str], None] = _ignore,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        """`stop` ends every wait. `on_wait` gets, before each wait for room, its seconds so far and its reason."""
        self._driver = Driver(client)
        self._stop = stop or threading.Event()
        self._outbox = Outbox(
            queues, limits, terms, stop=self._stop, on_wait=on_wait, clock=clock, rng=rng or random.Random()
        )
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._subscription = self._driver.subscription(queues[0].stream)
        self._awaiting = _awaiting(
            self._outbox, queues, self._driver, subscription=self._subscription, turn=self._turn, stop=self._closing
        )
        self._starting = threading.Lock()
        self._listener: threading.Thread | None = None

    @classmethod
    @contextmanager
    def connect(
        cls,
        where: str | SettingsTree,
        terms: Terms = AS_USUAL,
        *,
        stream: str | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Self]:
        """A producer with a client of its own; what is held is sent on leaving, unless by an exception.

        `where`: the URL of Redis, or settings. `stream` names one of several queues; None is the first. Raises
        ConfigError and RedisUnavailable.
        """
        settings = settings_for(where)
        _check_terms(terms, settings)
        with connect(settings.redis) as client:
            queues = queues_to_fill(client, settings, stream)
            producer = cls(client, queues, settings.queue, terms, stop=stop)
            try:
                yield producer
                producer.flush()
            finally:
                producer.close()

    def put(self, picture: Picture) -> None:
        """Take this picture, and send when `batch` of them are there.

        Raises BadFrame for what no worker would take. Raises as `flush` does: then this picture is held too. While as
        much is held as one call takes, that is sent first; where that fails, this picture is not taken.
        """
        self._driver.run(_in_turn(self._turn, self._outbox.put(picture)))

    def flush(self) -> None:
        """Send what is held, again and again if need be; each frame goes in once however often it is sent.

        Raises QueueFull (no room until `full_timeout` or `stop`), RedisUnavailable (away for `retry_time`, or not
        confirmed until then), RedisRefuses and ConfigError (waiting is no use). Then the rest is held: flush it later,
        within a day, or forget it.
        """
        self._driver.run(_in_turn(self._turn, self._outbox.flush()))

    def forget(self) -> int:
        """Give up what is held. Returns how many frames that were. Waits for a thread that sends now."""
        with self._turn:
            return self._outbox.forget()

    def classify(self, picture: Picture, *, timeout: float = 30.0) -> LabelDocument:
        """Put this picture at once, and wait for its label, `timeout` seconds in all.

        Raises FrameDead (a dead letter now), FrameDropped (expired, or deleted from the queue), NoOutcome (nothing is
        known yet; it is a TimeoutError too), BadFrame, QueueFull, RedisUnavailable and RedisRefuses. The user must be
        allowed to read the streams. Without the right to subscribe to `<labels>:<source>` and `failures:<source>` an
        answer comes a second late.
        """
        within = seconds_of(timeout)
        self._listen()
        return self._driver.run(self._awaiting.classify(picture, within), deadline=time.monotonic() + within)

    def wait_for(self, frame_id: str, *, timeout: float = 30.0, source: str | None = None) -> LabelDocument:
        """Wait for the label of a frame that was put before, by its `frame_id`, or by its entry's id where it has none.

        `source` is needed for quick answers about frames that another producer put: for those, the last 20,000 labels
        are looked through. Raises FrameDead, FrameDropped and NoOutcome.
        """
        within = seconds_of(timeout)
        self._listen()
        return self._driver.run(self._awaiting.wait_for(frame_id, within, source), deadline=time.monotonic() + within)

    def close(self) -> None:
        """End the waits for labels. `connect` does so on leaving."""
        with self._starting:
            self._closing.set()
            self._awaiting.wake()
            listener, self._listener = self._listener, None
        deadline = time.monotonic() + WHILE_CLOSING
        while listener is not None and listener.is_alive() and time.monotonic() < deadline:
            self._subscription.close()
            listener.join(0.1)
        self._subscription.leave()

    def _listen(self) -> None:
        with self._starting:
            if self._listener is None and not self._closing.is_set():
                run = self._driver.run
                self._listener = threading.Thread(
                    target=lambda: run(self._awaiting.listen()), name="labels", daemon=True
                )
                self._listener.start()


class AsyncProducer(_Counts):
    """`Producer` for an event loop; all its methods mean the same. Made by `connect`."""

    def __init__(self, driver: AsyncDriver, queues: Sequence[Queue], limits: QueueSettings, terms: Terms) -> None:
        self._driver = driver
        self._stop = asyncio.Event()
        self._outbox = Outbox(
            queues, limits, terms, stop=self._stop, on_wait=_ignore, clock=time.time, rng=random.Random()
        )
        self._turn = asyncio.Lock()
        self._subscription = driver.subscription(queues[0].stream)
        self._awaiting = _awaiting(
            self._outbox, queues, driver, subscription=self._subscription, turn=self._turn, stop=self._stop
        )
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, where: str | SettingsTree, terms: Terms = AS_USUAL, *, stream: str | None = None
    ) -> AsyncIterator[Self]:
        """As `Producer.connect`."""
        settings = settings_for(where)
        _check_terms(terms, settings)
        queues = await asyncio.to_thread(_looked_at, settings, stream)
        async with AsyncDriver.connect(settings.redis) as driver:
            producer = cls(driver, queues, settings.queue, terms)
            try:
                yield producer
                await producer.flush()
            finally:
                await producer.aclose()

    async def put(self, picture: Picture) -> None:
        """As `Producer.put`."""
        await self._driver.run(_in_turn(self._turn, self._outbox.put(picture)))

    async def flush(self) -> None:
        """As `Producer.flush`."""
        await self._driver.run(_in_turn(self._turn, self._outbox.flush()))

    def forget(self) -> int:
        """As `Producer.forget`."""
        return self._outbox.forget()

    async def classify(self, picture: Picture, *, timeout: float = 30.0) -> LabelDocument:
        """As `Producer.classify`."""
        within = seconds_of(timeout)
        self._listen()
        return await self._driver.run(self._awaiting.classify(picture, within), deadline=time.monotonic() + within)

    async def wait_for(self, frame_id: str, *, timeout: float = 30.0, source: str | None = None) -> LabelDocument:
        """As `Producer.wait_for`."""
        within = seconds_of(timeout)
        self._listen()
        return await self._driver.run(
            self._awaiting.wait_for(frame_id, within, source), deadline=time.monotonic() + within
        )

    async def aclose(self) -> None:
        """End all waits. `connect` does so on leaving."""
        self._stop.set()
        self._awaiting.wake()
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        await self._subscription.leave()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = asyncio.create_task(self._driver.run(self._awaiting.listen()), name="labels")


def _awaiting(
    outbox: Outbox,
    queues: Sequence[Queue],
    driver: Driver | AsyncDriver,
    *,
    subscription: Subscription,
    turn: Lock,
    stop: Signal,
) -> Awaiting:
    return Awaiting(
        outbox, queues, subscription=subscription, turn=turn, looking=driver.lock(), event=driver.event, stop=stop
    )


def _in_turn(turn: Lock, steps: Steps[T]) -> Steps[T]:
    """The outbox has one caller at a time."""
    yield Enter(turn, None)
    try:
        return (yield from steps)
    finally:
        turn.release()


def _check_terms(terms: Terms, settings: SettingsTree) -> None:
    if terms.confirm != "none" and terms.confirm_timeout >= settings.redis.socket_timeout:
        raise ConfigError(
            f"confirm_timeout ({terms.confirm_timeout:g}) must be shorter than redis.socket_timeout "
            f"({settings.redis.socket_timeout:g}), or no reply would come in time"
        )


def _looked_at(settings: SettingsTree, stream: str | None) -> list[Queue]:
    with connect(settings.redis) as client:
        return queues_to_fill(client, settings, stream)


def name_of_queue(settings: SettingsTree, stream: str | None = None) -> str:
    """That of the queue which `stream` names; of the first one where it is None. Raises ConfigError."""
    names = [entry.stream for entry in settings.queues] or [settings.queue.stream]
    if stream is not None and stream not in names:
        raise ConfigError(f"there is no queue {stream}: the settings have {', '.join(names)} (queues, queue.stream)")
    return stream or names[0]


def queues_to_fill(client: Client, settings: SettingsTree, stream: str | None = None) -> list[Queue]:
    """The partitions of that queue, looked at.

    Raises ConfigError (there is none, its keys hold something else, lie in several slots) and RedisUnavailable.
    """
    name = name_of_queue(settings, stream)
    parts = [queue for queue in queues_of(settings) if queue.name == name]
    check_server(client, settings.redis)
    for part in parts:
        check_rights(client, admission_rights(part), keyless=("EVAL", "EVALSHA"))
        check_types(client, admission_types(part))
        check_slots(client, [*admission_keys(part), part.sequence("source")])
    return parts
