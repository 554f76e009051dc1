"""Frames from a real stream: in order, decoded, and never forgotten."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from config.settings import QueueSettings, RedisSettings, ResultsSettings
from tests.pictures import grey_jpeg
from worker.broker.connection import Client, connect
from worker.broker.publisher import Publisher
from worker.broker.settler import Settler
from worker.engine import ModelInfo
from worker.errors import DeadReason, SourceLost
from worker.frames import Frame, Pixels, Receipt
from worker.ledger import DropReason, Ledger
from worker.outcomes import Dropped
from worker.sources.holdings import Holdings
from worker.sources.queue import QueueSource

MODEL = ModelInfo("fixed", "none", "fixed", "cpu", 0)


def shrink(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image[:8, :8])


class Reader:
    """A queue source on a real server, with all that it needs."""

    def __init__(self, client: Client, *, consumer: str = "me", prefetch: int = 8, **queue: object) -> None:
        self.settings = QueueSettings.model_validate(queue)
        self.client = client
        self.ledger = Ledger()
        self.holdings = Holdings()
        self.stop = threading.Event()
        self.settler = Settler(client, self.settings, ResultsSettings(), model=MODEL, worker=consumer, name="queue")
        self.undertaker = Publisher(self.settler, on_trouble=lambda trouble: None, on_success=lambda: None)
        self.source = QueueSource(
            client,
            self.settings,
            consumer=consumer,
            prefetch=prefetch,
            block=0.05,
            prepare=shrink,
            undertaker=self.undertaker,
            holdings=self.holdings,
            ledger=self.ledger,
        )

    @contextmanager
    def reading(self) -> Iterator[Iterator[Frame]]:
        frames = self.source.frames(self.stop)
        try:
            yield frames
        finally:
            self.stop.set()
            frames.close()


def take(frames: Iterator[Frame], count: int) -> list[Frame]:
    return [next(frames) for _ in range(count)]


def drain(reader: Reader) -> list[Frame]:
    """Everything that is in the stream: stops when the group has nothing more to give."""
    reader.source._join_group()
    thread = threading.Thread(target=_stop_when_read, args=(reader,))
    thread.start()
    frames = list(reader.source.frames(reader.stop))
    thread.join(10)
    return frames


def _stop_when_read(reader: Reader) -> None:
    with connect(RedisSettings.model_validate({"url": _url(reader.client)})) as client:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            (group,) = client.xinfo_groups(reader.settings.stream)
            last = client.xrevrange(reader.settings.stream, count=1)
            if not last or group["last-delivered-id"] >= last[0][0]:
                break
            reader.stop.wait(0.01)
    reader.stop.set()


def _url(client: Client) -> str:
    return f"unix://{client.connection_pool.connection_kwargs['path']}"


def test_frames_come_in_the_order_of_the_stream_with_what_their_producer_said(client: Client) -> None:
    for number in range(20):
        client.xadd(
            "frames", {"image": grey_jpeg(number * 10), "source": f"cam-{number % 3}", "frame_id": f"f{number}"}
        )

    with Reader(client).reading() as frames:
        got = take(frames, 20)

    assert [frame.frame_id for frame in got] == [f"f{number}" for number in range(20)]
    assert [int(frame.pixels[0, 0, 0]) for frame in got] == pytest.approx([number * 10 for number in range(20)], abs=2)
    assert {(frame.width, frame.height) for frame in got} == {(32, 24)}
    assert isinstance(got[0].receipt, Receipt)


def test_raw_pixels_arrive_in_rgb_whatever_their_order_was(client: Client) -> None:
    red_in_bgr = np.full((8, 8, 3), (0, 0, 255), np.uint8).tobytes()
    red_in_rgb = np.full((8, 8, 3), (255, 0, 0), np.uint8).tobytes()
    for data, pixel_format in ((red_in_bgr, "bgr24"), (red_in_rgb, "rgb24"), (b"\x80" * 64, "gray8")):
        client.xadd("frames", {"pixels": data, "width": 8, "height": 8, "format": pixel_format})

    with Reader(client).reading() as frames:
        first, second, third = take(frames, 3)

    assert first.pixels[0, 0].tolist() == second.pixels[0, 0].tolist() == [255, 0, 0]
    assert third.pixels[0, 0].tolist() == [128, 128, 128]


def test_bad_entries_are_buried_at_once_with_their_reason_and_the_good_ones_go_on(client: Client) -> None:
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "first"})
    client.xadd("frames", {"image": b"", "source": "a"})
    client.xadd("frames", {"image": b"this is a text"})
    client.xadd("frames", {"image": grey_jpeg(128)[:200]})
    client.xadd("frames", {"source": "nothing here"})
    client.xadd("frames", {"pixels": b"abc", "width": 10, "height": 10})
    client.xadd("frames", {"image": grey_jpeg(128), "meta": "[]"})
    client.xadd("frames", {"image": b"x" * 5000})
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "last"})
    reader = Reader(client, max_bytes=4000)

    frames = drain(reader)

    assert [frame.frame_id for frame in frames] == ["first", "last"]
    dead = [fields[b"reason"].decode() for _, fields in client.xrange("frames:dead")]
    assert dead == ["undecodable", "undecodable", "undecodable", "invalid", "invalid", "invalid", "too_large"]
    assert client.xlen("frames") == 2
    account = reader.ledger.total()
    assert account.dead == {DeadReason.UNDECODABLE: 3, DeadReason.INVALID: 3, DeadReason.TOO_LARGE: 1}
    assert account.in_flight == 0


def test_an_expired_frame_is_settled_without_being_decoded(client: Client) -> None:
    client.xadd("frames", {"image": b"not even a picture", "expires_at": "1000"})
    reader = Reader(client)

    frames = drain(reader)

    assert frames == []
    assert client.xlen("frames") == 0
    assert reader.ledger.total().dropped == {DropReason.EXPIRED: 1}


def test_stopping_hands_on_everything_that_was_read(client: Client) -> None:
    for number in range(30):
        client.xadd("frames", {"image": grey_jpeg(128), "frame_id": str(number)})
    reader = Reader(client, prefetch=8)
    frames = reader.source.frames(reader.stop)
    first = next(frames)

    reader.stop.set()
    rest = list(frames)

    handed_on = {frame.receipt.entry_id for frame in [first, *rest] if frame.receipt}
    pending = client.xpending_range("frames", "coatstream", "-", "+", 100)
    assert {item["message_id"].decode() for item in pending} == handed_on == reader.holdings.snapshot()


def test_never_more_is_read_than_the_window_and_what_was_handed_on(client: Client) -> None:
    for _ in range(50):
        client.xadd("frames", {"image": grey_jpeg(128)})
    reader = Reader(client, prefetch=6)

    with reader.reading() as frames:
        for handed_on in range(1, 20):
            next(frames)
            assert len(reader.holdings) <= handed_on + 6


def test_entries_whose_reply_was_lost_are_swept_up_and_those_in_hand_are_left_alone(client: Client) -> None:
    reader = Reader(client)
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    lost, held = (
        client.xadd("frames", {"image": grey_jpeg(128), "frame_id": name}).decode() for name in ("lost", "held")
    )
    client.xreadgroup("coatstream", "me", {"frames": ">"})
    reader.holdings.add([held])

    with reader.reading() as frames:
        frame = next(frames)

    assert frame.frame_id == "lost"
    assert frame.receipt == Receipt("frames", lost)


def test_a_group_that_vanished_is_lost_once_and_made_again_from_the_beginning(client: Client) -> None:
    reader = Reader(client)
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "before"})
    frames = reader.source.frames(reader.stop)
    settled = next(frames)
    reader.undertaker.publish([Dropped("door", DropReason.STALE, settled.receipt)])
    client.xgroup_destroy("frames", "coatstream")

    with pytest.raises(SourceLost, match=r"NOGROUP|UNBLOCKED|group"):
        next(frames)
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "after"})
    again = next(reader.source.frames(reader.stop))

    assert again.frame_id == "after"


def test_a_server_that_is_away_is_a_lost_source_and_no_traceback() -> None:
    with connect(RedisSettings.model_validate({"url": "redis://:hunter2@127.0.0.1:1"})) as client:
        reader = Reader(client)

        with pytest.raises(SourceLost, match="group cannot be created") as caught:
            next(reader.source.frames(reader.stop))

    assert "hunter2" not in str(caught.value)


def test_a_reader_starts_on_a_server_that_is_full(client: Client) -> None:
    client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    client.xadd("frames", {"image": grey_jpeg(128), "frame_id": "waits"})
    client.config_set("maxmemory", "1mb")
    try:
        with Reader(client).reading() as frames:
            frame = next(frames)
    finally:
        client.config_set("maxmemory", "0")

    assert frame.frame_id == "waits"


def test_what_a_decoder_raises_buries_the_entry_and_not_the_worker(client: Client) -> None:
    client.xadd("frames", {"image": grey_jpeg(128)})
    reader = Reader(client)

    def fail(image: Pixels) -> Pixels:
        raise MemoryError

    reader.source._prepare_pixels = fail

    assert drain(reader) == []
    ((_, fields),) = client.xrange("frames:dead")
    assert (fields[b"reason"], fields[b"error"]) == (b"undecodable", b"MemoryError while preparing")
