"""Small real implementations of our own protocols: what a test scripts instead of mocking."""

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable

import numpy as np
from coatstream.errors import CoatstreamError
from coatstream.frames.frame import Frame, InputSpec, Label, Pixels, Receipt, Scores
from coatstream.frames.model import ModelInfo

SPEC = InputSpec(
    height=8, width=8, crop_pct=1.0, crop_mode="squash", interpolation="area", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


class FixedEngine:
    """Says of each picture the class that its first pixel's red value names; raises on the red value `poison`."""

    def __init__(
        self, *, streams: int = 1, prepared: tuple[int, ...] = (1, 2, 4, 8), poison: int | None = None
    ) -> None:
        self.info = ModelInfo("fixed", "none", "fixed", "fp32", "cpu", 2)
        self.spec = SPEC
        self.labels = tuple(Label(index, None, f"class {index}") for index in range(256))
        self.prepared = prepared
        self.streams = streams
        self.recompilations = 0
        self.poison = poison
        self.gate = threading.Event()  # cleared: batches stay inside the engine
        self.gate.set()
        self.entered = threading.Semaphore(0)  # released when a batch comes in
        self.batches: list[int] = []
        self.broken = False  # True: raises whatever it is given

    def warm_up(self) -> None:
        """Nothing to warm."""

    def classify(self, pixels: Pixels) -> Scores:
        self.entered.release()
        assert self.gate.wait(20)
        self.batches.append(len(pixels))
        if self.broken:
            raise RuntimeError("no device")
        reds = pixels[:, 0, 0, 0].astype(np.int64)
        if self.poison is not None and self.poison in reds:
            raise RuntimeError("this picture is poison")
        return Scores(reds[:, None], np.ones((len(pixels), 1), np.float32), np.ones((len(pixels), 2), np.float32))


class ScriptedSource:
    """Yields the frames that it is given; then ends, or calls `then`."""

    def __init__(
        self,
        name: str,
        frames: Iterable[Frame],
        *,
        live: bool = False,
        then: Callable[[threading.Event], None] = lambda stop: None,
    ) -> None:
        self.name = name
        self.live = live
        self.opened = 0
        self._frames = frames
        self._then = then

    def frames(self, stop: threading.Event) -> Generator[Frame, None, None]:
        self.opened += 1
        yield from self._frames
        self._then(stop)


class HeardHealth:
    """A `RedisHealth` that remembers what it was told."""

    def __init__(self) -> None:
        self.troubles: list[CoatstreamError] = []
        self.successes = 0

    def up(self) -> None:
        self.successes += 1

    def down(self, trouble: CoatstreamError) -> None:
        self.troubles.append(trouble)


class HeardQueue:
    """A `QueueObserver` that remembers what it was told."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.buried: list[str] = []

    def count(self, event: str, number: int) -> None:
        self.counted[event] += number

    def gave_up(self, source: str) -> None:
        self.buried.append(source)

    def wrong_time(self, source: str, ahead: float) -> None:
        self.counted["wrong_times"] += 1

    def letters_dropped(self, number: int) -> None:
        self.counted["letters_dropped"] += number


class SettableClock:
    """Time that moves only when a test moves it. Seconds."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make_frame(
    frame_id: str = "1",
    *,
    source: str = "door",
    red: int = 7,
    captured_at: float = 1_000.0,
    entry_id: str | None = None,
    expires_at: float | None = None,
) -> Frame:
    pixels = np.full((8, 8, 3), red, np.uint8)
    receipt = Receipt("frames", entry_id) if entry_id else None
    return Frame(source, frame_id, captured_at, pixels, 1920, 1080, receipt=receipt, expires_at=expires_at)
