"""The stream that the page follows: one for each open tab, since browsers open six connections to a server at most."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from coatstream.web.api.backend import Desk
from coatstream.web.live.watcher import MOST_PREVIEWS, WatcherResponse

router = APIRouter(tags=["live"])


@router.get(
    "/live",
    summary="Server-sent events: overview, cameras, event, preview, time",
    description="`cameras` sends all of them first, then those that changed. `preview` holds a JPEG in base64. "
    "`time` comes every half second, and says why Redis cannot be read.",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Until closed"}},
)
async def live(
    desk: Desk,
    preview: Annotated[
        list[Annotated[str, Query(max_length=128)]] | None,
        Query(max_length=MOST_PREVIEWS, description="sources whose previews shall come"),
    ] = None,
    after: Annotated[
        str, Query(pattern=r"^([0-9]{1,19}-[0-9]{1,19})?$", description="the last event's id that is known")
    ] = "",
) -> WatcherResponse:
    watcher = desk.hub.watch(previews=preview or (), after=after)
    return WatcherResponse(watcher)
