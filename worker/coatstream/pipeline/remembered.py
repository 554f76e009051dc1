"""What an engine did on this machine, kept in the cache from start to start: one measurement is drawn by lot.

Thirteen starts of one model on one machine measured 109 to 314 frames/s, and kept that for life: a neighbour was busy
in that half second. Admission of cameras and the size of batches rest on it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Final

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from coatstream import __version__
from coatstream.engine.cache import Cache, Key
from coatstream.engine.capabilities import processor
from coatstream.engine.cores import usable_cores
from coatstream.engine.protocol import Engine
from coatstream.errors import EngineError
from coatstream.pipeline.cost import BatchCost, measure_costs
from coatstream.pipeline.pump import WarmEngine
from coatstream.telemetry.ledger import Ledger

SUSPICIOUS: Final = 0.7  # of the remembered rate: a start that measures less was disturbed, or the machine has changed
IDLE: Final = 30.0  # seconds without a frame after which the engine is measured again,
AGAIN: Final = 3600.0  # but not more often than this: a frame that comes just then waits for a second
_COSTS: Final = "costs"  # of documents in the cache


class _Kept(BaseModel):
    """Seconds of a batch by size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: tuple[tuple[int, float], ...]


class RememberedCosts:
    """Of one engine. `cache`: None remembers nothing, as for an engine without a model."""

    def __init__(self, engine: Engine, cache: Cache | None, *, log: Callable[..., None] | None = None) -> None:
        self._engine = engine
        self._cache = cache
        self._log = log or structlog.get_logger("engine").warning

    def at_start(self, measured: BatchCost) -> BatchCost:
        """The better one of what was measured now and what is remembered, and that is kept."""
        kept = self._read()
        if kept is None or measured.rate >= kept.rate:
            self.keep(measured)
            return measured
        if measured.rate < SUSPICIOUS * kept.rate:
            self._log(
                "the engine is slower than at an earlier start: another program may use the machine; it is measured "
                "again when there is nothing to do",
                frames_per_s=round(measured.rate, 1),
                remembered=round(kept.rate, 1),
            )
        return kept

    async def measure_when_idle(self, warm: WarmEngine, ledger: Ledger, *, idle: float = IDLE) -> None:
        """For ever, on the loop: what is measured while there is nothing else to do is the truth."""
        while True:
            before = ledger.total()
            await asyncio.sleep(idle)
            if before.in_flight or ledger.total() != before:
                continue
            try:
                cost = await asyncio.to_thread(partial(measure_costs, warm.engine, pool=warm.threads))
            except EngineError:  # the next batch will find out
                return
            if ledger.total() == before:  # else a frame came, and disturbed it
                self.keep(cost)
                warm.policy.learn(cost)
                await asyncio.sleep(AGAIN)

    def keep(self, cost: BatchCost) -> None:
        """These are the costs from now on."""
        if self._cache is not None:
            self._cache.write_json(_COSTS, self._key(), {"measured": [list(pair) for pair in cost.measured]})

    def _read(self) -> BatchCost | None:
        found = self._cache.read_json(_COSTS, self._key()) if self._cache is not None else None
        try:
            kept = _Kept.model_validate(found) if found else None
        except ValidationError:
            return None
        if kept is None or not kept.measured or any(size < 1 or not seconds > 0 for size, seconds in kept.measured):
            return None
        return BatchCost.of(dict(kept.measured), prepared=self._engine.prepared, streams=self._engine.streams)

    def _key(self) -> Key:
        info, engine = self._engine.info, self._engine
        return {
            **asdict(info),
            "prepared": list(engine.prepared),
            "streams": engine.streams,
            "processor": _processor(info.device),
            "cores": usable_cores(),
            "release": __version__,
        }


def _processor(device: str) -> str:
    """What computes. A driver that does not tell is no reason not to start."""
    try:
        return processor(device)
    except Exception as error:  # whatever torch raises
        return f"{device} | {type(error).__name__}"
