"""Real servers for the tests: every test that takes `client` or `redis_url` runs on Valkey and on Redis."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import structlog
from coatstream.broker.connection import Client, connect
from coatstream.broker.embedded import EmbeddedServer, embedded_server
from coatstream.settings.model import RedisSettings
from hypothesis import settings as hypothesis_settings

from tests.support.absence import missing
from tests.support.node import install_examples

# A machine that is busy is no fault of an example: the time-out of the test bounds it.
hypothesis_settings.register_profile("coatstream", deadline=None)
hypothesis_settings.load_profile("coatstream")


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command that runs in this process configures the logs for all of it."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session", params=["valkey", "redis"])
def redis_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A server of our own: Valkey from its pip package, Redis where Debian's is installed."""
    binary = None
    if request.param == "redis" and (binary := shutil.which("redis-server")) is None:
        missing("no redis-server on this machine (apt-get install redis-server)")
    with embedded_server(binary=binary) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    """The URL of a server that holds nothing."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
    return redis_server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    """A client of that server, made as the worker makes its own."""
    with connect(RedisSettings.model_validate({"url": redis_url})) as made:
        yield made


@pytest.fixture(scope="session")
def node_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder examples/node, with the packages that it depends on."""
    return install_examples(tmp_path_factory.mktemp("node"))
