"""From mailbox to Redis: order is kept, nothing is lost in a drain, outages are waited out."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from coatstream.errors import RedisUnavailable
from coatstream.frames.frame import Pixels, Scores
from coatstream.pipeline.accounting import Accounting
from coatstream.pipeline.cost import BatchCost
from coatstream.pipeline.inference import Inference
from coatstream.pipeline.mailbox import Mailbox
from coatstream.pipeline.metrics import PipelineMetrics
from coatstream.pipeline.policy import BatchPolicy
from coatstream.pipeline.pump import Pump, WarmEngine
from coatstream.results.metrics import SettlementMetrics
from coatstream.results.outcomes import Outcome, Published
from coatstream.results.publisher import Publisher
from coatstream.results.settler import Settlement
from coatstream.telemetry.ledger import DropReason, Ledger
from coatstream.telemetry.status import Status
from prometheus_client import CollectorRegistry

from tests.support.doubles import FixedEngine, HeardHealth, make_frame


class MemorySettler:
    """Settles into a list; fails as often as it is told to; `foreign` entries belong to somebody else by now."""

    def __init__(self, *, failures: int = 0, foreign: frozenset[str] = frozenset()) -> None:
        self.settled: list[Outcome] = []
        self.calls = 0
        self.failures = failures
        self.foreign = foreign

    def settle(self, outcomes: Sequence[Outcome], *, now: float) -> Settlement:
        self.calls += 1
        if self.calls <= self.failures:
            raise RedisUnavailable("connection refused")
        self.settled += outcomes
        done = tuple(not (outcome.receipt and outcome.receipt.entry_id in self.foreign) for outcome in outcomes)
        return Settlement(done, 0)


class Fixture:
    def __init__(self, engine: FixedEngine, settler: MemorySettler, *, max_size: int = 4) -> None:
        self.engine, self.settler = engine, settler
        self.registry, self.ledger = CollectorRegistry(), Ledger()
        self.accounting = Accounting(self.ledger, SettlementMetrics(self.registry))
        self.holdings = self.accounting.holdings
        self.metrics = PipelineMetrics(self.registry)
        self.status = Status(stall_after=60)
        self.mailbox = Mailbox(1000, self.ledger)
        self.publisher = Publisher(
            settler,  # type: ignore[arg-type]
            HeardHealth(),
        )
        self.policy = BatchPolicy(BatchCost.of({1: 0.001}), max_size)

    def put(self, count: int, *, sources: int = 1, entries: bool = False) -> None:
        for number in range(count):
            frame = make_frame(
                str(number),
                source=f"s{number % sources}",
                red=number % 256,
                entry_id=f"{number}-0" if entries else None,
            )
            if frame.receipt is None:
                self.ledger.received(frame.source)
            else:
                self.holdings.add(frame.receipt.stream, (frame.receipt.entry_id,))
            self.mailbox.put(frame, reader="queue", live=False)

    @asynccontextmanager
    async def pumping(self) -> AsyncIterator[asyncio.Task[None]]:
        inference = Inference(self.engine, policies={}, metrics=self.metrics, status=self.status)
        with ThreadPoolExecutor(self.engine.streams) as engines, ThreadPoolExecutor(1) as publishing:
            pump = Pump(
                self.mailbox,
                WarmEngine(self.engine, engines, self.policy),
                inference,
                self.publisher,
                publishing=publishing,
                accounting=self.accounting,
                metrics=self.metrics,
            )
            task = asyncio.create_task(pump.run())
            try:
                yield task
            finally:
                self.mailbox.close()
                self.engine.gate.set()
                await asyncio.wait_for(task, 10)

    def published(self, source: str = "s0") -> list[int]:
        return [
            int(outcome.prediction.frame_id)
            for outcome in self.settler.settled
            if isinstance(outcome, Published) and outcome.source == source
        ]


async def test_everything_in_the_mailbox_is_published_before_the_pump_ends() -> None:
    fixture = Fixture(FixedEngine(), MemorySettler())
    fixture.put(103)

    async with fixture.pumping():
        pass

    assert fixture.published() == list(range(103))
    assert fixture.ledger.total().published == 103
    assert fixture.ledger.total().in_flight == 0


@pytest.mark.parametrize("streams", [1, 2, 4])
async def test_order_per_source_is_kept_with_several_batches_in_the_engine(streams: int) -> None:
    fixture = Fixture(FixedEngine(streams=streams), MemorySettler())
    fixture.put(200, sources=3)

    async with fixture.pumping():
        pass

    for source in range(3):
        numbers = fixture.published(f"s{source}")
        assert numbers == sorted(numbers)
        assert len(numbers) == len(range(source, 200, 3))


async def test_a_batch_is_taken_only_when_the_engine_is_free() -> None:
    engine = FixedEngine()
    engine.gate.clear()
    fixture = Fixture(engine, MemorySettler(), max_size=1)
    fixture.put(3)

    async with fixture.pumping():
        assert await asyncio.to_thread(engine.entered.acquire, timeout=5)

        assert fixture.mailbox.waiting == 2  # one in the engine, the others are still replaceable


async def test_an_outage_is_waited_out_and_nothing_is_lost_or_doubled() -> None:
    settler = MemorySettler(failures=3)
    fixture = Fixture(FixedEngine(), settler)
    fixture.put(10)

    async with fixture.pumping():
        pass

    assert fixture.published() == list(range(10))


async def test_frames_that_somebody_else_settled_are_dropped_as_superseded() -> None:
    fixture = Fixture(FixedEngine(), MemorySettler(foreign=frozenset({"2-0"})))
    fixture.put(4, entries=True)

    async with fixture.pumping():
        pass

    account = fixture.ledger.total()
    assert (account.published, account.dropped) == (3, {DropReason.SUPERSEDED: 1})


async def test_what_is_settled_is_no_longer_held() -> None:
    fixture = Fixture(FixedEngine(), MemorySettler())
    fixture.put(4, entries=True)
    assert len(fixture.holdings) == 4

    async with fixture.pumping():
        pass

    assert len(fixture.holdings) == 0


async def test_a_frame_whose_lease_was_lost_before_its_batch_is_neither_received_nor_classified() -> None:
    fixture = Fixture(FixedEngine(), MemorySettler())
    fixture.put(4, entries=True)
    fixture.holdings.remove("frames", ["1-0", "2-0"])

    async with fixture.pumping():
        pass

    assert fixture.published() == [0, 3]
    assert fixture.ledger.total().received == 2
    assert sum(fixture.engine.batches) == 2


async def test_a_batch_of_which_nothing_is_left_says_nothing_to_redis() -> None:
    settler = MemorySettler()
    fixture = Fixture(FixedEngine(), settler)
    fixture.put(4, entries=True)
    fixture.holdings.give_up("frames")

    async with fixture.pumping():
        pass

    assert (settler.calls, fixture.engine.batches, fixture.ledger.total().received) == (0, [], 0)


async def test_giving_up_ends_a_retry_that_would_go_on_for_ever() -> None:
    fixture = Fixture(FixedEngine(), MemorySettler(failures=1_000_000))
    fixture.put(1)
    fixture.mailbox.close()

    async def pump_that_is_given_up() -> None:
        async with fixture.pumping() as pump:
            fixture.publisher.give_up()
            await asyncio.wait([pump], timeout=5)

    with pytest.raises(RedisUnavailable, match="connection refused"):
        await pump_that_is_given_up()

    assert fixture.ledger.total().in_flight == 1


async def test_batches_are_counted_by_why_they_left() -> None:
    fixture = Fixture(FixedEngine(), MemorySettler(), max_size=4)
    fixture.put(9)
    fixture.mailbox.close()

    async with fixture.pumping():
        pass

    value = fixture.registry.get_sample_value
    assert value("coatstream_batches_total", {"reason": "full"}) == 2
    assert value("coatstream_batches_total", {"reason": "drain"}) == 1
    assert value("coatstream_batch_size_frames_sum") == 9


async def test_a_batch_waits_for_frames_that_are_being_decoded_where_they_would_fill_it() -> None:
    fixture = Fixture(FixedEngine(), MemorySettler(), max_size=4)
    fixture.holdings.add("frames", [f"{number}-0" for number in range(4)])

    async with fixture.pumping():
        for number in range(4):
            fixture.mailbox.put(
                make_frame(str(number), source="s0", entry_id=f"{number}-0"), reader="queue", live=False
            )
            await asyncio.sleep(0)
        while fixture.ledger.total().published < 4:
            await asyncio.sleep(0.001)

    assert fixture.settler.calls == 1
    assert fixture.published() == [0, 1, 2, 3]


async def test_a_batch_does_not_wait_for_long_for_frames_whose_decoding_does_not_end() -> None:
    fixture = Fixture(FixedEngine(), MemorySettler(), max_size=4)
    fixture.holdings.add("frames", [f"{number}-0" for number in range(4)])

    async with fixture.pumping(), asyncio.timeout(60):
        fixture.mailbox.put(make_frame("0", source="s0", entry_id="0-0"), reader="queue", live=False)
        while fixture.ledger.total().published < 1:
            await asyncio.sleep(0.001)

    assert fixture.published() == [0]
    assert fixture.holdings.unbegun == 3


async def test_a_frame_that_is_alone_in_hand_waits_for_nobody() -> None:
    fixture = Fixture(FixedEngine(), MemorySettler(), max_size=4)
    fixture.holdings.add("frames", ["0-0", "1-0"])  # two: no full batch is coming

    async with fixture.pumping():
        fixture.mailbox.put(make_frame("0", source="s0", entry_id="0-0"), reader="queue", live=False)
        while fixture.ledger.total().published < 1:
            await asyncio.sleep(0.001)

    assert fixture.settler.calls == 1


class HoldsBlack(FixedEngine):
    """Keeps a batch that begins with a black picture until it is let go; others pass."""

    def __init__(self) -> None:
        super().__init__(streams=2)
        self.let_go = threading.Event()

    def classify(self, pixels: Pixels) -> Scores:
        if pixels[0].max() == 0:
            assert self.let_go.wait(60)
        return super().classify(pixels)


async def test_a_slow_batch_holds_up_neither_the_other_stream_nor_more_than_one_batch_more() -> None:
    engine = HoldsBlack()
    fixture = Fixture(engine, MemorySettler(), max_size=1)
    fixture.put(6)

    async with fixture.pumping():
        async with asyncio.timeout(60):
            while len(engine.batches) < 2 or fixture.mailbox.waiting > 3:
                await asyncio.sleep(0.005)
        for _ in range(50):  # the pump has every chance to take one more
            await asyncio.sleep(0)
        waiting, passed, published = fixture.mailbox.waiting, len(engine.batches), fixture.published()
        engine.let_go.set()
        async with asyncio.timeout(60):
            while len(fixture.published()) < 6:
                await asyncio.sleep(0.005)

    assert (waiting, passed, published) == (3, 2, [])  # the first one is in the engine: three were taken, and no more
    assert fixture.published() == [0, 1, 2, 3, 4, 5]
