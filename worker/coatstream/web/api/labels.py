"""Labels: the newest of each source, and those of one source as they are published."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from coatstream.broker.connection import Client
from coatstream.broker.keys import queues_of
from coatstream.web.api.backend import Desk, Limit
from coatstream.web.live.watcher import WatcherResponse
from coatstream.web.snapshot import LatestLabels, latest_labels, sources_of

router = APIRouter(tags=["labels"])

Source = Annotated[str, Query(min_length=1, max_length=128)]


class LabelPage(BaseModel):
    """The newest labels of some sources by name, and where the next page begins; null: there are no more."""

    items: list[LatestLabels]
    next: str | None


@router.get("/labels", summary="The newest labels of each source: cameras and sources of the queue")
async def list_labels(
    desk: Desk,
    limit: Limit = 100,
    after: Annotated[str | None, Query(max_length=128, description="`next` of the page before")] = None,
    contains: Annotated[str | None, Query(max_length=128, description="part of the source's name")] = None,
) -> LabelPage:
    queues = queues_of(desk.settings)

    def read(client: Client) -> LabelPage:
        names = [name for name in sources_of(client, queues) if after is None or name > after]
        rest = [name for name in names if contains is None or contains.lower() in name.lower()]
        page = rest[:limit]
        found = latest_labels(client, queues, page)
        return LabelPage(
            items=[found[name] for name in page if name in found], next=page[-1] if len(rest) > limit else None
        )

    return await desk.calls.call(read)


@router.get(
    "/labels/live",
    summary="Server-sent events: one `label` for each frame of a source, as it is published",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Until closed"}},
)
async def follow_labels(desk: Desk, source: Source) -> WatcherResponse:
    watcher = desk.hub.watch(labels_of=source)
    return WatcherResponse(watcher)
