"""What a producer holds, without a server: the answers are given by hand."""

import random
import threading
import time
from typing import Any

import pytest
from coatstream.broker.keys import Queue
from coatstream.broker.steps import Call, Steps, Wait
from coatstream.queue.producing.outbox import Outbox, QueueFull, Terms
from coatstream.queue.producing.picture import Picture
from coatstream.settings.model import QueueSettings

QUEUES = [Queue(name, "coatstream", f"{name}:dead", "labels") for name in ("frames:0", "frames:1")]


def outbox(terms: Terms) -> Outbox:
    return Outbox(
        QUEUES,
        QueueSettings(),
        terms,
        stop=threading.Event(),
        on_wait=lambda *_: None,
        clock=lambda: 1.0,
        rng=random.Random(1),
    )


def test_a_deadline_holds_for_all_queues_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ours = outbox(Terms(batch=8))
    first = next(name for name in map(str, range(100)) if ours.queue_of(name) == QUEUES[0])
    other = next(name for name in map(str, range(100)) if ours.queue_of(name) == QUEUES[1])
    assert list(ours.put(Picture(b"x", first))) == []

    def drive(steps: Steps[str]) -> None:
        nonlocal now
        answer: Any = None
        while True:
            step = steps.send(answer)
            if isinstance(step, Wait):
                now += step.seconds or 0.0
                answer = False
            elif isinstance(step, Call):
                has_room = step.key == "frames:0" and now >= 100.8
                answer = [[b"1", b"1-1"] if has_room else [b"0"]]

    with pytest.raises(QueueFull):
        drive(ours.put_at_once(Picture(b"x", other), 101.0))

    assert now == pytest.approx(101.0)
    assert ours.sent == 1


def test_a_frame_that_is_given_up_while_it_is_sent_is_counted_once() -> None:
    ours = outbox(Terms())
    steps = ours.put(Picture(b"x", "door"))
    assert isinstance(next(steps), Call)

    assert ours.forget() == 1
    with pytest.raises(StopIteration):
        steps.send([[b"1", b"1-1"]])

    assert (ours.doubtful, ours.sent, ours.held) == (1, 0, 0)
