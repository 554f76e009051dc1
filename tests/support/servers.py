"""Which servers a test runs on."""

import pytest

# For tests about the worker rather than the protocol: one kind of server is enough.
ON_ONE_SERVER = pytest.mark.parametrize("redis_server", ["valkey"], indirect=True, scope="session")
