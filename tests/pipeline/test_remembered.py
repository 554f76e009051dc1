"""What an engine did is remembered from start to start."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coatstream.engine.cache import Cache
from coatstream.pipeline.cost import BatchCost
from coatstream.pipeline.policy import BatchPolicy
from coatstream.pipeline.pump import WarmEngine
from coatstream.pipeline.remembered import RememberedCosts
from coatstream.settings.model import BatchSettings
from coatstream.telemetry.ledger import Ledger

from tests.support.doubles import FixedEngine


def costs(rate: float) -> BatchCost:
    return BatchCost.of({size: size / rate for size in (1, 2, 4, 8)})


class Starts:
    """Several starts of one engine on one machine."""

    def __init__(self, folder: Path) -> None:
        self.cache = Cache(folder)
        self.engine = FixedEngine()
        self.warnings: list[dict[str, Any]] = []

    def remembered(self) -> RememberedCosts:
        return RememberedCosts(self.engine, self.cache, log=lambda event, **values: self.warnings.append(values))

    def start(self, rate: float) -> float:
        return self.remembered().at_start(costs(rate)).rate


@pytest.fixture
def starts(tmp_path: Path) -> Starts:
    return Starts(tmp_path)


def test_a_disturbed_start_goes_by_what_an_earlier_one_measured_and_says_so(starts: Starts) -> None:
    rates = [starts.start(rate) for rate in (300, 109, 250, 314, 109)]

    assert rates == pytest.approx([300, 300, 300, 314, 314])
    assert [(line["frames_per_s"], line["remembered"]) for line in starts.warnings] == [(109, 300), (109, 314)]


def test_another_engine_is_another_memory(starts: Starts) -> None:
    starts.start(300)
    starts.engine.info = replace(starts.engine.info, precision="bf16")

    assert starts.start(100) == pytest.approx(100)


@pytest.mark.parametrize("junk", [7, {}, {"measured": []}, {"measured": [[0, 1.0]]}, {"measured": [[1, -1.0]]}])
def test_a_document_that_makes_no_sense_is_no_memory(
    starts: Starts, junk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "read_json", lambda *_: junk)

    assert starts.start(100) == pytest.approx(100)


def test_a_device_that_does_not_tell_its_name_is_remembered_all_the_same(starts: Starts) -> None:
    starts.engine.info = replace(starts.engine.info, device="cuda:99")

    assert [starts.start(rate) for rate in (300, 250)] == pytest.approx([300, 300])


def test_without_a_cache_each_start_is_its_own() -> None:
    remembered = RememberedCosts(FixedEngine(), None)

    assert [remembered.at_start(costs(rate)).rate for rate in (300, 100)] == pytest.approx([300, 100])


async def test_it_is_measured_again_when_there_is_nothing_to_do_and_that_counts(starts: Starts) -> None:
    starts.start(1.0)
    with ThreadPoolExecutor(1) as threads:
        policy = BatchPolicy.from_settings(BatchSettings(), costs(1.0))
        warm = WarmEngine(starts.engine, threads, policy)
        measuring = asyncio.create_task(starts.remembered().measure_when_idle(warm, Ledger(), idle=0.01))
        async with asyncio.timeout(60):
            while policy.stats().cost.rate < 10:
                await asyncio.sleep(0.01)
        measuring.cancel()

    assert starts.start(1.0) == policy.stats().cost.rate
