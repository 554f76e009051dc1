"""Which pictures of a live stream are taken. Everything is read, since a reader that pauses falls behind for good."""

import threading
from collections.abc import Callable, Iterator
from typing import Final

from coatstream.cameras.capture.reader import PictureReader, Trouble
from coatstream.cameras.capture.sampling import BurstPacer, Sampler
from coatstream.errors import DownReason
from coatstream.settings.model import CameraSettings

_WAITED: Final = 0.008  # seconds: a grab that takes longer waited for the camera, so the backlog is used up
WARM_UP: Final = 1.5  # seconds after which a stream counts as current whatever its grabs took


class LiveSampling:
    """One session of a live stream. Once `wanted` is set, the next picture is taken, due or not."""

    def __init__(
        self,
        settings: CameraSettings,
        reader: PictureReader,
        *,
        opened_at: float,
        monotonic: Callable[[], float],
        on_current: Callable[[], None],
        on_grab: Callable[[], None],
        wanted: threading.Event,
    ) -> None:
        """`on_current`: the first picture that is not old has come; `opened_at`: when the opening began."""
        self._settings = settings
        self._reader = reader
        self._opened_at = opened_at
        self._monotonic = monotonic
        self._on_current = on_current
        self._on_grab = on_grab
        self._wanted = wanted
        self._sampler = Sampler(settings.fps)

    def on_arrival(self, stop: threading.Event) -> Iterator[None]:
        """Grab all, stop at each picture to take: by the time of arrival, since cameras make their timestamps up.

        So neither a jump of the camera's clock nor one of ours, which is not asked, stops the sampling.
        """
        behind_until, current = self._monotonic() + WARM_UP, False
        while not stop.is_set() and (grabbed := self._grab(stop)) is not None:
            before, now = grabbed
            # Opening reads some pictures ahead to learn the format: they are old, so they are skipped.
            if now < behind_until and now - before < _WAITED and not self._reader.paced:
                continue
            if not current:
                current, behind_until = True, now
                self._begin()
            if self._is_due(now) or self._reader.paced:
                yield

    def in_bursts(self, stop: threading.Event) -> Iterator[None]:
        """HLS: a segment's pictures come all at once, and are shown when their time has come."""
        pacer, current = BurstPacer(), False
        while not stop.is_set() and self._grab(stop) is not None:
            if not current:
                current = True
                self._begin()
            if stop.wait(pacer.delay(self._reader.media_time, self._monotonic())):
                return
            if self._is_due(pacer.media):
                yield

    def _grab(self, stop: threading.Event) -> tuple[float, float] | None:
        """When the wait for the next picture began, and when it ended; None once told to stop. Raises Trouble."""
        before = self._monotonic()
        if not self._reader.grab():
            if stop.is_set():
                return None
            if not self._reader.grabbed and self._reader.damaged:
                raise Trouble(DownReason.CODEC, "none of its pictures can be decoded")
            raise Trouble(DownReason.ENDED, "its stream ended")
        self._on_grab()
        return before, self._monotonic()

    def _begin(self) -> None:
        if self._monotonic() - self._opened_at > self._settings.open_timeout + WARM_UP:
            raise Trouble(DownReason.TIMEOUT, f"no picture within {self._settings.open_timeout:g} s")
        self._on_current()

    def _is_due(self, at: float) -> bool:
        """A wish begins sampling anew, with the present picture."""
        if self._wanted.is_set():
            self._wanted.clear()
            self._sampler = Sampler(self._settings.fps)
        return self._sampler.is_due(at)
