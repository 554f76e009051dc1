"""What every route of the API works with, and the answers that any of them may give."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from coatstream.broker.connection import Client
from coatstream.settings.model import SettingsTree
from coatstream.web.calls import RedisCalls
from coatstream.web.live.hub import Hub
from coatstream.web.snapshot import Snapshots

MOST: Final = 500  # items of one page


@dataclass
class Backend:
    """Of one server. `calls` is how routes reach Redis."""

    settings: SettingsTree
    calls: RedisCalls
    hub: Hub

    def snapshots(self, client: Client) -> Snapshots:
        """For one call."""
        return Snapshots(client, self.settings)


class ErrorAnswer(BaseModel):
    """Every answer that is no success."""

    model_config = ConfigDict(extra="forbid")

    error: str = Field(description="one line for a person")


def _backend(request: Request) -> Backend:
    found: Backend = request.app.state.backend
    return found


Desk = Annotated[Backend, Depends(_backend)]
Limit = Annotated[int, Query(ge=1, le=MOST, description="items of this page at most")]
Text = Annotated[str, Field(max_length=256)]


Entry = Annotated[str, Field(pattern=r"^[0-9]{1,19}-[0-9]{1,19}$")]  # more digits, Redis does not take

_WORDS: Final = {
    400: "The request was cut off",
    401: "No token, or a wrong one",
    403: "The token may not change anything, or the request comes from another site",
    404: "There is no such thing",
    409: "It cannot be done as things are",
    413: "The body is too large",
    414: "The address is too long",
    415: "The body is no JSON",
    421: "The name in Host is not this machine's",
    422: "A parameter is wrong",
    429: "Too many wrong tokens",
    503: "Redis cannot be reached or refuses the call, or too many requests are in work",
}
ANSWERS: Final[Mapping[int | str, dict[str, Any]]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in _WORDS.items()
}


def absent(what: str) -> HTTPException:
    """A 404."""
    return HTTPException(404, f"there is no {what}")


def conflict(why: object) -> HTTPException:
    """A 409."""
    return HTTPException(409, str(why))
