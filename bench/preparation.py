"""What preparing a picture costs, beside the bare torch call and beside PIL with timm's transform, and how far the
result is from that transform's.

    python -m bench preparation [--rounds 40] [--width 1920 --height 1080] [--plain-allocator]

One thread, all ways in turn, medians. How far: the package's photos at a hundred sizes, all values that are off by one
grey level or more. Prints a table, the ratios that count, and one line of JSON.
"""

import io
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coatstream.engine.cores import use_cores
from coatstream.engine.memory import tune_allocator
from coatstream.frames.decoding import decode, decode_for, raw
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.frames.geometry import axes_of, exact_cut
from coatstream.frames.opencv import cv2
from coatstream.frames.resizing import prepare
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torch.nn.functional import interpolate

SPEC = InputSpec(224, 224, 0.9, "center", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ASSETS = Path(__file__).parents[1] / "worker" / "coatstream" / "assets"
LIMITS = {"max_bytes": 10**8, "max_pixels": 10**8}
TIMM = transforms_imagenet_eval(224, crop_pct=0.9, crop_mode="center", interpolation="bicubic", normalize=False)


SIZES = 100  # that photos are enlarged to


def main(rounds: int = 40, width: int = 1920, height: int = 1080, plain_allocator: bool = False) -> None:
    if not plain_allocator:
        tune_allocator()
    use_cores(1)
    times = measure(ways(width, height), rounds)
    for way, (seconds, faults) in times.items():
        print(f"{way:28s} {1000 * seconds:7.2f} ms {faults:7.0f} page faults")
    ratios = {
        "raw frame / bare torch call": times["raw bgr24 to pixels"][0] / times["bare torch call"][0],
        "PIL + timm / JPEG, full": times["JPEG, PIL + timm"][0] / times["JPEG, full"][0],
        "PIL + timm / JPEG, auto": times["JPEG, PIL + timm"][0] / times["JPEG, auto"][0],
    }
    for name, value in ratios.items():
        print(f"{name:28s} {value:7.2f}")
    off = levels(SIZES) | {"JPEG, auto: mean levels from full": halved(width, height)}
    for name, value in off.items():
        print(f"{name:28s} {value:7.4g}")
    told = {way: round(1000 * seconds, 3) for way, (seconds, _) in times.items()}
    print(json.dumps({"bench": "preparation", "size": [width, height], "ms": told, "ratios": ratios, "off": off}))


def ways(width: int, height: int) -> dict[str, Callable[[], object]]:
    """What is timed; tensors are uint8 before normalisation, which is the engine's."""
    frame, jpeg = photo_and_jpeg("coffee.png", width, height)
    pixels = frame.tobytes()
    whole = decode(jpeg, **LIMITS)
    return {
        "bare torch call": bare_call(np.ascontiguousarray(frame, np.uint8)),
        "raw bgr24 to pixels": lambda: prepare(raw(pixels, width=width, height=height, pixel_format="bgr24"), SPEC),
        "JPEG, full": lambda: prepare(decode(jpeg, **LIMITS), SPEC),
        "JPEG, auto": lambda: prepare(decode_for(SPEC, jpeg, **LIMITS).pixels, SPEC),
        "JPEG, PIL + timm": lambda: TIMM(Image.open(io.BytesIO(jpeg)).convert("RGB")),
        "- decoding, full": lambda: decode(jpeg, **LIMITS),
        "- decoding, auto": lambda: decode_for(SPEC, jpeg, **LIMITS),
        "- resizing the whole": lambda: prepare(whole, SPEC),
    }


def photo_and_jpeg(name: str, width: int, height: int) -> tuple[Pixels, bytes]:
    """A photo of the package, enlarged; BGR."""
    photo: Any = cv2.imread(str(ASSETS / name))
    rows = photo.shape[1] * height // width
    frame: Any = cv2.resize(photo[: min(rows, photo.shape[0])], (width, height), interpolation=cv2.INTER_CUBIC)
    return frame, cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def bare_call(frame: Pixels) -> Callable[[], object]:
    """F.interpolate on the uint8 frame, over the rows and columns that `prepare` computes."""
    axes = axes_of(frame.shape[0], frame.shape[1], SPEC)
    rows, columns = (exact_cut(axis, 2) for axis in axes)
    assert rows is not None
    assert columns is not None
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None]
    part = tensor[:, :, rows.first : rows.last, columns.first : columns.last]
    size = rows.end - rows.start, columns.end - columns.start
    return lambda: interpolate(part, size=size, mode="bicubic", antialias=True, align_corners=False)


def levels(sizes: int) -> dict[str, float]:
    """How far prepared pictures are from timm's. Where torch resizes them: smaller ones PIL does, and all are equal."""
    rng = np.random.default_rng(0)
    photos = [Image.open(file).convert("RGB") for file in sorted(ASSETS.glob("*.png"))]
    values, most, beyond = 0, 0, np.zeros(2, int)
    for _ in range(sizes):
        height = int(SPEC.height / SPEC.crop_pct * rng.uniform(1.75, 5.5))
        width = int(height * rng.uniform(1.0, 2.0))
        for photo in photos:
            picture = photo.resize((width, height), Image.Resampling.LANCZOS)
            wanted = np.asarray(TIMM(picture)).transpose(1, 2, 0)
            off = np.abs(prepare(np.array(picture), SPEC).astype(int) - wanted)
            values, most = values + off.size, max(most, int(off.max()))
            beyond += (off >= 1).sum(), (off >= 2).sum()
    by_one, by_two = (1e6 * beyond / values).tolist()
    return {"levels off at most": most, "off by one, of a million": by_one, "off by two, of a million": by_two}


def halved(width: int, height: int) -> float:
    """How far what the model sees of a JPEG decoded at half size is from what it sees of the whole, on average."""
    means = []
    for file in sorted(ASSETS.glob("*.png")):
        _, jpeg = photo_and_jpeg(file.name, width, height)
        half, full = decode_for(SPEC, jpeg, **LIMITS).pixels, decode(jpeg, **LIMITS)
        means.append(np.abs(prepare(half, SPEC).astype(int) - prepare(full, SPEC)).mean())
    return float(np.mean(means))


def measure(timed: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds and mean page faults of each, in turn."""
    seconds: dict[str, list[float]] = {way: [] for way in timed}
    faults = dict.fromkeys(timed, 0)
    for number in range(rounds + 3):
        for way, call in timed.items():
            before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            call()
            if number >= 3:
                seconds[way].append(time.perf_counter() - started)
                faults[way] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {way: (statistics.median(seconds[way]), faults[way] / rounds) for way in timed}
