"""Entity tags of requests (RFC 9110, section 13.1.2): proxies weaken them, and clients send several."""

import re
from typing import Final

from starlette.requests import Request

_TAG: Final = re.compile(r'(?:W/)?("[^"]*")')


def has_already(request: Request, etag: str) -> bool:
    """Whether the sender names this tag, or `*`, as one that it has. `etag`: with its quotes, without W/."""
    named = ",".join(request.headers.getlist("if-none-match"))
    return named.strip() == "*" or etag in _TAG.findall(named)
