"""Producers and readers of both worlds behind one face, so that each test holds for both."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar

import pytest

T = TypeVar("T")
World = Literal["threads", "tasks"]
BOTH_WORLDS = pytest.mark.parametrize("world", ["threads", "tasks"])


class InLoop:
    """An object of an event loop that runs in a thread of its own; its coroutine functions block here."""

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: Any) -> None:
        self._loop = loop
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, {"close": "aclose"}.get(name, name))
        if not asyncio.iscoroutinefunction(found):
            return found
        return lambda *args, **options: run_in(self._loop, found(*args, **options))


def run_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, loop).result(60)


@contextmanager
def entered(
    world: World, threads: AbstractContextManager[Any], tasks: AbstractAsyncContextManager[Any]
) -> Iterator[Any]:
    """One of the two, entered."""
    if world == "threads":
        with threads as inner:
            yield inner
        return
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    try:
        inner = run_in(loop, _enter(tasks))
        try:
            yield InLoop(loop, inner)
        except BaseException as error:
            run_in(loop, _leave(tasks, error))
            raise
        run_in(loop, _leave(tasks, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        running.join(10)
        loop.close()


async def _enter(manager: AbstractAsyncContextManager[T]) -> T:
    return await manager.__aenter__()


async def _leave(manager: AbstractAsyncContextManager[Any], error: BaseException | None) -> None:
    await manager.__aexit__(type(error) if error else None, error, None)
