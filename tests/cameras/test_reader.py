"""The process that reads one camera, seen from inside: what it says, when, and what it replaces."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from coatstream.cameras.capture.steps import Step
from coatstream.cameras.process.reader import FrameOutbox, Stop, camera_of, read
from coatstream.cameras.process.wire import Inbox, Message, Order, send
from coatstream.errors import BadFrame, DeadReason, DownReason, SourceLost
from coatstream.frames.frame import Frame, InputSpec
from coatstream.settings.model import CameraSettings

from tests.support.cameras.rtsp import RtspCamera
from tests.support.paths import ASSETS
from tests.support.workers import eventually

COCKATOO = ASSETS / "cockatoo_360p.mp4"  # 280 frames of 640 x 360, 20 a second
SPEC = InputSpec(8, 12, 1.0, "squash", "area", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def frame(number: int) -> Frame:
    return Frame("door", f"door-1-{number}", 1.0, np.zeros((8, 12, 3), np.uint8), 640, 360)


def ids(messages: list[Message]) -> list[str]:
    return [message.frame.frame_id for message in messages if message.frame is not None]


class Post:
    """A worker that takes messages only while its door is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.knocked = threading.Event()
        self.messages: list[Message] = []

    def __call__(self, message: Message) -> None:
        self.knocked.set()
        assert self.open.wait(10)
        self.messages.append(message)


@contextmanager
def delivering(outbox: FrameOutbox, stop: Stop | None = None) -> Iterator[None]:
    thread = threading.Thread(target=outbox.deliver, args=(stop or Stop(),))
    thread.start()
    try:
        yield
    finally:
        thread.join(10)
        assert not thread.is_alive()


def test_a_live_camera_replaces_what_the_worker_has_not_taken_and_counts_it() -> None:
    post = Post()
    outbox = FrameOutbox(post)
    with delivering(outbox):
        assert outbox.put(frame(0), live=True)
        assert post.knocked.wait(5)  # the first one is on its way: it cannot be replaced any more
        for number in range(1, 6):
            assert outbox.put(frame(number), live=True)
        outbox.end(None)
        post.open.set()

    assert ids(post.messages) == ["door-1-0", "door-1-5"]
    assert post.messages[-1].tally.replaced == 4
    assert post.messages[-1].ended


def test_a_file_waits_for_the_worker_and_loses_nothing() -> None:
    post = Post()
    outbox = FrameOutbox(post)

    def fill() -> None:
        for number in range(20):
            outbox.put(frame(number), live=False)
        outbox.end(None)

    filling = threading.Thread(target=fill)
    with delivering(outbox):
        filling.start()
        assert post.knocked.wait(5)
        assert filling.is_alive()
        post.open.set()
    filling.join(5)

    assert ids(post.messages) == [f"door-1-{number}" for number in range(20)]


def test_who_waits_for_room_is_woken_when_the_worker_wants_no_more() -> None:
    outbox = FrameOutbox(Post())
    outbox.put(frame(0), live=False)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(outbox.put(frame(1), live=False)))
    waiting.start()

    outbox.close()
    waiting.join(5)

    assert answers == [False]


def test_signs_of_life_are_given_while_pictures_arrive_and_not_when_they_stop() -> None:
    post = Post()
    post.open.set()
    outbox = FrameOutbox(post)
    with delivering(outbox):
        outbox.grabbed()
        eventually(lambda: len(post.messages) == 1, "a sign of life")
        post.knocked.clear()
        assert not post.knocked.wait(0.5)  # in which two more would have come
        outbox.grabbed()
        outbox.grabbed()
        eventually(lambda: len(post.messages) == 2, "another one")
        outbox.close()

    assert [message.tally.grabbed for message in post.messages] == [1, 3]


def test_who_waits_on_purpose_is_alive() -> None:
    post, stop = Post(), Stop()
    post.open.set()
    outbox = FrameOutbox(post)
    waiting = threading.Thread(target=stop.wait, args=(30,))
    waiting.start()
    with delivering(outbox, stop):
        eventually(lambda: len(post.messages) >= 3, "signs of life")
        stop.set()
        outbox.close()
    waiting.join(5)

    assert not stop.waiting


def test_steps_come_in_order_and_before_the_frame() -> None:
    post = Post()
    outbox = FrameOutbox(post)
    with delivering(outbox):
        outbox.step(Step.RESOLVING)
        assert post.knocked.wait(5)
        for step in (Step.OPENING, Step.WAITING, Step.READING):
            outbox.step(step)
        outbox.put(frame(0), live=True)
        outbox.end(None)
        post.open.set()

    assert [message.step for message in post.messages] == [*Step, None, None]


def test_bad_pictures_and_costs_are_told_once() -> None:
    post = Post()
    outbox = FrameOutbox(post)
    with delivering(outbox):
        for _ in range(3):
            outbox.bad(BadFrame(DeadReason.UNDECODABLE, "torn"))
        outbox.observe("decode", 0.25)
        outbox.put(frame(0), live=True)
        outbox.end(SourceLost("gone", reason=DownReason.ENDED))
        post.open.set()

    first, last = post.messages
    assert [(bad.reason, bad.times, bad.message) for bad in first.tally.bad] == [(DeadReason.UNDECODABLE, 3, "torn")]
    assert first.tally.costs == (("decode", 0.25),)
    assert (last.tally.bad, last.tally.costs, last.tally.cpu) == ((), (), 0.25)
    assert last.loss is not None
    assert (last.loss.reason, last.loss.message) == (DownReason.ENDED, "gone")


def test_a_worker_that_is_gone_stops_the_camera() -> None:
    ours, theirs = socket.socketpair()
    stop = Stop()
    with theirs:
        ours.close()
        outbox = FrameOutbox(partial(send, theirs))
        with delivering(outbox, stop):
            outbox.put(frame(0), live=False)

    assert stop.is_set()
    assert not outbox.put(frame(1), live=False)


def played(settings: CameraSettings) -> list[Message]:
    """All that is said of a camera, over a socket, until its end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = FrameOutbox(partial(send, theirs))
        inbox = Inbox(ours, source=settings.name, spec=SPEC)
        messages: list[Message] = []
        reading = threading.Thread(target=read, args=(camera_of(Order(settings, SPEC), outbox), outbox, Stop()))
        reading.start()
        with delivering(outbox):
            while not messages or not (messages[-1].ended or messages[-1].loss):
                message = inbox.receive(10)
                assert message is not None
                messages.append(message)
        reading.join(5)
    return messages


def test_a_file_is_told_from_its_first_frame_to_its_end() -> None:
    messages = played(CameraSettings.model_validate({"name": "clip", "url": str(COCKATOO), "fps": 5}))

    frames = [message.frame for message in messages if message.frame is not None]
    assert len(frames) == 70
    assert {(one.width, one.height, one.pixels.shape) for one in frames} == {(640, 360, (8, 12, 3))}
    assert messages[-1].ended
    assert messages[-1].tally.cpu > 0
    assert sum(len(message.tally.costs) for message in messages) >= 140


def test_why_a_camera_was_lost_is_told_without_its_password() -> None:
    with RtspCamera(user="jo", password="right") as server:
        url = server.url(credentials="jo:hunter2")
        messages = played(CameraSettings.model_validate({"name": "door", "url": url}))

    loss = messages[-1].loss
    assert loss is not None
    assert "camera 'door'" in loss.message
    assert "hunter2" not in loss.message


def test_a_bug_is_a_loss_and_says_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coatstream.cameras.process.reader.look", lambda picture, spec, view: 1 / 0)

    messages = played(CameraSettings.model_validate({"name": "clip", "url": str(COCKATOO)}))

    loss = messages[-1].loss
    assert loss is not None
    assert loss.reason is DownReason.CRASHED
    assert loss.message == "camera 'clip': a bug: ZeroDivisionError: division by zero"


def test_a_figure_that_cannot_be_told_is_a_loss_and_no_silence() -> None:
    ours, theirs = socket.socketpair()
    stop = Stop()
    with ours, theirs:
        outbox = FrameOutbox(partial(send, theirs))
        with delivering(outbox, stop):
            outbox.put(replace(frame(0), captured_at=float("nan")), live=True)
        message = Inbox(ours, source="door", spec=SPEC).receive(5)

    assert stop.is_set()
    assert message is not None
    assert message.loss is not None
    assert message.loss.message.startswith("a message about a camera: a bug: ValidationError: 1 validation error")
