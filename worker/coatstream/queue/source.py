"""Frames from Redis streams with a consumer group: decoded in a small pool, handed on in order.

What can never be labelled is buried, and what has expired is dropped, here and at once. Everything else is settled by
whoever publishes its label. An entry that was read is never forgotten: it is handed on, or handed back.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from typing import Final, TypeVar

import structlog

from coatstream.engine.cores import single_threaded, usable_cores
from coatstream.errors import (
    BadFrame,
    CoatstreamError,
    DeadReason,
    DownReason,
    RedisRefuses,
    RedisUnavailable,
    SourceLost,
)
from coatstream.frames.decoding import Picture, decode_for, raw
from coatstream.frames.frame import Frame, InputSpec, Pixels, Receipt
from coatstream.pipeline.holdings import Holdings
from coatstream.queue.entry import Entry, RawPixels, admitted_of, frame_id_or_default, parse, source_or_default
from coatstream.queue.reader import TICK, EntryReader, Taken
from coatstream.results.outcomes import Buried, Dropped, book
from coatstream.results.publisher import Publisher
from coatstream.settings.model import QueueSettings
from coatstream.telemetry.ledger import DropReason, Ledger

Prepared = Frame | Buried | Dropped
Window = deque[tuple[Future[deque[Prepared]], int]]  # some entries each, with their bytes
T = TypeVar("T")

TOGETHER: Final = 4  # entries that a decode thread takes at most in one go, while there is enough for all threads
HANGS_AFTER: Final = 2.0  # seconds that a picture in the decoder may take when this source stops
REFUSALS: Final = 3  # in a row, before Redis is believed: rights may be in the making


class QueueSource:
    """The source of one or more queues.

    reader    says which entries come next
    prepare   picture as uint8 [h, w, 3] RGB -> the model's size; called from the decode pool
    spec      of the model for which JPEGs may be decoded at half size (queue.decoding: auto); None: never
    undertaker  settles what is not published; its calls come from this source's thread
    at_work   a context for each picture that is decoded, so that a decoder that hangs is noticed
    observe   told the seconds of each stage; count: how many dead letters had to go for newer ones
    on_trouble  told of each call to Redis that failed, before the source is lost; on_success of each look that did not
    """

    live: Final = False

    def __init__(
        self,
        reader: EntryReader,
        settings: QueueSettings,
        *,
        name: str,
        prepare: Callable[[Pixels], Pixels],
        settler: Publisher,
        holdings: Holdings,
        ledger: Ledger,
        spec: InputSpec | None = None,
        at_work: Callable[[], AbstractContextManager[None]] = nullcontext,
        observe: Callable[[str, float], None] = lambda stage, seconds: None,
        count: Callable[[str, int], None] = lambda what, number: None,
        on_trouble: Callable[[CoatstreamError], None] = lambda trouble: None,
        on_success: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._reader = reader
        self._settings = settings
        self._prepare_pixels = prepare
        self._spec = spec if settings.decoding == "auto" else None
        self._settler = settler
        self._holdings = holdings
        self._ledger = ledger
        self._at_work = at_work
        self._observe = observe
        self._count = count
        self._on_trouble = on_trouble
        self._on_success = on_success
        self._clock = clock
        self._log = structlog.get_logger("queue")
        self._refusals = 0  # in a row
        self._undecoded = 0  # bytes of the entries in the window
        self._decoding: set[tuple[str, str]] = set()  # stream and entry of each picture that a thread has in hand

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        """Frames until `stop`, in the order in which they were read. Raises SourceLost when Redis is away, after
        handing on what was read before; RedisRefuses where that would never end.

        When it is stopped, what no batch has taken goes back to the server, for other workers.
        """
        self._reach(self._reader.join)
        window: Window = deque()  # read and being decoded, oldest first; at most the reader's prefetch
        self._undecoded = 0
        threads = self._settings.decode_threads or usable_cores()
        pool = ThreadPoolExecutor(threads, "decode", initializer=single_threaded)
        try:
            while not stop.is_set():
                self._read(window, pool, threads, stop)
                yield from self._ready(window, stop)
        except SourceLost:
            while window and not stop.is_set():
                yield from self._ready(window, stop)
            raise
        finally:
            if window or stop.is_set():
                self._reader.hand_back(self._hanging(window))
            self._reader.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _hanging(self, window: Window) -> frozenset[tuple[str, str]]:
        """Entries whose decoding has begun and does not end: to hand them back as new would be to try them for ever."""
        wait([future for future, _ in window if not future.cancel()], HANGS_AFTER)
        return frozenset(self._decoding)

    def _read(self, window: Window, pool: ThreadPoolExecutor, threads: int, stop: threading.Event) -> None:
        """What the reader takes goes to the decode pool, and is known to nobody else: it is large.

        A few entries at a time where there are many: each hand-over from thread to thread costs as much as a small
        picture's label.
        """
        entries = self._reach(lambda: self._reader.take(wait=not window, undecoded=self._undecoded))
        together = max(1, min(TOGETHER, len(entries) // (2 * threads)))
        for first in range(0, len(entries), together):
            some = entries[first : first + together]
            size = sum(entry.size for entry in some)
            window.append((pool.submit(self._prepare_all, some, stop), size))
            self._undecoded += size
        self._refusals = 0
        self._on_success()

    def _reach(self, call: Callable[[], T]) -> T:
        """What `call` says. Raises SourceLost where Redis is away."""
        try:
            return call()
        except RedisUnavailable as trouble:
            self._on_trouble(trouble)
            raise SourceLost(str(trouble), slow=trouble.slow, reason=DownReason.REDIS) from trouble
        except RedisRefuses as trouble:
            self._on_trouble(trouble)
            self._refusals += 1
            if self._refusals >= REFUSALS:
                raise
            raise SourceLost(str(trouble), slow=True, reason=DownReason.REDIS) from trouble

    def _ready(self, window: Window, stop: threading.Event) -> Iterator[Frame]:
        """The oldest entries, waiting for them, and those behind them that are done too."""
        lost: list[Buried | Dropped] = []
        waited = False
        while window and not stop.is_set() and (window[0][0].done() or (not waited and _done(window[0][0], stop))):
            waited = True
            future, size = window[0]
            done = future.result()
            while done:
                prepared = done.popleft()
                if not isinstance(prepared, Frame):
                    lost.append(prepared)
                    continue
                self._settle(lost)
                lost = []
                yield prepared
            window.popleft()
            self._undecoded -= size
        self._settle(lost)

    def _settle(self, outcomes: list[Buried | Dropped]) -> None:
        if not outcomes:
            return
        for outcome in outcomes:
            self._ledger.received(outcome.source)
        try:
            settlement, _ = self._settler.publish(outcomes)
        except RedisUnavailable as trouble:
            raise SourceLost(str(trouble), reason=DownReason.REDIS) from trouble
        self._holdings.settled(outcome.receipt for outcome in outcomes)
        self._count("letters_dropped", settlement.letters_dropped)
        for outcome, done in zip(outcomes, settlement.done, strict=True):
            book(self._ledger, outcome, done=done)

    def _prepare_all(self, entries: Sequence[Taken], stop: threading.Event) -> deque[Prepared]:
        """Runs in the decode pool. After `stop` none is begun: what takes long would count as a picture that hangs."""
        return deque(map(self._prepare, takewhile(lambda _: not stop.is_set(), entries)))

    def _prepare(self, taken: Taken) -> Prepared:
        receipt = _receipt(taken)
        self._decoding.add((taken.stream, taken.entry_id))
        try:
            entry = parse(taken.entry_id, taken.fields)
            if entry.expires_at is not None and entry.expires_at < self._clock():
                return Dropped(entry.source, DropReason.EXPIRED, receipt, entry.frame_id)
            with self._at_work():
                return self._frame(entry, receipt)
        except BadFrame as bad:
            return _buried(taken, bad.reason, str(bad))
        except Exception as error:  # a decoder at work on a stranger's bytes: no picture may end the worker
            self._log.error("an entry could not be prepared", entry_id=taken.entry_id, error=repr(error)[:200])
            problem = f"{type(error).__name__} while preparing"
            return _buried(taken, DeadReason.UNDECODABLE, problem)
        finally:
            self._decoding.discard((taken.stream, taken.entry_id))

    def _frame(self, entry: Entry, receipt: Receipt) -> Frame:
        started = time.perf_counter()
        picture = self._picture(entry.picture)
        decoded = time.perf_counter()
        pixels = self._prepare_pixels(picture.pixels)
        self._observe("decode", decoded - started)
        self._observe("prepare", time.perf_counter() - decoded)
        return Frame(
            source=entry.source,
            frame_id=entry.frame_id,
            captured_at=entry.captured_at,
            pixels=pixels,
            width=picture.width,
            height=picture.height,
            receipt=receipt,
            expires_at=entry.expires_at,
            meta=entry.meta,
        )

    def _picture(self, picture: bytes | RawPixels) -> Picture:
        limits = self._settings
        if isinstance(picture, bytes):
            return decode_for(self._spec, picture, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
        if len(picture.data) > limits.max_bytes or picture.width * picture.height > limits.max_pixels:
            raise BadFrame(
                DeadReason.TOO_LARGE,
                f"{picture.width} x {picture.height} raw pixels in {len(picture.data)} bytes are over queue.max_pixels "
                f"({limits.max_pixels}) or queue.max_bytes ({limits.max_bytes})",
            )
        pixels = raw(picture.data, width=picture.width, height=picture.height, pixel_format=picture.format)
        return Picture(pixels, picture.width, picture.height)


def _receipt(taken: Taken) -> Receipt:
    return Receipt(taken.stream, taken.entry_id, admitted_of(taken.fields))


def _buried(taken: Taken, reason: DeadReason, error: str) -> Buried:
    """Under the frame's own names, as far as they can be read."""
    source, frame_id = source_or_default(taken.fields), frame_id_or_default(taken.fields)
    return Buried(source, reason, error, _receipt(taken), frame_id)


def _done(future: Future[deque[Prepared]], stop: threading.Event) -> bool:
    """Wait for it. False: stopped before it was done."""
    while not stop.is_set():
        if wait((future,), TICK).done:
            return True
    return False
