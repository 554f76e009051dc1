"""What `python -m bench pipeline` compares with: the same decoding and the same engine, and nothing else.

As many decoding threads and engine streams as the worker has, in batches of the same size; frames go from one to the
other through one bounded queue in memory. No Redis, no loop, no ledger, no labels.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Final

import numpy as np
from coatstream.engine.cores import single_threaded, usable_cores
from coatstream.engine.loading import load_engine
from coatstream.engine.memory import tune_allocator
from coatstream.engine.protocol import Engine
from coatstream.errors import EngineError
from coatstream.frames.frame import Pixels
from coatstream.frames.model import ModelInfo
from coatstream.frames.resizing import prepare
from coatstream.settings.model import BatchSettings, ModelSettings, QueueSettings

from bench.pictures import PictureKind

STUCK_AFTER: Final = 60.0  # seconds without a decoded frame


@dataclass(frozen=True, slots=True)
class Drained:
    """So many frames a second, and the processor time that they took."""

    rate: float
    cpu_seconds: float


class Bare:
    """Decoding and engine, called in a process of its own."""

    def __init__(self, model: ModelSettings, batch: BatchSettings, queue: QueueSettings) -> None:
        tune_allocator()
        self._engine: Engine = load_engine(model, batch)
        self._queue = queue
        self._threads = queue.decode_threads or usable_cores()
        self._decoding = ThreadPoolExecutor(self._threads, "decode", initializer=single_threaded)
        self._classifying = ThreadPoolExecutor(self._engine.streams, "engine")

    def warm_up(self) -> ModelInfo:
        self._engine.warm_up()
        return self._engine.info

    def drain(self, kind: PictureKind, frames: int, batch: int) -> Drained:
        """From nothing decoded to everything classified. Raises EngineError."""
        ready: Queue[Pixels] = Queue(2 * batch * self._engine.streams)
        shares = _Batches(frames, batch)
        began, spent = time.perf_counter(), time.process_time()
        decoders = [
            self._decoding.submit(self._decode, kind, range(first, frames, self._threads), ready)
            for first in range(self._threads)
        ]
        streams = [self._classifying.submit(self._classify, ready, shares) for _ in range(self._engine.streams)]
        for part in (*streams, *decoders):
            part.result()
        return Drained(frames / (time.perf_counter() - began), time.process_time() - spent)

    def _decode(self, kind: PictureKind, numbers: range, ready: "Queue[Pixels]") -> None:
        for number in numbers:
            picture = kind.pictures[number % len(kind.pictures)]
            spec = self._engine.spec
            ready.put(prepare(kind.open(picture, self._queue, spec), spec), timeout=STUCK_AFTER)

    def _classify(self, ready: "Queue[Pixels]", shares: "_Batches") -> None:
        while pixels := shares.take(ready):
            self._engine.classify(np.stack(pixels))


class _Batches:
    """Hands out batches, a whole one to one stream at a time."""

    def __init__(self, frames: int, batch: int) -> None:
        self._left = frames
        self._batch = batch
        self._taking = threading.Lock()

    def take(self, ready: "Queue[Pixels]") -> list[Pixels]:
        """The next batch; empty when all frames are taken. Raises EngineError."""
        with self._taking:
            count = min(self._batch, self._left)
            self._left -= count
            try:
                return [ready.get(timeout=STUCK_AFTER) for _ in range(count)]
            except Empty:
                raise EngineError("the bare side decodes no more frames") from None
