"""Pictures: of events as they were stored, of dead letters made anew. What a stranger sent never leaves as it came."""

import hashlib
from threading import Lock
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Path
from starlette.requests import Request
from starlette.responses import Response

from coatstream.broker.connection import Client
from coatstream.errors import BadFrame
from coatstream.frames.decoding import decode, raw
from coatstream.frames.encoding import encode_jpeg
from coatstream.frames.frame import Pixels
from coatstream.frames.still import reduced
from coatstream.queue.dead.letters import LetterPicture
from coatstream.results.pictures import EventPictures
from coatstream.settings.model import QueueSettings
from coatstream.web.api.backend import Desk, absent
from coatstream.web.api.dead import Letter, Stream, letters_of
from coatstream.web.entity_tags import has_already

router = APIRouter(tags=["pictures"])

QUALITY: Final = 80
_ONE_AT_A_TIME: Final = Lock()  # a picture of 50 megapixels takes 150 MB while it is decoded
_JPEG: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "A JPEG"},
    304: {"description": "The sender has it already"},
}


@router.get("/pictures/{picture}", summary="The picture of an event", response_class=Response, responses=_JPEG)
async def event_picture(
    desk: Desk, request: Request, picture: Annotated[str, Path(pattern=r"^[0-9]{1,16}-[0-9a-f]{12}$")]
) -> Response:
    data = await desk.calls.call(lambda client: EventPictures.of(desk.settings, client).get(picture))
    if data is None:
        raise absent("picture of this name: it is older than pictures.max_age, or had to make room")
    return _answer(request, data)


@router.get(
    "/dead/letters/{letter}/picture",
    summary="The picture of a dead letter, where it can be decoded, at most 640 pixels a side",
    response_class=Response,
    responses=_JPEG,
)
async def letter_picture(desk: Desk, request: Request, letter: Letter, stream: Stream = None) -> Response:
    def read(client: Client) -> bytes:
        picture = letters_of(desk.settings, client, stream).picture(letter)
        if picture is None:
            raise absent("picture in this dead letter")
        with _ONE_AT_A_TIME:
            return encode_jpeg(reduced(_pixels(picture, desk.settings.queue)), quality=QUALITY)

    try:
        return _answer(request, await desk.calls.call(read))
    except BadFrame as bad:
        raise HTTPException(404, f"there is no picture to show: {bad}") from None


def _pixels(picture: LetterPicture, queue: QueueSettings) -> Pixels:
    """Raises BadFrame."""
    if not picture.shape:
        return decode(picture.data, max_bytes=queue.max_bytes, max_pixels=queue.max_pixels)
    width, height = (int(picture.shape[name]) if picture.shape[name].isdecimal() else 0 for name in ("width", "height"))
    return raw(picture.data, width=width, height=height, pixel_format=picture.shape["format"])


def _answer(request: Request, data: bytes) -> Response:
    etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
    headers = {"etag": etag, "cache-control": "private, max-age=86400, immutable"}
    if has_already(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)
