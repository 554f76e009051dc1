"""From a queue entry to a frame of the model's size, or to the outcome of one that cannot become a frame."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, NamedTuple

import structlog

from coatstream.engine.cores import usable_cores
from coatstream.errors import BadFrame, DeadReason
from coatstream.frames.decoding import DecodedPicture, decode_for, raw
from coatstream.frames.frame import Frame, InputSpec, Pixels, Receipt
from coatstream.pipeline.memory_room import is_out_of_memory
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.queue.entry import (
    FrameEntry,
    RawPixels,
    admitted_of,
    believable,
    frame_id_or_default,
    parse,
    source_or_default,
)
from coatstream.queue.group import Fields
from coatstream.queue.observer import QueueObserver
from coatstream.queue.previews import QueuePreviews
from coatstream.queue.server_clock import ServerClock
from coatstream.results.outcomes import Buried, Dropped
from coatstream.settings.model import QueueSettings
from coatstream.telemetry.ledger import DropReason
from coatstream.telemetry.status import Status

ALONE_WITHIN: Final = 5.0  # seconds that a picture which found no memory waits for the others in the decoders to end


class Returned(NamedTuple):
    """An entry for which this machine has no memory now. It goes back to the group, and this delivery counts."""

    stream: str
    entry_id: str


Prepared = Frame | Buried | Dropped | Returned


class Taken(NamedTuple):
    """An entry that this worker has taken."""

    stream: str
    entry_id: str
    fields: Fields
    left_out: int = 0  # bytes of a picture that was not fetched, because it is too large

    @property
    def size(self) -> int:
        """Bytes of its fields."""
        return sum(map(len, self.fields.values()))


class EntryDecoder:
    """Called from the decode pool, by all of its threads.

    prepare       uint8 [height, width, 3] RGB of any size -> the same at the model's size
    spec          of the model for which JPEGs may be decoded at half size (queue.decoding: auto); None: never
    clock         ours, and the server's, by which `expires_at` is judged
    """

    def __init__(
        self,
        settings: QueueSettings,
        prepare: Callable[[Pixels], Pixels],
        status: Status,
        metrics: PipelineMetrics,
        observer: QueueObserver,
        *,
        previews: QueuePreviews | None = None,
        spec: InputSpec | None = None,
        clock: ServerClock | None = None,
    ) -> None:
        self.threads = settings.decode_threads or usable_cores()
        self._limits = settings
        self._prepare = prepare
        self._status = status
        self._metrics = metrics
        self._observer = observer
        self._previews = previews
        self._spec = spec if settings.decoding == "auto" else None
        self._clock = clock or ServerClock()
        self._changed = threading.Condition()  # guards the next two
        self._reserved = False  # True: one picture shall have all of the memory
        self._log = structlog.get_logger("queue")
        self._in_hand: set[tuple[str, str]] = set()  # stream and entry of each picture that a thread has in hand

    @property
    def in_hand(self) -> frozenset[tuple[str, str]]:
        """Stream and entry of each picture that is being decoded."""
        return frozenset(self._in_hand)

    def __call__(self, taken: Taken) -> Prepared:
        receipt = _receipt(taken)
        if taken.left_out:
            return _buried(taken, DeadReason.TOO_LARGE, self._too_large(taken.left_out))
        try:
            with self._having(taken):
                return self._prepared(taken, receipt)
        except MemoryError:
            return self._prepared_alone(taken, receipt)

    @contextmanager
    def _having(self, taken: Taken, *, alone: bool = False) -> Iterator[None]:
        """While a thread has this picture in hand. `alone`: and no other thread has one."""
        with self._changed:
            self._changed.wait_for(lambda: not self._reserved)
            if alone:
                self._reserved = True
                self._changed.wait_for(lambda: not self._in_hand, ALONE_WITHIN)
            self._in_hand.add((taken.stream, taken.entry_id))
        try:
            yield
        finally:
            with self._changed:
                self._in_hand.discard((taken.stream, taken.entry_id))
                self._reserved = self._reserved and not alone
                self._changed.notify_all()

    def _prepared(self, taken: Taken, receipt: Receipt) -> Prepared:
        """Raises MemoryError, which is the machine's doing."""
        try:
            entry = self._dated(parse(taken.entry_id, taken.fields))
            if entry.expires_at is not None and entry.expires_at < self._clock.here():
                return Dropped(entry.source, DropReason.EXPIRED, receipt, entry.frame_id)
            with self._status.at_work("a picture"):  # so that a decoder that hangs is noticed
                return self._frame(entry, receipt)
        except BadFrame as bad:
            return _buried(taken, bad.reason, str(bad))
        except Exception as error:  # a decoder works on a stranger's bytes: no picture may end the worker
            if is_out_of_memory(error):
                raise MemoryError from error
            self._log.error("an entry could not be prepared", entry_id=taken.entry_id, error=repr(error)[:200])
            return _buried(taken, DeadReason.UNDECODABLE, f"{type(error).__name__} while preparing")

    def _prepared_alone(self, taken: Taken, receipt: Receipt) -> Prepared:
        """Once more, with no other picture in the decoders. What still finds no memory may fit into another worker."""
        with self._having(taken, alone=True):
            try:
                return self._prepared(taken, receipt)
            except MemoryError:
                self._log.error("there is no memory for a picture: its entry goes back", entry_id=taken.entry_id)
                return Returned(taken.stream, taken.entry_id)

    def _too_large(self, size: int) -> str:
        longest = self._limits.max_bytes
        if size > longest:
            return f"the picture has {size} bytes, more than the {longest} allowed"
        return (
            f"the server cuts off any reply with this picture of {size} bytes: raise client-output-buffer-limit or "
            "maxmemory-clients there"
        )

    def _dated(self, entry: FrameEntry) -> FrameEntry:
        """In this machine's time: expiry was meant by the server's clock. A time that cannot be right counts as
        unknown: the frame takes the time at which it is read.
        """
        now = self._clock.here()
        if entry.expires_at is not None:
            entry = replace(entry, expires_at=entry.expires_at + self._clock.ahead)
        if believable(entry.captured_at, now=now, max_skew=self._limits.max_skew):
            return entry
        self._observer.wrong_time(entry.source, entry.captured_at - now)
        return replace(entry, captured_at=now)

    def _frame(self, entry: FrameEntry, receipt: Receipt) -> Frame:
        started = time.perf_counter()
        picture = self._picture(entry.picture)
        if self._previews is not None:
            self._previews.look(entry.source, entry.frame_id, entry.captured_at, picture.pixels)
        decoded = time.perf_counter()
        pixels = self._prepare(picture.pixels)
        self._metrics.observe("decode", decoded - started)
        self._metrics.observe("prepare", time.perf_counter() - decoded)
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

    def _picture(self, picture: bytes | RawPixels) -> DecodedPicture:
        limits = self._limits
        if isinstance(picture, bytes):
            return decode_for(self._spec, picture, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
        if len(picture.data) > limits.max_bytes or picture.width * picture.height > limits.max_pixels:
            raise BadFrame(
                DeadReason.TOO_LARGE,
                f"{picture.width} x {picture.height} raw pixels in {len(picture.data)} bytes are over queue.max_pixels "
                f"({limits.max_pixels}) or queue.max_bytes ({limits.max_bytes})",
            )
        pixels = raw(picture.data, width=picture.width, height=picture.height, pixel_format=picture.format)
        return DecodedPicture(pixels, picture.width, picture.height)


def _receipt(taken: Taken) -> Receipt:
    return Receipt(taken.stream, taken.entry_id, admitted_of(taken.fields))


def _buried(taken: Taken, reason: DeadReason, error: str) -> Buried:
    """Under the frame's own names, as far as they can be read."""
    source, frame_id = source_or_default(taken.fields), frame_id_or_default(taken.fields)
    return Buried(source, reason, error, _receipt(taken), frame_id)
