import subprocess
import sys
import time

import numpy as np
from coatstream.engine.backends.noop import NoopEngine
from coatstream.engine.loading import load_engine
from coatstream.frames.frame import InputSpec, Pixels
from coatstream.settings.model import BatchSettings, ModelSettings


def pictures(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


def engine(**changes: object) -> NoopEngine:
    return NoopEngine.from_settings(ModelSettings(engine="noop", **changes), BatchSettings(max_size=8))


def test_it_says_in_each_result_that_no_weights_were_used() -> None:
    info = engine(name="coat_lite_mini.in1k").info

    assert (info.name, info.weights, info.engine) == ("coat_lite_mini.in1k", "none", "noop")


def test_scores_come_from_the_pixels_and_not_from_the_batch() -> None:
    noop = engine()
    batch = pictures(6)

    together = noop.classify(batch)
    alone = [noop.classify(batch[index : index + 1]) for index in range(6)]

    assert np.array_equal(together.indices, np.concatenate([scores.indices for scores in alone]))
    assert np.array_equal(together.values, np.concatenate([scores.values for scores in alone]))


def test_brightness_chooses_the_class() -> None:
    shades = np.stack([np.full((224, 224, 3), shade, np.uint8) for shade in (0, 51, 255)])

    scores = engine(top_k=2).classify(shades)

    assert scores.indices.tolist() == [[0, 1], [200, 201], [999, 0]]
    assert scores.values.tolist() == [[0.5, 0.25]] * 3


def test_as_many_labels_as_asked_for() -> None:
    scores = engine(top_k=7).classify(pictures(2))

    assert scores.indices.shape == scores.values.shape == (2, 7)
    assert scores.indices.dtype == np.int64
    assert scores.values.dtype == np.float32
    assert (np.diff(scores.values) < 0).all()
    assert scores.embeddings is None


def test_embeddings_are_made_when_asked_for() -> None:
    noop = engine(embeddings=True)

    first, second = (noop.classify(pictures(3, seed)).embeddings for seed in (0, 1))

    assert first is not None
    assert first.shape == (3, noop.info.num_features)
    assert first.dtype == np.float32
    assert not np.array_equal(first, second)  # type: ignore[arg-type]


def test_its_batches_are_prepared_like_a_gpus_unless_told_otherwise() -> None:
    told = NoopEngine.from_settings(ModelSettings(streams=3), BatchSettings(max_size=8, prepared=(4, 8)))

    assert (engine().prepared, engine().streams) == ((1, 2, 4, 8), 1)
    assert (told.prepared, told.streams) == ((4, 8), 3)


def test_it_takes_another_models_spec() -> None:
    spec = InputSpec(384, 384, 1.0, "squash", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    noop = NoopEngine.from_settings(ModelSettings(), BatchSettings(), spec)

    assert noop.spec == spec
    assert noop.classify(np.zeros((1, 384, 384, 3), np.uint8)).indices.shape == (1, 5)


def test_a_batch_takes_the_delay_whatever_its_size() -> None:
    noop = engine(noop_delay=0.05)

    begin = time.monotonic()
    noop.classify(pictures(8))

    assert time.monotonic() - begin >= 0.05


def test_the_whole_way_from_bytes_to_scores_imports_no_torch() -> None:
    program = """
import io, sys
from PIL import Image
from coatstream.settings.model import BatchSettings, ModelSettings
from coatstream.engine.loading import load_engine
from coatstream.engine.cores import single_threaded
from coatstream.frames.decoding import decode
from coatstream.frames.resizing import prepare
single_threaded()
engine = load_engine(ModelSettings(engine="noop"), BatchSettings())
engine.warm_up()
buffer = io.BytesIO()
Image.new("RGB", (320, 240)).save(buffer, "JPEG")
picture = prepare(decode(buffer.getvalue(), max_bytes=10**6, max_pixels=10**6), engine.spec)
assert engine.classify(picture[None]).indices.shape == (1, 5)
print([name for name in ("torch", "timm", "torchvision", "huggingface_hub") if name in sys.modules])
"""

    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=150)

    assert outcome.stderr == ""
    assert outcome.stdout == "[]\n"


def test_the_settings_choose_it() -> None:
    assert isinstance(load_engine(ModelSettings(engine="noop"), BatchSettings()), NoopEngine)
