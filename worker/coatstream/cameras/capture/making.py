"""Pictures become frames: measured whole, prepared for the model, named, and counted where they are broken."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Final

from coatstream.cameras.capture.folder import Folder, Found
from coatstream.cameras.capture.jpegs import is_whole
from coatstream.cameras.capture.reader import PictureReader
from coatstream.cameras.capture.steps import CaptureObserver
from coatstream.cameras.capture.vitals import measure
from coatstream.errors import BadFrame
from coatstream.frames.decoding import decode
from coatstream.frames.frame import Frame, Pixels, Vitals
from coatstream.settings.model import QueueSettings

_BOUNDS: Final = QueueSettings()  # of a picture in a folder: those of a picture in the queue


class FrameMaker:
    """Makes the frames of one camera, session by session.

    lost    pictures that were due but could not be converted or prepared
    damage  of the present reader or folder, as far as frames have told of it; keyframes likewise
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[Pixels], Pixels],
        observer: CaptureObserver,
        clock: Callable[[], float],
    ) -> None:
        self.lost = 0
        self._name = name
        self._prepare = prepare
        self._observer = observer
        self._clock = clock
        self.damage = 0
        self.keyframes = 0
        self._ids: Iterator[str] = iter(())

    def begin_session(self) -> None:
        """Frames have other names from now on."""
        session = int(self._clock() * 1e9)
        self._ids = (f"{self._name}-{session:x}-{number}" for number in count())

    def take(self, reader: PictureReader) -> Frame | None:
        """The picture that was grabbed last, or None, counted, where it is broken."""
        captured_at = self._clock()
        try:
            picture = reader.retrieve()
        except BadFrame as bad:
            self._bad(bad)
            return None
        finally:
            self._observer.observe("decode", reader.take_cost())
        damage, self.damage = reader.damaged - self.damage, reader.damaged
        keyframes, self.keyframes = reader.keyframes - self.keyframes, reader.keyframes
        return self._made(picture, captured_at, measure(picture, damage=damage, keyframes=max(0, keyframes)))

    def take_file(self, folder: Folder, found: Found) -> Frame | None:
        """A file's picture, or None, counted, where it is broken; None where it has gone meanwhile."""
        before = time.thread_time()
        name = _shown(found.name)
        try:
            data = folder.read(found, max_bytes=_BOUNDS.max_bytes)
            if data is None:
                return None
            picture = decode(data, max_bytes=_BOUNDS.max_bytes, max_pixels=_BOUNDS.max_pixels)
        except BadFrame as bad:
            self._bad(BadFrame(bad.reason, f"{name}: {bad}"))
            return None
        finally:
            self._observer.observe("decode", time.thread_time() - before)
        damage = int(not is_whole(data))
        self.damage += damage
        frame = self._made(picture, found.written / 1e9, measure(picture, damage=damage))
        return None if frame is None else replace(frame, meta=json.dumps({"file": name}))

    def _made(self, picture: Pixels, captured_at: float, vitals: Vitals) -> Frame | None:
        height, width = picture.shape[:2]
        before = time.thread_time()
        try:
            pixels = self._prepare(picture)
        except BadFrame as bad:
            self._bad(bad)
            return None
        finally:
            self._observer.observe("prepare", time.thread_time() - before)
        if pixels.base is not None:  # a crop would keep the whole picture alive
            pixels = pixels.copy()
        frame = Frame(self._name, next(self._ids), captured_at, pixels, width, height, vitals=vitals)
        self._observer.picture(frame, picture)
        return frame

    def _bad(self, bad: BadFrame) -> None:
        self.lost += 1
        self._observer.bad(bad)


def _shown(name: str) -> str:
    """A file's name as text that any reader takes; it may hold any bytes."""
    return name.encode("utf-8", "replace").decode()[:512]
