"""The pump: takes a batch when the engine is free, and publishes batches in the order in which they were taken.

A batch frees its engine slot as soon as it is classified, so neither Redis nor a slower batch before it holds up the
engine. Its turn to be published comes when the one before has been: order per source is kept. Of batches that are in
the engine or wait for their turn there are at most two less one for each slot; then the pump takes no more.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from coatstream.engine.protocol import Engine
from coatstream.frames.frame import Prediction
from coatstream.pipeline.accounting import Accounting
from coatstream.pipeline.batching import Batch, gather
from coatstream.pipeline.inference import Inference
from coatstream.pipeline.mailbox import Mailbox
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.policy import BatchPolicy
from coatstream.results.outcomes import Outcome, Published
from coatstream.results.publisher import Publisher

LONGEST_GROWTH: Final = 0.02  # seconds that a batch waits at most for frames that are being decoded


@dataclass(frozen=True, slots=True)
class WarmEngine:
    """A warm engine, its threads (one for each of its streams), and how its batches are chosen."""

    engine: Engine
    threads: Executor
    policy: BatchPolicy


class Pump:
    """Mailbox to Redis. All of it runs on the loop; engine and publisher run on their threads."""

    def __init__(
        self,
        mailbox: Mailbox,
        engine: WarmEngine,
        inference: Inference,
        publisher: Publisher,
        *,
        publishing: Executor,
        accounting: Accounting,
        metrics: PipelineMetrics,
        on_published: Callable[[Prediction], None] = lambda prediction: None,
    ) -> None:
        """`publishing` has one thread: one batch at a time is published. `on_published` is called on the loop with each
        label of a camera that was published, in order for each camera.
        """
        slots = engine.engine.streams
        self._mailbox = mailbox
        self._inference = inference
        self._publisher = publisher
        self._policy = engine.policy
        self._slots = asyncio.Semaphore(slots)
        self._unordered = asyncio.Semaphore(2 * slots - 1)  # batches that were taken and wait for their turn, or will
        self._engines = engine.threads
        self._publishing = publishing
        self._accounting = accounting
        self._metrics = metrics
        self._on_published = on_published

    async def run(self) -> None:
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
                await self._unordered.acquire()
                await self._slots.acquire()
                await self._let_it_grow()
                batch = await gather(self._mailbox, self._policy, crowded=self._slots.locked)
                if batch is None:
                    return
                next_turn = asyncio.Event()
                batches.create_task(self._process(batch, turn, next_turn))
                turn = next_turn

    async def _let_it_grow(self) -> None:
        """While the queue's reader has so many frames in hand that they would fill the batch, it waits for them.

        An engine that is faster than decoding would else get one frame at a time, at a batch's cost each: half a
        millisecond of the cores that decode. Only behind a queue's backlog; a camera's frame that is here waits, too,
        and no frame waits for long.
        """
        waiting, size = self._mailbox.waiting, self._policy.cap
        coming = self._accounting.holdings.unbegun - waiting
        if self._policy.target is None and size > waiting >= size - coming:
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_GROWTH):
                    await self._mailbox.filled(size)

    async def _process(self, batch: Batch, turn: asyncio.Event, next_turn: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        try:
            batch = replace(batch, queued=self._accounting.begin(batch.queued))
            outcomes: Sequence[Outcome] = ()
            began = loop.time()
            if batch.queued:
                outcomes = await loop.run_in_executor(self._engines, self._inference.run, batch)
            classified = loop.time()
            self._slots.release()
            await turn.wait()
            self._unordered.release()
            if not outcomes:
                return
            done = await loop.run_in_executor(self._publishing, self._publish, outcomes)
            self._policy.classified(batch.inputs, classified - began)
            self._policy.published(loop.time() - classified)
            for outcome, settled in zip(outcomes, done, strict=True):
                if settled and isinstance(outcome, Published) and outcome.receipt is None:
                    self._on_published(outcome.prediction)
        finally:
            next_turn.set()

    def _publish(self, outcomes: Sequence[Outcome]) -> Sequence[bool]:
        """Settle and book the batch, in the publishing thread; whether each outcome was ours to settle."""
        started = time.perf_counter()
        settlement, published_at = self._publisher.publish(outcomes)
        self._metrics.observe("publish", time.perf_counter() - started)
        self._accounting.settled(outcomes, settlement)
        for outcome, done in zip(outcomes, settlement.done, strict=True):
            if done and isinstance(outcome, Published):
                self._metrics.age.observe(max(0.0, published_at - outcome.prediction.captured_at))
        return settlement.done
