"""The present of the whole fleet: workers, queues, the ledger; and who is asking."""

from collections import Counter
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from coatstream.results.reports import FramesReport, WorkerReport
from coatstream.web.api.backend import Desk
from coatstream.web.snapshot import Overview, ShownQueue

router = APIRouter(tags=["fleet"])


class Session(BaseModel):
    """What the sender of this request may do. `login`: whether a token is needed at all."""

    role: Literal["look", "change"]
    login: bool


class LedgerAnswer(BaseModel):
    """Every frame and what became of it.

    workers  of the live workers since each one's start; `total` is their sum
    queues   since each queue's books were opened, by Redis' own count: they outlive every worker
    """

    model_config = ConfigDict(extra="forbid")

    total: FramesReport
    workers: dict[str, FramesReport]
    queues: list[ShownQueue]


@router.get("/session", summary="Who is asking")
async def session(request: Request) -> Session:
    return Session(role=request.state.role, login=request.state.access.needs_login)


@router.get("/overview", summary="Workers, queues, and cameras in Redis that cannot be used")
async def overview(desk: Desk) -> Overview:
    return await desk.calls.call(lambda client: desk.snapshots(client).read().overview)


@router.get("/queues", summary="Depth, age and books of each queue")
async def queues(desk: Desk) -> list[ShownQueue]:
    return await desk.calls.call(lambda client: list(desk.snapshots(client).queues()))


@router.get("/ledger", summary="Every frame and what became of it")
async def ledger(desk: Desk) -> LedgerAnswer:
    found = await desk.calls.call(lambda client: desk.snapshots(client).read().overview)
    return LedgerAnswer(
        total=_sum(found.workers),
        workers={worker.worker: worker.frames for worker in found.workers},
        queues=list(found.queues),
    )


def _sum(workers: tuple[WorkerReport, ...]) -> FramesReport:
    frames = [worker.frames for worker in workers]
    dropped: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    for one in frames:
        dropped.update(one.dropped)
        dead.update(one.dead)
    return FramesReport(
        received=sum(one.received for one in frames),
        published=sum(one.published for one in frames),
        dropped=dict(dropped),
        dead=dict(dead),
        in_flight=sum(one.in_flight for one in frames),
    )
