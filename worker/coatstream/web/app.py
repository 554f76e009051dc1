"""The ASGI apps: metrics and probes for everybody, the page and its API behind the guard; and how they are served."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from coatstream import __version__
from coatstream.errors import ConfigError
from coatstream.settings.model import SettingsTree
from coatstream.telemetry.identity import worker_name
from coatstream.telemetry.metrics import Metrics
from coatstream.telemetry.status import Status
from coatstream.web.access import Access
from coatstream.web.api.app import make_api
from coatstream.web.api.backend import Backend
from coatstream.web.calls import RedisCalls
from coatstream.web.guard import Guard
from coatstream.web.live.hub import Hub
from coatstream.web.server import serve
from coatstream.web.site_routes import site_routes

_log = structlog.get_logger("http")


def make_app(registry: CollectorRegistry, status: Status, *, page: ASGIApp | None = None) -> Starlette:
    """Metrics and probes, and `page` for all other paths.

    /metrics                        Prometheus or OpenMetrics, by the Accept header
    /startedz, /healthz, /readyz    200, or 503 with the reasons: is the model loaded, does the process make progress,
                                    should work be sent here
    """
    return Starlette(routes=[*_probes(registry, status), *([Mount("/", page)] if page else [])])


@asynccontextmanager
async def serve_all(
    settings: SettingsTree, metrics: Metrics, status: Status, *, port_before: int = 0
) -> AsyncIterator[int]:
    """Everything, as long as this is entered; yields the page's port. Raises ConfigError.

    A page that nobody may use is said and stops nothing: probes, metrics and the work go on.
    """
    http, access = settings.http, Access.of(settings.http)
    if access.shut:
        _log.warning("the page and its API are shut", why=access.shut)
    async with AsyncExitStack() as stack:
        calls = RedisCalls(settings)
        stack.callback(calls.close)
        hub = Hub(settings, calls)
        await stack.enter_async_context(hub.running())
        api = make_api(Backend(settings, calls, hub))
        page = Guard(Starlette(routes=[*site_routes(), Mount("/", api)]), access, host=http.host)
        if http.probes_port is not None:
            probes = http.model_copy(update={"port": http.probes_port})
            await stack.enter_async_context(serve(make_app(metrics.registry, status), probes))
            app = Starlette(routes=[Mount("/", page)])
        else:
            app = make_app(metrics.registry, status, page=page)
        port = await stack.enter_async_context(serve(app, http, port_before=port_before))
        stack.callback(hub.close)  # before the server waits for its connections
        yield port


@asynccontextmanager
async def serve_alone(settings: SettingsTree) -> AsyncIterator[int]:
    """The same without a worker: it is ready at once, with Redis or without, since it tells people that Redis is away.

    Yields the page's port. Raises ConfigError, also for a page that nobody may use: there is nothing else to it.
    """
    if shut := Access.of(settings.http).shut:
        raise ConfigError(shut)
    metrics, status = Metrics(CollectorRegistry()), Status(stall_after=settings.batch.timeout)
    metrics.process()
    metrics.build(version=__version__, worker=worker_name())
    status.warm()
    status.redis_up("start")
    async with serve_all(settings, metrics, status) as port:
        yield port


def _probes(registry: CollectorRegistry, status: Status) -> Sequence[BaseRoute]:
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await asyncio.to_thread(encode, registry)  # 85 ms with 200 cameras; batches are made on the loop
        return Response(text, headers={"content-type": content_type})

    async def startedz(_request: Request) -> Response:
        return _verdict("started", status.unstarted_because())

    async def healthz(_request: Request) -> Response:
        return _verdict("healthy", status.unhealthy_because())

    async def readyz(_request: Request) -> Response:
        return _verdict("ready", status.unready_because())

    answers = {"/metrics": metrics, "/startedz": startedz, "/healthz": healthz, "/readyz": readyz}
    return [Route(path, answer) for path, answer in answers.items()]


def _verdict(word: str, against: list[str]) -> Response:
    return JSONResponse({word: not against, "because": against}, status_code=503 if against else 200)
