"""The page without a worker, as `coatstream page` serves it."""

import httpx
from coatstream.settings.loading import load
from coatstream.web.app import serve_alone

from tests.support.ports import HOST, free_port


async def test_it_is_ready_while_redis_is_away_since_it_is_what_tells_people_so() -> None:
    away = {"COATSTREAM_REDIS__URL": f"redis://{HOST}:{free_port()}", "COATSTREAM_HTTP__PORT": "0"}

    async with (
        serve_alone(load(environ=away, secrets_dir=None)) as port,
        httpx.AsyncClient(base_url=f"http://{HOST}:{port}") as client,
    ):
        answers = [(await client.get(path)).status_code for path in ("/startedz", "/healthz", "/readyz")]

    assert answers == [200, 200, 200]
