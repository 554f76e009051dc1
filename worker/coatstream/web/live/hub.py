"""Looks at Redis while pages are open, once for all of them, and tells each what is new. Costs nothing otherwise."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

from pydantic_core import to_json

from coatstream.broker.connection import Client
from coatstream.broker.failures import calls
from coatstream.broker.fleet_keys import fleet_keys
from coatstream.broker.keys import queues_of
from coatstream.broker.picture_keys import picture_keys
from coatstream.errors import REDIS_TROUBLE, CoatstreamError
from coatstream.pipeline.threads import in_thread
from coatstream.results.previews import parse_preview, wish
from coatstream.settings.model import SettingsTree
from coatstream.web.calls import Busy, RedisCalls
from coatstream.web.event_documents import events_after, newest_event
from coatstream.web.live.channels import Channels
from coatstream.web.live.watcher import MOST_PREVIEWS, Watcher
from coatstream.web.snapshot import Snapshot, Snapshots

EVERY: Final = 1.0  # seconds between two looks
BEAT: Final = 0.5  # seconds between two signs of life
WISH_EVERY: Final = 2.0  # seconds; a wish lasts for five
MOST_WATCHERS: Final = 24  # of 64 connections: the others are for probes, scrapes and short requests
MOST_WISHES: Final = 200  # sources of all watchers together


class Hub:
    """Used on the loop, inside `running`."""

    def __init__(self, settings: SettingsTree, redis: RedisCalls) -> None:
        self._settings = settings
        self._redis = redis
        self._keys = picture_keys(settings)
        self._label_channels = queues_of(settings)[0].channel
        self._events = fleet_keys(settings).events
        self._channels = Channels(settings.redis, self._heard)
        self._watchers: set[Watcher] = set()
        self._ending = False
        self._watched = asyncio.Event()
        self._hurry = asyncio.Event()
        self._snapshots: Snapshots | None = None
        self._rows: dict[str, bytes] = {}  # camera -> its document, as pages know it
        self._overview = b""
        self._trouble = ""
        self._newest = ""  # the last event that pages know
        self._sources: dict[str, str] = {}  # channel -> source
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Pages may be opened."""
        self._loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(work(), name="page") for work in (self._look_on, self._beat_on, self._wish_on)]
        with in_thread(self._channels.run, "channels"):
            try:
                yield
            finally:
                self.close()
                self._channels.close()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def watch(self, *, previews: Iterable[str] = (), labels_of: str | None = None, after: str = "") -> Watcher:
        """A new stream. `after`: the last event that its page knows. Raises Busy.

        A page whose stream has just ended comes back at once: where the server ends, nothing would end its new stream.
        """
        if self._ending:
            raise Busy("this server ends")
        if len(self._watchers) >= MOST_WATCHERS:
            raise Busy(f"{MOST_WATCHERS} pages are open already: close one")
        wanted = frozenset(sorted(previews)[:MOST_PREVIEWS])
        watcher = Watcher(previews=wanted, labels_of=labels_of, after=after, on_end=self._leave)
        self._watchers.add(watcher)
        self._listen()
        self._watched.set()
        self._hurry.set()
        return watcher

    def close(self) -> None:
        """End all streams, and begin none from now on; their pages come again elsewhere."""
        self._ending = True
        for watcher in list(self._watchers):
            watcher.close()

    def _leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        self._listen()
        if not self._watchers:
            self._watched.clear()
            self._rows, self._newest = {}, ""

    def _pages(self) -> list[Watcher]:
        return [watcher for watcher in self._watchers if watcher.labels_of is None]

    # ---- the present

    async def _look_on(self) -> None:
        while True:
            await self._watched.wait()
            began = time.monotonic()
            self._hurry.clear()
            if self._pages():
                try:
                    await self._look()
                    self._trouble = ""
                except (*REDIS_TROUBLE, Busy) as trouble:
                    self._trouble = str(trouble)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), max(0.05, EVERY - (time.monotonic() - began)))

    async def _look(self) -> None:
        snapshot, events = await self._redis.call(self._read)
        newest = events[-1].id if events else self._newest
        for watcher in self._pages():
            if watcher.after and not watcher.greeted:
                missed = await self._redis.call(partial(events_after, key=self._events, after=watcher.after))
                known = (event for event in missed if _order(event.id) <= _order(newest))
                watcher.send(b"".join(_message("event", event, event.id) for event in known))
        self._tell(snapshot, events)

    def _read(self, client: Client) -> tuple[Snapshot, list[Any]]:
        """In a thread; never twice at once."""
        if self._snapshots is None:
            self._snapshots = Snapshots(client, self._settings)
        snapshot = self._snapshots.read()
        if not self._newest:
            self._newest = newest_event(client, self._events)
            return snapshot, []
        return snapshot, events_after(client, key=self._events, after=self._newest)

    def _tell(self, snapshot: Snapshot, events: list[Any]) -> None:
        rows = {camera.name: camera.model_dump_json().encode() for camera in snapshot.cameras}
        changed = [row for name, row in rows.items() if self._rows.get(name) != row]
        gone = [name for name in self._rows if name not in rows]
        overview = b"event: overview\ndata: " + snapshot.overview.model_dump_json().encode() + b"\n\n"
        newest = events[-1].id if events else self._newest
        news = overview + b"".join(_message("event", event, event.id) for event in events)
        if changed or gone:
            news += _cameras(changed, gone)
        for watcher in self._pages():
            if watcher.greeted:
                watcher.send(news)
            else:
                watcher.greeted = watcher.send(overview + _cameras(rows.values(), [], whole=True, number=newest))
        self._rows, self._newest = rows, newest

    async def _beat_on(self) -> None:
        while True:
            await self._watched.wait()
            sign = _message("time", {"at": time.time(), "trouble": self._trouble})
            for watcher in list(self._watchers):
                watcher.send(sign)
            await asyncio.sleep(BEAT)

    # ---- pictures and labels, as they are published

    def _listen(self) -> None:
        previews = sorted({source for watcher in self._watchers for source in watcher.previews})[:MOST_WISHES]
        self._sources = {self._keys.previews(source): source for source in previews}
        labels = {self._label_channels(one.labels_of) for one in self._watchers if one.labels_of is not None}
        self._channels.want(frozenset(self._sources) | labels)

    async def _wish_on(self) -> None:
        while True:
            await self._watched.wait()
            sources = list(self._sources.values())
            if sources:
                with suppress(CoatstreamError):  # the next wish may go through
                    await self._redis.call(partial(self._wish, sources=sources))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), WISH_EVERY)
            await asyncio.sleep(0.1)

    def _wish(self, client: Client, *, sources: list[str]) -> None:
        with calls("previews cannot be wished for", client):
            for source in sources:
                wish(client, self._keys.wish(source))

    def _heard(self, channel: str, data: bytes) -> None:
        """In the listening thread."""
        source = self._sources.get(channel)
        if source is None:
            message = b"event: label\ndata: " + b" ".join(data.splitlines()) + b"\n\n"
            self._on_loop(partial(self._pass_label, channel, message))
        elif (found := parse_preview(data)) is not None:
            head = {"source": source, "at": found.captured_at, "width": found.width, "height": found.height}
            message = _message("preview", head | {"jpeg": base64.b64encode(found.jpeg).decode()})
            self._on_loop(partial(self._pass_preview, source, message))

    def _on_loop(self, work: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)

    def _pass_preview(self, source: str, message: bytes) -> None:
        for watcher in self._watchers:
            watcher.preview(source, message)

    def _pass_label(self, channel: str, message: bytes) -> None:
        for watcher in list(self._watchers):
            if watcher.labels_of is not None and self._label_channels(watcher.labels_of) == channel:
                watcher.send(message)


def _order(entry: str) -> tuple[int, int]:
    """Ids are numbers of any length."""
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number)


def _cameras(rows: Iterable[bytes], gone: list[str], *, whole: bool = False, number: str = "") -> bytes:
    """`number`: the newest event so far. A page without one would miss what comes while it opens its stream anew."""
    head = f"event: cameras\nid: {number}\n" if number else "event: cameras\n"
    flag = b"true" if whole else b"false"
    data = b'{"whole":' + flag + b',"gone":' + to_json(gone) + b',"set":[' + b",".join(rows) + b"]}"
    return head.encode() + b"data: " + data + b"\n\n"


def _message(name: str, document: Any, number: str = "") -> bytes:
    head = f"event: {name}\n" + (f"id: {number}\n" if number else "")
    return head.encode() + b"data: " + to_json(document) + b"\n\n"
