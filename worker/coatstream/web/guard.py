"""The door before the page and its API: bounds, hosts, origins, roles, and the headers of every answer.

Pure ASGI. What passes has its role in `scope["state"]["role"]`.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coatstream.web.access import Access, Role, TokenTries, is_loopback

COOKIE: Final = "coatstream"
LARGEST_BODY: Final = 64 * 1024  # bytes
LONGEST_QUERY: Final = 8 * 1024  # bytes
LONGEST_PATH: Final = 1024  # bytes
WRONG_TOKEN_TAKES: Final = 0.3  # seconds, so that guessing is slow from many addresses, too
PUBLIC: Final = frozenset({"/login", "/login.css", "/icon.svg"})
FREE_FOR_LOOK: Final = frozenset({"/login", "/logout"})  # posts that change nothing of the installation
SAFE: Final = frozenset({"GET", "HEAD"})

HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",  # with no-referrer, the login form's own Origin is null
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_ODD: Final = re.compile(r"[\x00-\x1f\x7f\\]|(^|/)\.\.?(/|$)|//")


class Guard:
    """Lets requests through to `app` as `access` has it. Called on the loop."""

    def __init__(self, app: ASGIApp, access: Access, *, host: str) -> None:
        self._app = app
        self._access = access
        self._throttle = TokenTries()
        self._local = is_loopback(host) and not access.needs_login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _end(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        body = _Body(receive)
        refusal = self._refused(scope) or await self._unwelcome(scope) or await body.read(Headers(scope=scope))
        await (refusal or self._app)(scope, body.receive, answer)

    # ---- what is wrong with the request itself

    def _refused(self, scope: Scope) -> Response | None:
        """Whoever sends it."""
        headers, method = Headers(scope=scope), scope["method"]
        if self._access.shut:
            return error(403, f"the page and its API are shut: {self._access.shut}")
        if len(scope["query_string"]) > LONGEST_QUERY or len(scope["path"]) > LONGEST_PATH:
            return error(414, "the address is too long")
        if _ODD.search(scope["path"]) and not scope["path"].startswith("/api/"):
            return error(404, "there is no such page")
        if self._local and not is_loopback(_name_of(headers.get("host", ""))):
            return error(421, "without a token this page answers to localhost only: the name in Host is another")
        if not self._same_site(scope, headers, method):
            return error(403, "the request comes from another site")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = "application/x-www-form-urlencoded" if scope["path"] in FREE_FOR_LOOK else "application/json"
        if method not in SAFE and kind != wanted and _has_body(headers):
            return error(415, f"the body must be {wanted}")
        return None

    def _same_site(self, scope: Scope, headers: Headers, method: str) -> bool:
        """Browsers name the site that a request comes from; other programs send no such header."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and (method not in SAFE or scope["path"].startswith("/api/")):
            return False
        if origin is None or method in SAFE:
            return True
        host = headers.get("host", "")
        if self._access.is_proxy(client_of(scope)):
            host = headers.get("x-forwarded-host", host)
        try:
            parts = urlsplit(origin)
            return parts.scheme in ("http", "https") and _bare(parts.netloc) == _bare(host)
        except ValueError:
            return False

    # ---- who sends it

    async def _unwelcome(self, scope: Scope) -> Response | None:
        role = await self._role(scope)
        if isinstance(role, Response):
            return role
        public = scope["path"] in PUBLIC
        scope.setdefault("state", {}).update(role=role, throttle=self._throttle, access=self._access)
        if role is None and not public:
            if scope["path"].startswith("/api/") or scope["method"] not in SAFE:
                return error(
                    401, "log in, or send a token: Authorization: Bearer ...", **{"www-authenticate": "Bearer"}
                )
            return RedirectResponse("/login", 303)
        if scope["method"] not in SAFE and role != "change" and scope["path"] not in FREE_FOR_LOOK:
            return error(403, "this token may look and change nothing")
        return None

    async def _role(self, scope: Scope) -> Role | Response | None:
        headers, access = Headers(scope=scope), self._access
        if not access.needs_login:
            return "change"
        if (given := headers.get("authorization")) is not None:
            return await self._role_of_bearer(given, client_of(scope))
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if (role := access.role_of_session(cookie)) is not None:
            return role
        return access.role_of_proxy(
            client_of(scope), headers.get(access.proxy_header, "") if access.proxy_header else ""
        )

    async def _role_of_bearer(self, given: str, client: str) -> Role | Response:
        scheme, _, token = given.partition(" ")
        if scheme.lower() != "bearer":
            return error(401, "send the token as Authorization: Bearer ...", **{"www-authenticate": "Bearer"})
        found = await try_token(token.strip(), client, access=self._access, throttle=self._throttle)
        if isinstance(found, float):
            return error(429, "too many wrong tokens: wait", **{"retry-after": str(max(1, round(found)))})
        return found or error(401, "this token is wrong", **{"www-authenticate": 'Bearer error="invalid_token"'})


async def try_token(token: str, client: str, *, access: Access, throttle: TokenTries) -> Role | float | None:
    """The token's role; None: it is wrong; a number: seconds until this address may try again."""
    if (wait := throttle.wait(client)) > 0:
        return wait
    role = access.role_of_token(token)
    if role is None:
        throttle.failed(client)
        await asyncio.sleep(WRONG_TOKEN_TAKES)
    return role


def error(status: int, text: str, **headers: str) -> Response:
    """What every refusal looks like."""
    return JSONResponse({"error": text}, status, headers)


class _Body:
    """A request's body, read whole before the app runs: it is small, and the server bounds its time."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._data: bytes | None = None

    async def read(self, headers: Headers) -> Response | None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            return error(413, f"the body may have {LARGEST_BODY} bytes")
        data, more = b"", True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                return error(400, "the request was cut off")
            data += message.get("body", b"")
            more = message.get("more_body", False)
            if len(data) > LARGEST_BODY:
                return error(413, f"the body may have {LARGEST_BODY} bytes")
        self._data = data
        return None

    async def receive(self) -> Message:
        if self._data is not None:
            data, self._data = self._data, None
            return {"type": "http.request", "body": data, "more_body": False}
        return await self._receive()


async def _end(scope: Scope, receive: Receive, send: Send) -> None:
    """There are no web sockets here."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def client_of(scope: Scope) -> str:
    """The address of the other end."""
    client: tuple[str, int] | None = scope.get("client")
    return client[0] if client else ""


def _bare(netloc: str) -> str:
    """Without a port that goes without saying."""
    return re.sub(r":(80|443)$", "", netloc.strip().lower())


def _name_of(host: str) -> str:
    """Without the port, and without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
