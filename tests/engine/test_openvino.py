import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coatstream.engine import self_check
from coatstream.engine.backends.openvino import OpenVinoEngine, best, convert, load_cached
from coatstream.engine.cache import Cache
from coatstream.engine.cores import usable_cores
from coatstream.engine.model import coat, lite0
from coatstream.engine.model.classifier import TimmClassifier, load_classifier
from coatstream.engine.model.network import EagerNetwork
from coatstream.errors import EngineError
from coatstream.frames.decoding import decode
from coatstream.frames.frame import Pixels, Scores
from coatstream.frames.resizing import prepare
from coatstream.settings.model import BatchSettings, ModelSettings
from structlog.testing import capture_logs
from torch import nn

from tests.support.absence import incapable, missing
from tests.support.photos import clip_frames, photo_files

if importlib.util.find_spec("openvino") is None:
    missing("openvino is not installed (coatstream[openvino])")
import openvino

COAT = "coat_lite_mini.in1k"
LITE0 = "tf_efficientnet_lite0.in1k"
SMALL = "test_efficientnet.r160_in1k"  # timm's own test model: 160 x 160, 0.4 M parameters
OTHERS = ["test_vit", "test_convnext", "test_resnet", "test_maxvit", "levit_128s", "deit_tiny_distilled_patch16_224"]


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    """For the reference: other tests may be running beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(name: str = SMALL, **model: Any) -> ModelSettings:
    return ModelSettings(**{"name": name, "weights": "random", "device": "cpu", "precision": "fp32", **model})


@dataclass(frozen=True, slots=True)
class Made:
    """A classifier, its network, pictures, and what eager float32 says of them."""

    classifier: TimmClassifier
    network: nn.Module
    pictures: Pixels
    reference: self_check.ReferenceScores


@cache
def made(name: str = SMALL, weights: str = "random", embeddings: bool = False) -> Made:
    classifier = load_classifier(settings(name, weights=weights))
    network: nn.Module = EagerNetwork(classifier, embeddings=embeddings)
    if coat.is_coat(classifier.module):
        network = coat.fused_network(classifier, dtype=torch.float32, packed=False, embeddings=embeddings)
    pictures = self_check.check_pictures(classifier.spec)
    return Made(classifier, network, pictures, self_check.reference(classifier, pictures))


def converted(
    model: ModelSettings,
    batch: BatchSettings | None = None,
    kept: Cache | None = None,
    network: nn.Module | None = None,
) -> OpenVinoEngine:
    if model.precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        incapable("this processor does not compute in bf16")
    one = made(model.name, model.weights, model.embeddings)
    return convert(
        one.classifier,
        network or one.network,
        one.reference,
        model=model,
        batch=batch or BatchSettings(),
        cache=kept or Cache(None),
    )


@cache
def small() -> OpenVinoEngine:
    return converted(settings(embeddings=True, streams=2, threads=1))


def alike(one: Scores, other: Scores, tolerance: float = 0.0) -> bool:
    pairs = [(one.values, other.values), (one.embeddings, other.embeddings)]
    return bool((one.indices == other.indices).all()) and all(
        (a is None and b is None) or (a is not None and b is not None and np.allclose(a, b, atol=tolerance, rtol=0))
        for a, b in pairs
    )


def joined(parts: list[Scores]) -> Scores:
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Scores(
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate(embeddings) if embeddings else None,
    )


# ---- what it says of pictures


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_coat_from_its_fused_graph_agrees_with_eager_float32(precision: str, bound: float) -> None:
    engine = converted(settings(COAT, precision=precision, embeddings=True))
    one = made(COAT, embeddings=True)

    off = self_check.disagreement(engine, one.pictures, one.reference)
    assert off.probability < bound
    assert 0 < off.embedding < bound
    assert (engine.info.engine, engine.info.precision, engine.info.device) == ("openvino", precision, "cpu")
    embeddings = engine.classify(one.pictures[:3]).embeddings
    assert embeddings is not None
    assert embeddings.shape == (3, 512)
    assert engine.info.num_features == 512


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_agree_as_well(name: str) -> None:
    engine = converted(settings(name))

    assert self_check.disagreement(engine, made(name).pictures, made(name).reference).probability < 1e-3


@cache
def real_pictures() -> Pixels:
    """All photos as they are and as in a mirror, and five frames a second of the clip."""
    spec = made(LITE0, f"package:{lite0.PACKAGE}").classifier.spec
    photos = [decode(file.read_bytes(), max_bytes=10**7, max_pixels=10**8) for file in photo_files()]
    prepared = [prepare(picture, spec) for picture in (*photos, *clip_frames(70))]
    return np.stack([*prepared, *(picture[:, ::-1] for picture in prepared[: len(photos)])])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_real_weights_the_best_class_of_real_pictures_is_eagers_where_that_is_sure(precision: str) -> None:
    try:
        lite0.checkpoint_path()
    except EngineError as error:
        missing(str(error))
    weights = f"package:{lite0.PACKAGE}"
    engine = converted(settings(LITE0, weights=weights, precision=precision))
    pictures = real_pictures()

    wanted = self_check.reference(made(LITE0, weights).classifier, pictures).probabilities
    found = np.concatenate(
        [engine.classify(pictures[row : row + 8]).indices[:, 0] for row in range(0, len(pictures), 8)]
    )

    sure = wanted.max(axis=1) > 0.5
    assert sure.sum() > 50
    assert (found == wanted.argmax(axis=1))[sure].mean() >= 0.995


def test_a_batch_of_any_size_gives_what_its_pictures_give_alone() -> None:
    pictures = np.tile(made(SMALL, embeddings=True).pictures, (2, 1, 1, 1))
    alone = [small().classify(picture[None]) for picture in pictures]

    for count in range(1, 9):
        assert alike(small().classify(pictures[:count]), joined(alone[:count]), 1e-5), count


def test_pictures_may_lie_anywhere_in_memory_and_are_not_changed() -> None:
    pictures = made(SMALL, embeddings=True).pictures[:2]
    scattered = np.repeat(pictures, 2, axis=2)[:, :, ::2]
    fixed = pictures.copy()
    fixed.flags.writeable = False

    assert not scattered.flags.c_contiguous
    wanted = small().classify(pictures)
    assert alike(small().classify(scattered), wanted)
    assert alike(small().classify(fixed), wanted)
    assert (fixed == pictures).all()


def test_scores_of_a_batch_stay_when_the_next_one_runs() -> None:
    pictures = made(SMALL, embeddings=True).pictures
    first = small().classify(pictures[:1])
    before = deepcopy(first)

    small().classify(pictures[1:2])

    assert alike(first, before)


def test_the_best_classes_are_torchs_and_equal_ones_come_as_they_are_numbered() -> None:
    logits = np.random.default_rng(1).normal(size=(20, 1000)).astype(np.float32) * 8
    logits[3] += 900  # exp of that overflows

    indices, values = best(logits, 5)

    wanted = torch.from_numpy(logits).softmax(dim=1).topk(5, dim=1)
    assert (indices == wanted.indices.numpy()).all()
    assert np.allclose(values, wanted.values.numpy(), rtol=1e-5)
    assert values.dtype == np.float32
    assert best(np.zeros((1, 4), np.float32), 4)[0].tolist() == [[0, 1, 2, 3]]
    assert best(np.array([[1, 3, 2, 3]], np.float32), 3)[0].tolist() == [[1, 3, 2]]


# ---- batches and streams


def test_four_threads_at_once_each_get_the_scores_of_their_own_pictures() -> None:
    pictures = made(SMALL, embeddings=True).pictures
    wanted = [small().classify(picture[None]) for picture in pictures]
    together = threading.Barrier(4)

    def many(first: int) -> bool:
        together.wait(10)
        rows = [(first + turn) % len(pictures) for turn in range(60)]
        return all(alike(small().classify(pictures[row : row + 1]), wanted[row], 1e-6) for row in rows)

    with ThreadPoolExecutor(4) as pool:  # twice as many as it has streams: half of them wait
        assert all(pool.map(many, range(4)))


def test_each_stream_has_a_request_of_its_own_for_each_shape() -> None:
    engine = converted(settings(streams=3, threads=1), BatchSettings(max_size=4))
    engine.warm_up()

    assert {shape: free.qsize() for shape, free in engine._requests.items()} == {1: 3, 2: 3, 4: 3}


@pytest.mark.parametrize(
    ("max_size", "threads", "shapes"),
    [(1, 1, (1,)), (3, 1, (1, 2)), (8, 1, (1, 2, 4)), (32, 2, (1, 2, 4)), (32, 4, (1, 2, 4, 8)), (6, 4, (1, 2, 4))],
)
def test_every_size_up_to_the_largest_runs_in_a_few_compiled_shapes(
    max_size: int, threads: int, shapes: tuple[int, ...]
) -> None:
    engine = converted(settings(streams=1, threads=threads), BatchSettings(max_size=max_size))

    assert engine.prepared == tuple(range(1, max_size + 1))
    engine.warm_up()
    assert tuple(engine._requests) == shapes
    pixels = np.zeros((max_size, 160, 160, 3), np.uint8)
    pieces = [len(piece) for piece, _ in engine._cut(pixels)]
    assert sum(pieces) == max_size
    assert all(piece in shapes for piece in pieces)
    assert len(engine.classify(pixels).indices) == max_size
    assert tuple(engine._requests) == shapes, "nothing is compiled while it serves"


def test_sizes_that_the_user_has_prepared_are_padded_to() -> None:
    engine = converted(settings(), BatchSettings(max_size=6, prepared=(2, 6)))
    pictures = made().pictures
    engine.warm_up()

    assert engine.prepared == tuple(engine._requests) == (2, 6)
    assert [(len(piece), shape) for piece, shape in engine._cut(pictures[:3])] == [(3, 6)]
    assert alike(engine.classify(pictures[:3]), joined([engine.classify(each[None]) for each in pictures[:3]]), 1e-5)
    assert tuple(engine._requests) == (2, 6)


def test_once_warm_it_keeps_no_second_copy_of_the_weights() -> None:
    engine = converted(settings())
    assert engine._network is not None

    engine.warm_up()

    assert engine._network is None


def test_streams_and_threads_share_out_the_cores_unless_they_are_set() -> None:
    engine = converted(settings())
    assert 1 <= engine.streams <= 4
    assert engine.streams * engine.threads <= usable_cores()

    engine = converted(settings(streams=1, threads=2))
    assert (engine.streams, engine.threads) == (1, 2)


# ---- the cache


def test_a_start_from_the_cache_is_the_same_engine(tmp_path: Path) -> None:
    model, kept = settings(embeddings=True, top_k=7), Cache(tmp_path)
    assert load_cached(model, BatchSettings(), kept) is None
    first = converted(model, kept=kept)

    again = load_cached(model, BatchSettings(), Cache(tmp_path))

    assert again is not None
    assert (again.info, again.spec, again.labels) == (first.info, first.spec, first.labels)
    assert (again.reference.probabilities == first.reference.probabilities).all()
    assert (again.reference.embeddings == first.reference.embeddings).all()
    assert again.reference.embeddings.shape == (6, again.info.num_features)
    pictures = made(SMALL, embeddings=True).pictures
    assert alike(again.classify(pictures), first.classify(pictures), 1e-5)


def test_one_conversion_serves_all_precisions_and_layouts_but_no_other_model(tmp_path: Path) -> None:
    kept = Cache(tmp_path)
    converted(settings(), kept=kept)

    def found(**model: Any) -> bool:
        return load_cached(settings(**model), BatchSettings(), kept) is not None

    assert found(precision="bf16")
    assert found(streams=1, threads=1, top_k=1)
    assert not found(embeddings=True)
    assert not found(name="test_vit")
    (tmp_path / "labels.txt").write_text("\n".join(map(str, range(1000))))
    assert not found(labels=tmp_path / "labels.txt")


def test_other_content_of_the_label_file_is_another_entry(tmp_path: Path) -> None:
    labels, kept = tmp_path / "labels.txt", Cache(tmp_path / "cache")
    model = settings(labels=labels)
    for text in ("first", "second"):
        labels.write_text("\n".join(f"{text} {number}" for number in range(1000)))
        assert load_cached(model, BatchSettings(), kept) is None
        one = made()
        convert(load_classifier(model), one.network, one.reference, model=model, batch=BatchSettings(), cache=kept)

        again = load_cached(model, BatchSettings(), kept)

        assert again is not None
        assert again.labels[7].name == f"{text} 7"


def test_a_torn_entry_is_made_again(tmp_path: Path) -> None:
    kept = Cache(tmp_path)
    converted(settings(), kept=kept)
    (weights,) = tmp_path.glob("*/model.bin")
    os.truncate(weights, 1000)

    with capture_logs() as lines:
        assert load_cached(settings(), BatchSettings(), kept) is None

    assert len(lines) == 1
    converted(settings(), kept=kept)
    assert load_cached(settings(), BatchSettings(), kept) is not None


@pytest.mark.parametrize("file", ["model.xml", "facts.json", "reference.npz"])
def test_an_entry_that_only_looks_whole_is_made_again(file: str, tmp_path: Path) -> None:
    kept = Cache(tmp_path)
    converted(settings(), kept=kept)
    (path,) = tmp_path.glob(f"*/{file}")
    content = path.read_bytes()
    manifest = path.parent / "manifest.json"
    path.write_bytes(b"\x80" * len(content))
    forged = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(manifest.read_text().replace(hashlib.sha256(content).hexdigest(), forged))

    with capture_logs() as lines:
        assert load_cached(settings(), BatchSettings(), kept) is None

    assert [line["event"] for line in lines] == ["a damaged entry of the cache is made again"]
    assert list(tmp_path.iterdir()) == []


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        env={**kept, **environment},
    )


START = """
import sys
from pathlib import Path
import numpy as np
from coatstream.settings.model import BatchSettings, ModelSettings
from coatstream.engine.cache import Cache
from coatstream.engine.backends.openvino import load_cached
model = ModelSettings(name="test_efficientnet.r160_in1k", weights="random", device="cpu", precision="fp32")
engine = load_cached(model, BatchSettings(), Cache(Path(sys.argv[1] if len(sys.argv) > 1 else {folder!r})))
engine.warm_up()
engine.classify(np.zeros((3, 160, 160, 3), np.uint8))
print(sorted({{"torch", "timm", "openvino_telemetry"}} & {{name for name, module in sys.modules.items() if module}}))
"""


def test_a_start_from_the_cache_needs_neither_torch_nor_timm(tmp_path: Path) -> None:
    converted(settings(), kept=Cache(tmp_path))

    done = run(START.format(folder=str(tmp_path)))

    assert done.stdout.strip() == "[]", done.stderr


CUT_OFF = """
import resource, sys
from pathlib import Path
from coatstream.settings.model import BatchSettings, ModelSettings
from coatstream.engine import self_check
from coatstream.engine.cache import Cache
from coatstream.engine.model.classifier import load_classifier
from coatstream.engine.model.network import EagerNetwork
from coatstream.engine.backends.openvino import convert
model = ModelSettings(name="test_efficientnet.r160_in1k", weights="random", device="cpu", precision="fp32")
classifier = load_classifier(model)
pictures = self_check.check_pictures(classifier.spec)
reference = self_check.reference(classifier, pictures)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
cache = Cache(Path({folder!r}))
engine = convert(classifier, EagerNetwork(classifier), reference, model=model, batch=BatchSettings(), cache=cache)
assert self_check.disagreement(engine, pictures, reference).probability < 1e-4
"""


@pytest.mark.slow
def test_on_a_full_disk_it_runs_and_keeps_nothing(tmp_path: Path) -> None:
    done = run(CUT_OFF.format(folder=str(tmp_path)))

    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert (done.stdout + done.stderr).count("the cache cannot be used") == 1


# ---- nothing is sent

# Every look-up and connection is written down and refused, in forked processes too.
EAR = """
import os, sys
def hear(event, arguments, heard={heard!r}):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open(heard, "a") as file:
            print(event, arguments[-1] if event == "socket.connect" else arguments[0], file=file)
        raise ConnectionRefusedError("not from a test")
sys.addaudithook(hear)
"""

CONVERSION = """
from coatstream.settings.model import BatchSettings, ModelSettings
from coatstream.engine.cache import Cache
from coatstream.engine.model.classifier import load_classifier
from coatstream.engine.model.network import EagerNetwork
from coatstream.engine.backends.openvino import convert
from coatstream.engine.self_check import ReferenceScores
import numpy as np
model = ModelSettings(name="test_vit.r160_in1k", weights="random", device="cpu", precision="fp32")
classifier = load_classifier(model)
reference = ReferenceScores(np.zeros((1, 1000), np.float32), np.zeros((1, 0), np.float32))
batch = BatchSettings()
convert(classifier, EagerNetwork(classifier), reference, model=model, batch=batch, cache=Cache(None)).warm_up()
"""

# It sends from a thread, which a process that ends at once may be too early for (seen on Python 3.12).
ALONE = """
import openvino, os, time
ends = time.monotonic() + 30
while not os.path.exists({heard!r}) and time.monotonic() < ends:
    time.sleep(0.05)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    return tmp_path / "heard"


@pytest.mark.slow
def test_a_conversion_sends_nothing_and_writes_nothing_into_the_home_folder(home: Path, heard: Path) -> None:
    done = run(EAR.format(heard=str(heard)) + CONVERSION, HOME=str(home))

    assert done.returncode == 0, done.stderr
    assert not heard.exists(), heard.read_text()
    assert list(home.iterdir()) == []
    assert done.stdout + done.stderr == ""


def test_the_library_alone_would_send_and_that_is_heard(home: Path, heard: Path) -> None:
    """So that the test above is known to hear what there is to hear."""
    done = run(EAR.format(heard=str(heard)) + ALONE.format(heard=str(heard)), HOME=str(home))

    assert done.returncode == 0, done.stderr
    assert "getaddrinfo" in heard.read_text()
    assert list(home.iterdir()) != []


# ---- what it cannot do


class Raising(nn.Module):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise ValueError("no such picture")


class Unknown(nn.Module):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.special.bessel_j0(pixels.float().mean((1, 2))),)


class ForTwo(nn.Module):
    """Gives two rows whatever it is given."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (pixels.float().mean((1, 2))[:1].expand(2, 3),)


@pytest.mark.parametrize(
    ("network", "why"),
    [(Raising(), "no such picture"), (Unknown(), "aten::special_bessel_j0"), (ForTwo(), "batches of 1")],
)
def test_a_network_that_it_cannot_run_is_one_clear_line(network: nn.Module, why: str) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), list(root.filters))

    with pytest.raises(EngineError, match=why) as caught:
        converted(settings(), network=network).warm_up()

    assert "\n" not in str(caught.value)
    assert (root.level, root.handlers, root.filters) == before


def test_only_the_cpu_is_served() -> None:
    with pytest.raises(EngineError, match="on the CPU alone, not on cuda:0"):
        load_cached(settings(device="cuda:0"), BatchSettings(), Cache(None))


def test_a_precision_that_the_processor_lacks_is_refused() -> None:
    import openvino

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    engine = converted(settings(precision="fp16"))
    if "FP16" in capabilities:
        engine.warm_up()
        assert engine.info.precision == "fp16"
    else:
        with pytest.raises(EngineError, match="does not compute in fp16"):
            engine.warm_up()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(EngineError, match=r"pip install coatstream\[openvino\]"):
        load_cached(settings(), BatchSettings(), Cache(None))
