"""Who waits for a frame keeps its source subscribed, and is woken at the end."""

import random
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from coatstream.broker.connection import Client
from coatstream.broker.driver import Driver
from coatstream.broker.keys import queues_of
from coatstream.broker.steps import Wait
from coatstream.errors import NoOutcome
from coatstream.queue.producing.awaiting import MOST_IDLE, Awaiting
from coatstream.queue.producing.outbox import Outbox, Terms
from coatstream.settings.model import QueueSettings, SettingsTree


class Notebook:
    """A subscription that writes down what it is told. What is `first` is done before the first UNSUBSCRIBE."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self.first: Callable[[str], None] | None = None

    def open(self, channels: Sequence[str]) -> None: ...

    def receive(self) -> None: ...

    def tell(self, *command: str) -> None:
        names = command[1:]
        if command[0] == "SUBSCRIBE":
            self.up.update(names)
            return
        first, self.first = self.first, None
        if first is not None:
            first(names[-1].removeprefix("labels:"))
        self.up.difference_update(names)


def awaiting(notebook: Notebook, stop: threading.Event, url: str) -> Awaiting:
    queues = queues_of(SettingsTree.model_validate({"redis": {"url": url}}))
    outbox = Outbox(
        queues, QueueSettings(), Terms(), stop=stop, on_wait=lambda *_: None, clock=time.time, rng=random.Random(1)
    )
    turn, looking = threading.Lock(), threading.Lock()
    return Awaiting(outbox, queues, subscription=notebook, turn=turn, looking=looking, event=threading.Event, stop=stop)


def test_a_source_that_comes_back_while_it_is_given_up_stays_subscribed(client: Client, redis_url: str) -> None:
    notebook, driver = Notebook(), Driver(client)
    waits = awaiting(notebook, threading.Event(), redis_url)
    came_back = []

    def wait_for(source: str) -> None:
        with pytest.raises(NoOutcome):
            driver.run(waits.wait_for("f1", 0.0, source))

    def come_back(source: str) -> None:
        came_back.append(source)
        wait_for(source)

    notebook.first = come_back
    for number in range(MOST_IDLE + 1):
        wait_for(f"s{number}")

    assert came_back == ["s0"]
    assert "labels:s0" in notebook.up


def test_a_wait_of_any_length_ends_with_the_producer(redis_url: str) -> None:
    stop = threading.Event()
    waits = awaiting(Notebook(), stop, redis_url)
    steps = waits.wait_for("f1", 600.0, None)
    step = next(steps)
    while not isinstance(step, Wait):
        step = steps.send(False)  # another looks now

    stop.set()
    waits.wake()

    assert step.event.is_set()
    with pytest.raises(NoOutcome):
        steps.send(True)
