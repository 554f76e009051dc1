"""The ASGI app: metrics and probes."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from worker.status import Status


def make_app(registry: CollectorRegistry, status: Status) -> Starlette:
    """`/metrics` as Prometheus or OpenMetrics, as asked; `/healthz` and `/readyz` answer 200, or 503 and why."""

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    async def healthz(_request: Request) -> Response:
        return _verdict("healthy", status.unhealthy_because())

    async def readyz(_request: Request) -> Response:
        return _verdict("ready", status.unready_because())

    return Starlette(
        routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)],
    )


def _verdict(word: str, against: list[str]) -> Response:
    return JSONResponse({word: not against, "because": against}, status_code=503 if against else 200)
