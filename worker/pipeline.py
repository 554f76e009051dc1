"""The pump: takes a batch when the engine is free, and publishes batches in the order in which they were taken.

A batch holds an engine slot until its publishing turn has come, then frees the slot and publishes: the engine never
waits for Redis, order per source is kept, and at most one finished batch waits behind the one that is being published.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from config.settings import BatchSettings
from worker.batching import Batch, next_batch
from worker.broker.publisher import Publisher
from worker.broker.settler import Settlement
from worker.frames import Frame, Prediction
from worker.inference import Inference
from worker.ledger import Ledger
from worker.mailbox import Mailbox
from worker.metrics import Metrics
from worker.outcomes import Outcome, Published, book
from worker.sources.holdings import Holdings


class Pipeline:
    """Mailbox to Redis. All of it runs on the loop; engine and publisher run on the executors that they are given.

    `publishing` must have one thread: one batch at a time is published.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        inference: Inference,
        publisher: Publisher,
        *,
        batch: BatchSettings,
        slots: int,
        engines: Executor,
        publishing: Executor,
        holdings: Holdings,
        ledger: Ledger,
        metrics: Metrics,
        on_published: Callable[[Prediction], None] = lambda prediction: None,
    ) -> None:
        """`on_published` hears of every label of a camera's frame that has gone out, in order per camera."""
        self._mailbox = mailbox
        self._inference = inference
        self._publisher = publisher
        self._batch = batch
        self._slots = asyncio.Semaphore(slots)
        self._engines = engines
        self._publishing = publishing
        self._holdings = holdings
        self._ledger = ledger
        self._metrics = metrics
        self._on_published = on_published

    async def pump(self) -> None:
        """Run until the mailbox is closed and all that was taken is published. Raises what a batch raised first."""
        try:
            await self._take_batches()
        except ExceptionGroup as group:  # the others are its consequences, and one line is for a person
            raise group.exceptions[0] from group

    async def _take_batches(self) -> None:
        turn = asyncio.Event()
        turn.set()
        async with asyncio.TaskGroup() as batches:
            while True:
                await self._slots.acquire()
                batch = await next_batch(self._mailbox, max_size=self._batch.max_size, max_wait=self._batch.max_wait)
                if batch is None:
                    return
                next_turn = asyncio.Event()
                batches.create_task(self._process(batch, turn, next_turn))
                turn = next_turn

    async def _process(self, batch: Batch, turn: asyncio.Event, next_turn: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        try:
            batch = self._begin(batch)
            outcomes: Sequence[Outcome] = ()
            if batch.letters:
                outcomes = await loop.run_in_executor(self._engines, self._inference.run, batch)
            await turn.wait()
            self._slots.release()
            if not outcomes:
                return
            started = loop.time()
            settlement, published_at = await loop.run_in_executor(self._publishing, self._publisher.publish, outcomes)
            self._metrics.observe("publish", loop.time() - started)
            self._enter(outcomes, settlement, published_at)
        finally:
            next_turn.set()

    def _begin(self, batch: Batch) -> Batch:
        """Without frames whose entries have gone to another worker meanwhile. The others count as received now."""
        ours = [letter for letter in batch.letters if self._is_ours(letter.frame)]
        return replace(batch, letters=ours)

    def _is_ours(self, frame: Frame) -> bool:
        if frame.receipt is None:
            return True
        if not self._holdings.begin(frame.receipt):
            return False
        self._ledger.received(frame.source)
        return True

    def _enter(self, outcomes: Sequence[Outcome], settlement: Settlement, published_at: float) -> None:
        """Write the batch into the ledger; what is settled is no longer held."""
        self._holdings.settled(outcome.receipt for outcome in outcomes)
        self._metrics.count("letters_dropped", settlement.letters_dropped)
        self._metrics.latest_left_out.inc(settlement.sources_left_out)
        for outcome, done in zip(outcomes, settlement.done, strict=True):
            book(self._ledger, outcome, done=done)
            if done and isinstance(outcome, Published):
                self._metrics.age.observe(max(0.0, published_at - outcome.prediction.captured_at))
                if outcome.receipt is None:
                    self._on_published(outcome.prediction)
