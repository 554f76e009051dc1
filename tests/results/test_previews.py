"""Previews: published while they are wished for, and only then. Real servers."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pytest
from coatstream.broker.connection import Client
from coatstream.broker.picture_keys import PictureKeys
from coatstream.frames.decoding import decode
from coatstream.frames.still import Jpeg, Still
from coatstream.results.previews import Preview, parse_preview, preview_message, wish, wished_side
from coatstream.results.showing import REPEATED, PreviewPublisher
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = PictureKeys("site:preview", "site:picture")


class Pictures:
    """A `PreviewSource` of these names."""

    def __init__(self, *names: str, shared: bool = False) -> None:
        self.shared = shared
        self.now: set[str] = set()
        self.number = 0
        self._names = names

    def names(self) -> Iterable[str]:
        return self._names

    def wished(self, names: Collection[str]) -> None:
        self.now = set(names)

    def newest(self, name: str) -> Still | None:
        return Still(f"{name}-{self.number}", 100.0 + self.number, np.full((360, 640, 3), 200, np.uint8))


class Watching:
    """All previews that are published."""

    def __init__(self, client: Client) -> None:
        self.pubsub: Any = client.pubsub(ignore_subscribe_messages=True)
        self.pubsub.psubscribe("site:preview:*")
        self.pubsub.get_message(timeout=5)

    def seen(self) -> list[Preview]:
        found = []
        while (message := self.pubsub.get_message(timeout=0.1)) is not None:
            if (preview := parse_preview(message["data"])) is not None:
                found.append(preview)
        return found


def test_a_preview_is_published_while_it_is_wished_for_and_once(client: Client) -> None:
    watching, cameras = Watching(client), Pictures("door", "yard")
    publisher = PreviewPublisher(client, KEYS, [cameras])

    publisher.beat()
    wish(client, KEYS.wish("door"))
    publisher.beat()
    publisher.beat()
    [preview] = watching.seen()
    cameras.number = 1
    publisher.beat()
    client.delete(KEYS.wish("door"))
    cameras.number = 2
    publisher.beat()

    assert (preview.source, preview.captured_at, preview.width, preview.height) == ("door", 100.0, 320, 180)
    assert decode(preview.jpeg, max_bytes=10**6, max_pixels=10**6).shape == (180, 320, 3)
    assert [one.captured_at for one in watching.seen()] == [101.0]
    assert cameras.now == set()
    assert publisher.published == 2
    watching.pubsub.close()


def test_a_watcher_who_comes_late_sees_a_picture_that_does_not_change(client: Client) -> None:
    watching = Watching(client)
    publisher = PreviewPublisher(client, KEYS, [Pictures("door")])
    wish(client, KEYS.wish("door"))

    for _ in range(2 * REPEATED):
        publisher.beat()

    assert len(watching.seen()) == 2
    watching.pubsub.close()


def test_workers_take_turns_with_a_source_that_all_of_them_see(client: Client) -> None:
    watching = Watching(client)
    publishers = [PreviewPublisher(client, KEYS, [Pictures("queue-1", shared=True)]) for _ in range(3)]
    wish(client, KEYS.wish("queue-1"), side=640)

    for publisher in publishers:
        publisher.beat()

    assert [preview.width for preview in watching.seen()] == [640]
    watching.pubsub.close()


@pytest.mark.parametrize(
    ("value", "side"), [(None, 0), (b"1", 320), (b"", 320), (b"x", 320), (b"200", 200), (b"640", 640), (b"99999", 640)]
)
def test_a_wish_is_a_size_or_any_other_word(value: bytes | None, side: int) -> None:
    assert wished_side(value) == side


@settings(max_examples=30)
@given(st.text(max_size=40), st.floats(0, 1e10))
def test_a_preview_comes_out_as_it_went_in(source: str, at: float) -> None:
    source = source.encode("utf-8", "replace").decode()
    message = preview_message(source, at, Jpeg(b"\xff\xd8\xff\n{}", 64, 36))

    assert parse_preview(message) == Preview(source, at, 64, 36, b"\xff\xd8\xff\n{}")


@given(st.binary(max_size=200))
def test_what_is_no_preview_is_none(message: bytes) -> None:
    assert parse_preview(message) is None
    assert parse_preview(b'{"source":"a","captured_at":1,"width":9999,"height":1}\n\xff\xd8\xff' + message) is None
