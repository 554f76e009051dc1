import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from coatstream.engine.backends.pytorch import TorchEngine, load_eager_engine, shares
from coatstream.engine.model import lite0
from coatstream.engine.model.classifier import load_classifier
from coatstream.engine.model.network import EagerNetwork
from coatstream.errors import EngineError
from coatstream.frames.decoding import decode
from coatstream.frames.frame import Pixels, Scores
from coatstream.frames.resizing import prepare
from coatstream.settings.model import BatchSettings, ModelSettings
from PIL import Image

from tests.support.absence import missing
from tests.support.paths import ASSETS
from tests.support.photos import clip_frames, photo_files

COAT = "coat_lite_mini.in1k"
LITE0 = "tf_efficientnet_lite0.in1k"
FAMILIES = ["deit_tiny_distilled_patch16_224.fb_in1k", "levit_128s.fb_dist_in1k", *timm.list_models("test_*")]


@pytest.fixture(autouse=True)
def _cores_as_they_were() -> Any:
    """The main thread classifies here, which sets its share of the cores. One: other tests may be running beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(batch: BatchSettings | None = None, precision: str = "fp32", **settings: Any) -> TorchEngine:
    model = ModelSettings(**{"name": COAT, "weights": "random", "device": "cpu", **settings})
    return load_eager_engine(load_classifier(model), model, batch or BatchSettings(), precision=precision)


@cache
def coat() -> TorchEngine:
    return load(embeddings=True)


@cache
def real() -> TorchEngine:
    """Real weights, from a package."""
    try:
        lite0.checkpoint_path()
    except EngineError as error:
        missing(str(error))
    return load(name=LITE0, weights=f"package:{lite0.PACKAGE}")


def photo(name: str) -> Pixels:
    return decode((ASSETS / name).read_bytes(), max_bytes=10**6, max_pixels=10**6)


def classify(engine: TorchEngine, *pictures: Pixels) -> Scores:
    return engine.classify(np.stack([prepare(picture, engine.spec) for picture in pictures]))


def network(engine: TorchEngine) -> EagerNetwork:
    assert isinstance(engine._network, EagerNetwork)
    return engine._network


def noise(count: int, side: int = 224) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def card_snippet(module: torch.nn.Module, picture: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """The model card's own lines: (top-5 probabilities in per cent, top-5 class indices), each [1, 5]."""
    img = Image.fromarray(picture)
    model = module.eval()

    data_config = timm.data.resolve_model_data_config(model)
    transforms = timm.data.create_transform(**data_config, is_training=False)
    with torch.no_grad():
        output = model(transforms(img).unsqueeze(0))
    return torch.topk(output.softmax(dim=1) * 100, k=5)


# ---- what the model card promises


def test_its_unpooled_features_and_embeddings_have_the_cards_shapes() -> None:
    pixels = noise(1)

    assert coat().features(pixels).shape == (1, 50, 512)
    embeddings = coat().classify(pixels).embeddings
    assert embeddings is not None
    assert embeddings.shape == (1, 512)
    assert coat().info.num_features == 512


def test_embeddings_are_the_pooled_pre_logits_and_give_the_same_scores() -> None:
    scores = coat().classify(noise(2))

    head: Any = network(coat()).module.get_classifier()
    with torch.inference_mode():
        values = head(torch.from_numpy(scores.embeddings)).softmax(dim=1).topk(5).values
    assert np.allclose(values.numpy(), scores.values, atol=1e-6)


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png"])
def test_its_top_5_are_those_of_the_cards_snippet(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(COAT, pretrained=False)

    probabilities, indices = card_snippet(module, photo(name))
    scores = classify(coat(), photo(name))

    assert scores.indices.tolist() == indices.tolist()
    assert np.allclose(scores.values * 100, probabilities.numpy(), atol=0.1)


@pytest.mark.parametrize("variant", ["tiny", "lite_tiny"])
def test_coats_of_each_kind_classify(variant: str) -> None:
    engine = load(name=f"coat_{variant}.in1k", embeddings=True)

    scores = classify(engine, photo("chelsea.png"))

    assert scores.values.shape == (1, 5)
    assert scores.embeddings is not None
    assert scores.embeddings.shape == (1, engine.info.num_features)


# ---- real weights


def test_real_photos_get_their_known_labels() -> None:
    coffee, camera, chelsea = (classify(real(), photo(name)) for name in ("coffee.png", "camera.png", "chelsea.png"))

    assert coffee.indices[0, 0] == 967
    assert coffee.values[0, 0] == pytest.approx(0.95, abs=0.02)
    assert camera.indices[0, 0] == 872
    assert camera.values[0, 0] == pytest.approx(0.94, abs=0.02)
    assert set(chelsea.indices[0, :3].tolist()) == {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    assert [real().labels[index].name for index in (967, 872, 285)] == ["espresso", "tripod", "Egyptian cat"]


def test_the_cockatoo_in_the_clip_is_seen() -> None:
    frames = list(clip_frames(14))[9:11]  # 9 and 10 seconds in, where it fills the picture

    scores = classify(real(), *frames)

    assert scores.indices[:, 0].tolist() == [89, 89]


def test_tensors_and_probabilities_of_real_photos_are_timms() -> None:
    # A wrong channel order or mean keeps 77 of 100 labels right, so labels alone would not show it.
    module: Any = network(real()).module
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    files = [file for file in photo_files() if file.name.startswith("imagenet") or file.parent == ASSETS]
    photos = [decode(file.read_bytes(), max_bytes=10**6, max_pixels=10**6) for file in files]

    pixels = torch.from_numpy(np.stack([prepare(picture, real().spec) for picture in photos]))
    wanted = torch.stack([transform(Image.fromarray(picture)) for picture in photos])
    given = network(real()).normalised(pixels)
    with torch.inference_mode():
        probabilities, one_level = module(wanted).softmax(dim=1), 1 / 255 / 0.5
        off = (module(given).softmax(dim=1) - probabilities).abs()

    assert len(photos) >= 20
    assert (given - wanted).abs().max() <= 2 * one_level + 1e-6
    assert off.max() < 0.02
    sure = probabilities.max(dim=1).values > 0.5
    top = classify(real(), *photos).indices[:, 0]
    assert sure.sum() >= 10
    assert (torch.from_numpy(top) == probabilities.argmax(dim=1))[sure].all()


def test_the_files_own_label_of_imagenet_photos_is_found() -> None:
    files = [file for file in photo_files() if file.name.startswith("imagenet")]

    truth = [int(file.stem.rsplit("_", 1)[1]) for file in files]
    photos = [decode(file.read_bytes(), max_bytes=10**6, max_pixels=10**6) for file in files]
    indices = classify(real(), *photos).indices

    found = sum(label in row for label, row in zip(truth, indices.tolist(), strict=True))
    assert found >= 17  # of 20, among the best five


# ---- any classifier of timm


@pytest.mark.parametrize("name", FAMILIES)
def test_any_classifier_gives_its_own_softmax_whatever_its_head(name: str) -> None:
    engine = load(name=name, embeddings=True, top_k=3)
    pixels = noise(2, engine.spec.height)[:, :, : engine.spec.width]

    scores = engine.classify(pixels)

    with torch.inference_mode():
        whole = network(engine).module(network(engine).normalised(torch.from_numpy(pixels))).softmax(dim=1).topk(3)
    assert np.allclose(scores.values, whole.values.numpy(), atol=1e-5)
    assert scores.embeddings is not None
    assert scores.embeddings.shape == (2, engine.info.num_features)


def test_a_fine_tuned_model_speaks_with_its_own_labels(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet.r160_in1k", num_classes=3).state_dict(), tmp_path / "tuned.pth")
    (tmp_path / "names.txt").write_text("empty\nperson\nvehicle\n")

    engine = load(name="test_resnet.r160_in1k", weights=str(tmp_path / "tuned.pth"), labels=tmp_path / "names.txt")

    assert [label.name for label in engine.labels] == ["empty", "person", "vehicle"]
    scores = engine.classify(noise(2, 160))
    assert scores.values.shape == (2, 3)  # top_k = 5 is capped
    assert np.allclose(scores.values.sum(axis=1), 1, atol=1e-5)


# ---- batches, threads, devices


def test_a_picture_scores_the_same_alone_batched_and_padded() -> None:
    padding = load(BatchSettings(max_size=8, prepared=(4, 8)), name="test_vit.r160_in1k")
    exact = load(BatchSettings(max_size=8), name="test_vit.r160_in1k")
    pixels = noise(5, 160)

    padded, alone = padding.classify(pixels), [exact.classify(pixels[index : index + 1]) for index in range(5)]

    assert (padding.prepared, exact.prepared) == ((4, 8), (1, 2, 3, 4, 5, 6, 7, 8))
    assert np.array_equal(padded.indices, np.concatenate([scores.indices for scores in alone]))
    assert np.allclose(padded.values, np.concatenate([scores.values for scores in alone]), atol=1e-6)


def test_streams_classify_at_once_each_with_its_own_share_of_the_cores() -> None:
    engine = load(name="test_vit.r160_in1k", streams=2, threads=1)
    batches = [noise(3, 160)] * 8
    meet = threading.Barrier(2, timeout=10)

    def classify_together(pixels: Pixels) -> tuple[int, list[int]]:
        meet.wait()
        best = engine.classify(pixels).indices[:, 0].tolist()
        return torch.get_num_threads(), best

    torch.set_num_threads(2)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(classify_together, batches))

    assert [cores for cores, _ in outcomes] == [1] * 8
    assert len({tuple(best) for _, best in outcomes}) == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("cores", "streams", "threads", "expected"),
    [(1, 0, 0, (1, 1)), (2, 0, 0, (2, 1)), (16, 0, 0, (4, 4)), (2, 0, 2, (1, 2)), (8, 1, 0, (1, 8)), (4, 3, 2, (3, 2))],
)
def test_cores_are_shared_out_among_streams(
    monkeypatch: pytest.MonkeyPatch, cores: int, streams: int, threads: int, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr("coatstream.engine.protocol.usable_cores", lambda: cores)

    assert shares(torch.device("cpu"), streams, threads) == expected


def test_on_a_gpu_one_batch_is_copied_while_another_computes() -> None:
    assert shares(torch.device("cuda"), 0, 0) == (2, 1)
    assert shares(torch.device("cuda"), 1, 0) == (1, 1)
    assert shares(torch.device("mps"), 0, 0) == (1, 1)


def test_warming_up_runs_and_a_batch_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(BatchSettings(max_size=2), name="test_vit.r160_in1k")
    engine.warm_up()

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nA second line")

    monkeypatch.setattr(engine, "_network", full)
    with pytest.raises(EngineError) as caught:
        engine.warm_up()
    assert str(caught.value) == (
        "test_vit.r160_in1k cannot run a batch of 1 on cpu: CUDA out of memory. Tried to allocate 2 GiB.; "
        "choose another device or model"
    )


def test_a_precision_that_the_device_cannot_compute_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(*_: object) -> None:
        raise NotImplementedError("\"some_kernel_cpu\" not implemented for 'Half'\nA second line")

    monkeypatch.setattr(EagerNetwork, "forward", half)
    with pytest.raises(EngineError) as caught:
        load(name="test_vit.r160_in1k", precision="fp16").warm_up()
    assert str(caught.value) == (
        "test_vit.r160_in1k cannot run a batch of 1 in fp16 on cpu: \"some_kernel_cpu\" not implemented for 'Half'; "
        "choose another precision, device or model"
    )


def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(EngineError, match="there is no device cuda:63 here"):
        load(device="cuda:63")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_scores_of_the_cpu() -> None:
    gpu = load(device="cuda", embeddings=True)
    gpu.warm_up()
    pixels = noise(3)

    ours, theirs = gpu.classify(pixels), coat().classify(pixels)

    assert gpu.prepared == (1, 2, 4, 8)
    assert np.allclose(ours.values, theirs.values, atol=1e-3)
