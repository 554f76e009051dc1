"""The page's files, kept in memory, and the login form. The files are plain: there is no build step."""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from coatstream.web.access import SESSION, Access
from coatstream.web.entity_tags import has_already
from coatstream.web.guard import COOKIE, client_of, try_token

_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_WRONG: Final = b"That token is wrong."
_WAIT: Final = b"Too many wrong tokens. Wait a little, then try again."
_SLOT: Final = b"<!-- trouble -->"


def site_routes() -> Sequence[Route]:
    """`/` and each file beside it; `/login` and `/logout`."""
    folder = files("coatstream") / "web" / "site"
    found = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    login = found.pop("login.html")

    async def form(request: Request) -> Response:
        return _page(login) if request.state.access.needs_login else RedirectResponse("/", 303)

    async def log_in(request: Request) -> Response:
        return await _log_in(request, login)

    async def log_out(_request: Request) -> Response:
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    return [
        Route("/login", form, methods=["GET"]),
        Route("/login", log_in, methods=["POST"]),
        Route("/logout", log_out, methods=["POST"]),
        *(_SiteFile(name, data).route for name, data in found.items()),
    ]


class _SiteFile:
    def __init__(self, name: str, data: bytes) -> None:
        self._data = data
        self._headers = {
            "etag": f'"{hashlib.sha256(data).hexdigest()[:16]}"',
            "cache-control": "no-cache",
            "content-type": _KINDS[f".{name.rpartition('.')[2]}"],
        }
        self.route = Route("/" if name == "index.html" else f"/{name}", self._answer, methods=["GET"])

    async def _answer(self, request: Request) -> Response:
        if has_already(request, self._headers["etag"]):
            return Response(status_code=304, headers=self._headers)
        return Response(self._data, headers=self._headers)


async def _log_in(request: Request, form: bytes) -> Response:
    access: Access = request.state.access
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=8)
    token = (fields.get("token") or [""])[0].strip()
    found = await try_token(token, client_of(request.scope), access=access, throttle=request.state.throttle)
    if found is None:
        return _page(form, _WRONG, status=401)
    if isinstance(found, float):
        return _page(form, _WAIT, status=429, **{"retry-after": str(max(1, round(found)))})
    response = RedirectResponse("/", 303)
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
    response.set_cookie(
        COOKIE, access.session(found), max_age=int(SESSION), httponly=True, samesite="strict", secure=secure
    )
    return response


def _page(html: bytes, trouble: bytes = b"", *, status: int = 200, **headers: str) -> Response:
    told = b'<p class="trouble" role="alert">' + trouble + b"</p>" if trouble else b""
    return Response(html.replace(_SLOT, told), status, {"content-type": _KINDS[".html"], **headers})
