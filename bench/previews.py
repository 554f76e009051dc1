"""What pictures for people cost a worker, in CPU time: previews that are watched or not, and those kept for events.

    python -m bench previews

Against an embedded server. `unwatched` and `watched` are the whole thread that publishes previews, with 100 cameras;
the others are one picture of a size: in a camera's process (`keep`), and in the worker, as a JPEG (`event`).
"""

import json
import os
import time
from collections.abc import Callable, Collection, Iterable

import numpy as np
from coatstream.broker.connection import connect
from coatstream.broker.embedded import embedded_server
from coatstream.broker.picture_keys import PictureKeys
from coatstream.cameras.process.shelf import PictureShelf, ShelfWriter
from coatstream.frames.frame import Pixels
from coatstream.frames.opencv import cv2
from coatstream.frames.still import Still
from coatstream.results.previews import EVERY, wish
from coatstream.results.showing import PreviewPublisher
from coatstream.settings.model import RedisSettings

CAMERAS = 100
VISIBLE = 10  # tiles
BEATS = 60  # half a minute of a worker's life, without the waits
FULL_HD = (1920, 1080)
SIZES = ((640, 360), (1280, 720), FULL_HD)


class Cameras:
    """A `PreviewSource` whose pictures are always new."""

    shared = False

    def __init__(self, picture: Pixels) -> None:
        self._picture = picture
        self._number = 0

    def names(self) -> Iterable[str]:
        return [f"camera-{number}" for number in range(CAMERAS)]

    def wished(self, names: Collection[str]) -> None: ...

    def newest(self, name: str) -> Still | None:
        self._number += 1
        return Still(str(self._number), 0.0, self._picture.copy())


def photo(width: int, height: int) -> Pixels:
    """Blurred noise: as heavy as a photo."""
    small = np.random.default_rng(0).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.asarray(cv2.resize(small, (width, height)), np.uint8)


def spent(call: Callable[[], object], times: int) -> float:
    """CPU seconds of one call."""
    call()
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times


def main() -> None:
    keys = PictureKeys()
    with embedded_server() as server, connect(RedisSettings.model_validate({"url": server.url})) as client:
        publisher = PreviewPublisher(client, keys, [Cameras(photo(640, 360))])
        told("unwatched", cameras=CAMERAS, percent_of_a_core=100 * spent(publisher.beat, BEATS) / EVERY)
        for number in range(VISIBLE):
            wish(client, keys.wish(f"camera-{number}"), seconds=600)
        told("watched", tiles=VISIBLE, percent_of_a_core=100 * spent(publisher.beat, BEATS) / EVERY)
    for width, height in SIZES:
        shelf, picture, moments = PictureShelf(), photo(width, height), iter(range(10**9))
        shelf.want(True)
        writer = ShelfWriter(os.dup(shelf.descriptor), lambda moments=moments: next(moments))  # type: ignore[misc]
        kept = spent(lambda writer=writer, picture=picture: writer.put("f", 0.0, picture), 200)  # type: ignore[misc]
        told("keep", width=width, height=height, ms=1000 * kept, percent_at_5_fps=500 * kept)
    still = shelf.newest()
    assert still is not None
    told("event", ms=1000 * spent(lambda: still.jpeg(side=640, quality=80), 200))


def told(what: str, **figures: float) -> None:
    print(json.dumps({"what": what, **{name: round(value, 3) for name, value in figures.items()}}), flush=True)
