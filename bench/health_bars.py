"""The bars of picture health: cases of which it is known what is wrong, and scenes of which nothing is.

Cases are made here or are files; stills are encoded as cameras do (H.264, several CRF and GOP), and read as a worker
reads a camera. What is measured is what `PictureHealth` publishes at default settings.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as StopEvent
from typing import Any, Final

import av
import numpy as np
from coatstream.cameras.capture.camera import Camera
from coatstream.cameras.capture.vitals import measure
from coatstream.cameras.health import PictureHealth, is_black, is_covered
from coatstream.frames.frame import Pixels, Vitals
from coatstream.frames.opencv import cv2
from coatstream.results.events.event import Event, EventKind
from coatstream.settings.model import CameraSettings, HealthSettings

from bench.scenes import noisy, read_clip

SIZE: Final = (640, 360)
FPS: Final = 5.0  # pictures a second that a camera samples by default
CODED: Final = 10  # pictures a second in a clip that is encoded here
QUALITIES: Final = (28, 34, 40)  # CRF
GOPS: Final = (1, 5, 25, 30)  # seconds between keyframes
NIGHTS: Final = (0.04, 0.05, 0.06, 0.08)  # of a photo's light
_FEW: Final = 20  # pictures
_DIFFERENT: Final = 60  # pictures with noise of their own; more would only take longer to make

Said = dict[str, float]  # fault -> seconds from the start at which it was published
Looks = Iterable[tuple[float, Vitals]]


@dataclass(frozen=True, slots=True)
class Case:
    """Pictures, 5 a second unless said, and the faults of which one is right; none: nothing is to be said.

    limit  known not to be found, and documented so
    """

    name: str
    looks: Callable[[], Looks]
    right: frozenset[str] = frozenset()
    limit: bool = False

    def holds(self, said: Said) -> bool:
        return bool(said.keys() & self.right) and said.keys() <= self.right if self.right else not said


def told(looks: Looks) -> Said:
    """What a camera's picture health publishes."""
    events: list[Event] = []
    health = PictureHealth(HealthSettings(), "scene", publish=events.append)
    for at, vitals in looks:
        health.look(vitals, 1000.0 + at)
    sick = [event for event in events if event.kind == EventKind.PICTURE_SICK]
    return {event.detail["fault"]: event.at - 1000.0 for event in reversed(sick)}


def live(pictures: Iterable[Pixels], *, fps: float = FPS) -> Iterator[tuple[float, Vitals]]:
    """Of a camera whose pictures are each coded whole."""
    return ((number / fps, measure(picture, damage=0)) for number, picture in enumerate(pictures))


def coded(pictures: Iterable[Pixels], *, crf: int, gop: float) -> list[tuple[float, Vitals]]:
    """The same as H.264 of 10 pictures a second, read as a worker reads a camera."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "still.mp4"
        write_coded(path, pictures, crf=crf, gop=gop)
        return list(played(path))


def played(path: Path) -> Iterator[tuple[float, Vitals]]:
    """A clip as a camera that shows it."""
    camera = CameraSettings.model_validate({"name": "scene", "url": str(path), "fps": FPS})
    source = Camera(camera, prepare=lambda picture: picture[:1, :1])
    with av.open(str(path)) as file:
        rate = float(file.streams.video[0].average_rate or CODED)
    for frame in source.frames(StopEvent()):
        assert frame.vitals is not None
        yield (source.pictures - 1) / rate, frame.vitals


def write_coded(path: Path, pictures: Iterable[Pixels], *, crf: int, gop: float) -> None:
    """BGR pictures of one size as H.264, without B-frames and keyframes at cuts, as cameras encode."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=CODED)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *SIZE, "yuv420p", round(gop * CODED)
        stream.options = {"crf": str(crf), "preset": "veryfast", "bf": "0", "sc_threshold": "0", "threads": "2"}
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        file.mux(stream.encode())


# ---- scenes


def still(photo: Pixels, seconds: float, *, light: float = 1.0, noise: float = 3.0) -> Iterator[Pixels]:
    """A scene where nothing moves, with a sensor's noise, 10 pictures a second."""
    rng = np.random.default_rng(4)
    scene = np.asarray(cv2.resize(photo, SIZE, interpolation=cv2.INTER_AREA), np.float32) * np.float32(light)
    different = [noisy(scene, rng, noise) for _ in range(_DIFFERENT)]
    order = itertools.chain.from_iterable(rng.permutation(_DIFFERENT) for _ in itertools.count())
    return (different[next(order)] for _ in range(round(seconds * CODED)))


def nights(photos: Sequence[tuple[str, Pixels]], light: float) -> dict[str, list[str]]:
    """The photos that are taken for black or for covered at this share of their light."""
    rng, found = np.random.default_rng(0), dict[str, list[str]]()
    for name, photo in photos:
        vitals = measure(noisy(photo.astype(np.float32) * np.float32(light), rng, 3), damage=0)
        for fault, judge in (("black", is_black), ("covered", is_covered)):
            if judge(vitals):
                found.setdefault(fault, []).append(name)
    return found


def cases(photo: Pixels) -> Iterator[Case]:
    """Of the house's list of sick and well pictures."""
    scene = np.asarray(cv2.resize(photo, SIZE, interpolation=cv2.INTER_AREA), np.uint8)
    yield from _hidden(scene)
    yield from _frozen(scene)
    yield from _poor(scene)


def _hidden(scene: Pixels) -> Iterator[Case]:
    def plain(level: float, slope: float, noise: float, *, date: bool = False, count: int = 100) -> Iterator[Pixels]:
        rng = np.random.default_rng(1)
        ramp = np.broadcast_to(level + np.linspace(-slope, slope, SIZE[0])[None, :, None], (SIZE[1], SIZE[0], 3))
        return ((_dated if date else _same)(noisy(ramp, rng, noise), number) for number in range(count))

    def dark(level: float, slope: float, *, date: bool = False) -> Looks:
        return coded(plain(level, slope, 1.5, date=date, count=150), crf=28, gop=2)

    yield Case("black with a date", lambda: dark(2, 0, date=True), frozenset({"black"}))
    yield Case("a hand in dim light", lambda: dark(14, 6), frozenset({"black", "covered"}))
    yield Case("a hand by day", lambda: live(plain(60, 20, 3, date=True)), frozenset({"covered"}))
    yield Case("a plain wall at 1 fps", lambda: live(plain(205, 8, 2, count=40), fps=1), frozenset({"covered"}))
    green = np.full_like(scene, (0, 130, 0))
    yield Case("green frames", lambda: live(green for _ in range(100)), frozenset({"covered"}))
    cloth = np.asarray(120 + 25 * np.sin(np.arange(SIZE[0]) / 3)[None, :, None] + np.zeros_like(scene), np.float32)
    woven = lambda: live(_noises(cloth, 100))  # noqa: E731
    yield Case("a woven cloth", woven, frozenset({"covered"}), limit=True)
    most = scene.copy()
    most[:, : SIZE[0] * 4 // 5] = 60
    yield Case("80 % covered", lambda: live(_noises(most, 100)), frozenset({"covered"}), limit=True)


def _frozen(scene: Pixels) -> Iterator[Case]:
    right = frozenset({"frozen"})
    four = list(_noises(scene, 4))
    signal = _dated(np.full_like(scene, (160, 40, 20)), 0)
    cv2.putText(signal, "NO SIGNAL", (180, 190), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255,) * 3, 3)
    yield Case("frozen", lambda: live(four[0] for _ in range(200)), right)
    yield Case("frozen under a clock", lambda: live(_dated(four[0].copy(), n) for n in range(200)), right)
    yield Case("four pictures in a loop", lambda: live(four[n % 4] for n in range(200)), right)
    yield Case("NO SIGNAL", lambda: live(signal for _ in range(200)), frozenset({"frozen", "covered"}))
    anew = lambda: coded((four[0] for _ in range(600)), crf=30, gop=1)  # noqa: E731
    yield Case("a still encoded anew", anew, right, limit=True)


def _poor(scene: Pixels) -> Iterator[Case]:
    sharp = list(_noises(scene, 40))
    soft = [np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.02 * SIZE[0]), np.uint8) for picture in sharp]
    day = [*sharp * 10, *sharp * 10]  # 160 s
    dim = scene.astype(np.float32) * np.float32(0.15)
    fog = 190 + (scene - scene.mean()) * 0.2
    yield Case("heavy blur", lambda: live([*day, *soft * 5]), frozenset({"blurred"}))
    yield Case("out of focus from the start", lambda: live(soft * 20), frozenset({"blurred"}), limit=True)
    yield Case("fog", lambda: live([*day, *_noises(fog, 200, 1.5)]))
    yield Case("night", lambda: live([*day, *_noises(dim, 200)]))
    torn = ((at, replace(vitals, damage=n % 4 == 0)) for n, (at, vitals) in enumerate(live(sharp * 5)))
    yield Case("one picture in four is damaged", lambda: torn, frozenset({"corrupt"}))


def _noises(scene: Any, count: int, deviation: float = 3.0) -> Iterator[Pixels]:
    rng = np.random.default_rng(2)
    return (noisy(scene, rng, deviation) for _ in range(count))


def _same(picture: Pixels, number: int) -> Pixels:
    return picture


def _dated(picture: Pixels, number: int) -> Pixels:
    text = f"2026-11-23 13:{number // 60 % 60:02}:{number % 60:02}"
    cv2.putText(picture, text, (12, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.64, (255, 255, 255), 1)
    return picture


def rounds(path: Path, seconds: float) -> tuple[float, Said]:
    """(seconds, faults found) of a clip that is played again and again as one camera, sampled at 5 fps.

    Of a clip of under four seconds each picture is taken, and it plays more slowly: a few pictures again and again are
    a loop, and rightly called frozen.
    """
    kept = [measure(shot.pixels, damage=0) for shot in read_clip(path, fps=FPS)]
    if len(kept) < _FEW:
        kept = [measure(shot.pixels, damage=0) for shot in read_clip(path)]
    count = round(seconds * FPS) if kept else 0
    return count / FPS, told((number / FPS, kept[number % len(kept)]) for number in range(count))
