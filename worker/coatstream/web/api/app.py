"""Assembles the API and its description (`/api/openapi.json`), and turns errors into answers without secrets."""

import re
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from coatstream import __version__
from coatstream.errors import ConfigError, RedisRefuses, RedisUnavailable, redact
from coatstream.web.api import cameras, dead, events, labels, live, overview, pictures
from coatstream.web.api.backend import ANSWERS, Backend
from coatstream.web.calls import Busy
from coatstream.web.guard import error

LONGEST_ERROR = 300  # characters

_ABOUT = (
    "Everything that the page shows and does. Times are Unix seconds. Lists come in pages: pass `next` of one page as "
    "`after` (or `before`) of the next. On an address other than loopback, send `Authorization: Bearer TOKEN`."
)
_log = structlog.get_logger("web")


def make_api(backend: Backend) -> ASGIApp:
    """The routes below /api."""
    api = _Api(
        title="coatstream",
        version=__version__,
        description=_ABOUT,
        openapi_url="/api/openapi.json",
        docs_url=None,  # its scripts come from a CDN
        redoc_url=None,
        responses=dict(ANSWERS),
        separate_input_output_schemas=False,
    )
    api.state.backend = backend
    for module in (overview, cameras, labels, events, dead, pictures, live):
        api.include_router(module.router, prefix="/api")
    api.add_exception_handler(RequestValidationError, _on_wrong_request)
    api.add_exception_handler(HTTPException, _on_http_error)
    api.add_exception_handler(ConfigError, _on_config_error)
    for kind in (RedisUnavailable, RedisRefuses, Busy):
        api.add_exception_handler(kind, _on_trouble)
    return _NoTraceback(api)


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Made when it is first asked for: it takes a quarter of a second."""
        schema = super().openapi()
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{}, {"token": []}]
        return schema


async def _on_wrong_request(_request: Request, wrong: Exception) -> Response:
    assert isinstance(wrong, RequestValidationError)  # noqa: S101  (starlette's handlers are typed loosely)
    first: dict[str, Any] = wrong.errors()[0]
    where = ".".join(str(step)[:40] for step in first.get("loc", ()))
    return error(422, redact(f"{where}: {first.get('msg', 'wrong')}")[:LONGEST_ERROR])


async def _on_http_error(request: Request, wrong: Exception) -> Response:
    assert isinstance(wrong, HTTPException)  # noqa: S101
    allow = {"allow": ", ".join(_methods(request.app, request.url.path))} if wrong.status_code == 405 else {}
    texts = {404: "there is no such address", 405: "this method does nothing here"}
    plain = wrong.detail in ("Not Found", "Method Not Allowed")
    return error(wrong.status_code, texts[wrong.status_code] if plain else redact(str(wrong.detail)), **allow)


def _methods(api: FastAPI, path: str) -> list[str]:
    """Those of all routes of a path: a router names only those of the first one."""
    paths = sorted(api.openapi()["paths"].items(), key=lambda item: "{" in item[0])
    for template, operations in paths:
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            return sorted(method.upper() for method in operations)
    return ["GET"]


async def _on_config_error(_request: Request, wrong: Exception) -> Response:
    return error(409, redact(str(wrong))[:LONGEST_ERROR])


async def _on_trouble(_request: Request, trouble: Exception) -> Response:
    return error(503, redact(str(trouble))[:LONGEST_ERROR], **{"retry-after": "1"})


class _NoTraceback:
    """The edge: a bug is logged in one line, and its answer tells nothing of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watch(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as bug:  # the edge of a request
            _log.error("a bug in the API", path=scope["path"][:200], error=redact(repr(bug))[:LONGEST_ERROR])
            if not begun:
                await error(500, "a bug in coatstream: the worker's log has it")(scope, receive, send)
