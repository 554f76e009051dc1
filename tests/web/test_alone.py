"""The page without a worker, as `coatstream page` serves it."""

import httpx
import pytest
from coatstream.errors import ConfigError
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


async def test_alone_it_does_not_start_where_nobody_may_use_it() -> None:
    open_to_all = {"COATSTREAM_HTTP__HOST": "0.0.0.0", "COATSTREAM_HTTP__PORT": "0"}

    with pytest.raises(ConfigError, match=r"there is no http\.token"):
        async with serve_alone(load(environ=open_to_all, secrets_dir=None)):
            pass
