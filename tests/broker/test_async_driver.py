"""Steps on an event loop."""

import asyncio

from coatstream.broker.async_driver import AsyncDriver
from coatstream.broker.steps import Enter, Steps, Wait
from coatstream.settings.model import RedisSettings


async def test_without_time_a_set_event_and_a_free_lock_count_all_the_same() -> None:
    event, lock = asyncio.Event(), asyncio.Lock()

    def steps() -> Steps[list[bool]]:
        before = yield Wait(event, 0.0)
        event.set()
        after = yield Wait(event, 0.0)
        free = yield Enter(lock, 0.0)
        taken = yield Enter(lock, 0.0)
        return [before, after, free, taken]

    async with AsyncDriver.connect(RedisSettings.model_validate({"url": "redis://127.0.0.1:1"})) as driver:
        assert await driver.run(steps()) == [False, True, True, False]
