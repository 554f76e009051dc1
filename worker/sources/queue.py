"""Frames from a Redis stream with a consumer group: read in blocks, decoded in a small pool, handed on in order.

What can never be labelled is buried, and what has expired is dropped, here and at once. Everything else is settled by
whoever publishes its label. An entry that was read is never forgotten: what is in hand when reading fails or stops is
still handed on, and entries that the server says are ours but nobody here knows (their reply was lost) are swept up.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import structlog

from config.settings import QueueSettings
from worker.broker.connection import Client, calls
from worker.broker.publisher import Publisher
from worker.cores import usable_cores
from worker.errors import BadFrame, DeadReason, RedisUnavailable, SourceLost
from worker.frames import Frame, Pixels, Receipt
from worker.image import decode, raw, single_threaded
from worker.ledger import DropReason, Ledger
from worker.outcomes import Buried, Dropped, book
from worker.sources.entry import DEFAULT_SOURCE, Entry, RawPixels, parse, source_of
from worker.sources.holdings import Holdings

Fields = dict[bytes, bytes]
Prepared = Frame | Buried | Dropped

LONGEST_BLOCK: Final = 1.0  # seconds; a server that is asked for longer than the socket time-out looks dead
SWEEP_EVERY: Final = 5.0  # seconds
SWEEP_LIMIT: Final = 1000  # entries a sweep


class QueueSource:
    """The reader of one frames stream.

    prepare   picture as uint8 [h, w, 3] RGB -> the model's size; called from the decode pool
    undertaker  settles what is not published; its calls come from this source's thread
    observe   told the seconds of each stage
    on_trouble  told of each call to Redis that failed, before the source is lost
    """

    name: Final = "queue"
    live: Final = False

    def __init__(
        self,
        client: Client,
        settings: QueueSettings,
        *,
        consumer: str,
        prefetch: int,
        block: float,
        prepare: Callable[[Pixels], Pixels],
        undertaker: Publisher,
        holdings: Holdings,
        ledger: Ledger,
        observe: Callable[[str, float], None] = lambda stage, seconds: None,
        on_trouble: Callable[[RedisUnavailable], None] = lambda trouble: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._settings = settings
        self._consumer = consumer
        self._prefetch = prefetch
        self._block = min(block, LONGEST_BLOCK)
        self._prepare_pixels = prepare
        self._undertaker = undertaker
        self._holdings = holdings
        self._ledger = ledger
        self._observe = observe
        self._log = structlog.get_logger("queue")
        self._on_trouble = on_trouble
        self._clock = clock

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        """Frames in the stream's order, until `stop`. Raises SourceLost when Redis is away.

        What was read before is handed on first; only where even settling was given up (the end of a drain) is it left
        to the server, which has it still.
        """
        self._join_group()
        lost: RedisUnavailable | None = None
        window: deque[Future[Prepared]] = deque()  # read and being decoded, oldest first; at most `prefetch`
        threads = self._settings.decode_threads or usable_cores()
        with ThreadPoolExecutor(threads, "decode", initializer=single_threaded) as pool:
            swept_at = float("-inf")
            while lost is None and not stop.is_set():
                try:
                    if time.monotonic() - swept_at >= SWEEP_EVERY:
                        self._submit(self._orphans(), window, pool)
                        swept_at = time.monotonic()
                    self._submit(self._read(window), window, pool)
                except RedisUnavailable as trouble:
                    lost = trouble
                    self._on_trouble(trouble)
                yield from self._ready(window)
            if stop.is_set():  # the last chance: a reply that was given up may have been meant for us
                with suppress(RedisUnavailable):
                    self._submit(self._orphans(), window, pool)
            while window:
                yield from self._ready(window)
        if lost is not None:
            raise SourceLost(str(lost)) from lost

    def _join_group(self) -> None:
        """Create the group where it is missing, from 0: settled entries are deleted, so nothing is done twice.

        Looked for first, since a server at `maxmemory` refuses XGROUP CREATE even for a group that is there.
        """
        stream, group = self._settings.stream, self._settings.group
        try:
            with calls("the consumer group cannot be created"):
                if not self._client.exists(stream) or group not in _names(self._client.xinfo_groups(stream)):
                    self._client.xgroup_create(stream, group, id="0", mkstream=True)
        except RedisUnavailable as trouble:
            if "BUSYGROUP" not in str(trouble.__cause__):  # another worker was faster
                self._on_trouble(trouble)
                raise SourceLost(str(trouble)) from trouble

    def _read(self, window: deque[Future[Prepared]]) -> list[tuple[bytes, Fields]]:
        """New entries: wait for them when there is nothing else to do, else fill a window that is half empty."""
        room = self._prefetch - len(window)
        if window and room < self._prefetch / 2:
            return []
        with calls("frames cannot be read"):
            reply = self._client.xreadgroup(
                self._settings.group,
                self._consumer,
                {self._settings.stream: ">"},
                count=room,
                block=None if window else max(1, int(self._block * 1000)),
            )
        return [entry for _stream, entries in reply for entry in entries] if reply else []

    def _orphans(self) -> list[tuple[bytes, Fields]]:
        """Entries that were delivered to this consumer in a reply that never arrived."""
        stream, group = self._settings.stream, self._settings.group
        known = self._holdings.snapshot()
        with calls("the entries of this consumer cannot be listed"):
            pending = self._client.xpending_range(stream, group, "-", "+", SWEEP_LIMIT, consumername=self._consumer)
            known |= self._holdings.snapshot()
            lost = [item["message_id"] for item in pending if item["message_id"].decode() not in known]
            lost = lost[: self._prefetch]  # the others at the next sweep: the window is bounded
            return [entry for entry_id in lost for entry in self._client.xrange(stream, entry_id, entry_id)]

    def _submit(
        self, entries: list[tuple[bytes, Fields]], window: deque[Future[Prepared]], pool: ThreadPoolExecutor
    ) -> None:
        self._holdings.add(entry_id.decode() for entry_id, _ in entries)
        window.extend(pool.submit(self._prepare, entry_id.decode(), fields) for entry_id, fields in entries)

    def _ready(self, window: deque[Future[Prepared]]) -> Iterator[Frame]:
        """The oldest entry, waiting for it, and those behind it that are done too."""
        lost: list[Buried | Dropped] = []
        waited = False
        while window and (not waited or window[0].done()):
            waited = True
            prepared = window.popleft().result()
            if not isinstance(prepared, Frame):
                lost.append(prepared)
                continue
            self._settle(lost)
            lost = []
            yield prepared
        self._settle(lost)

    def _settle(self, outcomes: list[Buried | Dropped]) -> None:
        if not outcomes:
            return
        for outcome in outcomes:
            self._ledger.received(outcome.source)
        try:
            settlement, _ = self._undertaker.publish(outcomes)
        except RedisUnavailable as trouble:
            raise SourceLost(str(trouble)) from trouble
        self._holdings.remove(outcome.receipt.entry_id for outcome in outcomes if outcome.receipt)
        for outcome, done in zip(outcomes, settlement.done, strict=True):
            book(self._ledger, outcome, done=done)

    def _prepare(self, entry_id: str, fields: Fields) -> Prepared:
        """Runs in the decode pool."""
        receipt = Receipt(self._settings.stream, entry_id)
        try:
            entry = parse(entry_id, fields)
            if entry.expires_at is not None and entry.expires_at < self._clock():
                return Dropped(entry.source, DropReason.EXPIRED, receipt)
            return self._frame(entry, receipt)
        except BadFrame as bad:
            return Buried(_source(fields), bad.reason, str(bad), receipt)
        except Exception as error:  # a decoder at work on a stranger's bytes: no picture may end the worker
            self._log.error("an entry could not be prepared", entry_id=entry_id, error=repr(error)[:200])
            return Buried(_source(fields), DeadReason.UNDECODABLE, f"{type(error).__name__} while preparing", receipt)

    def _frame(self, entry: Entry, receipt: Receipt) -> Frame:
        started = time.perf_counter()
        picture = self._picture(entry.picture)
        decoded = time.perf_counter()
        pixels = self._prepare_pixels(picture)
        self._observe("decode", decoded - started)
        self._observe("prepare", time.perf_counter() - decoded)
        return Frame(
            source=entry.source,
            frame_id=entry.frame_id,
            captured_at=entry.captured_at,
            pixels=pixels,
            width=picture.shape[1],
            height=picture.shape[0],
            receipt=receipt,
            expires_at=entry.expires_at,
            meta=entry.meta,
        )

    def _picture(self, picture: bytes | RawPixels) -> Pixels:
        limits = self._settings
        if isinstance(picture, bytes):
            return decode(picture, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
        if len(picture.data) > limits.max_bytes or picture.width * picture.height > limits.max_pixels:
            raise BadFrame(
                DeadReason.TOO_LARGE,
                f"{picture.width} x {picture.height} raw pixels in {len(picture.data)} bytes are over queue.max_pixels "
                f"({limits.max_pixels}) or queue.max_bytes ({limits.max_bytes})",
            )
        return raw(picture.data, width=picture.width, height=picture.height, pixel_format=picture.format)


def _names(groups: list[dict[str, Any]]) -> set[str]:
    return {group["name"].decode() for group in groups}


def _source(fields: Fields) -> str:
    """The account that a bad entry is booked on: its own name if that much can be read."""
    try:
        return source_of(fields)
    except BadFrame:
        return DEFAULT_SOURCE
