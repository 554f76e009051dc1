"""Messages between the worker and a camera's process: what is sent arrives, and what is not in form is refused."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from coatstream.cameras.capture.steps import Step
from coatstream.cameras.process.wire import (
    STAGES,
    Bad,
    HungUp,
    Inbox,
    Loss,
    Message,
    Nonsense,
    Order,
    Tally,
    checked_meta,
    one_line,
    receive_order,
    send,
    send_order,
)
from coatstream.errors import DeadReason, DownReason
from coatstream.frames.frame import THUMBNAIL, Frame, InputSpec, Vitals
from coatstream.settings.model import CameraSettings
from hypothesis import given
from hypothesis import strategies as st

from tests.support.load import slack

SPEC = InputSpec(8, 12, 1.0, "squash", "area", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
AREA = 8 * 12 * 3


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The worker's, the process's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def vitals(**given: Any) -> Vitals:
    thumbnail = np.arange(THUMBNAIL[0] * THUMBNAIL[1], dtype=np.uint8).reshape(THUMBNAIL)
    return Vitals(
        **({"brightness": 1.5, "contrast": 2.5, "sharpness": 3.5, "damage": 4, "fingerprint": 5} | given),
        thumbnail=thumbnail,
    )


def frame(measured: Vitals | None = None) -> Frame:
    pixels = np.arange(AREA, dtype=np.uint8).reshape(8, 12, 3)
    return Frame("door", "door-1-0", 1_700_000_000.25, pixels, 1920, 1080, vitals=measured)


def arrived(ours: socket.socket, within: float = 1.0) -> Message | None:
    return Inbox(ours, source="door", spec=SPEC).receive(within)


def say(theirs: socket.socket, content: object, pixels: bytes = b"") -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    theirs.sendall(struct.pack("<II", len(text), len(pixels)) + text + pixels)


def test_an_order_arrives_with_its_secrets(ends: tuple[socket.socket, socket.socket]) -> None:
    settings = CameraSettings.model_validate({"name": "door", "url": "rtsp://jo:hunter2@cam/1", "password": "x"})

    send_order(ends[0], Order(settings, SPEC))

    assert receive_order(ends[1]) == Order(settings, SPEC)


def test_a_worker_that_is_gone_gives_no_order(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].close()

    assert receive_order(ends[1]) is None


def test_a_process_that_is_gone_takes_no_order(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()

    with pytest.raises(HungUp):
        send_order(ends[0], Order(CameraSettings.model_validate({"name": "door", "url": "rtsp://cam/1"}), SPEC))


@pytest.mark.parametrize("measured", [None, vitals(), vitals(fingerprint=2**64 - 1), vitals(fingerprint=-(2**63))])
def test_a_frame_arrives_as_it_was_sent(ends: tuple[socket.socket, socket.socket], measured: Vitals | None) -> None:
    sent = frame(measured)
    send(ends[1], Message(Tally(grabbed=3), frame=sent))

    message = arrived(ends[0])

    assert message is not None
    got = message.frame
    assert got is not None
    assert np.array_equal(got.pixels, sent.pixels)
    names = ("source", "frame_id", "captured_at", "width", "height", "fence", "faults")
    assert [getattr(got, name) for name in names] == [getattr(sent, name) for name in names]
    assert (got.vitals is None) == (measured is None)
    if got.vitals is not None and measured is not None:
        mine, its = asdict(got.vitals), asdict(measured)
        assert np.array_equal(mine.pop("thumbnail"), its.pop("thumbnail"))
        assert np.array_equal(mine.pop("colours"), its.pop("colours"))
        assert mine == its
        assert got.vitals.thumbnail.base is None or got.vitals.thumbnail.base.nbytes < AREA * 100


counts = st.integers(0, 2**53)
seconds = st.floats(0, 86_400)
tallies = st.builds(
    Tally,
    grabbed=counts,
    replaced=counts,
    cpu=st.floats(0, 1e12),
    costs=st.lists(st.tuples(st.sampled_from(STAGES), seconds), max_size=5).map(tuple),
    bad=st.lists(
        st.builds(
            Bad, reason=st.sampled_from(DeadReason), times=st.integers(1, 100_000), message=st.text(max_size=300)
        ),
        max_size=5,
    ).map(tuple),
)
losses = st.builds(Loss, reason=st.sampled_from(DownReason), message=st.text(max_size=300), slow=st.booleans())


@given(tallies, st.none() | st.sampled_from(Step), st.none() | losses, st.booleans())
def test_whatever_is_said_arrives(tally: Tally, step: Step | None, loss: Loss | None, ended: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(theirs, Message(tally, step=step, loss=loss, ended=ended))
        got = arrived(ours)

    assert got is not None
    assert (got.tally, got.step, got.frame, got.loss, got.ended) == (tally, step, None, loss, ended)


def test_messages_that_arrive_in_pieces_arrive(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    relayed, relay = socket.socketpair()
    with relayed, relay:
        for _ in range(2):
            send(theirs, Message(Tally(), frame=frame(vitals())))
        theirs.shutdown(socket.SHUT_WR)

        def crumble() -> None:
            while data := ours.recv(37):
                relay.sendall(data)

        crumbling = threading.Thread(target=crumble)
        crumbling.start()
        inbox = Inbox(relayed, source="door", spec=SPEC)
        messages = [inbox.receive(5) for _ in range(2)]
        crumbling.join()

    assert all(message is not None and message.frame is not None for message in messages)


def test_half_a_message_is_waited_for_no_longer_than_allowed_and_not_forgotten(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    inbox = Inbox(ours, source="door", spec=SPEC)
    theirs.sendall(struct.pack("<II", 25, 0) + b'{"tally":')
    before = time.monotonic()

    assert inbox.receive(0.2) is None
    assert 0.15 < time.monotonic() - before < 1 + slack()

    theirs.sendall(b'{"grabbed": 7}}'.ljust(16))
    message = inbox.receive(1)
    assert message is not None
    assert message.tally.grabbed == 7


def test_a_process_that_is_gone_is_heard_of(ends: tuple[socket.socket, socket.socket]) -> None:
    with closing(ends[1]):
        ends[1].sendall(b"\x05")

    with pytest.raises(HungUp):
        arrived(ends[0])


PICTURE = {"frame_id": "a", "captured_at": 1.0, "width": 1, "height": 1, "vitals": None}


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (b"{}", b""),
        (b"no json", b""),
        (b"[]", b""),
        ({"tally": {}, "more": 1}, b""),
        ({"tally": {"grabbed": -1}}, b""),
        ({"tally": {"grabbed": 10**400}}, b""),
        ({"tally": {"cpu": float("nan")}}, b""),
        ({"tally": {"costs": [["money", 1.0]]}}, b""),
        ({"tally": {"costs": [["decode", 0.1]] * 201}}, b""),
        ({"tally": {"bad": [{"reason": "undecodable", "times": 10**9, "message": ""}]}}, b""),
        ({"tally": {}, "step": "dancing"}, b""),
        ({"tally": {}, "loss": {"reason": "timeout", "message": "x" * 301, "slow": False}}, b""),
        ({"tally": {}}, b"pixels of nothing"),
        ({"tally": {}, "picture": PICTURE}, b""),
        ({"tally": {}, "picture": PICTURE}, bytes(AREA + 1)),
        ({"tally": {}, "picture": PICTURE | {"captured_at": float("inf")}}, bytes(AREA)),
        ({"tally": {}, "picture": PICTURE | {"frame_id": "x" * 257}}, bytes(AREA)),
        ({"tally": {}, "picture": PICTURE | {"width": 0}}, bytes(AREA)),
        ({"tally": {}, "picture": PICTURE | {"vitals": {"brightness": 1.0}}}, bytes(AREA)),
    ],
)
def test_what_is_not_in_form_is_refused(
    ends: tuple[socket.socket, socket.socket], content: object, pixels: bytes
) -> None:
    say(ends[1], content, pixels)

    with pytest.raises(Nonsense):
        arrived(ends[0])


def test_a_message_of_any_length_is_not_waited_for(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].sendall(struct.pack("<II", 2**32 - 1, 0))

    with pytest.raises(Nonsense, match="not of 2 to 65536"):
        arrived(ends[0])


@given(st.binary(max_size=200))
def test_no_bytes_make_anything_but_a_message_or_an_error(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises((HungUp, Nonsense)):
            arrived(ours, within=5)


def test_an_error_becomes_one_short_line_without_credentials() -> None:
    error = ValueError("cannot open\nrtsp://jo:hunter2@cam/1 " + "x" * 500)

    line = one_line(error)

    assert line.startswith("cannot open rtsp://***@cam/1 xxx")
    assert len(line) == 300


@pytest.mark.parametrize("meta", ["[1]", "null", '{"file": ', "1}, {"])
def test_a_meta_that_would_spoil_the_document_is_nonsense(meta: str) -> None:
    with pytest.raises(Nonsense, match="no JSON object"):
        checked_meta(meta)


def test_a_meta_that_is_an_object_passes_as_it_is() -> None:
    assert checked_meta('{"file":  "a.jpg"}') == '{"file":  "a.jpg"}'
    assert checked_meta(None) is None
