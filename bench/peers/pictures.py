"""The job's folder: 1080p JPEGs of the package's own photos and clip, the weights, and what they ought to be called."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from coatstream.engine.model.weights import load_model
from coatstream.settings.model import ModelSettings
from numpy.typing import NDArray
from safetensors.torch import save_file

from bench.peers.naive_classifier import NaiveClassifier

ASSETS = Path(__file__).parents[2] / "worker" / "coatstream" / "assets"
SIZE = (1920, 1080)
QUALITY = 85
FRAMES = 7  # of the clip, evenly spread

Pixels = NDArray[np.uint8]


def prepare_job(folder: Path, model: str, threads: int) -> int:
    """Fill the folder; the JPEGs' mean size in bytes. The weights are random, from coatstream's fixed seed."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    jpegs = [_jpeg(photo) for photo in _photos()]
    for number, jpeg in enumerate(jpegs):
        (folder / "pictures" / f"{number:02}.jpg").write_bytes(jpeg)
    state = load_model(ModelSettings(name=model, weights="random")).module.state_dict()
    # CoaT's blocks share tensors, which a file of this kind cannot say: each name gets its own copy.
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    reference = NaiveClassifier(model, str(folder / "weights.safetensors"), threads)
    probabilities = [reference.probabilities([reference.open(jpeg)])[0].tolist() for jpeg in jpegs]
    (folder / "reference.json").write_text(json.dumps(probabilities))
    return sum(map(len, jpegs)) // len(jpegs)


def _photos() -> Iterator[Pixels]:
    for path in sorted(ASSETS.glob("*.png")):
        yield cv2.imread(str(path), cv2.IMREAD_COLOR)  # type: ignore[misc]  # a file of ours: it can be read
    clip = cv2.VideoCapture(str(ASSETS / "cockatoo_360p.mp4"))
    count = int(clip.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = set(np.linspace(0, count - 1, FRAMES).round().astype(int).tolist())
    for number in range(count):
        read, pixels = clip.read()
        if read and number in wanted:
            yield pixels  # type: ignore[misc]
    clip.release()


def _jpeg(photo: Pixels) -> bytes:
    """The largest middle part of the right shape, enlarged: real content, though softer than a camera's own 1080p."""
    (width, height), (rows, columns) = SIZE, photo.shape[:2]
    kept_rows, kept_columns = min(rows, columns * height // width), min(columns, rows * width // height)
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    middle = photo[top : top + kept_rows, left : left + kept_columns]
    enlarged = cv2.resize(middle, SIZE, interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", enlarged, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
