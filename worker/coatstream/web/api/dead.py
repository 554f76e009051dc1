"""Dead letters: list, show, put back, delete."""

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from coatstream.broker.connection import Client
from coatstream.broker.keys import queues_of
from coatstream.errors import DeadReason, redact
from coatstream.queue.dead.letters import DeadLetter, DeadLetters, Replayed
from coatstream.queue.entry import DEFAULT_SOURCE
from coatstream.settings.model import SettingsTree
from coatstream.web.api.backend import Desk, Entry, absent

router = APIRouter(tags=["dead letters"])

MOST_READ: Final = 512  # letters of one request; the answer's `next` goes on behind them
MOST_AT_ONCE: Final = 100
ID: Final = r"^[0-9]{1,19}-[0-9]{1,19}$"

Letter = Annotated[str, Path(pattern=ID, description="as the list shows it")]
Stream = Annotated[str | None, Query(max_length=256, description="the queue's frames stream; default: the first queue")]


class ShownLetter(BaseModel):
    """A frame that could not be labelled, and why."""

    stream: str
    letter: str
    reason: str
    error: str
    deliveries: str
    died_at: float | None
    worker: str
    source: str
    frame_id: str
    fields: dict[str, str] = Field(description="the frame's own short fields")
    sizes: dict[str, int] = Field(description="bytes of the others; `image` or `pixels` is the picture")


class LetterPage(BaseModel):
    """Oldest first. `next`: pass it as `after`; null: there are no more. A page may be empty and have a next."""

    items: list[ShownLetter]
    next: str | None


class LetterNames(BaseModel):
    """Dead letters of one queue."""

    model_config = ConfigDict(extra="forbid")

    stream: Annotated[str, Field(max_length=256)] | None = Field(None, description="default: the first queue's")
    letters: list[Annotated[str, Field(pattern=ID)]] = Field(min_length=1, max_length=MOST_AT_ONCE)


class LettersDone(BaseModel):
    """What became of each: `done`, `absent` or, of those that cannot be put back, `impossible`."""

    outcomes: dict[str, str]


@router.get("/dead", summary="Dead letters of one queue, oldest first")
async def list_letters(
    desk: Desk,
    limit: Annotated[int, Query(ge=1, le=MOST_AT_ONCE)] = 20,
    after: Annotated[Entry | None, Query(description="`next` of the page before")] = None,
    stream: Stream = None,
    reason: DeadReason | None = None,
    source: Annotated[str | None, Query(max_length=128)] = None,
) -> LetterPage:
    def read(client: Client) -> LetterPage:
        found = list(islice(letters_of(desk.settings, client, stream).all(after=after or ""), MOST_READ + 1))
        items: list[ShownLetter] = []
        for letter in found[:MOST_READ]:
            shown = _shown(letter)
            if reason in (None, letter.reason) and source in (None, shown.source):
                items.append(shown)
            if len(items) == limit:
                return LetterPage(items=items, next=None if letter is found[-1] else letter.letter)
        return LetterPage(items=items, next=found[MOST_READ - 1].letter if len(found) > MOST_READ else None)

    return await desk.calls.call(read)


@router.get("/dead/letters/{letter}", summary="One dead letter")
async def show_letter(desk: Desk, letter: Letter, stream: Stream = None) -> ShownLetter:
    found = await desk.calls.call(lambda client: letters_of(desk.settings, client, stream).get(letter))
    if found is None:
        raise absent("such dead letter")
    return _shown(found)


@router.post("/dead/replay", summary="Put dead letters back into the frames stream, each once")
async def replay(desk: Desk, names: LetterNames) -> LettersDone:
    words = {Replayed.MOVED: "done", Replayed.ABSENT: "absent", Replayed.IMPOSSIBLE: "impossible"}

    def act(client: Client) -> Sequence[str]:
        return [words[one] for one in letters_of(desk.settings, client, names.stream).replay(names.letters)]

    return LettersDone(outcomes=dict(zip(names.letters, await desk.calls.call(act), strict=True)))


@router.post("/dead/drop", summary="Delete dead letters")
async def drop(desk: Desk, names: LetterNames) -> LettersDone:
    def act(client: Client) -> Sequence[str]:
        dropped = letters_of(desk.settings, client, names.stream).drop(names.letters)
        return ["done" if one else "absent" for one in dropped]

    return LettersDone(outcomes=dict(zip(names.letters, await desk.calls.call(act), strict=True)))


def letters_of(settings: SettingsTree, client: Client, stream: str | None) -> DeadLetters:
    """Those of the queue that is called so; None: the first. Raises 404."""
    queues = queues_of(settings)
    found = queues[0] if stream is None else next((queue for queue in queues if queue.is_called(stream)), None)
    if found is None:
        raise absent("queue of this name")
    return DeadLetters(client, found)


def _shown(letter: DeadLetter) -> ShownLetter:
    plain: dict[str, Any] = {name: getattr(letter, name) for name in ("stream", "letter", "reason", "deliveries")}
    return ShownLetter(
        **plain,
        error=redact(letter.error),
        died_at=letter.died_at,
        worker=letter.worker,
        source=letter.texts.get("source") or DEFAULT_SOURCE,
        frame_id=letter.texts.get("frame_id", ""),
        fields={name: redact(text) for name, text in letter.texts.items()},
        sizes=dict(letter.sizes),
    )
