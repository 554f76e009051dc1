"""The page's server for tests: as a worker runs it, on a port of its own."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
from coatstream.settings.model import SettingsTree
from coatstream.telemetry.metrics import Metrics
from coatstream.telemetry.status import Status
from coatstream.web.app import serve_all
from prometheus_client import CollectorRegistry

TOKEN, LOOK_TOKEN = "change-me-change-me", "look-only-look-only"
BEARER = {"authorization": f"Bearer {TOKEN}"}
LOOKING = {"authorization": f"Bearer {LOOK_TOKEN}"}


def page_settings(redis_url: str, **sections: object) -> SettingsTree:
    """Of a page alone, on any free port; `http` may say more."""
    http = {"port": 0, **(sections.pop("http", None) or {})}  # type: ignore[dict-item]
    return SettingsTree.model_validate({"redis": {"url": redis_url}, "http": http, **sections})


def guarded(redis_url: str, **sections: object) -> SettingsTree:
    """The same with both tokens."""
    return page_settings(redis_url, http={"token": TOKEN, "look_token": LOOK_TOKEN}, **sections)


@asynccontextmanager
async def page_of(settings: SettingsTree) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the page, while it is served on this loop."""
    async with (
        serve_all(settings, Metrics(CollectorRegistry()), Status(stall_after=60)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


@contextmanager
def page_in_thread(settings: SettingsTree) -> Iterator[str]:
    """The page's address, while it is served on a loop of its own."""
    started, stop, ports = threading.Event(), asyncio.Event(), list[int]()

    async def serve() -> None:
        async with page_of(settings) as client:
            ports.append(client.base_url.port or 0)
            started.set()
            await stop.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
