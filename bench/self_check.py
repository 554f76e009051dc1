"""How far engines are off on the self-check's pictures, right ones in each precision and wrong ones: what its bounds
are drawn from.

    python -m bench self-check [--model coat_lite_mini.in1k --weights random]

Prints one JSON line an engine: `probability` and `embedding` as worker/coatstream/engine/self_check.py measures them.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product

import numpy as np
from coatstream.engine.loading import load_engine
from coatstream.engine.model.classifier import load_classifier
from coatstream.engine.protocol import Engine
from coatstream.engine.self_check import check_pictures, disagreement, reference
from coatstream.frames.frame import Pixels
from coatstream.settings.model import BatchSettings, LogSettings, ModelSettings
from coatstream.telemetry import logs

ENGINES = ("eager", "fused", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16")
BATCH = BatchSettings(max_size=8)


def main(model: str = "coat_lite_mini.in1k", weights: str = "random") -> None:
    logs.configure(LogSettings(level="error"))
    settings = ModelSettings(name=model, weights=weights, device="cpu", embeddings=True, cache=None, tolerance=1.0)
    classifier = load_classifier(settings)
    pictures = check_pictures(classifier.spec)
    wanted = reference(classifier, pictures)
    tried = [(name, engine, pictures) for name, engine in engines(settings)]
    tried += [(name, tried[0][1], changed) for name, changed in wrong(pictures)]
    for name, engine, shown in tried:
        off = disagreement(engine, shown, wanted)
        print(json.dumps({"bench": "self_check", "model": model, "case": name, **asdict(off)}), flush=True)


def engines(model: ModelSettings) -> Iterator[tuple[str, Engine]]:
    """Those that run here, the reference first."""
    for asked in product(ENGINES, PRECISIONS):
        update = {"streams": 1, "threads": 1, **dict(zip(("engine", "precision"), asked, strict=True))}
        engine = load_engine(model.model_copy(update=update), BATCH)
        if (engine.info.engine, engine.info.precision) == asked:  # else another one has taken its place
            yield " ".join(asked), engine


def wrong(pictures: Pixels) -> Iterator[tuple[str, Pixels]]:
    """What the reference says of pictures that were prepared in another way."""
    for levels in (1, 10):
        yield f"brighter by {levels}", np.minimum(pictures, 255 - levels) + np.uint8(levels)
    yield "red and blue swapped", np.ascontiguousarray(pictures[..., ::-1])
    yield "moved by a pixel", np.roll(pictures, 1, axis=2)
