from typing import Any

import numpy as np
import pytest
import timm
import torch
from coatstream.engine.backends.pytorch import eager_network
from coatstream.engine.model.network import EagerNetwork
from coatstream.frames.decoding import decode
from coatstream.frames.resizing import prepare
from coatstream.settings.model import ModelSettings
from PIL import Image

from tests.engine.test_classifier import SMALL, OnePiece, classifier, timm_makes
from tests.support.paths import ASSETS


def noise(count: int, side: int = 160) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return torch.from_numpy(pixels)


def test_pictures_are_normalised_as_timm_does_it() -> None:
    small = classifier()
    picture = decode((ASSETS / "coffee.png").read_bytes(), max_bytes=10**6, max_pixels=10**6)
    prepared = prepare(picture, small.spec)
    config = timm.data.resolve_model_data_config(small.module)
    to_tensor_and_normalise = timm.data.create_transform(**config, is_training=False).transforms[-2:]

    wanted: Any = Image.fromarray(prepared)
    for transform in to_tensor_and_normalise:
        wanted = transform(wanted)
    given = EagerNetwork(small).normalised(torch.from_numpy(prepared)[None])

    assert torch.allclose(given[0], wanted, atol=1e-6)
    assert given.is_contiguous()


@torch.inference_mode()
def test_logits_are_the_modules_own() -> None:
    small, pixels = classifier(), noise(2)
    network = EagerNetwork(small)

    (logits,) = network(pixels)

    assert torch.equal(logits, small.module(network.normalised(pixels)))


@torch.inference_mode()
def test_embeddings_are_what_the_head_classifies() -> None:
    small, pixels = classifier(), noise(2)

    logits, pooled = EagerNetwork(small, embeddings=True)(pixels)

    module: Any = small.module
    assert pooled.shape == (2, small.num_features)
    assert torch.allclose(module.get_classifier()(pooled), logits, atol=1e-5)


@torch.inference_mode()
def test_a_module_that_cannot_be_taken_apart_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    timm_makes(monkeypatch, OnePiece)
    whole, pixels = classifier(), noise(1)
    network = EagerNetwork(whole)

    outputs = network(pixels)

    assert len(outputs) == 1
    assert torch.equal(outputs[0], whole.module(network.normalised(pixels)))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_another_precision_a_copy_runs_and_float32_comes_out(dtype: torch.dtype) -> None:
    small, pixels = classifier("test_vit.r160_in1k"), noise(2)

    half = EagerNetwork(small, dtype=dtype, embeddings=True)
    outputs, exact = half(pixels), EagerNetwork(small, embeddings=True)(pixels)

    assert {parameter.dtype for parameter in small.module.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert [output.dtype for output in outputs] == [torch.float32, torch.float32]
    off = (outputs[0].softmax(dim=1) - exact[0].softmax(dim=1)).abs().max() / exact[0].softmax(dim=1).max()
    assert 0 < off < 0.05


def test_on_a_gpu_a_copy_runs_and_on_a_cpu_the_module_itself() -> None:
    small, model = classifier(), ModelSettings(name=SMALL)

    on_gpu = eager_network(small, model, "fp32", torch.device("cuda"))
    on_cpu = eager_network(small, model, "fp32", torch.device("cpu"))

    assert on_cpu.module is small.module
    assert on_gpu.module is not small.module
    assert {parameter.data_ptr() for parameter in on_gpu.parameters()}.isdisjoint(
        parameter.data_ptr() for parameter in small.module.parameters()
    )
