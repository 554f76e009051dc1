"""The API against its own description: requests that nobody would think of, made from the schema."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from coatstream.broker.connection import Client

from tests.support.pages import BEARER, TOKEN, guarded, page_in_thread
from tests.support.servers import ON_ONE_SERVER
from tests.web.test_page import furnish

pytestmark = [ON_ONE_SERVER, pytest.mark.slow]

STREAMS = ("/api/live", "/api/labels/live")  # they do not end


@pytest.mark.parametrize("with_token", [True, False])
def test_no_request_makes_a_500_or_breaks_the_schema(
    client: Client, redis_url: str, tmp_path: Path, with_token: bool
) -> None:
    furnish(client)
    with page_in_thread(guarded(redis_url)) as address:
        (tmp_path / "openapi.json").write_bytes(httpx.get(f"{address}/api/openapi.json", headers=BEARER).content)
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "schemathesis.cli",
                    "run",
                    str(tmp_path / "openapi.json"),
                    "--url",
                    address,
                ),
                *(option for path in STREAMS for option in ("--exclude-path", path)),
                *(("-H", f"Authorization: Bearer {TOKEN}") if with_token else ()),
                *("--max-examples", "30", "--phases", "examples,coverage,fuzzing", "--no-color", "--seed", "1"),
                *("--exclude-checks", "positive_data_acceptance"),  # that a date exists, no schema tells
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=280,
            cwd=tmp_path,
        )

    assert done.returncode == 0, done.stdout[-6000:]
